"""The procedure of arXiv 2305.15241 as its authors run it, written afresh: the yardstick of every speed-up claimed for rdc.

One image at a time, one class at a time, its noise levels in batches of at most 64, float32, ordinary (NCHW) tensors, a
class-conditional network; T' = 125 levels and K = 10 classes make 1,250 network passes a prediction. For a gradient every class
has its own backward passes, and the K gradients are combined by the derivative of the loss.

The noise of each level is the same for all classes, and handed in, so that the decisions can be compared with rdc's for the same
network, levels and draw. Losses are taken in F-space (docs/derivation.md), which costs what the paper's form costs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["LEVELS_AT_ONCE", "class_gradients", "class_losses", "input_gradient", "log_probabilities"]

LEVELS_AT_ONCE = 64  # a batch of the authors' program
SIGMA_DATA = 0.5


def _loss(network: nn.Module, x0: Tensor, label: Tensor, sigma: Tensor, weight: Tensor, noise: Tensor) -> Tensor:
    """sum_t w_t ||F - F*||^2 of one image x0 [C, H, W] and one class over a batch of levels: sigma, weight [t], noise [t, C, H, W]."""
    s = sigma.reshape(-1, 1, 1, 1)
    x_t = x0 + s * noise
    variance = s**2 + SIGMA_DATA**2
    target = (x0 - SIGMA_DATA**2 / variance * x_t) * variance.sqrt() / (s * SIGMA_DATA)
    f = network(x_t / variance.sqrt(), sigma.log() / 4, label.expand(len(sigma), -1))
    return ((f - target).square().sum((1, 2, 3)) * weight).sum()


def class_losses(
    network: nn.Module, pixels: Tensor, num_classes: int, sigma: Tensor, weight: Tensor, noise: Tensor
) -> Tensor:
    """Losses [N, K] of pixels [N, C, H, W] in [0, 1].

    Args:
        network: ``network(x [B, C, H, W], ln(sigma) / 4 [B], one-hot label [B, K]) -> F [B, C, H, W]``.
        sigma, weight: [T], in F-space.
        noise: [T, C, H, W], standard normal.
    """
    labels = torch.eye(num_classes)
    losses = torch.zeros(len(pixels), num_classes)
    with torch.no_grad():
        for n, image in enumerate(2 * pixels - 1):
            for k in range(num_classes):
                for begin in range(0, len(sigma), LEVELS_AT_ONCE):
                    part = slice(begin, begin + LEVELS_AT_ONCE)
                    losses[n, k] += _loss(network, image, labels[k], sigma[part], weight[part], noise[part])
    return losses


def class_gradients(
    network: nn.Module, pixels: Tensor, num_classes: int, sigma: Tensor, weight: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses [N, K] and the gradient of each with respect to the pixels, [N, K, C, H, W]. Arguments as :func:`class_losses`."""
    labels = torch.eye(num_classes)
    losses = torch.zeros(len(pixels), num_classes)
    gradients = torch.zeros(len(pixels), num_classes, *pixels.shape[1:])
    for n, image in enumerate(pixels):
        for k in range(num_classes):
            for begin in range(0, len(sigma), LEVELS_AT_ONCE):
                part = slice(begin, begin + LEVELS_AT_ONCE)
                leaf = image.clone().requires_grad_()
                loss = _loss(network, 2 * leaf - 1, labels[k], sigma[part], weight[part], noise[part])
                gradients[n, k] += torch.autograd.grad(loss, leaf)[0]
                losses[n, k] += loss.detach()
    return losses, gradients


def log_probabilities(losses: Tensor, scale: float) -> Tensor:
    """log p(y|x) [N, K] by Bayes' rule with a uniform prior."""
    return torch.log_softmax(-scale * losses, 1)


def input_gradient(
    network: nn.Module,
    pixels: Tensor,
    num_classes: int,
    sigma: Tensor,
    weight: Tensor,
    noise: Tensor,
    objective: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """What one attack step needs: class losses [N, K], and the gradient [N, C, H, W] of ``objective(losses)``, one number.

    Other arguments as :func:`class_losses`.
    """
    losses, gradients = class_gradients(network, pixels, num_classes, sigma, weight, noise)
    leaf = losses.clone().requires_grad_()
    (outer,) = torch.autograd.grad(objective(leaf), leaf)
    return losses, torch.einsum("nk,nkchw->nchw", outer, gradients)
