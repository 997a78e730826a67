"""log p(x|y) of a diffusion model, exactly (by its probability-flow ODE) and bounded from below (by its ELBO), in the same units.

Both are about the same density: that of the model at noise level a = sigma_min, at the point x (pixels in [-1, 1], d of them), with
the prior N(0, (b^2 + sigma_data^2) I) at b = sigma_max. Where the data have another second moment than sigma_data^2, or a mean, the prior
is wrong by about |mean of the class| / b standard deviations; a larger b makes it smaller.

ODE   log p_a(x) = log N(z_b; 0, I) + d ln c_in(a) - int div_z F dtheta                       (rdc.method.probability_flow)

ELBO  Noise is added from level a on: x_s = x + r e with r^2 = s^2 - a^2, e standard normal. For the reverse diffusion with the model's
      score (D - x_s) / s^2 the bound of continuous time (arXiv 2107.00630; arXiv 2101.09258, theorem 3) is

          log p_a(x) >= E log N(x_b; 0, (b^2 + sigma_data^2) I) - int_a^b s E|| score - d/dx_s log q(x_s|x) ||^2 - s d / r^2  ds

      With d/dx_s log q = -e / r that is, once what is known has been integrated,

          E log N(x_b) + d [ln(b / a) + (1 - a^2 / b^2) / 2] - int_a^b s^-3 E[ ||x - D||^2 + 2 (a^2 / r) e . (D - x) ] ds .

      SNR is 1 / s^2, so s^-3 ds = -dSNR / 2: the first term is the loss of diffusion models, weighted as a likelihood is. The second
      belongs to a > 0: it takes the place of a decoder. With s = a cosh u and r = a sinh u the measure is ds = r du, and no
      denominator vanishes. The integral over u is a Gauss-Legendre sum (mid-points err at u = 0, where the integrand is odd), the mean
      over e one over pairs e, -e of squared length d: a normal vector's length is what makes estimates vary most; to fix it changes
      the mean of a square not at all, and what is beyond squares by O(1 / d).

The bound is of the reverse *diffusion*, the other of the *ODE*: for a score that is the gradient of one density at all levels they agree;
for a trained network each is what it is, and the gap may be negative.

Bits per dimension of 8-bit images: pixels k/255 become (k + u) / 256 with u uniform in [0, 1) (uniform dequantisation, arXiv
1511.01844), so that -log2 P(k) <= -E log2 p(x) + 7 d: a grey level is 2^-7 wide in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.defaults import LikelihoodDefaults
from rdc.arguments.scalars import as_integer, shown
from rdc.arguments.seeds import checked_seed
from rdc.errors import ConfigError
from rdc.execution.memory import bytes_per_item, items_that_fit
from rdc.execution.surroundings import measured, undisturbed
from rdc.method.denoiser import Denoiser
from rdc.method.latents import refuse_latents
from rdc.method.noise import NoisePlan
from rdc.method.probability_flow import EXACT, FlowSettings, follow, rademacher

__all__ = [
    "PROBE_STREAM",
    "LikelihoodSettings",
    "bits_per_dimension",
    "dequantised",
    "elbo",
    "log_likelihood",
    "prior_log_density",
    "row_bytes",
]

PROBE_STREAM, NOISE_STREAM, DEQUANTISATION_STREAM = 3, 4, 5  #: of one seed, see rdc.method.noise.NoisePlan
MOST_LEVELS = 1000
_DEFAULT = LikelihoodDefaults()


@dataclasses.dataclass(frozen=True)
class LikelihoodSettings:
    """What is computed of an image, and how finely.

    Args:
        flow: of the ODE.
        levels: points of the ELBO's integral over noise levels (Gauss-Legendre), two network passes each (e and -e).
        seed: any integer; of probes, noise and dequantisation.

    Raises:
        ConfigError: not as stated.
    """

    flow: FlowSettings = dataclasses.field(default_factory=FlowSettings)
    levels: int = _DEFAULT.elbo_levels
    seed: int = _DEFAULT.seed

    def __post_init__(self) -> None:
        count = as_integer(self.levels)
        if not isinstance(self.flow, FlowSettings):
            raise ConfigError(f"flow: expected rdc.method.probability_flow.FlowSettings; got {shown(self.flow)}")
        if count is None or not 1 <= count <= MOST_LEVELS:
            raise ConfigError(f"levels: expected an integer of 1 to {MOST_LEVELS:,}; got {shown(self.levels)}")
        object.__setattr__(self, "levels", count)
        object.__setattr__(self, "seed", checked_seed(self.seed))

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values."""
        return {**self.flow.describe(), "levels": self.levels, "seed": self.seed}


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    settings: LikelihoodSettings,
    draws: Sequence[int],
    *,
    memory_budget_mb: float = 2048.0,
) -> Tensor:
    """log p(x|y) in nats by the probability-flow ODE, for every class y; no gradient.

    Args:
        denoiser: any; its weights are used as they are.
        x: [N, C, H, W] in [-1, 1], samples at noise level sigma_min (dequantised, say).
        settings: grid, probes and seed.
        draws: N integers: which draw of the probes each image gets; all its classes share it.
        memory_budget_mb: working memory, MiB.

    Returns:
        [N, K], in the type of x.
    """
    refuse_latents(denoiser, "likelihood")
    flow = settings.flow
    probes = None
    if flow.probes != EXACT:
        plan = NoisePlan(settings.seed, stream=PROBE_STREAM)
        probes = torch.stack([rademacher(plan, draw, int(flow.probes), denoiser.image_shape) for draw in draws]).to(x)

    def rows(x: Tensor, labels: Tensor, image: Tensor) -> Tensor:
        return flow_log_density(denoiser, x, labels, flow, None if probes is None else probes[image])

    return _of_every_class(denoiser, x, rows, memory_budget_mb)


def flow_log_density(
    denoiser: Denoiser, x: Tensor, labels: Tensor, flow: FlowSettings, probes: Tensor | None
) -> Tensor:
    """log p(x|label) [B] of rows x [B, C, H, W], differentiable in x; see :func:`rdc.method.probability_flow.follow`."""
    data = denoiser.precondition.sigma_data
    start, size = 1 / math.hypot(flow.sigma_min, data), x[0].numel()
    z, integral = follow(denoiser, start * x, labels, flow, probes)
    end = -0.5 * z.square().flatten(1).sum(1) - 0.5 * size * math.log(2 * math.pi)
    return end + size * math.log(start) - integral


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    settings: LikelihoodSettings,
    draws: Sequence[int],
    *,
    memory_budget_mb: float = 2048.0,
) -> Tensor:
    """An unbiased estimate of the ELBO of log p(x|y) in nats (but for the points of its integral), for every class; no gradient.

    Args, Returns: as of :func:`log_likelihood`; all classes of an image share the noise.
    """
    refuse_latents(denoiser, "likelihood")
    low, high = settings.flow.sigma_min, settings.flow.sigma_max
    nodes, weights = np.polynomial.legendre.leggauss(settings.levels)
    half = math.acosh(high / low) / 2
    points = [(half * (1 + node), half * weight) for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True)]
    plan = NoisePlan(settings.seed, stream=NOISE_STREAM)

    def rows(x: Tensor, labels: Tensor, image: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for number, (place, width) in enumerate(points):
            noise = _noise(plan, tuple(draws), number, denoiser.image_shape).to(x)[image]
            total += width * _loss_at(denoiser, x, labels, noise, low * math.cosh(place), low * math.sinh(place))
        return prior_log_density(x, low, high, denoiser.precondition.sigma_data) - total

    return _of_every_class(denoiser, x, rows, memory_budget_mb)


def prior_log_density(x: Tensor, low: float, high: float, sigma_data: float) -> Tensor:
    """What of the ELBO is known without a network [N]: E log N(x_b; 0, (b^2 + sigma_data^2) I) + d [ln(b / a) + (1 - a^2 / b^2) / 2]."""
    size, variance = x[0].numel(), high**2 + sigma_data**2
    known = size * (math.log(high / low) + (1 - low**2 / high**2) / 2 - 0.5 * math.log(2 * math.pi * variance))
    return known - (x.square().flatten(1).sum(1) + size * (high**2 - low**2)) / (2 * variance)


def _loss_at(denoiser: Denoiser, x: Tensor, labels: Tensor, noise: Tensor, sigma: float, spread: float) -> Tensor:
    """r s^-3 ||x - D||^2 + 2 a^2 s^-3 e . (D - x), the mean over e and -e [B]; spread is r, a^2 = s^2 - r^2."""
    rows = x.new_full((len(x),), sigma)
    shaped = rows.reshape(-1, 1, 1, 1)
    c_out, total = denoiser.precondition.c_out(shaped), x.new_zeros(len(x))
    for signed in (noise, -noise):
        x_s = x + spread * signed
        error = c_out * (denoiser.f(x_s, rows, labels) - denoiser.precondition.target(x, x_s, shaped))  # D - x
        square, along = error.square().flatten(1).sum(1), (signed * error).flatten(1).sum(1)
        total += spread * square + 2 * (sigma**2 - spread**2) * along
    return total / (2 * sigma**3)


@functools.lru_cache(maxsize=256)
def _noise(plan: NoisePlan, draws: tuple[int, ...], level: int, shape: tuple[int, ...]) -> Tensor:
    """Directions [N, C, H, W] of one level, of squared length d; the same for every piece of the classes."""
    noise = torch.cat([plan.normal(draw * MOST_LEVELS + level, 1, shape) for draw in draws])
    return noise * (math.prod(shape) / noise.square().flatten(1).sum(1)).sqrt().view(-1, 1, 1, 1)


def _of_every_class(denoiser: Denoiser, x: Tensor, function: Any, memory_budget_mb: float) -> Tensor:
    """``function(rows, labels, image of each row)`` for all N * K pairs of image and class, as many at a time as fit: [N, K]."""
    count = denoiser.num_classes

    def work(x: Tensor) -> Tensor:
        fit = items_that_fit(memory_budget_mb, row_bytes(denoiser, x), x.device, "one class of one image")
        rows = torch.arange(len(x) * count, device=x.device)
        found = [function(x[part // count], part % count, part // count) for part in rows.split(fit)]
        values: Tensor = torch.cat(found).unflatten(0, (len(x), count))
        return values

    with torch.no_grad():
        return undisturbed(work, x, denoiser)


@measured()
def row_bytes(denoiser: Denoiser, like: Tensor) -> int:
    """Peak bytes that one more class of an image needs for F and a vector-Jacobian product."""

    def work(count: int) -> Tensor:
        x = like.new_zeros(count, *denoiser.image_shape).requires_grad_()
        f = denoiser.f(x, like.new_ones(count), torch.zeros(count, dtype=torch.long, device=like.device))
        return torch.autograd.grad(f.square().sum(), x)[0]

    return bytes_per_item(work)


def dequantised(images: Tensor, seed: int, draws: Sequence[int]) -> Tensor:
    """8-bit images as samples of a density on [-1, 1]: 2 (k + u) / 256 - 1, u uniform in [0, 1).

    Args:
        images: uint8 [N, C, H, W].
        seed: any integer.
        draws: N integers, which u each image gets.

    Returns:
        [N, C, H, W] float32.

    Raises:
        ConfigError: images of another type.
    """
    if images.dtype != torch.uint8:
        raise ConfigError(f"images: expected uint8, grey levels 0 to 255; got {images.dtype}")
    plan = NoisePlan(seed, stream=DEQUANTISATION_STREAM)
    size = images[0].numel()
    u = torch.stack([plan.uniform(draw, 0, size) for draw in draws]).view(images.shape).to(images.device)
    return (2 * (images.double() + u) / 256 - 1).float()


def bits_per_dimension(log_density: Tensor, size: int) -> Tensor:
    """-log2 of the probability of an 8-bit image, a pixel, from log p in nats of its dequantised pixels in [-1, 1].

    Args:
        log_density: of any shape.
        size: d, the number of pixels times channels.
    """
    return 7 - log_density / (size * math.log(2))
