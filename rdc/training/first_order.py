"""Training on the first-order worst case: logits that a small perturbation could reach, as far as the input gradient tells.

The logits of a diffusion classifier are smooth in x, noise sees to that, and nearly linear within small balls. To first
order the worst perturbation d of an image, in the ball of size eps and in the pixel box, raises the margin of a wrong
class r by

    rise = max_d <grad_x (z_r - z_y), d>        ||d|| <= eps,  0 <= x + d <= 1

and the cross-entropy of z'_y = z_y, z'_k = z_k + rise (k != y) asks for margins larger than that. Without the box, rise
is eps times the dual norm of the gradient: input-gradient regularisation (double backpropagation: Drucker & LeCun 1992;
Ross & Doshi-Velez, arXiv 1711.09404) in logit units. The network sees no perturbed image and no attack is run, but norm and
radius of a threat are named: wherever a table shows a model trained this way, it says so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rdc.errors import ConfigError
from rdc.norm_balls import NORMS, project
from rdc.training.batches import uniform

__all__ = ["check_margin", "draw_rivals", "worst_logits", "worst_rise", "worst_step"]

_FAR = 1e6  # pixels: how far along the gradient the point lies whose projection is the best one of the ball


def check_margin(eps: float, norm: str, name: str = "margin") -> None:
    """Refuse a radius or a norm that cannot be trained at.

    Args:
        eps: radius in [0, 1] pixel units; 0: nothing is asked of the gradient.
        norm: of the perturbation.
        name: what the settings begin with in messages.

    Raises:
        ConfigError: the norm is unknown, or eps is negative, not finite, or (l_inf) 1 or more.
    """
    if norm not in NORMS:
        raise ConfigError(f"{name}_norm: expected one of {', '.join(NORMS)}; got {norm!r}")
    if not 0 <= eps < (1 if norm == "linf" else math.inf):
        raise ConfigError(f"{name}_eps: expected a radius in [0, 1] pixel units, such as 8/255; got {eps}")


def draw_rivals(logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """One wrong class for each image, drawn with its probability among the wrong ones.

    Args:
        logits: [B, K].
        labels: [B] true classes.
        generator: of the batch (:mod:`rdc.training.batches`).

    Returns:
        [B] int64, never the label.
    """
    draw = uniform(tuple(logits.shape), generator).clamp(1e-7, 1 - 1e-7).to(logits.device)
    wrong = logits.detach().float().scatter(1, labels[:, None], -math.inf)
    return (wrong - (-draw.log()).log()).argmax(1)


def worst_rise(gradient: Tensor, pixels: Tensor, eps: float, norm: str) -> Tensor:
    """Largest first-order rise of a quantity within the ball of radius eps and the pixel box.

    Args:
        gradient: [B, C, H, W] of the quantity in pixels.
        pixels: [B, C, H, W] in [0, 1].
        eps: radius in [0, 1] pixel units.
        norm: of the ball.

    Returns:
        [B], differentiable in the gradient: at a maximum the maximiser's own derivative does not count.
    """
    return (gradient * worst_step(gradient, pixels, eps, norm)).flatten(1).sum(1)


def worst_step(gradient: Tensor, pixels: Tensor, eps: float | Tensor, norm: str) -> Tensor:
    """The perturbation within the ball of radius eps and the pixel box by which a linear function rises most.

    Args: as of :func:`worst_rise`; only the direction of ``gradient`` counts; ``eps`` may be of each image, [B] float64.

    Returns:
        [B, C, H, W] in the type of the gradient, without a graph.
    """
    centre = pixels.detach().float()
    far = gradient.detach().double()
    far = centre + far * (_FAR / far.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-30))
    best = project(far, centre, eps, norm) - centre  # a linear function is largest at the projection of a far point
    return best.to(gradient.dtype)


def worst_logits(
    logits: Tensor, labels: Tensor, rivals: Tensor, x0: Tensor, eps: float, norm: str
) -> tuple[Tensor, Tensor]:
    """Logits under the first-order worst perturbation, every wrong class raised by what the rival gains.

    Args:
        logits: [B, K], computed from ``x0``, each row from its own image.
        labels: [B] true classes y.
        rivals: [B] wrong classes r.
        x0: [B, C, H, W] in [-1, 1], requires grad.
        eps: radius in [0, 1] pixel units.
        norm: of the perturbation, one of :data:`rdc.norm_balls.NORMS`.

    Returns:
        (logits [B, K], differentiable in everything that ``logits`` depend on; rise [B], detached).
    """
    rows = torch.arange(len(labels), device=labels.device)
    margin = logits[rows, rivals] - logits[rows, labels]
    with torch.autocast(x0.device.type, enabled=False):  # the gradient's types are those of the forward pass
        (gradient,) = torch.autograd.grad(margin.sum(), x0, create_graph=True)
    rise = worst_rise(2 * gradient, (x0.detach() + 1) / 2, eps, norm)
    wrong = torch.ones_like(logits).scatter(1, labels[:, None], 0.0)
    return logits + rise[:, None] * wrong, rise.detach()
