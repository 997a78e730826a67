"""Models that are made when they are loaded, by a name with a prefix: ``optimal:fashion-mnist``.

    optimal:DATA[,images=N][,split=train|test][,exponent=gaussian|released]
        the optimal diffusion classifier of a data set (:mod:`rdc.method.optimal`): DATA as for --data, of its ``train`` split; N images,
        the first of each class in turn

A loader gets what stands behind the colon, the device and the settings, and gives a defence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from rdc.arguments.scalars import shown
from rdc.contracts import BaseDefence
from rdc.data import first_balanced, load_dataset
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.optimal import EXPONENTS, OptimalDenoiser

__all__ = ["DERIVED", "is_derived", "load_derived"]

OPTIMAL_LEVELS = "log:12:0.3:4:flat"
_SETTINGS = {
    name for name in inspect.signature(DiffusionClassifier.__init__).parameters if name not in ("self", "denoiser")
}


def is_derived(name: str) -> bool:
    """Whether a model's name begins with one of the prefixes."""
    return str(name).partition(":")[0] in DERIVED and ":" in str(name)


def load_derived(name: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    """A model of this module.

    Args, Raises: as :func:`rdc.models.zoo.load`; ``name`` is one that :func:`is_derived`.
    """
    prefix, _, rest = name.partition(":")
    return DERIVED[prefix](rest, device, settings)


def _load_optimal(text: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    data_name, fields = _fields(text, "optimal", {"images": None, "split": "train", "exponent": "gaussian"})
    if fields["exponent"] not in EXPONENTS:
        raise ConfigError(
            f"model optimal: exponent: expected {' or '.join(EXPONENTS)}; got {shown(fields['exponent'])}"
        )
    data = load_dataset(data_name, fields["split"])
    if fields["images"] is not None:
        data = first_balanced(data, _count(fields["images"], data.num_classes, len(data)))
    if unknown := set(settings) - _SETTINGS:
        raise ConfigError(
            f"settings: expected some of {', '.join(sorted(_SETTINGS))}; got {', '.join(sorted(unknown))}"
        )
    images = (data.pixels() * 2 - 1).to(device)
    denoiser = OptimalDenoiser(images, data.labels.to(device), data.num_classes, exponent=fields["exponent"])
    return DiffusionClassifier(denoiser, **{"levels": OPTIMAL_LEVELS, "class_names": data.class_names, **settings})


def _fields(text: str, prefix: str, known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """``"data,images=500"`` -> ("data", {...}), what is not said as in ``known``."""
    subject, *changes = text.split(",")
    found = dict(known)
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals or field not in known:
            raise ConfigError(
                f"model {prefix}: expected {prefix}:NAME with some of {', '.join(f'{field}=...' for field in known)} behind commas; "
                f"got {shown(text)}"
            )
        found[field] = value
    return subject, found


def _count(text: str, least: int, most: int) -> int:
    count = int(text) if text.isdecimal() and len(text) < 10 else 0
    if not least <= count <= most:
        raise ConfigError(f"model optimal: images: expected an integer from {least} to {most}; got {shown(text)}")
    return count


#: Prefix -> loader.
DERIVED: dict[str, Callable[[str, torch.device, dict[str, Any]], BaseDefence]] = {"optimal": _load_optimal}
