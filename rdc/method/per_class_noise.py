"""Noise that classes do not share: what the paper's common random numbers are worth is seen by doing without them.

A diffusion classifier decides by differences of class losses. With one draw for all classes most of the noise of the losses
cancels in them (arXiv 2305.15241, section 3.2); here every class has a draw of its own, and every class costs a pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rdc.errors import ConfigError
from rdc.method.denoiser import Denoiser, MultiHeadDenoiser
from rdc.method.draw import Draw
from rdc.ops.multihead_loss import multihead_loss

__all__ = ["PerClassNoise"]


class PerClassNoise(Denoiser):
    """A denoiser whose class losses look at a draw of noise for each class; otherwise as the one it is made of.

    The noise of a level in a draw is [K*C, H, W], class after class: K passes a level, whatever the network.

    Args:
        denoiser: conditional or multi-head; shared, not copied.

    Raises:
        ConfigError: classes have draws of their own there already.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        if isinstance(denoiser, PerClassNoise):
            raise ConfigError(
                "noise per class: expected a denoiser whose classes share noise; got one that has it already"
            )
        super().__init__(denoiser.network, denoiser.num_classes, denoiser.image_shape, denoiser.precondition.sigma_data)
        self.inner = denoiser
        self.head, self.precision, self.passes_per_level = denoiser.head, denoiser.precision, denoiser.num_classes
        self.null_training, self.source = denoiser.null_training, denoiser.source

    @property
    def label_free(self) -> bool:
        return self.inner.label_free

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.inner.latent_shape

    def encode(self, x0: Tensor) -> Tensor:
        return self.inner.encode(x0)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.latent_shape
        return self.num_classes * channels, height, width

    def in_precision(self, precision: str) -> Denoiser:
        found = self.inner.in_precision(precision)
        return self if found is self.inner else PerClassNoise(found)

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "noise_per_class": True}

    def recordable(self) -> Denoiser:
        """Nothing is translated.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("export: noise per class is for studies; export the classifier whose classes share noise")

    def class_losses(self, x0: Tensor, draw: Draw) -> Tensor:
        return torch.stack([self._losses(x0, draw, label) for label in range(self.num_classes)], 1)

    def losses_of_labels(self, x0: Tensor, draw: Draw, labels: Tensor) -> Tensor:
        picks = [(labels == label).nonzero().flatten() for label in range(self.num_classes)]
        parts = [self._losses(x0[pick], draw, label) for label, pick in enumerate(picks) if len(pick)]
        return torch.cat(parts)[torch.cat(picks).argsort()] if parts else x0.new_zeros(0)

    def f_null(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.inner.f_null(x_t, sigma)

    def f(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return self.inner.f(x_t, sigma, labels)

    def _losses(self, x0: Tensor, draw: Draw, label: int) -> Tensor:
        """Weighted losses [N] of one class, under its own noise."""
        channels = self.latent_shape[0]
        own = Draw(draw.sigma, draw.weight, draw.noise[:, label * channels : (label + 1) * channels])
        if not isinstance(self.inner, MultiHeadDenoiser):
            return self.inner.losses_of_labels(x0, own, torch.full((len(x0),), label, device=x0.device))
        h, head, bias, target, weight = self.inner.loss_operands(*self.inner.noisy(x0, own), own)
        rows = slice(label * target.shape[1], (label + 1) * target.shape[1])
        losses: Tensor = multihead_loss(h, head[rows], bias[rows], target, weight)[:, 0]
        return losses
