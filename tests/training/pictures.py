"""A tiny data set that a classifier can learn, and networks that start alike."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from rdc.data import Dataset
from rdc.networks.presets import build_network


def fresh_network(description: dict[str, Any]) -> nn.Module:
    """The same first weights whenever it is called."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return build_network(description)


@functools.cache
def images() -> Dataset:
    """54 images of three classes: a faint picture for each class, and noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(54) % 3
    pictures = torch.rand(3, 1, 8, 8, generator=generator)[labels]
    pixels = (0.5 * pictures + 0.5 * torch.rand(54, 1, 8, 8, generator=generator)) * 255
    return Dataset(pixels.to(torch.uint8), labels, ("a", "b", "c"), "pictures", "train")
