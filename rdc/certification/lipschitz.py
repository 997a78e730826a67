"""A certificate without noise: how far an image may move before the optimal diffusion classifier can change its mind.

The optimal denoiser of a class with images x_i lies in their convex hull, and its Jacobian is a covariance:

    D(z; s, y) = sum_i p_i x_i,  p = softmax_i(-||z - x_i||^2 / (2 s^2))        J = Cov_p / s^2,   0 <= J <= k_y I,   k_y = (d_y / 2 s)^2

where d_y is the largest distance between two images of the class (in every direction the x_i span at most d_y, so their variance is at
most (d_y / 2)^2). With fixed noise e_t the class loss l_y(x) = sum_t w_t ||D(x + s_t e_t; s_t, y) - x||^2 has the gradient
2 sum_t w_t (J - I)(D - x), and for two classes a, b

    grad (l_b - l_a) = 2 sum_t w_t [J_b (D_b - x) - J_a (D_a - x) - (D_b - D_a)]
    |...| <= 2 sum_t w_t min( k_b B_b + k_a B_a + H_ab,  max(1, k_b - 1) B_b + max(1, k_a - 1) B_a )

    B_y = max_i ||x_i - x|| >= ||D_y - x||      H_ab = max_{i in a, j in b} ||x_i - x_j|| >= ||D_a - D_b||

At x' with ||x' - x|| <= r, B_y grows by r at most; so |margin(x') - margin(x)| <= L r + L' r^2 / 2, and the margin keeps its sign up
to the r where that equals it. The bound needs no noise, no votes and no confidence, and it is for this classifier alone.

The exact likelihood of the same model, log p_s(z|y) = logsumexp_i(-||z - x_i||^2 / (2 s^2)) - log N_y, has no Jacobian in its slope:
grad (log p_a - log p_b) = (D_a - D_b) / s^2, so its margin M keeps its sign for ||x' - x|| < s^2 M / H_ab.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rdc.errors import InputError

__all__ = ["OptimalCertificate", "farthest_pairs", "likelihood_certificate", "loss_certificate"]

_ROWS = 512  # images compared with all others at once


@dataclass(frozen=True, eq=False)
class OptimalCertificate:
    """Of n images.

    Args:
        predicted: [n] int64.
        margin: [n] float64 >= 0, over the class that limits the radius.
        slope: [n] float64, bound of the margin's slope at the image, in x0 units.
        radius: [n] float64, l_2 in [0, 1] pixel units: no smaller change alters the decision.
    """

    predicted: Tensor
    margin: Tensor
    slope: Tensor
    radius: Tensor


def farthest_pairs(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Largest distance [K, K] float64 between an image of one class and one of another; on the diagonal within a class.

    Args:
        images: [N, ...] in [-1, 1].
        labels: [N] int64; every class has an image.
        classes: K.

    Raises:
        InputError: a class has no image.
    """
    flat = images.flatten(1).double()
    counts = torch.bincount(labels, minlength=classes)
    if len(counts) != classes or not bool((counts > 0).all()):
        raise InputError(f"expected images of each of {classes} classes; got {counts.tolist()} of them")
    found = torch.zeros(classes, classes, dtype=torch.float64)
    groups = [flat[labels == label] for label in range(classes)]
    for a in range(classes):
        for b in range(a, classes):
            largest = max(_squared(part, groups[b]).max() for part in groups[a].split(_ROWS))
            found[a, b] = found[b, a] = largest.sqrt()
    return found


def loss_certificate(
    images: Tensor,
    labels: Tensor,
    x0: Tensor,
    *,
    sigma: Tensor,
    weight: Tensor,
    noise: Tensor,
    farthest: Tensor | None = None,
) -> OptimalCertificate:
    """The optimal diffusion classifier with fixed noise: decision, margin of the losses, radius.

    Args:
        images: [N, C, H, W] in [-1, 1], the empirical distribution; labels [N] int64.
        x0: [n, C, H, W] in [-1, 1], images to certify.
        sigma, weight: [T]; weight of ||D - x0||^2.
        noise: [T, C, H, W], known.
        farthest: what :func:`farthest_pairs` gives, if it is there.
    """
    classes = int(labels.max()) + 1
    pairs = farthest_pairs(images, labels, classes) if farthest is None else farthest
    x, sigma, weight = x0.flatten(1).double(), sigma.double(), weight.double()
    losses, reach = _losses(images, labels, x, sigma, weight, noise.flatten(1).double(), classes)
    curvature = (pairs.diagonal()[None] / (2 * sigma[:, None])) ** 2  # [T, K], k_y
    predicted = losses.argmin(1)
    rows = torch.arange(len(x))
    margin = losses - losses[rows, predicted][:, None]  # [n, K]
    slope, growth = torch.zeros_like(margin), torch.zeros_like(margin)
    ours = reach[rows, predicted][:, None]
    for s, w in enumerate(weight):
        k, own = curvature[s][None], curvature[s][predicted][:, None]
        first = k * reach + own * ours + pairs[predicted]
        k_, own_ = (k - 1).clamp_min(1), (own - 1).clamp_min(1)
        second = k_ * reach + own_ * ours
        smaller = first <= second
        slope += 2 * w * torch.where(smaller, first, second)
        growth += 2 * w * torch.where(smaller, k + own, k_ + own_)
    # the larger root of growth r^2 / 2 + slope r = margin, in a form without cancellation
    radius = 2 * margin / (slope + (slope**2 + 2 * growth * margin).sqrt())
    return _smallest(predicted, margin, slope, radius / 2)


def likelihood_certificate(
    images: Tensor,
    labels: Tensor,
    x0: Tensor,
    *,
    sigma: float,
    noise: Tensor | None = None,
    farthest: Tensor | None = None,
) -> OptimalCertificate:
    """The same for the exact likelihood of the noised empirical distribution at one level, log p_s(x0 + s e | y).

    Args:
        images, labels, x0, farthest: as of :func:`loss_certificate`.
        sigma: the level s.
        noise: [C, H, W], known; None: none is added.
    """
    classes = int(labels.max()) + 1
    pairs = farthest_pairs(images, labels, classes) if farthest is None else farthest
    z = x0.flatten(1).double() + (0 if noise is None else sigma * noise.flatten().double())
    flat = images.flatten(1).double()
    score = torch.empty(len(z), classes, dtype=torch.float64)
    for label in range(classes):
        own = flat[labels == label]
        score[:, label] = torch.logsumexp(-_squared(z, own) / (2 * sigma**2), 1) - torch.log(
            torch.tensor(float(len(own)))
        )
    predicted = score.argmax(1)
    margin = score[torch.arange(len(z)), predicted][:, None] - score
    slope = pairs[predicted] / sigma**2
    return _smallest(predicted, margin, slope, margin / slope / 2)


def _losses(
    images: Tensor, labels: Tensor, x: Tensor, sigma: Tensor, weight: Tensor, noise: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Class losses [n, K], and B_y [n, K]."""
    flat = images.flatten(1).double()
    losses = torch.zeros(len(x), classes, dtype=torch.float64)
    reach = torch.zeros_like(losses)
    for label in range(classes):
        own = flat[labels == label]
        reach[:, label] = _squared(x, own).amax(1).sqrt()
        for s, w, e in zip(sigma, weight, noise, strict=True):
            share = torch.softmax(-_squared(x + s * e, own) / (2 * s**2), 1)
            losses[:, label] += w * (share @ own - x).square().sum(1)
    return losses, reach


def _smallest(predicted: Tensor, margin: Tensor, slope: Tensor, radius: Tensor) -> OptimalCertificate:
    """Over the other classes, the one of the smallest radius."""
    radius = radius.scatter(1, predicted[:, None], torch.inf)
    at = radius.argmin(1, keepdim=True)
    return OptimalCertificate(predicted, *(values.gather(1, at)[:, 0] for values in (margin, slope, radius)))


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [n, m] of rows, by a matrix product."""
    found = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
    return found.clamp_min(0)
