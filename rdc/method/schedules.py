r"""How a diffusion model counts noise: the variable it sees, the time it is told, and what it predicts.

rdc writes a noisy image as ``x_t = x0 + s e``, e ~ N(0, I), whatever the model calls it. A model that sees
``z = a x0 + b e`` sees ``z = a x_t`` at ``s = b / a``, so a schedule is two functions of s: the scale ``a`` and the time.

A prediction m gives the posterior mean linearly, and with it rdc's ``F = (D - c_skip x_t) / c_out``
(:mod:`rdc.method.preconditioning`, ``r = sqrt(s^2 + sd^2)``). Multiplied out nothing cancels as s goes to 0:

===========  ===============================  ======================================================================
predicts     D                                F
===========  ===============================  ======================================================================
``x0``       ``m``                            ``(r^2 m - sd^2 x_t) / (s sd r)``
``eps``      ``x_t - s m``                    ``s / (sd r) x_t - r / sd m``
``v``        ``(x_t - s sqrt(1 + s^2) m)      ``s (1 - sd^2) / (sd (1 + s^2) r) x_t - r / (sd sqrt(1 + s^2)) m``
             / (1 + s^2)``
``flow``     ``(x_t - s m) / (1 + s)``        ``(s - sd^2) / (sd (1 + s) r) x_t - r / (sd (1 + s)) m``
``F``        ``c_skip x_t + c_out m``         ``m``
===========  ===============================  ======================================================================

``v = a e - b x0`` with ``a^2 + b^2 = 1`` (Salimans and Ho 2022, arXiv 2202.00512); ``flow = e - x0``, the velocity of the linear
interpolant ``z = (1 - t) x0 + t e`` (Lipman et al. 2022, arXiv 2210.02747).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from rdc.arguments.scalars import as_number, shown
from rdc.errors import ConfigError
from rdc.networks.vp import vp_sigmas

__all__ = [
    "PREDICTIONS",
    "SCHEDULES",
    "EDMSchedule",
    "FlowSchedule",
    "Schedule",
    "VPSchedule",
    "resolve_schedule",
    "to_f",
]

PREDICTIONS = ("x0", "eps", "v", "flow", "F")  #: what a model may predict

_VP = {
    "vp-linear": "linear",
    "vp-scaled-linear": "scaled_linear",
    "vp-cosine": "squaredcos_cap_v2",
    "vp-sigmoid": "sigmoid",
}
#: names that :func:`resolve_schedule` knows
SCHEDULES = ("edm", "edm-network", *_VP, "flow")


class Schedule:
    """Two functions of the noise level s, and the levels that they cover.

    Attributes:
        sigma_min, sigma_max: the levels at which the model can be asked.
        predictions: those of :data:`PREDICTIONS` that have a meaning with this schedule.
    """

    sigma_min: float = 0.0
    sigma_max: float = math.inf
    predictions: ClassVar[tuple[str, ...]] = PREDICTIONS

    def scale(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """a of ``z = a x_t``, shaped like ``sigma``."""
        raise NotImplementedError

    def time(self, sigma: Tensor) -> Tensor:
        """What the model is told in place of s, shaped like ``sigma``."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class EDMSchedule(Schedule):
    """Noise is added, nothing is scaled: ``f(x_t, s, label)``.

    Args:
        raw: the model is the network inside EDM's preconditioning: ``f(c_in x_t, ln(s) / 4, label)``.
    """

    raw: bool = False
    predictions: ClassVar[tuple[str, ...]] = ("x0", "eps", "F")

    def scale(self, sigma: Tensor, sigma_data: float) -> Tensor:
        return 1 / (sigma.square() + sigma_data**2).sqrt() if self.raw else torch.ones_like(sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4 if self.raw else sigma

    def describe(self) -> dict[str, Any]:
        return {"schedule": "edm-network" if self.raw else "edm"}


@dataclasses.dataclass(frozen=True)
class FlowSchedule(Schedule):
    """The linear interpolant ``z = (1 - t) x0 + t e``: ``f(z, time_scale t, label)``.

    Args:
        time_scale: 1 or, as diffusers' flow-matching transformers want it, 1000.
        data_at: the t of clean images. 1: the model was trained with ``z = t x0 + (1 - t) e`` and predicts ``x0 - e``; its time is
            ``1 - t`` and its velocity the negative, both accounted for.
        shift: S of models that are told u in place of t = S u / (1 + (S - 1) u). 1 for models that are told t, which are nearly all:
            the ``shift`` of a diffusers scheduler spaces its steps and changes nothing here.

    Raises:
        ConfigError: a number that is not positive, or data_at neither 0 nor 1.
    """

    time_scale: float = 1.0
    data_at: int = 0
    shift: float = 1.0
    predictions: ClassVar[tuple[str, ...]] = ("x0", "eps", "flow")

    def __post_init__(self) -> None:
        for name in ("time_scale", "shift"):
            number = as_number(getattr(self, name))
            if number is None or not 0 < number < math.inf:
                raise ConfigError(f"{name}: expected a positive number; got {shown(getattr(self, name))}")
        if type(self.data_at) is not int or self.data_at not in (0, 1):
            raise ConfigError(f"data_at: expected 0 or 1, the time of clean images; got {shown(self.data_at)}")

    def scale(self, sigma: Tensor, sigma_data: float) -> Tensor:
        return 1 / (1 + sigma)

    def time(self, sigma: Tensor) -> Tensor:
        t = sigma / (1 + sigma)
        told = t / (self.shift - (self.shift - 1) * t)
        return self.time_scale * (1 - told if self.data_at else told)

    def describe(self) -> dict[str, Any]:
        return {"schedule": "flow", **dataclasses.asdict(self)}


class VPSchedule(Schedule):
    """Variance-preserving diffusion in T steps: ``f(x_t / sqrt(1 + s^2), step, label)``.

    Args:
        sigmas: sqrt((1 - abar) / abar) of every step, increasing, as a tensor [T] or numbers.
        steps: "nearest": the step (int64) whose ln(s) is nearest. "between": a fraction of two steps (float), linear in ln(s), as
            k-diffusion's ``CompVisDenoiser`` and ``CompVisVDenoiser`` do.
        name: for reports.

    Raises:
        ConfigError: fewer than two levels, levels that are not positive, finite and increasing, or another word for steps.
    """

    predictions: ClassVar[tuple[str, ...]] = ("x0", "eps", "v")

    def __init__(self, sigmas: Tensor | Sequence[float], steps: str = "nearest", name: str = "vp") -> None:
        if steps not in ("nearest", "between"):
            raise ConfigError(f"steps: expected nearest or between; got {shown(steps)}")
        try:
            table = torch.as_tensor(sigmas, dtype=torch.float64).cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ConfigError(f"sigmas: expected numbers [T]; got {shown(sigmas)}") from None
        if (
            table.ndim != 1
            or len(table) < 2
            or not bool(((table > 0) & (table < math.inf)).all() & (table.diff() >= 0).all())
        ):
            raise ConfigError(f"sigmas: expected at least two positive levels, increasing; got {shown(sigmas)}")
        self.steps, self.name = steps, name
        self.sigma_min, self.sigma_max = table[0].item(), table[-1].item()
        self._log = table.log()

    def scale(self, sigma: Tensor, sigma_data: float) -> Tensor:
        return 1 / (1 + sigma.square()).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        table, wanted = self._log.to(sigma), sigma.log()
        if self.steps == "nearest":
            return torch.bucketize(wanted, (table[1:] + table[:-1]) / 2)
        above = torch.bucketize(wanted, table).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)

    def describe(self) -> dict[str, Any]:
        return {"schedule": self.name, "training_steps": len(self._log), "steps": self.steps}


def resolve_schedule(schedule: Schedule | str | Mapping[str, Any]) -> Schedule:
    """A schedule by name, by the configuration of a diffusers scheduler, or as it is.

    Args:
        schedule: one of :data:`SCHEDULES` (VP: 1,000 steps, betas as in diffusers' defaults for the name), a mapping with a scheduler's
            settings (``num_train_timesteps``, ``beta_schedule``, ``beta_start``, ``beta_end`` or ``trained_betas``), or a
            :class:`Schedule`.

    Raises:
        ConfigError: none of these, or settings that no schedule has.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, Mapping):
        try:
            return VPSchedule(vp_sigmas(dict(schedule)), name=str(schedule.get("beta_schedule", "linear"))[:40])
        except ValueError as error:
            raise ConfigError(f"schedule: {error}") from None
    if schedule in ("edm", "edm-network"):
        return EDMSchedule(raw=schedule == "edm-network")
    if schedule == "flow":
        return FlowSchedule()
    if isinstance(schedule, str) and schedule in _VP:
        return VPSchedule(vp_sigmas({"beta_schedule": _VP[schedule], **_LATENT.get(schedule, {})}), name=schedule)
    raise ConfigError(
        f"schedule: expected {', '.join(SCHEDULES)}, the settings of a diffusers scheduler as a mapping, or a "
        f"rdc.method.schedules.Schedule; got {shown(schedule)}"
    )


_LATENT = {
    "vp-scaled-linear": {"beta_start": 0.00085, "beta_end": 0.012}
}  # Stable Diffusion's, the only one that is scaled_linear


def to_f(predicts: str, sigma_data: float, x_t: Tensor, sigma: Tensor, predicted: Tensor) -> Tensor:
    """F of a prediction, by the module's table.

    Args:
        predicts: one of :data:`PREDICTIONS`.
        sigma_data: of the preconditioning.
        x_t: [B, C, H, W], x0 + s e.
        sigma: s [B, 1, 1, 1].
        predicted: m [B, C, H, W].
    """
    sd, r = sigma_data, (sigma.square() + sigma_data**2).sqrt()
    if predicts == "x0":
        return (r.square() * predicted - sd**2 * x_t) / (sigma * sd * r)
    if predicts == "eps":
        return (sigma / r * x_t - r * predicted) / sd
    if predicts == "v":
        q = 1 + sigma.square()
        return (sigma * (1 - sd**2) / (q * r) * x_t - r / q.sqrt() * predicted) / sd
    if predicts == "flow":
        return ((sigma - sd**2) / r * x_t - r * predicted) / (sd * (1 + sigma))
    return predicted
