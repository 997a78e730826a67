"""How much each noise level should count, so that decisions hold under attack: fitted to first order.

A diffusion classifier decides by margins m_k = sum_t w_t (l_tk - l_ty), y the true class, k any other. To first order the
worst l_inf perturbation of size eps within the pixel box lowers m_k by

    sum_p |g_p| min(eps, room_p)        g = sum_t w_t (grad l_tk - grad l_ty)

where room_p is how far pixel p may go against the gradient (x_p where g_p > 0, 1 - x_p where g_p < 0). g is linear in w, so
losses and exact gradients of every level, computed once, tell for any weights which images would still be right, and the
best weights follow by gradient descent. No network weight changes and no adversarial example is made.

First order is a model, not an attack, though a close one where noise makes the margins smooth (docs/levels.md): check the
result with APGD on images that took no part in the fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier

__all__ = ["fit_weights", "level_margins", "worst_margins"]


def level_margins(
    classifier: DiffusionClassifier, pixels: Tensor, labels: Tensor, rivals: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, margins and their gradients, level by level, without LM.

    Args:
        classifier: its levels are the candidates, its weights only choose the rivals.
        pixels: [N, C, H, W] in [0, 1].
        labels: [N] int64, true classes.
        rivals: R wrong classes of each image, those with the smallest weighted loss.

    Returns:
        losses [N, T, K]; margins [N, T, R], positive where the level alone is right; gradients of the margins in pixels
        [N, T, R, C*H*W]. Memory: the gradients, N * T * R * C*H*W floats.

    Raises:
        ConfigError: fewer than ``rivals`` wrong classes exist.
    """
    if not 1 <= rivals < classifier.num_classes:
        raise ConfigError(f"rivals: expected 1 to {classifier.num_classes - 1}; got {rivals}")
    plain, denoiser = classifier.with_(lm=None, noise="fixed"), classifier.denoiser
    with torch.no_grad():
        losses = plain.losses_per_level(pixels)
    draw = plain.drawn(0, pixels)
    total = torch.einsum("ntk,t->nk", losses, draw.weight)
    total[torch.arange(len(labels), device=total.device), labels] = float("inf")
    wrong = total.argsort(1)[:, :rivals]
    count, levels = len(pixels), len(draw)
    rows = draw.rows(count)
    values, slopes = [], []
    for classes in (labels, *wrong.T):
        leaf = (
            pixels.detach().repeat_interleave(levels, 0).requires_grad_()
        )  # a copy for each level: one pass, all gradients
        x0, s = 2 * leaf - 1, rows[:, None, None, None]
        x_t = x0 + s * draw.noise.repeat(count, 1, 1, 1)
        f = denoiser.f(x_t, rows, classes.repeat_interleave(levels))
        loss = (f - denoiser.precondition.target(x0, x_t, s)).square().flatten(1).sum(1)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
        values.append(loss.detach().reshape(count, levels))
        slopes.append(slope.reshape(count, levels, -1))
    margins = torch.stack(values[1:], 2) - values[0][:, :, None]
    return losses, margins, torch.stack(slopes[1:], 2) - slopes[0][:, :, None]


def worst_margins(weight: Tensor, margins: Tensor, gradients: Tensor, eps: float, images: Tensor) -> Tensor:
    """Smallest first-order margin over the rivals under the worst l_inf perturbation: [N].

    Args:
        weight: [T].
        margins, gradients: as :func:`level_margins` gives them.
        eps: radius in [0, 1] pixel units.
        images: [N, C, H, W] in [0, 1], theirs; no pixel leaves [0, 1].
    """
    value = torch.einsum("ntr,t->nr", margins, weight)
    slope = torch.einsum("ntrp,t->nrp", gradients, weight)
    pixels = images.flatten(1)[:, None]
    down, up = pixels.clamp(max=eps), (1 - pixels).clamp(max=eps)
    return (value - (slope.clamp_min(0) * down - slope.clamp_max(0) * up).sum(2)).amin(1)


def fit_weights(
    margins: Tensor, gradients: Tensor, eps: float, images: Tensor, starts: Sequence[Tensor], steps: int = 200
) -> Tensor:
    """Weights [T] >= 0, sum one, that keep most worst margins positive.

    Adam on the mean of sigmoid(-a margin / median |margin|), a from 2 to 8: a count of wrong images, made smooth. The count
    has local minima, so several starts are tried; the end (or the start) with the most positive worst margins is kept.

    Args:
        margins, gradients: as :func:`level_margins` gives them.
        eps: radius to be robust at; 0 fits clean accuracy among the rivals.
        images: [N, C, H, W] in [0, 1], theirs.
        starts: weights [T] >= 0 to start from, e.g. those of several named weightings.
        steps: of Adam.
    """
    found = []
    for start in starts:
        parameter = (start / start.sum()).clamp_min(1e-6).log().requires_grad_()
        optimizer = torch.optim.Adam([parameter], lr=0.1)
        for step in range(steps):
            margin = worst_margins(parameter.softmax(0), margins, gradients, eps, images)
            sharpness = 2 + 6 * step / steps
            loss = torch.sigmoid(-sharpness * margin / margin.detach().abs().median().clamp_min(1e-30)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found += [parameter.detach().softmax(0), start / start.sum()]
    right = [int((worst_margins(weight, margins, gradients, eps, images) > 0).sum()) for weight in found]
    return found[max(range(len(found)), key=right.__getitem__)]
