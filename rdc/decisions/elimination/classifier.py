"""The classifier that drops classes in stages, and takes the full decision wherever an attacker might ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rdc.arguments.scalars import shown
from rdc.contracts import NoisePolicy
from rdc.decisions.anytime.dropping import drop_classes
from rdc.decisions.anytime.early import EarlyClassifier
from rdc.decisions.elimination.stages import EliminationSchedule, spread_order
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier

__all__ = ["EliminatingClassifier"]


class EliminatingClassifier(EarlyClassifier):
    """A diffusion classifier that can leave classes out, stage by stage (clean inference only, see ``rdc.decisions.elimination``).

    Args:
        classifier: of a network that needs a pass for every class, with noise "fixed".
        schedule: stages, by name ("li-2023", "quick"), as text or as an :class:`EliminationSchedule`.
        order: positions of all T levels, in the order of looking; None: those of each stage lie evenly among the rest.
        under_attack: leave classes out in every call, gradients and attacks included. Reports of an evaluation flag it.

    Forward:
        pixels [N, C, H, W] in [0, 1] -> log p(y|x) [N, K] of the full decision, all classes; with ``under_attack`` as :meth:`decide`.
        :meth:`decide` -> the same by elimination, with what it cost.

    Raises:
        ConfigError: one pass gives all classes, noise is fresh, or a schedule or order that does not fit.
    """

    def __init__(
        self,
        classifier: DiffusionClassifier,
        schedule: EliminationSchedule | str = "li-2023",
        *,
        order: Sequence[int] | None = None,
        under_attack: bool = False,
    ) -> None:
        _check(classifier)
        super().__init__(classifier, "eliminating")
        self.schedule, self.under_attack = EliminationSchedule.of(schedule), bool(under_attack)
        count = len(classifier.levels)
        self.stages = self.schedule.sizes(count, classifier.num_classes)
        self.order = spread_order(count, [looked for looked, _ in self.stages]) if order is None else tuple(order)
        if sorted(self.order) != list(range(count)):
            raise ConfigError(f"order: expected the positions 0 to {count - 1}, each once; got {shown(order)}")

    @property
    def passes(self) -> int:
        """Network passes of one decision, likelihood maximisation not counted."""
        return self.schedule.passes(len(self.order), self.num_classes)

    @property
    def full_passes(self) -> int:
        """The same of the full decision."""
        return len(self.order) * self.num_classes

    def forward(self, pixels: Tensor) -> Tensor:
        if self.under_attack:
            return self.decide(pixels).log_probabilities
        with self.counting():
            log_probabilities: Tensor = self.classifier(pixels)
        return log_probabilities

    def _scored(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        draw = self.classifier.drawn(0, x0)[list(self.order)]
        starts = (0, *(looked for looked, _ in self.stages[:-1]))
        looks = [
            (slice(start, looked), _all_but_best(kept))
            for start, (looked, kept) in zip(starts, self.stages, strict=True)
        ]
        return drop_classes(self.classifier, x0, draw, self._prior(x0), looks)

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values, with ``elimination``: stages (levels, classes that go on), passes, and whether it is off."""
        elimination = {
            "schedule": self.schedule.name,
            "stages": [list(stage) for stage in self.stages],
            "passes": self.passes,
            "full_passes": self.full_passes,
            "under_attack": self.under_attack,
        }
        return {**self.classifier.describe(), "head": self.head, "elimination": elimination}


def _all_but_best(kept: int) -> Callable[[Tensor, Tensor], Tensor]:
    """All classes but so many are dropped; of equal ones the first stays."""

    def dropped(behind: Tensor, alive: Tensor) -> Tensor:
        ranked = behind.masked_fill(~alive, torch.inf).sort(dim=1, stable=True).indices
        best = torch.zeros_like(alive).scatter_(1, ranked[:, :kept], True)
        return ~best

    return dropped


def _check(classifier: DiffusionClassifier) -> None:
    if not isinstance(classifier, DiffusionClassifier):
        raise ConfigError(f"elimination: expected a DiffusionClassifier; got {type(classifier).__name__}")
    if classifier.denoiser.passes_per_level == 1:
        raise ConfigError(
            "elimination: expected a network that needs a pass for every class; this one gives all classes in one pass, and leaving some "
            "out saves nothing. Anytime decisions (docs/anytime.md) stop early in levels"
        )
    if classifier.noise_policy != NoisePolicy.FIXED:
        raise ConfigError('elimination: expected noise="fixed", so that there is one full decision; got "fresh"')
