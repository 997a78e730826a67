"""Sampling from a diffusion model: the deterministic sampler of EDM, with Heun's second-order correction.

Source: Karras et al. 2022, arXiv 2206.00364, algorithms 1 and 2 (without churn), equation 5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.scalars import as_integer, as_number, shown
from rdc.arguments.seeds import checked_seed, random
from rdc.errors import ConfigError, InputError
from rdc.execution.frozen import at_rest
from rdc.execution.surroundings import undisturbed
from rdc.method.denoiser import Denoiser
from rdc.method.latents import refuse_latents
from rdc.terminal.progress import bar

__all__ = ["draw_pixels", "heun", "sample_classes", "sampling_levels"]

MOST_STEPS = 10_000
MOST_NUMBERS = 2**30  # pixels of all images together, 4 GiB
_FACTOR, _STREAM = 1_000_003, 0x5A3B1E  # of the starting noise


def sampling_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels [steps + 1], float64, from ``sigma_max`` down to ``sigma_min`` and then 0 (equation 5).

    Raises:
        ConfigError: steps beyond 1 .. 10,000, or a range that is none.
    """
    count = as_integer(steps)
    if count is None or not 1 <= count <= MOST_STEPS:
        raise ConfigError(f"steps: expected an integer of 1 to {MOST_STEPS:,}; got {shown(steps)}")
    low, high, curve = as_number(sigma_min), as_number(sigma_max), as_number(rho)
    if low is None or high is None or curve is None or not (0 < low < high < math.inf and 0 < curve < math.inf):
        got = ", ".join(shown(value) for value in (sigma_min, sigma_max, rho))
        raise ConfigError(f"sampling levels: expected 0 < sigma_min < sigma_max and rho > 0; got {got}")
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    high, low = high ** (1 / curve), low ** (1 / curve)
    return torch.cat([(high + ramp * (low - high)) ** curve, torch.zeros(1, dtype=torch.float64)])


def heun(denoise: Callable[[Tensor, float], Tensor], noise: Tensor, levels: Tensor) -> Tensor:
    """Follow the probability-flow ODE dx/ds = (x - D(x; s)) / s from the first level to the last.

    Args:
        denoise: D(x [B, C, H, W], sigma) -> [B, C, H, W], the estimate of the clean images.
        noise: standard normal [B, C, H, W]; the start is ``levels[0] * noise``.
        levels: falling noise levels [steps + 1]; where the last is 0 the last step is Euler's.

    Returns:
        [B, C, H, W]; 2 * steps - 1 calls of ``denoise`` when the last level is 0.
    """
    sigma: list[float] = levels.tolist()
    x = noise * sigma[0]
    for here, there in zip(sigma[:-1], sigma[1:], strict=True):
        slope = (x - denoise(x, here)) / here
        end = x + (there - here) * slope
        if there > 0:
            slope = 0.5 * (slope + (end - denoise(end, there)) / there)
        x = x + (there - here) * slope if there > 0 else end
    return x


@torch.no_grad()
def draw_pixels(
    denoiser: Denoiser, labels: Tensor, noise: Tensor, levels: Tensor, on_pass: Callable[[], object] | None = None
) -> Tensor:
    """Images of these classes from this noise, together.

    Args:
        denoiser: class-conditional or multi-head network, at rest.
        labels: [n], on its device.
        noise: standard normal [n, C, H, W], on its device and of its type.
        levels: see :func:`sampling_levels`.
        on_pass: called before every network pass.

    Returns:
        Pixels [n, C, H, W] in [0, 1], float32, on the CPU.
    """

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if on_pass is not None:
            on_pass()
        return denoiser.denoise(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device), labels)

    x = undisturbed(functools.partial(heun, denoise, levels=levels), noise)
    return ((x.float() + 1) / 2).clamp(0, 1).cpu()


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
        seed: any integer; of the starting noise. Image j does not depend on ``per_class``.
        sigma_min, sigma_max: ends of the levels; see :func:`sampling_levels`.
        batch_size: images at a time.
        progress: draw a bar on stderr.

    Returns:
        Pixels [K, per_class, C, H, W] in [0, 1], on the CPU.
    """
    refuse_latents(denoiser, "sampling")
    columns, rows_at_once = as_integer(per_class), as_integer(batch_size)
    if columns is None or rows_at_once is None or min(columns, rows_at_once) < 1:
        raise InputError(
            f"sampling: expected per_class and batch_size of 1 or more; got {shown(per_class)} and {shown(batch_size)}"
        )
    per_class, batch_size, seed = columns, rows_at_once, checked_seed(seed)
    size = denoiser.num_classes * math.prod(denoiser.image_shape)
    if per_class * size > MOST_NUMBERS:
        raise InputError(
            f"sampling: expected per_class of at most {MOST_NUMBERS // size:,} here; got {shown(per_class)}"
        )
    levels = sampling_levels(steps, sigma_min, sigma_max)
    weight = next(denoiser.parameters())
    noise = torch.stack([_starting_noise(seed, column, denoiser.image_shape) for column in range(per_class)])
    labels = torch.arange(denoiser.num_classes).repeat_interleave(per_class)
    noise = noise.repeat(denoiser.num_classes, 1, 1, 1)
    done, steps = [], len(levels) - 1
    batches = torch.arange(len(labels)).split(batch_size)
    with (
        bar(total=len(batches) * (2 * steps - 1), unit=" passes", enabled=progress, leave=False) as line,
        at_rest(denoiser),
    ):
        for rows in batches:
            start = noise[rows].to(weight.device, weight.dtype)
            done.append(draw_pixels(denoiser, labels[rows].to(weight.device), start, levels, line.update))
    images: Tensor = torch.cat(done).unflatten(0, (denoiser.num_classes, per_class))
    return images


def _starting_noise(seed: int, column: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal [C, H, W] of one column."""
    if 0 <= seed < 2**32:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed * _FACTOR + column))
    # PyTorch's generator looks at the lower 32 bits of a seed alone
    return torch.from_numpy(random(seed, _STREAM, (0, 0, 0, column)).standard_normal(shape, dtype=np.float32))
