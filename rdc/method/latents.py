"""Diffusion in the latents of an encoder, as a denoiser of images: noise, denoising and losses there, gradients and budgets in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rdc.arguments.scalars import shown
from rdc.errors import ConfigError, one_line
from rdc.execution.memory import bytes_per_item
from rdc.execution.opaque import checkpointed, kept_for_later, transformed, wanted
from rdc.execution.surroundings import measured
from rdc.method.class_gradients import joined
from rdc.method.denoiser import Denoiser
from rdc.method.draw import Draw

__all__ = ["LatentDenoiser", "encoded", "encoding_bytes", "latent_shape", "refuse_latents"]


class LatentDenoiser(Denoiser):
    """A denoiser of latents behind an encoder.

    log p(y|x) is that of the latents: the encoder is taken for a function that loses nothing, which none is. Likelihood maximisation moves
    pixels, uphill in the likelihood of their latents.

    Args:
        inner: the denoiser of latents; its image_shape is (c, h, w).
        encoder: images [N, C, H, W] in [-1, 1] -> latents [N, c, h, w] in the units that the denoiser was trained in, without noise
            (an autoencoder's mean, not a sample of it).
        image_shape: (C, H, W).

    Raises:
        ConfigError: the encoder does not take such images, or gives latents of another shape than the denoiser takes.
    """

    def __init__(self, inner: Denoiser, encoder: nn.Module, image_shape: tuple[int, int, int]) -> None:
        super().__init__(inner.network, inner.num_classes, image_shape, inner.precondition.sigma_data)
        self.inner, self.encoder = inner, encoder
        self.passes_per_level, self.head, self.precision = (
            inner.passes_per_level,
            f"{inner.head}, latent",
            inner.precision,
        )
        self.null_training, self.source = inner.null_training, inner.source
        found = latent_shape(encoder, self.image_shape)
        if found != inner.image_shape:
            raise ConfigError(
                f"encoder: expected latents {list(inner.image_shape)} of images {list(image_shape)}; got {list(found)}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.inner.image_shape

    @property
    def label_free(self) -> bool:
        return self.inner.label_free

    def encode(self, x0: Tensor) -> Tensor:
        return self._compute(self.encoder, x0)

    def in_precision(self, precision: str) -> Denoiser:
        made = super().in_precision(precision)
        if made is not self:
            made._modules = {**self._modules, "inner": self.inner.in_precision(precision)}
        return made

    def recordable(self) -> Denoiser:
        inner = self.inner.recordable()
        return self if inner is self.inner else LatentDenoiser(inner, self.encoder, self.image_shape)

    def describe(self) -> dict[str, Any]:
        latents = {"shape": list(self.latent_shape), "likelihood_maximization": "in pixels"}
        return {**self.inner.describe(), "latents": latents}

    def losses_of(self, x_t: Tensor, target: Tensor, draw: Draw) -> Tensor:
        return self.inner.losses_of(x_t, target, draw)

    def f(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return self.inner.f(x_t, sigma, labels)

    def f_null(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.inner.f_null(x_t, sigma)


def latent_shape(encoder: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(c, h, w) of the latents of images (C, H, W).

    Raises:
        ConfigError: the encoder does not take such images, or gives something else.
    """
    like = next(encoder.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            found = encoder.eval()(like.new_zeros(1, *image_shape))
    except Exception as error:
        raise ConfigError(
            f"encoder: expected one that takes images {[1, *image_shape]}; it raised {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != 1:
        raise ConfigError(f"encoder: expected latents [1, c, h, w] of images {[1, *image_shape]}; got {shown(found)}")
    channels, height, width = found.shape[1:]
    return channels, height, width


def encoded(denoiser: Denoiser, x0: Tensor, size: int) -> Tensor:
    """``denoiser.encode(x0)``, ``size`` images at a time; more are computed again in the backward pass."""
    if len(x0) <= size or transformed():
        return denoiser.encode(x0)
    again = kept_for_later(denoiser, denoiser.encode)
    rebuild = wanted(x0, module=denoiser)

    def parts() -> Iterator[Tensor]:
        for part in x0.split(size):
            yield checkpointed(again, part) if rebuild else denoiser.encode(part)

    return joined(parts(), len(x0))


@measured()
def encoding_bytes(denoiser: Denoiser, like: Tensor) -> int:
    """Peak bytes that one more image needs for its latents and their gradient."""

    def work(count: int) -> Tensor:
        x = like.new_zeros(count, *denoiser.image_shape).requires_grad_()
        return torch.autograd.grad(denoiser.encode(x).sum(), x)[0]

    return bytes_per_item(work)


def refuse_latents(denoiser: Denoiser, what: str) -> None:
    """For what has a meaning in pixels alone.

    Raises:
        ConfigError: the denoiser works in latents.
    """
    if denoiser.latent_shape != denoiser.image_shape:
        raise ConfigError(
            f"{what}: expected a diffusion model of pixels; this one works in latents {list(denoiser.latent_shape)}"
        )
