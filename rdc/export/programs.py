"""The two functions that are traced: the class losses of images, and one step of likelihood maximisation with its gradient.

Everything that a step draws (noise; levels, where they are drawn) is an argument, so that a Loop can hand it the draws of its turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import Denoiser, MultiHeadDenoiser
from rdc.method.draw import Draw
from rdc.method.likelihood_maximization import (
    LikelihoodMaximization,
    lm_draw,
    lm_objective,
)
from rdc.method.lm_move import lm_move
from rdc.method.optimizers import adam_bias, lm_direction

__all__ = ["StepDraws", "class_losses", "example_images", "lm_step", "step_draws"]


def example_images(denoiser: Denoiser, batch: int) -> Tensor:
    """Images in [-1, 1] to trace with."""
    return torch.rand(batch, *denoiser.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def class_losses(classifier: DiffusionClassifier) -> Callable[[Tensor], Tensor]:
    """x0 [N, C, H, W] in [-1, 1] -> weighted class losses [N, K], over the classifier's own levels and noise, without LM."""
    denoiser, draw = classifier.denoiser, classifier.drawn(0, torch.zeros(()))

    def losses(x0: Tensor) -> Tensor:
        x0 = denoiser.encode(x0)
        if isinstance(denoiser, MultiHeadDenoiser):  # the native op has no translation
            return centred_losses(*denoiser.loss_operands(*denoiser.noisy(x0, draw), draw))
        return denoiser.class_losses(x0, draw)

    return losses


def centred_losses(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
    """``rdc.ops.multihead_loss`` from the mean head: |P_k - F*|^2 = |e|^2 + sum d (d + 2 e), e the mean head's error, d = P_k - mean.

    onnxruntime sums in float32 from left to right. So written, what is summed for a class is of the size of the differences between
    classes, which decide, and not of the loss, ten to a hundred times larger.
    """
    channels = target.shape[1]
    classes = len(weight) // channels
    heads, offsets = weight.unflatten(0, (classes, channels)), bias.unflatten(0, (classes, channels))
    heads = torch.cat([heads.mean(0, keepdim=True), heads - heads.mean(0)]).flatten(0, 1)
    offsets = torch.cat([offsets.mean(0, keepdim=True), offsets - offsets.mean(0)]).flatten(0, 1)
    found = F.conv2d(h, heads, offsets, padding=1)
    error = found[:, :channels] - target
    difference = found[:, channels:].unflatten(1, (classes, channels))
    apart = (difference * (difference + 2 * error[:, None])).sum((2, 3, 4))  # [N*T, K]
    rows = apart + error.square().sum((1, 2, 3))[:, None]
    return torch.einsum("ntk,t->nk", rows.unflatten(0, (-1, len(level_weight))), level_weight)


@dataclasses.dataclass(frozen=True, eq=False)
class StepDraws:
    """What the steps of LM look at.

    Args:
        noise: [S, L, C, H, W], or [1, L, C, H, W] where all steps share one draw.
        sigma: [S, L] or [1, L].
        weight: [L].
        bias: [S, 2], what Adam divides its averages by; [1, 2] ones for the other optimisers.
    """

    noise: Tensor
    sigma: Tensor
    weight: Tensor
    bias: Tensor


def step_draws(settings: LikelihoodMaximization, noise_shape: tuple[int, ...], steps: int) -> StepDraws:
    """The draws of the first ``steps`` steps."""
    draws = [lm_draw(settings, step, 0, noise_shape) for step in range(1 if settings.noise == "same" else steps)]
    sigma = torch.stack([draw.sigma for draw in draws]).float()
    sigma = sigma[:1] if (sigma == sigma[:1]).all() else sigma
    adam = settings.optimizer == "adam"
    bias = torch.tensor([adam_bias(step) for step in range(steps)] if adam else [[1.0, 1.0]], dtype=torch.float64)
    return StepDraws(torch.stack([draw.noise for draw in draws]), sigma, draws[0].weight.float(), bias.float())


def lm_step(
    denoiser: Denoiser, settings: LikelihoodMaximization, weight: Tensor
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """One step: (anchor, x, first, second [N, C, H, W], noise [L, C, H, W], sigma [L], bias [2]) -> the new (x, first, second)."""

    def step(
        anchor: Tensor, x: Tensor, first: Tensor, second: Tensor, noise: Tensor, sigma: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            loss = lm_objective(denoiser, leaf, settings, Draw(sigma, weight, noise)).sum()
            (grad,) = torch.autograd.grad(loss, leaf)
        direction, (first, second) = lm_direction(grad, (first, second), settings, (bias[0], bias[1]))
        return lm_move(anchor, x, direction, settings), first, second

    return step
