"""Which device computes, by the names that a command line takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import shown
from rdc.errors import ConfigError

__all__ = ["chosen_device", "home_of"]

_KINDS = ("auto", "cpu", "cuda", "mps")
_ALSO = {"gpu": "cuda", "metal": "mps", "nvidia": "cuda"}


def chosen_device(name: str | None) -> torch.device:
    """The device of a name.

    Args:
        name: "cpu"; "cuda" or "cuda:N"; "mps" (Apple's GPUs); "auto" or None: cuda if there is one, else the CPU.

    Raises:
        ConfigError: no such name, or no such device here.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        device = None
    if device is None or device.type not in _KINDS:
        raise ConfigError(
            f"device: expected auto, cpu, cuda, cuda:N or mps; got {shown(name)}{did_you_mean(name, _KINDS, _ALSO)}"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps asked for, but PyTorch finds no GPU of Apple's here. Use --device cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"device: {name} asked for, but PyTorch sees {count} CUDA devices here (`rdc info` says more). "
                "Use --device cpu"
            )
    return device


def home_of(model: Any) -> torch.device:
    """Where a module's first parameter or buffer is; the CPU for anything else."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")
