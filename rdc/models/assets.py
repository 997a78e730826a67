"""Checkpoints that come with rdc. Large weights are left out of the wheel, and may lie elsewhere.

The description of every shipped model is in the package, with the SHA-256 of its weights; so weights from anywhere are the right ones
or are refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from rdc.errors import CheckpointError, one_line
from rdc.models.checkpoints import load_model
from rdc.models.descriptions import read_description
from rdc.storage.home import cache_folder, expanded

__all__ = ["ASSETS", "LEFT_OUT", "load_shipped", "weights_of"]

ASSETS = Path(__file__).resolve().parent.parent / "assets"

#: models whose weights are not in the wheel (pyproject.toml) -> their size
LEFT_OUT = {"cifar10": "17 MB"}


def load_shipped(name: str) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """A shipped model of one network: what :func:`rdc.models.checkpoints.load_model` returns.

    Args:
        name: a key of ``rdc.models.single.SINGLE``.

    Raises:
        CheckpointError: its weights are not here, or are damaged.
    """
    return load_model(ASSETS / name, weights=weights_of(name))


def weights_of(name: str) -> Path:
    """The file of weights of a shipped model: in the package, in the folder that ``RDC_ASSETS`` names, or in ``~/.cache/rdc/assets``.

    Raises:
        CheckpointError: it is in none of them, although it is one of those that the wheel leaves out.
    """
    own = ASSETS / f"{name}.safetensors"
    if name not in LEFT_OUT or own.is_file():
        return own
    places = _places()
    for place in places:
        if (file := place / own.name).is_file():
            return file
    digest = read_description(ASSETS / f"{name}.json")["sha256"]
    where = " or ".join(one_line(place, 300) for place in places) or "a folder of your choice"
    raise CheckpointError(
        f"model {name}: its weights ({LEFT_OUT[name]}) are not in the wheel. Put rdc/assets/{own.name} of the repository or of the "
        f"sdist into {where}, or name the folder that has it with RDC_ASSETS; SHA-256 {digest}"
    )


def _places() -> list[Path]:
    """Where weights may lie outside the package; there need not be such folders."""
    named, cache = os.environ.get("RDC_ASSETS"), cache_folder("assets")
    return [*([expanded(named, CheckpointError)] if named else []), *([cache] if cache else [])]
