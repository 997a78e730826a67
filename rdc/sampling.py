"""Sampling from a diffusion model: the deterministic sampler of EDM, with Heun's second-order correction.

Source: Karras et al. 2022, arXiv 2206.00364, algorithms 1 and 2 (without churn), equation 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rdc.denoiser import Denoiser
from rdc.errors import ConfigError, InputError
from rdc.progress import bar

__all__ = ["heun", "sample_classes", "sampling_levels"]


def sampling_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels [steps + 1], float64, from ``sigma_max`` down to ``sigma_min`` and then 0 (equation 5)."""
    if steps < 1:
        raise ConfigError(f"steps: expected 1 or more; got {steps}")
    if not (0 < sigma_min < sigma_max < math.inf and 0 < rho < math.inf):
        raise ConfigError(
            f"sampling levels: expected 0 < sigma_min < sigma_max and rho > 0; got {sigma_min}, {sigma_max}, {rho}"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def heun(denoise: Callable[[Tensor, float], Tensor], noise: Tensor, levels: Tensor) -> Tensor:
    """Follow the probability-flow ODE dx/ds = (x - D(x; s)) / s from the first level to the last.

    Args:
        denoise: D(x [B, C, H, W], sigma) -> [B, C, H, W], the estimate of the clean images.
        noise: standard normal [B, C, H, W]; the start is ``levels[0] * noise``.
        levels: falling noise levels [steps + 1]; where the last is 0 the last step is Euler's.

    Returns:
        [B, C, H, W]; 2 * steps - 1 calls of ``denoise`` when the last level is 0.
    """
    sigma = levels.tolist()
    x = noise * sigma[0]
    for here, there in zip(sigma[:-1], sigma[1:], strict=True):
        slope = (x - denoise(x, here)) / here
        end = x + (there - here) * slope
        if there > 0:
            slope = 0.5 * (slope + (end - denoise(end, there)) / there)
        x = x + (there - here) * slope if there > 0 else end
    return x


@torch.no_grad()
def sample_classes(
    denoiser: Denoiser,
    per_class: int,
    *,
    steps: int = 18,
    seed: int = 0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    batch_size: int = 100,
    progress: bool = True,
) -> Tensor:
    """Draw images of every class. Column j starts from the same noise in every class, so rows can be compared.

    Args:
        denoiser: class-conditional or multi-head network.
        per_class: images a class.
        steps: levels; 2 * steps - 1 network evaluations an image.
        seed: of the starting noise. Image j does not depend on ``per_class``.
        sigma_min, sigma_max: ends of the levels; see :func:`sampling_levels`.
        batch_size: images at a time.
        progress: draw a bar on stderr.

    Returns:
        Pixels [K, per_class, C, H, W] in [0, 1], on the CPU.
    """
    if per_class < 1 or batch_size < 1:
        raise InputError(f"sampling: expected per_class and batch_size of 1 or more; got {per_class} and {batch_size}")
    levels = sampling_levels(steps, sigma_min, sigma_max)
    weight = next(denoiser.parameters())
    noise = torch.stack(
        [
            torch.randn(denoiser.image_shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + column))
            for column in range(per_class)
        ]
    )
    labels = torch.arange(denoiser.num_classes).repeat_interleave(per_class)
    noise = noise.repeat(denoiser.num_classes, 1, 1, 1)
    training, done = denoiser.training, []
    denoiser.eval()
    batches = torch.arange(len(labels)).split(batch_size)
    with bar(total=len(batches) * (2 * steps - 1), unit=" passes", enabled=progress, leave=False) as line:
        for rows in batches:
            classes = labels[rows].to(weight.device)

            def denoise(x: Tensor, sigma: float, classes: Tensor = classes) -> Tensor:
                line.update()
                return denoiser.denoise(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device), classes)

            x = heun(denoise, noise[rows].to(weight.device, weight.dtype), levels)
            done.append(((x.float() + 1) / 2).clamp(0, 1).cpu())
    denoiser.train(training)
    return torch.cat(done).unflatten(0, (denoiser.num_classes, per_class))
