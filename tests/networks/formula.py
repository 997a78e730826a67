"""Weights and inputs from integer arithmetic: the same on every machine and with every version of torch."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["fill", "noise_like"]


def noise_like(name: str, shape: tuple[int, ...]) -> Tensor:
    """Pseudo-random numbers, float64, uniform with mean 0 and variance 1, a function of ``name`` and position."""
    index = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 20)
    with np.errstate(over="ignore"):  # splitmix64
        index = (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        index = (index ^ (index >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        index = (index ^ (index >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        index ^= index >> np.uint64(31)
    unit = (index >> np.uint64(11)).astype(np.float64) / 2**53
    return torch.from_numpy((unit * 2 - 1) * math.sqrt(3)).reshape(shape)


def fill(net: nn.Module) -> nn.Module:
    """Give every parameter (and NCSN++'s frequencies) values by its name, so large that every part matters."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith(("resample_filter", "log_sigmas")):
                continue
            draw = noise_like(name, tuple(value.shape))
            if "norm" in name and name.endswith("weight"):
                draw = 1 + 0.2 * draw
            elif name.endswith("freqs"):
                draw = draw * 2
            elif value.ndim > 1 and "embedding.weight" not in name:
                draw = draw * math.sqrt(2 / value[0].numel())
            else:
                draw = draw * 0.3
            value.copy_(draw)
    return net
