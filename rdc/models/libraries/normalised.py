"""A classifier that wants normalised images of one size, as a function of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rdc.contracts import BaseDefence
from rdc.errors import ConfigError
from rdc.models.discriminative import as_discriminative
from rdc.models.words import different_names, parse_shape

__all__ = ["NormalisedModel", "of_library"]


class NormalisedModel(nn.Module):
    """pixels [N, C, H, W] in [0, 1] -> resized, (pixels - mean) / std -> logits [N, K].

    Args:
        model: takes normalised images [N, C, h, w].
        mean, std: a number a channel, of pixels in [0, 1]; (0,) and (1,): the model normalises itself.
        size: (h, w) that other images are resized to, antialiased, a part of the gradient.
        bicubic: how; else bilinear.
        source: name of the model, for reports.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int],
        bicubic: bool,
        source: str,
    ) -> None:
        super().__init__()
        self.model, self.size, self.mode, self.source = model, size, "bicubic" if bicubic else "bilinear", source
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        if tuple(pixels.shape[2:]) != self.size:
            pixels = nn.functional.interpolate(pixels, self.size, mode=self.mode, align_corners=False, antialias=True)
        logits: Tensor = self.model((pixels - self.mean) / self.std)
        return logits


def of_library(
    model: NormalisedModel,
    image: str | None,
    num_classes: int,
    names: Sequence[str] | None,
    device: torch.device,
    settings: dict[str, Any],
) -> BaseDefence:
    """The classifier of a library's model.

    Args:
        model: with the size and the channels that it takes.
        image: "CxHxW" of the images; None: the model's size.
        num_classes: K.
        names: of the classes, if they are K; also several times the same.
        device: where to put it.
        settings: gradient, noise, noise_seed.

    Raises:
        ConfigError: images of other channels, or settings of a diffusion classifier.
    """
    channels, place = model.mean.shape[1], model.source
    shape = (channels, *model.size) if image is None else parse_shape(image)
    if shape[0] != channels:
        raise ConfigError(f"image: expected {channels} channels, which {place} takes; got {shape[0]}")
    different = different_names(names, num_classes)
    kind = place.partition(":")[0]
    return as_discriminative(model.to(device).eval(), place, shape, num_classes, different, settings, place, kind)
