"""A classifier that wants normalised images of one size, as a function of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["NormalisedModel"]


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
