"""Tiny classifiers with random weights for tests: 8 x 8 images, two channels, three classes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import Denoiser, make_denoiser
from rdc.networks.presets import build_network

SHAPE, CLASSES = (2, 8, 8), 3
CONFIG = {
    "kind": "conditional",
    "image_shape": list(SHAPE),
    "num_classes": CLASSES,
    "patch_size": 2,
    "sigma_data": 0.5,
    "unet": {
        "architecture": "SongUNet",
        "model_channels": 8,
        "channel_mult": [1, 1],
        "num_blocks": 1,
        "attn_resolutions": [2],
        "dropout": 0.0,
    },
}
LEVELS = "log:5:0.3:3:flat"


def randomize(net: nn.Module, seed: int = 0, scale: float = 0.25) -> nn.Module:
    """Weights large enough that every part of the network matters (fresh networks output almost zero)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            draw = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.1 * draw if "norm" in name and name.endswith("weight") else scale * draw)
    return net


def tiny_denoiser(kind: str = "conditional", dtype: torch.dtype = torch.float32) -> Denoiser:
    config = copy.deepcopy(CONFIG) | {"kind": kind}
    if kind == "multihead":
        config |= {"wide_channels": 12}
    with torch.random.fork_rng():
        net = randomize(build_network(config))
    return make_denoiser(net.to(dtype), config)


def tiny_classifier(kind: str = "conditional", dtype: torch.dtype = torch.float32, **settings) -> DiffusionClassifier:
    return DiffusionClassifier(tiny_denoiser(kind, dtype), **{"levels": LEVELS, **settings})


def pixels(count: int = 4, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random images away from the borders of [0, 1]."""
    draw = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.2 + 0.6 * draw).to(dtype)
