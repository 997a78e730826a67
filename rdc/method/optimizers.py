"""The step directions of likelihood maximisation: what an optimiser makes of a gradient and its own state."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["OPTIMIZERS", "Steps", "adam_bias", "lm_direction"]

OPTIMIZERS = ("momentum", "adam", "rmsprop", "sgd", "lion")
_LION = 0.9, 0.99  # shares of the old average: in the direction, in what is kept


class Steps(Protocol):
    """What of the settings of likelihood maximisation a direction depends on."""

    @property
    def optimizer(self) -> str:
        """One of :data:`OPTIMIZERS`."""

    @property
    def momentum(self) -> float:
        """mu of "momentum"."""

    @property
    def sign(self) -> bool:
        """Whether "momentum" and "sgd" move by signs; "lion" always does."""

    @property
    def normalize(self) -> str:
        """How each image's gradient is scaled: "l1", "mean_abs" or "none"."""


def lm_direction(
    grad: Tensor,
    state: tuple[Tensor, ...],
    settings: Steps,
    bias: tuple[float | Tensor, float | Tensor],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Ascent direction in likelihood and the optimiser's new state.

    Args:
        grad: of the loss, [N, C, H, W].
        state: two averages [N, C, H, W], zeros before the first step.
        settings: which optimiser.
        bias: see :func:`adam_bias`; used by "adam".

    Source: of "lion", arXiv 2302.06675.
    """
    if settings.normalize != "none":
        size = grad.abs().sum((1, 2, 3), keepdim=True)
        grad = grad / (size if settings.normalize == "l1" else size / grad[0].numel()).clamp_min(1e-20)
    first, second = state
    if settings.optimizer == "momentum":
        first = settings.momentum * first - grad
        return (first.sign() if settings.sign else first), (first, second)
    if settings.optimizer == "adam":
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad.square()
        mean, power = first / bias[0], second / bias[1]
        return -mean / (_root(power) + 1e-8), (first, second)
    if settings.optimizer == "lion":
        (of_direction, kept) = _LION
        direction = (of_direction * first - (1 - of_direction) * grad).sign()
        return direction, (kept * first - (1 - kept) * grad, second)
    if settings.optimizer == "rmsprop":
        second = 0.99 * second + 0.01 * grad.square()
        return -grad / (_root(second) + 1e-8), (first, second)
    return (-grad.sign() if settings.sign else -grad), state


def adam_bias(step: int) -> tuple[float, float]:
    """What Adam divides its two averages by in step number ``step`` (from 0)."""
    return 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)


def _root(power: Tensor) -> Tensor:
    """Square root with derivative 0 at 0 (where the gradient vanished exactly)."""
    positive = power > 0
    return torch.where(positive, torch.where(positive, power, 1).sqrt(), 0)
