"""Class losses in pieces that fit a memory budget, and their gradient over the classes that carry any.

:func:`streamed` cuts a batch into pieces of images and levels that ``torch.utils.checkpoint`` rebuilds in the backward pass.
:func:`by_class` does better where every class is a network pass of its own (the conditional network): the losses are computed
without a graph, and once it is known which classes carry gradient, only their passes are made again. An attack on a margin
needs two classes of K, so that a gradient costs little more than the prediction; and with a saturated posterior, where the
others' share would be lost in rounding, so does the cross-entropy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rdc.denoiser import Denoiser

__all__ = ["by_class", "streamed"]


def streamed(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor, weight: Tensor, pairs: int, rebuild: bool = True
) -> Tensor:
    """Weighted class losses [N, K], at most ``pairs`` pairs of image and level at a time.

    Args:
        denoiser: of either kind.
        x0: [N, C, H, W] in [-1, 1].
        noise: [T, C, H, W].
        sigma, weight: [T].
        pairs: how many pairs of image and level, with all their classes, one piece may hold; at least 1.
        rebuild: forget what the pieces computed on the way and compute it again in the backward pass.
    """
    levels = len(sigma)
    per_piece = min(levels, pairs)

    def piece(part: Tensor, begin: int) -> Tensor:
        pick = slice(begin, begin + per_piece)
        return denoiser.class_losses(part, noise[pick], sigma[pick], weight[pick])

    parts = []
    for part in x0.split(max(1, pairs // per_piece)):
        total = None
        for begin in range(0, levels, per_piece):
            if rebuild and part.requires_grad and torch.is_grad_enabled():
                loss = checkpoint(piece, part, begin, use_reentrant=False, preserve_rng_state=False)
            else:
                loss = piece(part, begin)
            total = loss if total is None else total + loss
        parts.append(total)
    return torch.cat(parts)


def by_class(denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor, weight: Tensor, pairs: int) -> Tensor:
    """:func:`streamed` for a network with a pass for every class; the backward pass rebuilds classes that carry gradient.

    A class of an image is left out where its upstream gradient is less than 1/8 of the type's machine epsilon times the
    largest of that image: its share would be rounded away in the sum. Differentiable twice (through :func:`streamed`).

    Args, Returns: as of :func:`streamed`.
    """
    return _ByClass.apply(x0, (denoiser, noise, sigma, weight, pairs))


class _ByClass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x0: Tensor, run: tuple[Any, ...]) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x0)
        denoiser, *rest = run
        return streamed(denoiser, x0.detach(), *rest)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (x0,) = ctx.saved_tensors
        denoiser, *rest = ctx.run
        if torch.is_grad_enabled():  # somebody will differentiate this gradient
            losses = streamed(denoiser, x0, *rest)
            return torch.autograd.grad(losses, x0, upstream, create_graph=True)[0], None
        return _gradient(denoiser, x0, upstream, *rest), None


def _gradient(
    denoiser: Denoiser, x0: Tensor, upstream: Tensor, noise: Tensor, sigma: Tensor, weight: Tensor, pairs: int
) -> Tensor:
    """sum_k upstream_nk dL_nk / dx0_n, over the (image, class) pairs that carry gradient."""
    share = upstream.abs()
    carries = ~(share <= share.amax(1, keepdim=True) * (torch.finfo(upstream.dtype).eps / 8))  # NaN carries, too
    images, classes = carries.nonzero(as_tuple=True)
    rows, levels = pairs * denoiser.passes_per_level, len(sigma)
    per_piece = min(levels, rows)
    total = torch.zeros_like(x0)
    for first in range(0, len(images), max(1, rows // per_piece)):
        pick = slice(first, first + max(1, rows // per_piece))
        image, label = images[pick], classes[pick]
        amount = upstream[image, label]
        for begin in range(0, levels, per_piece):
            some = slice(begin, begin + per_piece)
            with torch.enable_grad():
                x = x0[image].detach().requires_grad_()
                loss = denoiser.losses_of_labels(x, noise[some], sigma[some], weight[some], label)
                (grad,) = torch.autograd.grad(loss, x, amount.to(loss.dtype))
            total.index_add_(0, image, grad)
    return total
