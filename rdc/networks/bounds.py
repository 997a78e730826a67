"""How large a network's description may be, checked before any part of the network is made.

A description comes from a file that anybody may have written; one number in it can ask for a billion layers. The bounds are far
beyond any network in use (ADM for 512 x 512 images: 6 levels, 42 blocks, 1,536 channels, 560 million weights).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from rdc.arguments.scalars import as_number, shown
from rdc.errors import ConfigError

__all__ = ["BLOCKS", "LISTS", "NUMBERS", "WEIGHTS", "WHOLE", "check_description", "check_sigma_data", "least_size"]

#: whole numbers of a description: name -> (least, most)
WHOLE: dict[str, tuple[int, int]] = {
    "image channels": (1, 256),
    "image side": (1, 4096),
    "num_classes": (0, 100_000),
    "patch_size": (1, 64),
    "wide_channels": (1, 65_536),
    "width": (1, 65_536),
    "depth": (1, 64),
    "heads": (1, 65_536),
    "unet.augment_dim": (0, 65_536),
    "unet.model_channels": (1, 65_536),
    "unet.channel_mult_emb": (1, 64),
    "unet.channel_mult_noise": (1, 64),
    "unet.num_blocks": (0, 64),
    "unet.out_channels": (1, 512),
    "unet.time_embedding_dim": (1, 262_144),
    "unet.layers_per_block": (1, 64),
    "unet.norm_num_groups": (1, 65_536),
    "unet.attn_norm_num_groups": (1, 65_536),
    "unet.attention_head_dim": (1, 65_536),
    "unet.num_class_embeds": (1, 100_001),
    "unet.num_train_timesteps": (1, 100_000),
    "unet.downsample_padding": (0, 16),
}
#: lists of whole numbers: name -> (least, most, entries at most)
LISTS: dict[str, tuple[int, int, int]] = {
    "blocks": (1, 64, 16),
    "unet.channel_mult": (1, 256, 16),
    "unet.attn_resolutions": (0, 4096, 64),
    "unet.block_out_channels": (1, 65_536, 16),
}
#: other numbers: name -> (least, most)
NUMBERS: dict[str, tuple[float, float]] = {
    "unet.dropout": (0, 1),
    "unet.label_dropout": (0, 1),
    "unet.freq_shift": (-1000, 1000),
    "unet.mid_block_scale_factor": (1e-3, 1e3),
    "unet.norm_eps": (1e-12, 1),
}
SIGMA_DATA = (1e-3, 1e3)  #: of data scaled to [-1, 1] it is 1 at most; beyond these float32 loses c_skip or c_out
CHANNELS = 65_536  #: of a level: model_channels times its channel_mult, width times 2**stage, colours of a patch
BLOCKS = 256  #: residual blocks of the whole network
WEIGHTS = 2**33  #: weights of the whole network
_FLAGS = ("middle_attention", "adaptive_scale", "center_input_sample", "flip_sin_to_cos", "add_attention")
_TEXTS = ("down_block_types", "up_block_types")
_OPTIONAL = ("time_embedding_dim", "attn_norm_num_groups", "attention_head_dim", "num_train_timesteps")
_TAPS = 16


def check_description(config: dict[str, Any]) -> None:
    """Refuse a description that asks for more than the tables above, or has something else where a number belongs.

    What is missing, and what makes no sense together, is left to the networks.

    Args:
        config: see ``networks.presets.build_network``.

    Raises:
        ConfigError: naming the entry, what was expected and what came.
    """
    shape = config.get("image_shape")
    if isinstance(shape, (list, tuple)) and len(shape) == 3:
        _whole("image channels", shape[0])
        _whole("image side", shape[1])
        _whole("image side", shape[2])
    for name in ("num_classes", "patch_size", "wide_channels", "width", "depth", "heads"):
        if name in config:
            _whole(name, config[name])
    if "blocks" in config:
        _list("blocks", config["blocks"])
    if "sigma_data" in config:
        check_sigma_data(config["sigma_data"])
    unet = config.get("unet")
    for name, value in unet.items() if isinstance(unet, dict) else ():
        _argument(name, value)
    _check_size(config)


def least_size(config: dict[str, Any]) -> tuple[int, int]:
    """The fewest tensors, and the fewest weights, that the network of a checked description can have."""
    widths = list(_blocks(config))
    if config.get("kind") == "vit":
        return 12 * len(widths), sum(12 * width**2 for width in widths) + _least_tokens(config)
    tensors = 2 if config.get("norm") == "none" else 6  # a block's
    return tensors * len(widths), sum(9 * width**2 for width in widths) + _least_head(config)


def _argument(name: Any, value: Any) -> None:
    """One of the U-Net's arguments; words and unknown ones are the network's to refuse."""
    full = f"unet.{name}"
    if value is None and name in _OPTIONAL:
        return
    if full in WHOLE:
        _whole(full, value)
    elif full in LISTS:
        _list(full, value)
    elif full in NUMBERS:
        least, most = NUMBERS[full]
        number = as_number(value)
        if number is None or not least <= number <= most:
            _refuse(full, f"a number from {least:g} to {most:g}", value)
    elif name in _FLAGS:
        if not isinstance(value, bool):
            _refuse(full, "true or false", value)
    elif name in _TEXTS:
        most = LISTS["unet.block_out_channels"][2]
        if not isinstance(value, (list, tuple)) or len(value) > most or not all(isinstance(v, str) for v in value):
            _refuse(full, f"a list of at most {most} names", value)
    elif name == "resample_filter":
        known = isinstance(value, (list, tuple)) and 1 <= len(value) <= _TAPS
        taps = [tap for given in (value if known else ()) if (tap := as_number(given)) is not None]
        if not known or len(taps) < len(value) or any(not abs(tap) <= 1e6 for tap in taps) or not sum(taps):
            _refuse(full, f"a list of 1 to {_TAPS} numbers whose sum is not zero", value)


def _check_size(config: dict[str, Any]) -> None:
    """The parts together: channels of a level, blocks, weights."""
    for what, count, most in _products(config):
        if count > most:
            raise ConfigError(f"{what}: expected {most:,} at most in all; got {count:,}")


def _products(config: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    widths = list(_blocks(config))
    yield "residual blocks", len(widths), BLOCKS
    yield "channels of a level", max(widths, default=0), CHANNELS
    shape = config.get("image_shape")
    if isinstance(shape, (list, tuple)) and len(shape) == 3:
        yield (
            "channels of a patch (image channels x patch_size^2)",
            shape[0] * config.get("patch_size", 1) ** 2,
            CHANNELS,
        )
    yield "weights", least_size(config)[1], WEIGHTS


def _blocks(config: dict[str, Any]) -> Iterator[int]:
    """Width of every residual block, of those that any network of this description has."""
    if "blocks" in config and "width" in config:
        for stage, count in enumerate(config["blocks"]):
            yield from [config["width"] * 2**stage] * count
    if "depth" in config and "width" in config:
        yield from [config["width"]] * config["depth"]
    unet = config.get("unet")
    if not isinstance(unet, dict):
        return
    if "block_out_channels" in unet:
        layers = unet.get("layers_per_block", 2)
        for width in unet["block_out_channels"]:
            yield from [width] * (2 * layers + 1)
        return
    known = [defaults for name, defaults in _DEFAULTS.items() if name == unet.get("architecture")]
    for defaults in known:
        channels, mult, blocks = (unet.get(name, value) for name, value in defaults.items())
        for factor in mult:
            yield from [channels * factor] * (2 * blocks + 1)


#: where a description leaves them out
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {"model_channels": 128, "channel_mult": (1, 2, 2, 2), "num_blocks": 4},
    "DhariwalUNet": {"model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3},
}


def _least_tokens(config: dict[str, Any]) -> int:
    """Weights of a vision transformer's places and class head."""
    width: int = config.get("width", 1)
    shape, patch = config.get("image_shape"), config.get("patch_size", 1)
    if not isinstance(shape, (list, tuple)) or len(shape) != 3:
        return 0
    rows: int = (shape[1] // patch) * (shape[2] // patch) + shape[0] * patch**2 + config.get("num_classes", 0)
    return width * rows


def _least_head(config: dict[str, Any]) -> int:
    """Weights of the layers whose size grows with the number of classes."""
    classes: int = config.get("num_classes", 0)
    unet = config.get("unet")
    if config.get("kind") != "multihead" or not isinstance(unet, dict):
        return classes
    shape = config.get("image_shape")
    if not isinstance(shape, (list, tuple)) or len(shape) != 3:
        return classes
    folded: int = shape[0] * config.get("patch_size", 1) ** 2
    wide: int = config.get("wide_channels", 1)
    return 9 * (classes + 1) * folded * (wide + folded)


def _whole(name: str, value: Any) -> None:
    least, most = WHOLE[name]
    if type(value) is not int or not least <= value <= most:
        _refuse(name, f"a whole number from {least:,} to {most:,}", value)


def _list(name: str, value: Any) -> None:
    least, most, length = LISTS[name]
    known = isinstance(value, (list, tuple)) and len(value) <= length
    if not known or any(type(entry) is not int or not least <= entry <= most for entry in value):
        _refuse(name, f"a list of at most {length} whole numbers from {least:,} to {most:,}", value)


def _refuse(name: str, expected: str, value: Any) -> NoReturn:
    raise ConfigError(f"{name}: expected {expected}; got {shown(value)}")


def check_sigma_data(value: Any) -> None:
    """Refuse what cannot be the standard deviation of any data: zero, negative, NaN, text, or out of all proportion.

    Raises:
        ConfigError: it is.
    """
    number, (least, most) = as_number(value), SIGMA_DATA
    if number is None or not least <= number <= most:
        raise ConfigError(
            f"sigma_data: expected a number from {least:g} to {most:g}, the standard deviation of the data in [-1, 1] (EDM: 0.5); "
            f"got {shown(value)}"
        )
