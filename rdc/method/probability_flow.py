"""The probability-flow ODE from an image to noise, and the change of log-density along it.

With x(s) at noise level s (EDM units, Karras et al. 2022, arXiv 2206.00364, equation 1 with sigma(t) = t)

    dx/ds = (x - D(x; s, y)) / s        d log p_s(x(s)) / ds = - div_x of that     (instantaneous change of variables)

In preconditioned variables z = c_in(s) x and theta = arctan(s / sigma_data) the linear part of D drops out, and both become

    dz/dtheta = - F(z; s, y)            d log p(z) / dtheta = + div_z F

so that what preconditioning says of D costs no step: for data N(0, sigma_data^2 I) F is 0 and any step is exact. No 1/s is left.

Runge-Kutta methods of order 2 (Heun) and 4 on a fixed grid, written here and not taken from torchdiffeq: what they cost is known
beforehand, images of a batch do not choose each other's steps, and a step is something that can be rebuilt in a backward pass. Steps are
even in theta^(1/rho); sampling's grid, even in sigma^(1/rho), spends half of its steps above sigma 3, where theta hardly moves.

Source: Song et al. 2021, arXiv 2011.13456, appendix D; Grathwohl et al. 2019, arXiv 1810.01367 (Hutchinson's estimate of the divergence).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from rdc.arguments.defaults import LikelihoodDefaults
from rdc.arguments.scalars import as_integer, as_number, shown
from rdc.errors import ConfigError
from rdc.execution.opaque import checkpointed
from rdc.method.denoiser import Denoiser
from rdc.method.levels import SIGMA_RANGE
from rdc.method.noise import NoisePlan

__all__ = ["EXACT", "SOLVERS", "FlowSettings", "flow_slope", "flow_step", "follow", "rademacher", "trajectory"]

_DEFAULT = LikelihoodDefaults()
EXACT = "exact"  #: in place of a number of probes
MOST_STEPS, MOST_PROBES = 10_000, 100_000


@dataclasses.dataclass(frozen=True)
class _Solver:
    """An explicit Runge-Kutta method: slope i is taken at nodes[i] of a step, after a move along earlier ones by inner[i]."""

    nodes: tuple[float, ...]
    inner: tuple[tuple[float, ...], ...]
    outer: tuple[float, ...]


#: name -> method; two and four network passes a step, of order two and four
SOLVERS = {
    "heun": _Solver((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": _Solver((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


@dataclasses.dataclass(frozen=True)
class FlowSettings:
    """How the ODE is solved.

    Args:
        steps: 1 to 10,000, two or four network passes each, each with a vector-Jacobian product for every probe.
        solver: "heun" or "rk4", a key of :data:`SOLVERS`.
        probes: random signs for Hutchinson's estimate of the divergence, 1 to 100,000; or "exact": one product for each pixel.
        sigma_min: noise level of the density that is computed; the image is taken as a sample at this level.
        sigma_max: where the prior takes over; in :data:`rdc.method.levels.SIGMA_RANGE`, as sigma_min.
        rho: curvature of the grid: steps are even in theta^(1/rho), so that larger puts more of them at low levels.

    Raises:
        ConfigError: not as stated.
    """

    steps: int = _DEFAULT.steps
    probes: int | str = _DEFAULT.probes
    sigma_min: float = _DEFAULT.sigma_min
    sigma_max: float = _DEFAULT.sigma_max
    rho: float = _DEFAULT.rho
    solver: str = _DEFAULT.solver

    def __post_init__(self) -> None:
        steps, low, high, rho = (as_number(value) for value in (self.steps, self.sigma_min, self.sigma_max, self.rho))
        count = as_integer(self.steps)
        if count is None or not 1 <= count <= MOST_STEPS:
            raise ConfigError(f"steps: expected an integer of 1 to {MOST_STEPS:,}; got {shown(self.steps)}")
        probes = as_integer(self.probes)
        if self.probes != EXACT and (probes is None or not 1 <= probes <= MOST_PROBES):
            raise ConfigError(
                f"probes: expected an integer of 1 to {MOST_PROBES:,}, or exact (a product for every pixel); got {shown(self.probes)}"
            )
        least, most = SIGMA_RANGE
        if low is None or high is None or not least <= low < high <= most:
            raise ConfigError(
                f"sigma: expected {least:g} <= sigma_min < sigma_max <= {most:g}; got {shown(self.sigma_min)} and "
                f"{shown(self.sigma_max)}"
            )
        if rho is None or not 0 < rho < math.inf:
            raise ConfigError(f"rho: expected a number > 0; got {shown(self.rho)}")
        if not isinstance(self.solver, str) or self.solver not in SOLVERS:
            raise ConfigError(f"solver: expected {' or '.join(SOLVERS)}; got {shown(self.solver)}")
        found = {
            "steps": count,
            "probes": EXACT if probes is None else probes,
            "sigma_min": low,
            "sigma_max": high,
            "rho": rho,
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def places(self, sigma_data: float) -> list[float]:
        """The grid: ``steps + 1`` values of theta^(1/rho), from sigma_min up to sigma_max."""
        low, high = (math.atan2(sigma, sigma_data) ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))
        return [low + (high - low) * k / self.steps for k in range(self.steps + 1)]

    @property
    def evaluations(self) -> int:
        """Network passes for one class of one image."""
        return len(SOLVERS[self.solver].nodes) * self.steps

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values."""
        return dataclasses.asdict(self)


def rademacher(plan: NoisePlan, draw: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Random signs [count, *shape], float32 on the CPU: those of the plan's normal draws, so they are counter-based as well."""
    return torch.where(plan.normal(draw, count, shape) < 0, -1.0, 1.0)


def follow(
    denoiser: Denoiser, z: Tensor, labels: Tensor, settings: FlowSettings, probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """From sigma_min to sigma_max.

    Args:
        denoiser: of any kind; F for given labels is what is asked of it.
        z: [B, C, H, W], preconditioned images c_in(sigma_min) x.
        labels: [B] int64, K for the null label.
        settings: grid and probes.
        probes: signs [P, C, H, W], shared by all rows, or [B, P, C, H, W]; None with exact divergence.

    Returns:
        z at sigma_max, and the integral of div_z F over theta [B]: log p(z_min) = log p(z_max) - integral. Where autograd is on
        and z wants a gradient both have one; each step is rebuilt in the backward pass.
    """
    places = settings.places(denoiser.precondition.sigma_data)
    total = z.new_zeros(len(z))
    graph = z.requires_grad and torch.is_grad_enabled()
    for here, there in zip(places[:-1], places[1:], strict=True):
        operands = denoiser, z, labels, settings, here, there, probes, graph
        z, change = checkpointed(flow_step, *operands) if graph else flow_step(*operands)
        total = total + change
    return z, total


def trajectory(denoiser: Denoiser, z: Tensor, labels: Tensor, settings: FlowSettings) -> list[Tensor]:
    """The states that :func:`follow` goes through, ``steps + 1`` of [B, C, H, W] without a graph: F alone, no divergence."""
    places, solver, rho = settings.places(denoiser.precondition.sigma_data), SOLVERS[settings.solver], settings.rho
    states = [z]
    with torch.no_grad():
        for here, there in zip(places[:-1], places[1:], strict=True):
            step = there - here
            slopes: list[Tensor] = []
            for node, inner in zip(solver.nodes, solver.inner, strict=True):
                place = here + node * step
                f = _network(denoiser, _moved(states[-1], step, inner, slopes), labels, place**rho)
                slopes.append(-rho * place ** (rho - 1) * f)
            states.append(_moved(states[-1], step, solver.outer, slopes))
    return states


def flow_step(
    denoiser: Denoiser,
    z: Tensor,
    labels: Tensor,
    settings: FlowSettings,
    here: float,
    there: float,
    probes: Tensor | None,
    graph: bool,
) -> tuple[Tensor, Tensor]:
    """One step, in either direction.

    Args:
        denoiser, z, labels, settings, probes: as of :func:`follow`.
        here, there: values of theta^(1/rho).
        graph: whether the result is to be differentiated in z.

    Returns:
        z [B, C, H, W] at ``there``, and the integral of div_z F dtheta over the step [B].
    """
    solver, step, rho = SOLVERS[settings.solver], there - here, settings.rho
    slopes: list[Tensor] = []
    change: Tensor | None = None
    for node, inner, outer in zip(solver.nodes, solver.inner, solver.outer, strict=True):
        place = here + node * step
        f, divergence = flow_slope(denoiser, _moved(z, step, inner, slopes), labels, place**rho, probes, graph)
        speed = rho * place ** (rho - 1)  # dtheta for one unit of theta^(1/rho)
        slopes.append(-speed * f)
        part = step * outer * speed * divergence
        change = part if change is None else change + part
    assert change is not None
    return _moved(z, step, solver.outer, slopes), change


def _moved(z: Tensor, step: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            z = z + step * weight * slope
    return z


def flow_slope(
    denoiser: Denoiser, z: Tensor, labels: Tensor, theta: float, probes: Tensor | None, graph: bool
) -> tuple[Tensor, Tensor]:
    """F [B, C, H, W] and div_z F [B] at one noise level, sigma_data tan(theta); arguments as of :func:`flow_step`."""
    with torch.enable_grad():
        z = z if graph else z.detach().requires_grad_()
        f = _network(denoiser, z, labels, theta)
        divergence = _exact(f, z, graph) if probes is None else _estimated(f, z, probes, graph)
    return (f, divergence) if graph else (f.detach(), divergence.detach())


def _network(denoiser: Denoiser, z: Tensor, labels: Tensor, theta: float) -> Tensor:
    data = denoiser.precondition.sigma_data
    return denoiser.f(data / math.cos(theta) * z, z.new_full((len(z),), data * math.tan(theta)), labels)


def _exact(f: Tensor, z: Tensor, graph: bool) -> Tensor:
    """The trace of the Jacobian, one vector-Jacobian product for each pixel."""
    size = z[0].numel()
    total = f.new_zeros(len(f))
    for pixel in range(size):
        unit = f.new_zeros(len(f), size)
        unit[:, pixel] = 1
        (found,) = torch.autograd.grad(
            f, z, unit.view_as(f), retain_graph=graph or pixel + 1 < size, create_graph=graph
        )
        total = total + found.flatten(1)[:, pixel]
    return total


def _estimated(f: Tensor, z: Tensor, probes: Tensor, graph: bool) -> Tensor:
    """Hutchinson's estimate: the mean of v . (J^T v) over the probes v."""
    count = probes.shape[-4]
    total = f.new_zeros(len(f))
    for number in range(count):
        v = probes.select(-4, number).to(f).expand_as(f)
        (found,) = torch.autograd.grad(f, z, v, retain_graph=graph or number + 1 < count, create_graph=graph)
        total = total + (found * v).flatten(1).sum(1)
    return total / count
