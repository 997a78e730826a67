"""Descriptions of networks in files of the user's own, JSON or TOML, for images of any size.

    size = "small"                 # what is not said is as in this size (rdc.networks.sizes); may be left out
    patch_size = 2
    [unet]
    model_channels = 96
    channel_mult = [1, 2, 2]

Without ``size`` the file says all that ``networks.presets.build_network`` asks for but ``image_shape`` and ``num_classes``, which are
the data's; where they are said, they have to be. The ``config`` of a checkpoint's JSON is such a description, and that file may be named.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from rdc.arguments.scalars import shown
from rdc.errors import ConfigError, one_line
from rdc.networks.presets import DISCRIMINATIVE, build_network
from rdc.networks.sizes import SIZES, scaled_network
from rdc.storage.json_files import read_json
from rdc.storage.toml_files import read_toml

__all__ = ["SUFFIXES", "is_network_file", "read_network_file"]

SUFFIXES = (".json", ".toml")


def is_network_file(name: str) -> bool:
    """Whether a network's name is that of a file: it ends in one of :data:`SUFFIXES`."""
    return str(name).lower().endswith(SUFFIXES)


def read_network_file(
    path: str | os.PathLike[str], family: str, image_shape: tuple[int, int, int], num_classes: int
) -> dict[str, Any]:
    """The description in a file, completed for these images; the network can be built from it.

    Args:
        path: a JSON or TOML file.
        family: of a ``size`` that the file names, see ``rdc.networks.sizes.FAMILIES``.
        image_shape: (C, H, W) of the data.
        num_classes: K of the data.

    Raises:
        ConfigError: the file cannot be read, says other images or classes than the data's, or describes no network.
    """
    name = one_line(os.fspath(path), 400)
    said = _read(path)
    size = said.pop("size", None)
    base: dict[str, Any] = {}
    if size is not None:
        if size not in SIZES:
            raise ConfigError(f"{name}: size: expected {', '.join(SIZES)}; got {shown(size)}")
        base = scaled_network(size, family, image_shape, num_classes)
    data = {"image_shape": list(image_shape), "num_classes": num_classes}
    for key, value in data.items():
        if key in said and said[key] != value:
            raise ConfigError(
                f"{name}: {key}: expected {shown(value)}, as the data have it, or no such entry; got {shown(said[key])}"
            )
    config = {**base, **said, **data}
    if isinstance(base.get("unet"), dict) and isinstance(said.get("unet"), dict):
        config["unet"] = {**base["unet"], **said["unet"]}
    if config.get("kind") not in DISCRIMINATIVE:
        config.setdefault("sigma_data", 0.5)
    try:
        with torch.device("meta"):
            build_network(config)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return config


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The entries of the file."""
    if Path(path).suffix.lower() == ".toml":
        return read_toml(path, ConfigError, "a network's description (TOML)")
    said: dict[str, Any] = read_json(path, ConfigError, kind=dict)
    inner = said.get("config")
    return dict(inner) if isinstance(inner, dict) else said
