"""The threats that a student is trained for by differences: settings of :mod:`rdc.training.distillation`."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from rdc.errors import ConfigError
from rdc.training.first_order import check_margin
from rdc.training.threats import Perturbation, Threats, TrainedThreat, parse_threats

__all__ = ["Secant", "lead", "moved"]


@dataclasses.dataclass(frozen=True)
class Secant:
    """The threat that a student is trained for by differences.

    Args:
        eps: radius in [0, 1] pixel units, > 0; with ``threats`` 0.
        norm: "linf", "l2" or "l1".
        low, high: the fraction u of the worst perturbation is drawn between these; 0 < low <= high <= 1.
        share: s, of the extrapolated cross-entropy; above 0, at most 1.
        steps: 1: d is the first-order worst perturbation. More: d is what as many steps of Frank-Wolfe find (Jaggi 2013), each a
            mean of the last d and the worst perturbation by the gradient there: iterates never leave ball and pixel box, no step
            size is chosen. Every further step costs a forward pass and an input gradient, and **makes d an adversarial example**.
        threats: several in place of ``eps`` and ``norm``, as :func:`rdc.training.threats.parse_threats` reads them.
        choice: which of these an image gets: "drawn" or "worst" of :data:`rdc.training.threats.CHOICES`.

    Raises:
        ConfigError: a setting is out of range, or both ``eps`` and ``threats`` are given.
    """

    eps: float = 0.0
    norm: str = "linf"
    low: float = 0.05
    high: float = 0.3
    share: float = 1.0
    steps: int = 1
    threats: str = ""
    choice: str = "drawn"

    def __post_init__(self) -> None:
        check_margin(self.eps, self.norm, "secant")
        if type(self.steps) is not int or self.steps < 1:
            raise ConfigError(f"secant_steps: expected a whole number >= 1; got {self.steps!r}")
        if not self.eps > 0 and not self.threats:
            raise ConfigError("secant_eps: expected a radius > 0, such as 8/255; got 0")
        if self.eps > 0 and self.threats:
            raise ConfigError("threats: expected no secant_eps beside them, which is one threat itself; leave one out")
        if not 0 < self.low <= self.high <= 1:
            raise ConfigError(f"secant_range: expected 0 < low <= high <= 1; got {self.low} and {self.high}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"secant_share: expected a share above 0, at most 1; got {self.share}")
        if self.choice == "steepest":
            raise ConfigError(
                "choice: expected drawn or worst for a student, whose steps are means of perturbations under one threat; got "
                "'steepest', which is for rdc train --method pgd-at, trades and mart"
            )
        self.threat_set()

    def threat_set(self) -> Threats:
        """The threats, one where only a radius is given."""
        if self.threats:
            return Threats(parse_threats(self.threats), self.choice)
        return Threats((TrainedThreat(self.norm, self.eps, self.eps),), self.choice)

    def describe(self) -> dict[str, Any]:
        """For the run's folder; what was added since 0.1 and is off is left out, so that older runs continue."""
        settings = dataclasses.asdict(self)
        if self.steps == 1:
            del settings["steps"]
        for name in ("threats", "choice") if not self.threats else ("eps", "norm"):
            del settings[name]
        return settings


def moved(x0: Tensor, perturbation: Perturbation, share: Tensor | None = None) -> Tensor:
    """Images in [-1, 1], perturbed by all or by a share [B] of it."""
    x = x0.detach()
    if perturbation.flow is not None:
        return 2 * perturbation.moved((x + 1) / 2, share) - 1
    part = 2 * perturbation.delta
    return x + (part if share is None else share[:, None, None, None] * part)


def lead(logits: Tensor, rivals: Tensor, own: Tensor) -> Tensor:
    """[B]: what the rival's logit exceeds the image's own by, ``own`` [B, K] being its shares of the classes.

    No index is taken, whose backward pass would sort.
    """
    return logits.gather(1, rivals[:, None])[:, 0] - (logits * own).sum(1)
