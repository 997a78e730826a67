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


def gaussian_log_density(x: np.ndarray, mean: np.ndarray, variance: float, sigma: float) -> np.ndarray:
    """log N(x; mean, (variance + sigma^2) I) [N] in nats, by a loop."""
    total = variance + sigma**2
    size = mean.size
    return np.array(
        [-((image - mean) ** 2).sum() / (2 * total) - size / 2 * math.log(2 * math.pi * total) for image in x]
    )


class LinearNetwork(nn.Module):
    """F(z) = alpha z at every noise level and for every class: no density has it as its score, so that ODE and ELBO differ."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha, dtype=torch.float64))

    def forward(self, scaled: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        return self.alpha * scaled


def linear_log_likelihood(x: np.ndarray, alpha: float, low: float, high: float, sd: float = 0.5) -> np.ndarray:
    """log p(x) [N] of :class:`LinearNetwork` by its ODE: z shrinks by exp(-alpha) for every radian, its volume d times as much."""
    out = []
    for image in x:
        d, turn = image.size, math.atan(high / sd) - math.atan(low / sd)
        z = image / math.sqrt(low**2 + sd**2) * math.exp(-alpha * turn)
        log_prior = -(z**2).sum() / 2 - d / 2 * math.log(2 * math.pi)
        out.append(log_prior - alpha * d * turn - d / 2 * math.log(low**2 + sd**2))
    return np.array(out)


def linear_elbo(
    x: np.ndarray, alpha: float, low: float, high: float, sd: float = 0.5, points: int = 200_000
) -> np.ndarray:
    """The ELBO [N] of :class:`LinearNetwork`: the mean over noise in closed form, the integral over s by mid-points of ln s.

    D = k x_s with x_s = x + r e and r^2 = s^2 - a^2; the model's score (D - x_s) / s^2 against that of the noise, -e / r.
    """
    ends = np.linspace(math.log(low), math.log(high), points + 1)
    s = np.exp((ends[:-1] + ends[1:]) / 2)
    ds = s * np.diff(ends)
    r = np.sqrt(s**2 - low**2)
    k = sd**2 / (s**2 + sd**2) + alpha * s * sd / (s**2 + sd**2)
    out = []
    for image in x:
        d, square = image.size, (image**2).sum()
        on_image, on_noise = (k - 1) / s**2, (k - 1) * r / s**2 + 1 / r  # what score + e / r is made of
        loss = on_image**2 * square + d * (on_noise**2 - 1 / r**2)
        variance = high**2 + sd**2
        prior = -d / 2 * math.log(2 * math.pi * variance) - (square + d * (high**2 - low**2)) / (2 * variance)
        out.append(prior - (s * loss * ds).sum())
    return np.array(out)
