"""Networks by name and from a JSON description: ``build_network(config)`` is the only place that makes one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import shown
from rdc.errors import ConfigError, one_line
from rdc.networks.blocks import Linear
from rdc.networks.bounds import check_description
from rdc.networks.diffusers_unet import DiffusersUNet
from rdc.networks.heads import MultiHeadUNet, PatchUNet
from rdc.networks.resnet import ResNet
from rdc.networks.unet import DhariwalUNet, SongUNet
from rdc.networks.vision_transformer import VisionTransformer
from rdc.networks.vp import VPNetwork, vp_sigmas

__all__ = ["DISCRIMINATIVE", "NETWORK_PRESETS", "build_network", "network_preset", "with_augmentation_label"]

#: kinds of network that take pixels and give logits
DISCRIMINATIVE = ("resnet", "vit")

_SMALL_UNET = {
    "architecture": "SongUNet",
    "model_channels": 64,
    "channel_mult": [1, 1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "middle_attention": False,
    "dropout": 0.0,
}

#: for minutes on a GPU; attention only in the middle, where the image is smallest
_GPU_UNET = _SMALL_UNET | {"middle_attention": True, "adaptive_scale": True}

#: Descriptions of networks that go through every command in a minute (tiny-28), that train well on two cores (small-*), in
#: minutes on a GPU (medium-32, large-32), the EDM CIFAR-10 architectures, and classifiers for the baselines (resnet-*, vit-*).
NETWORK_PRESETS: dict[str, dict[str, Any]] = {
    "tiny-28": {
        "kind": "conditional",
        "image_shape": [1, 28, 28],
        "patch_size": 2,
        "unet": _SMALL_UNET | {"model_channels": 16, "channel_mult": [1, 2], "adaptive_scale": True},
    },
    "small-28": {
        "kind": "conditional",
        "image_shape": [1, 28, 28],
        "patch_size": 2,
        "unet": _SMALL_UNET | {"model_channels": 48, "channel_mult": [1, 2], "adaptive_scale": True},
    },
    "small-32": {
        "kind": "conditional",
        "image_shape": [3, 32, 32],
        "patch_size": 2,
        "unet": _SMALL_UNET | {"channel_mult": [1, 2, 2]},
    },
    "medium-32": {
        "kind": "conditional",
        "image_shape": [3, 32, 32],
        "patch_size": 2,
        "unet": _GPU_UNET | {"channel_mult": [2, 3]},
    },
    "large-32": {
        "kind": "conditional",
        "image_shape": [3, 32, 32],
        "patch_size": 2,
        "unet": _GPU_UNET | {"model_channels": 128, "channel_mult": [1, 2, 2]},
    },
    "edm-ddpmpp-32": {
        "kind": "conditional",
        "image_shape": [3, 32, 32],
        "unet": {"architecture": "SongUNet", "augment_dim": 9, "channel_mult": [2, 2, 2], "dropout": 0.13},
    },
    "edm-ncsnpp-32": {
        "kind": "conditional",
        "image_shape": [3, 32, 32],
        "unet": {
            "architecture": "SongUNet",
            "augment_dim": 9,
            "channel_mult": [2, 2, 2],
            "dropout": 0.13,
            "embedding_type": "fourier",
            "channel_mult_noise": 2,
            "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
        },
    },
    "edm-adm-32": {
        "kind": "conditional",
        "image_shape": [3, 32, 32],
        "unet": {"architecture": "DhariwalUNet", "augment_dim": 9, "attn_resolutions": [16, 8]},
    },
    "resnet-small-28": {
        "kind": "resnet",
        "image_shape": [1, 28, 28],
        "patch_size": 2,
        "width": 24,
        "blocks": [1, 1, 1, 1],
    },
    "resnet-small-32": {
        "kind": "resnet",
        "image_shape": [3, 32, 32],
        "patch_size": 2,
        "width": 64,
        "blocks": [1, 1, 1],
    },
    "resnet-energy-28": {
        "kind": "resnet",
        "image_shape": [1, 28, 28],
        "patch_size": 2,
        "width": 16,
        "blocks": [1, 1, 1],
        "norm": "none",
        "activation": "leaky-relu",
    },
    "vit-small-28": {
        "kind": "vit",
        "image_shape": [1, 28, 28],
        "patch_size": 4,
        "width": 64,
        "depth": 4,
        "heads": 4,
    },
}


def network_preset(name: str, num_classes: int) -> dict[str, Any]:
    """Description of a preset network for ``num_classes`` classes (0: unconditional).

    Raises:
        ConfigError: no preset has that name.
    """
    if name not in NETWORK_PRESETS:
        raise ConfigError(
            f"network preset: expected one of {', '.join(NETWORK_PRESETS)}; got {name!r}{did_you_mean(name, NETWORK_PRESETS)}"
        )
    config = {**copy.deepcopy(NETWORK_PRESETS[name]), "num_classes": num_classes}
    return config if config["kind"] in DISCRIMINATIVE else {**config, "sigma_data": 0.5}


def build_network(config: dict[str, Any]) -> nn.Module:
    """Make the network that ``config`` describes, with freshly drawn weights.

    Args:
        config: ``kind`` ("conditional", "multihead", "resnet" or "vit"), ``image_shape`` [C, H, W], ``num_classes``
            K, ``patch_size`` (default 1; of a U-Net it divides H and W, else patches are padded), ``unet`` (``architecture`` and
            its arguments), for "multihead" also ``wide_channels``; for architecture "UNet2DModel", whose images are square, also
            ``vp``: ``schedule`` (see ``networks.vp.vp_sigmas``), ``prediction``, ``null_label``. "resnet" has no ``unet`` but
            ``width`` and ``blocks`` (see ``networks.resnet.ResNet``), "vit" ``width``, ``depth`` and ``heads`` (see
            ``networks.vision_transformer.VisionTransformer``).

    Returns:
        An ``nn.Module``: conditional networks map (x, noise_labels, one-hot labels) to F [B, C, H, W];
        multi-head networks (x, noise_labels) to F [B, K + 1, C, H, W]; resnets and vits map pixels [B, C, H, W] in
        [0, 1] to logits [B, K].

    Raises:
        ConfigError: the description is incomplete or inconsistent, or asks for more than ``networks.bounds`` allows.
    """
    if isinstance(config, dict) and config.get("kind") == "resnet":
        return _build_resnet(config)
    if isinstance(config, dict) and config.get("kind") == "vit":
        return _build_vit(config)
    try:
        channels, height, width = config["image_shape"]
        kind, unet = config["kind"], dict(config["unet"])
        architecture = unet.pop("architecture")
        num_classes, patch = config["num_classes"], config.get("patch_size", 1)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"network description: expected kind, image_shape [C, H, W], num_classes, unet.architecture; "
            f"{one_line(repr(error), 80)} in {shown(config, 400)}"
        ) from error
    check_description(config)
    if height % patch or width % patch:
        raise ConfigError(f"image_shape: expected sides divisible by patch_size {patch}; got {height} x {width}")
    if architecture == "UNet2DModel":
        return _build_vp(config, unet)
    classes = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
    if not isinstance(architecture, str) or architecture not in classes:
        raise ConfigError(
            f"unet.architecture: expected one of {', '.join(classes)}, UNet2DModel; got {shown(architecture)}"
        )
    folded, grid = channels * patch**2, (height // patch, width // patch)
    with _building("unet"):
        net = classes[architecture](grid, folded, folded, label_dim=num_classes, **unet)
    if kind == "conditional":
        return net if patch == 1 else PatchUNet(net, patch)
    if kind == "multihead":
        return _multihead(net, config)
    raise ConfigError(f'kind: expected "conditional", "multihead", "resnet" or "vit"; got {shown(kind)}')


def _multihead(net: nn.Module, config: dict[str, Any]) -> nn.Module:
    """A multi-head network on this U-Net."""
    if not isinstance(net, SongUNet):
        architecture = config["unet"]["architecture"]
        raise ConfigError(f'kind "multihead": expected unet.architecture "SongUNet"; got {architecture!r}')
    if "feature_channels" in config:
        raise ConfigError(
            "feature_channels: expected a multi-head network with its head on patches (wide_channels alone); this "
            "one was made before rdc 0.1 was released. Distil it again"
        )
    width = {"wide_channels": config["wide_channels"]} if "wide_channels" in config else {}
    channels = config["image_shape"][0]
    return MultiHeadUNet(net, config.get("patch_size", 1), channels, config["num_classes"], **width)


@contextlib.contextmanager
def _building(what: str) -> Iterator[None]:
    """Whatever a network's parts say against its arguments, as one error about the description."""
    try:
        yield
    except (ConfigError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(f"{what}: {one_line(error, 400)}") from error


def with_augmentation_label(network: nn.Module, config: dict[str, Any], length: int) -> dict[str, Any]:
    """Give ``network`` an input for the label of an augmentation, unless it has one; at first it changes nothing.

    Args:
        network: made from ``config``; gets a ``map_augment`` of zeros.
        length: of the label, see :func:`rdc.training.augmentation.geometric`.

    Returns:
        The description of the network as it is now.

    Raises:
        ConfigError: the network takes no such label, or one of another length.
    """
    unet = network if isinstance(network, (SongUNet, DhariwalUNet)) else getattr(network, "unet", None)
    if not isinstance(unet, (SongUNet, DhariwalUNet)):
        architecture = config.get("unet", {}).get("architecture", config.get("kind"))
        raise ConfigError(f"augment: expected a SongUNet or DhariwalUNet; {architecture} takes no augmentation label")
    if unet.map_augment is not None:
        if unet.map_augment.in_features != length:
            raise ConfigError(
                f"augment: expected a network for labels of length {length}; this one has {unet.map_augment.in_features}"
            )
        return config
    width = unet.map_layer0.in_features
    unet.map_augment = Linear(length, width, bias=False, scale=0.0).to(unet.map_layer0.weight)
    return {**copy.deepcopy(config), "unet": {**config["unet"], "augment_dim": length}}


def _build_resnet(config: dict[str, Any]) -> ResNet:
    """A classifier: pixels to logits."""
    values = _counts(config, ("num_classes", "width", "patch_size"), ("image_shape", "blocks"), ("norm", "activation"))
    return ResNet(**values)


def _build_vit(config: dict[str, Any]) -> VisionTransformer:
    """A classifier that denoises as well."""
    return VisionTransformer(
        **_counts(config, ("num_classes", "width", "depth", "heads", "patch_size"), ("image_shape",))
    )


def _counts(
    config: dict[str, Any], numbers: tuple[str, ...], lists: tuple[str, ...], words: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The arguments of a classifier, checked: whole numbers >= 1 and lists of them; ``patch_size`` and words may be missing."""
    kind = config["kind"]
    required = [name for name in (lists[0], *numbers, *lists[1:]) if name != "patch_size"]
    missing = [name for name in required if name not in config]
    unknown = sorted(set(config) - {"kind", "patch_size", *required, *words})
    if missing or unknown:
        raise ConfigError(
            f'kind "{kind}": expected kind, {", ".join(required)} and perhaps {", ".join(("patch_size", *words))}; missing '
            f"{', '.join(missing) or 'none'}, unknown {', '.join(unknown) or 'none'}"
        )
    values = {name: config.get(name, 1) for name in numbers}
    sequences = {name: config[name] for name in lists}
    wrong = [name for name, value in values.items() if not _is_count(value)]
    for name, value in sequences.items():
        if not isinstance(value, (list, tuple)) or not all(map(_is_count, value)):
            wrong.append(name)
    if wrong or len(sequences["image_shape"]) != 3:
        got = ", ".join(f"{name} {shown(config.get(name))}" for name in wrong or ["image_shape"])
        raise ConfigError(
            f'kind "{kind}": expected whole numbers >= 1 for {_listed(numbers)}, lists of them for '
            f"{_listed([f'{name} [C, H, W]' if name == 'image_shape' else name for name in lists])}; got {got}"
        )
    check_description(config)
    chosen = {name: config[name] for name in words if name in config}
    return {**values, **{name: tuple(value) for name, value in sequences.items()}, **chosen}


def _listed(names: Any) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _build_vp(config: dict[str, Any], unet: dict[str, Any]) -> VPNetwork:
    """A diffusers ``UNet2DModel`` with its discrete noise schedule, answering like an EDM network."""
    channels, size, width = config["image_shape"]
    if width != size:
        raise ConfigError(f'unet.architecture "UNet2DModel": expected square images; got {size} x {width}')
    num_classes, vp = config["num_classes"], config.get("vp") or {}
    if not isinstance(vp, dict) or not isinstance(vp.get("schedule") or {}, dict):
        raise ConfigError(f"vp: expected an object with schedule, prediction and null_label; got {shown(vp)}")
    null_label, embeddings = vp.get("null_label"), unet.pop("num_class_embeds", None)
    trained_null = type(null_label) is int
    if config["kind"] != "conditional" or config.get("patch_size", 1) != 1:
        raise ConfigError('unet.architecture "UNet2DModel": expected kind "conditional" and patch_size 1')
    named = null_label is None or null_label == "mean"
    if not (named or (isinstance(null_label, int) and trained_null and 0 <= null_label <= num_classes)):
        raise ConfigError(f'vp.null_label: expected null, "mean" or an index 0..{num_classes}; got {shown(null_label)}')
    if not num_classes and (embeddings is not None or null_label is not None):
        raise ConfigError(
            f"num_classes: expected 1 or more with num_class_embeds {shown(embeddings)} and null_label {shown(null_label)}; got 0, an "
            "unconditional network, which has neither"
        )
    if num_classes and embeddings != num_classes + trained_null:
        raise ConfigError(
            f"num_class_embeds: expected {num_classes + trained_null} (num_classes {num_classes}, null_label "
            f"{null_label!r}); got {shown(embeddings)}"
        )
    with _building("UNet2DModel"):
        net = DiffusersUNet(size, channels, unet.pop("out_channels", channels), embeddings or 0, **unet)
        sigmas = vp_sigmas(vp.get("schedule") or {})
        sigma_data = config.get("sigma_data", 0.5)
        return VPNetwork(net, sigmas, vp.get("prediction", "epsilon"), num_classes, null_label, sigma_data)
