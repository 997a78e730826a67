"""Networks that fit the images: a size by name, ``small``, scaled to height, width, channels and classes.

What is scaled, for C x H x W images:

    patches     P x P pixels become one place of the grid: 4 where it divides both sides and 14 places or more lie along the
                shorter one, else 2 where it divides both and the image has 16 pixels or more a side, else 1
    levels      a U-Net halves the grid until about four (medium: eight) places are left along the shorter side; a grid that
                cannot be halved so often is padded with zeros inside the network (:mod:`rdc.networks.unet`)
    classes     the label's embedding, and a student's head

Odd sides have patches of one pixel: the network sees every pixel, and a step costs four times what it would on patches of two.
A classifier (``rdc train --method``) pads its patches instead. Where :mod:`rdc.networks.presets` has a network of a size for exactly
these images, ``small`` is that one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from rdc.errors import ConfigError
from rdc.networks.presets import network_preset

__all__ = ["FAMILIES", "SIZES", "patch_side", "scaled_network"]

SIZES = ("tiny", "small", "medium", "large")
_FEWEST_PLACES = 14  #: along the shorter side, on patches of four
_SMALLEST_FOLDED = 16  #: pixels along the shorter side, on patches of two
_MOST_LEVELS = 5
#: family, size, image shape -> the preset that it is
_PRESETS = {
    ("diffusion", "tiny", (1, 28, 28)): "tiny-28",
    ("diffusion", "small", (1, 28, 28)): "small-28",
    ("diffusion", "small", (3, 32, 32)): "small-32",
    ("diffusion", "medium", (3, 32, 32)): "medium-32",
    ("diffusion", "large", (3, 32, 32)): "large-32",
    ("resnet", "small", (1, 28, 28)): "resnet-small-28",
    ("resnet", "small", (3, 32, 32)): "resnet-small-32",
    ("energy", "small", (1, 28, 28)): "resnet-energy-28",
    ("vit", "small", (1, 28, 28)): "vit-small-28",
}
Shape = tuple[int, int, int]


def scaled_network(size: str, family: str, image_shape: Shape, num_classes: int) -> dict[str, Any]:
    """Description of a network of this size for these images, for ``networks.presets.build_network``.

    Args:
        size: one of :data:`SIZES`.
        family: one of :data:`FAMILIES`: "diffusion" (a class-conditional U-Net), "resnet", "energy" (a resnet without norms), "vit".
        image_shape: (C, H, W).
        num_classes: K.

    Raises:
        ConfigError: an unknown size or family.
    """
    if size not in SIZES or family not in FAMILIES:
        raise ConfigError(
            f"network: expected a size ({', '.join(SIZES)}) of a family ({', '.join(FAMILIES)}); got {size!r} of {family!r}"
        )
    shape = (int(image_shape[0]), int(image_shape[1]), int(image_shape[2]))
    if (preset := _PRESETS.get((family, size, shape))) is not None:
        return network_preset(preset, num_classes)
    return {"image_shape": list(shape), "num_classes": num_classes, **copy.deepcopy(FAMILIES[family](size, shape))}


def patch_side(height: int, width: int) -> int:
    """Side of the patches that a diffusion network works on: 4, 2 or 1; it divides both sides."""
    for side, least in ((4, 4 * _FEWEST_PLACES), (2, _SMALLEST_FOLDED)):
        if height % side == 0 == width % side and min(height, width) >= least:
            return side
    return 1


def _diffusion(size: str, shape: Shape) -> dict[str, Any]:
    side = patch_side(*shape[1:])
    places = min(shape[1:]) // side
    channels, first, more, smallest = {
        "tiny": (16, 1, 2, 8),
        "small": (48 if shape[0] == 1 else 64, 1, 2, 4),
        "medium": (64, 2, 3, 8),
        "large": (128, 1, 2, 4),
    }[size]
    levels = min(2, _levels(places, 2)) if size == "tiny" else _levels(places, smallest)
    return {
        "kind": "conditional",
        "patch_size": side,
        "unet": {
            "architecture": "SongUNet",
            "model_channels": channels,
            "channel_mult": [first, *[more] * (levels - 1)],
            "num_blocks": 1,
            "attn_resolutions": [],
            "middle_attention": size in ("medium", "large"),
            "dropout": 0.0,
            "adaptive_scale": True,
        },
        "sigma_data": 0.5,
    }


def _levels(places: int, smallest: int) -> int:
    """The grid and its halves, down to ``smallest`` places along a side; two where the grid can be halved at all."""
    halves = max(1, places // smallest).bit_length()
    return max(min(2, places.bit_length()), min(_MOST_LEVELS, halves))


def _padded_patch(shape: Shape) -> int:
    """Side of the patches of a network that pads them."""
    shorter = min(shape[1:])
    return 4 if shorter >= 4 * _FEWEST_PLACES else 2 if shorter >= _SMALLEST_FOLDED else 1


def _resnet(size: str, shape: Shape) -> dict[str, Any]:
    patch = _padded_patch(shape)
    stages = min(4, _levels(min(shape[1:]) // patch, 2))
    width, blocks = {"tiny": (8, 1), "small": (24 if shape[0] == 1 else 64, 1), "medium": (64, 2), "large": (96, 3)}[
        size
    ]
    return {"kind": "resnet", "patch_size": patch, "width": width, "blocks": [blocks] * stages}


def _energy(size: str, shape: Shape) -> dict[str, Any]:
    width = {"tiny": 8, "small": 16, "medium": 32, "large": 64}[size]
    return {**_resnet(size, shape), "width": width, "norm": "none", "activation": "leaky-relu"}


def _vit(size: str, shape: Shape) -> dict[str, Any]:
    width, depth, heads = {"tiny": (32, 2, 2), "small": (64, 4, 4), "medium": (128, 6, 4), "large": (256, 8, 8)}[size]
    patch = 8 if min(shape[1:]) >= 8 * _FEWEST_PLACES // 2 else 4 if min(shape[1:]) >= _SMALLEST_FOLDED else 2
    return {"kind": "vit", "patch_size": patch, "width": width, "depth": depth, "heads": heads}


#: family -> how a size of it is described for images of a shape
FAMILIES: dict[str, Callable[[str, Shape], dict[str, Any]]] = {
    "diffusion": _diffusion,
    "resnet": _resnet,
    "energy": _energy,
    "vit": _vit,
}
