"""Independent float64 oracles: written from the equations with loops, sharing no code with rdc."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


class GaussianNetwork(nn.Module):
    """The exact denoiser of Gaussian classes N(mean_k, variance I), in F-space, as a conditional network.

    D(x; s, k) = (variance x + s^2 mean_k) / (variance + s^2); without a label (all zeros) the mixture of all classes.
    """

    def __init__(self, means: Tensor, variance: float, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.means = nn.Parameter(means)  # [K, C, H, W]
        self.variance, self.sigma_data = variance, sigma_data

    def forward(self, scaled: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        means = self.means.to(scaled.dtype)
        s = (4 * c_noise).exp().reshape(-1, 1, 1, 1)
        total = s**2 + self.sigma_data**2
        x = scaled * total.sqrt()
        gap = ((x[:, None] - means) ** 2).flatten(2).sum(2) / (2 * (self.variance + s.flatten() ** 2))[:, None]
        mix = torch.softmax(-gap, 1)
        share = torch.where(onehot.sum(1, keepdim=True) > 0, onehot, mix)
        mean = torch.einsum("bk,kchw->bchw", share.to(x.dtype), means)
        d = (self.variance * x + s**2 * mean) / (self.variance + s**2)
        return (d - self.sigma_data**2 / total * x) / (s * self.sigma_data / total.sqrt())


def gaussian_log_posterior(x0: np.ndarray, means: np.ndarray, variance: float) -> np.ndarray:
    """log p(y|x0) [N, K] of Gaussian classes with equal priors."""
    score = np.array([[-((x - m) ** 2).sum() / (2 * variance) for m in means] for x in x0])
    return (
        score - np.log(np.exp(score - score.max(1, keepdims=True)).sum(1, keepdims=True)) - score.max(1, keepdims=True)
    )


def class_losses(
    predict, x0: np.ndarray, noise: np.ndarray, sigma: list[float], weight: list[float], classes: int, sd: float = 0.5
) -> np.ndarray:
    """sum_t w_t ||F(x_t; s_t, y) - F*_t||^2 [N, K] by loops; ``predict(x_t, s, y) -> D`` in float64."""
    out = np.zeros((len(x0), classes))
    for n, image in enumerate(x0):
        for e, s, w in zip(noise, sigma, weight, strict=True):
            x_t = image + s * e
            for y in range(classes):
                gap = predict(x_t, s, y) - image
                out[n, y] += w * (s**2 + sd**2) / (s * sd) ** 2 * (gap**2).sum()
    return out


def gaussian_denoised(x_t: np.ndarray, s: float, mean: np.ndarray, variance: float) -> np.ndarray:
    """D(x_t; s) = E[x0 | x_t] of one Gaussian N(mean, variance I)."""
    return (variance * x_t + s**2 * mean) / (variance + s**2)


def empirical_mean(rows: np.ndarray, sigma: np.ndarray, images: np.ndarray) -> np.ndarray:
    """E[x0 | x_t] [R, D] for images [n, D] of equal weight, x_t rows [R, D] at levels sigma [R], by loops."""
    out = np.zeros_like(rows)
    for r, (x, s) in enumerate(zip(rows, sigma, strict=True)):
        exponent = np.array([-((x - image) ** 2).sum() / (2 * s**2) for image in images])
        weight = np.exp(exponent - exponent.max())
        out[r] = sum(w * image for w, image in zip(weight, images, strict=True)) / weight.sum()
    return out


def lm_objective(
    denoised, x0: np.ndarray, noise: np.ndarray, sigma: list[float], weight: list[float], loss: str, sd: float = 0.5
) -> np.ndarray:
    """sum_t w_t mean((D(x_t; s_t) - x0)^2) [N] by loops, ``denoised(x_t, s) -> D``; in F-space ("F") over c_out^2."""
    out = np.zeros(len(x0))
    for n, image in enumerate(x0):
        for e, s, w in zip(noise, sigma, weight, strict=True):
            error = ((denoised(image + s * e, s) - image) ** 2).mean()
            out[n] += w * error / (s**2 * sd**2 / (s**2 + sd**2) if loss == "F" else 1)
    return out


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson 95 % interval."""
    z, p = 1.959963984540054, successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
