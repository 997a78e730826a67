"""Smoothed APGD: steps along gradients averaged over nearby points.

    g(x) = 1/m ( grad L(x) + sum_{j=2..m} grad L(x + r_j) ),    r_j uniform in the norm's ball of radius reach * eps, cut to the box

The gradient of a defence that optimises its input is right but local: it turns within distances far below the budget, and a step along
it gains a fraction of what it promises. The average is the gradient of the loss smoothed over that neighbourhood, which is what a step
of that length can use. Losses, decisions and step sizes are those of the defence itself at x: nothing is counted as broken that the
defence has right.

Source: smoothing for optimisation, Duchi, Bartlett & Wainwright 2012 (arXiv 1103.4296); against shattered gradients, Athalye et al.
2018 (arXiv 1802.00420).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from rdc.attacks.apgd import _rule
from rdc.attacks.entry import attack
from rdc.attacks.losses import Model
from rdc.attacks.options import AscentOptions, integer, number
from rdc.attacks.per_image import LocatedEvaluation, PerImageObjective
from rdc.attacks.pgd import run_attack
from rdc.attacks.threat_model import AttackResult, ThreatModel, check_images
from rdc.errors import ConfigError
from rdc.norm_balls import random_start

__all__ = ["SmoothedOptions", "smoothed"]

_NEARBY = 0x9E3779B97F4A7C15  # keeps the nearby points apart from the random starts of the same seed


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SmoothedOptions(AscentOptions):
    """Options of :func:`smoothed`.

    Args:
        samples: points of an average, x among them, >= 1 (1: plain APGD); a step costs as many gradients.
        reach: radius of the neighbourhood over the budget's, > 0.
    """

    samples: int = integer(4, most=100_000)
    reach: float = number(0.25, most=1e6)

    def __post_init__(self) -> None:
        super().__post_init__()
        reach = self.reach
        if isinstance(reach, bool) or not isinstance(reach, (int, float)) or not 0 < reach < float("inf"):
            raise ConfigError(
                f"reach must be a number > 0, the neighbourhood's radius over the budget's; got {reach!r}"
            )


@attack(SmoothedOptions)
def smoothed(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: SmoothedOptions) -> AttackResult:
    """APGD whose gradients are averaged over nearby points (module docstring).

    Args:
        model, x, y, threat: as for ``apgd``.
        options: SmoothedOptions; a call gives its fields as keywords.

    Returns:
        AttackResult.

    Raises:
        InputError, ConfigError, RdcError: as for ``apgd``; samples or reach out of range.
    """
    ids = check_images(x, y, options.image_ids)
    near = ThreatModel(threat.norm, options.reach * threat.eps)
    objective = _Smoothed(model, options.loss, **options.scoring)
    objective.neighbourhood = (near, options.samples, options.seed, ids)
    return run_attack("smoothed", objective, x, y, threat, lambda clean: _rule(clean, threat, options.steps), options)


class _Smoothed(PerImageObjective):
    """The objective at x, with the gradient of its neighbourhood."""

    neighbourhood: tuple[ThreatModel, int, int, Sequence[int]]
    looks = 0  # gradients asked for: numbers the draws

    def evaluate(self, x: Tensor, y: Tensor, scale: Tensor, *, gradient: bool) -> LocatedEvaluation:
        here = self.plain(x, y, scale, gradient=gradient)
        near, samples, seed, ids = self.neighbourhood
        if here.gradient is None or samples == 1:
            return here
        total, counted = here.gradient.clone(), torch.ones_like(here.loss)
        numbers = [int(ids[row]) for row in here.ids.tolist()]
        for draw in range(1, samples):
            word, restart = (seed ^ _NEARBY) % 2**64, self.looks * samples + draw
            point = random_start(x, near.eps, near.norm, seed=word, image_ids=numbers, restart=restart)
            slope = self._with_gradient(point, y, scale[:, 0])[2].double()
            good = slope.isfinite().flatten(1).all(1)
            total += torch.where(good[:, None, None, None], slope, 0.0)
            counted += good
        self.looks += 1
        mean = total / counted[:, None, None, None]
        return dataclasses.replace(here, gradient=mean, unusable=(mean == 0).flatten(1).all(1))
