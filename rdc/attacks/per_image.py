"""What the adaptive attacks share: an objective that knows which image is in which row, and rules built on that.

``run_attack`` hands an objective the rows of still robust images only. An attack that keeps state for each image (a
multiplier, the image to be warped, how often the real model was asked) must know which images these are:
``PerImageObjective.start`` therefore returns two columns, logit scale and row number, where ``Objective.start`` returns
the scale alone, and ``run_attack`` indexes them by row as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from rdc.attacks.losses import Evaluation, Objective
from rdc.attacks.pgd import Rule, RuleAround
from rdc.attacks.threat_model import AttackResult

__all__ = ["AscentRule", "JumpRule", "LocatedEvaluation", "PerImageObjective", "extend_result"]

Result = TypeVar("Result", bound=AttackResult)


@dataclasses.dataclass(frozen=True, eq=False)
class LocatedEvaluation(Evaluation):
    """An Evaluation that knows its images.

    Args:
        ids: [n] int64, row of each image in the attack's call.
        ascent: [n] float64, what the rule maximises; ``loss`` is what is recorded.
    """

    ids: Tensor = dataclasses.field(kw_only=True)
    ascent: Tensor = dataclasses.field(kw_only=True)

    def rows(self, rows: Tensor) -> LocatedEvaluation:
        """The same for rows [m] int64 only."""
        kept = super().rows(rows)
        return LocatedEvaluation(**_fields(kept, Evaluation), ids=self.ids[rows], ascent=self.ascent[rows])


class PerImageObjective(Objective):
    """Objective whose third output of ``start``, and third argument of ``evaluate``, is [n, 2]: logit scale and row."""

    def start(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As Objective.start, with the row number beside the scale; calls ``begin``."""
        correct, non_finite, scale = super().start(x, y)
        rows = torch.arange(x.shape[0], device=x.device, dtype=torch.float64)
        self.begin(x, y)
        return correct, non_finite, torch.stack([scale, rows], dim=1)

    def begin(self, x: Tensor, y: Tensor) -> None:
        """Prepare what is kept for each image; x [N, C, H, W] are the clean images."""

    def plain(self, x: Tensor, y: Tensor, place: Tensor, *, gradient: bool) -> LocatedEvaluation:
        """Objective.evaluate with place [n, 2]; ``ascent`` is the loss."""
        found = super().evaluate(x, y, place[:, 0], gradient=gradient)
        return LocatedEvaluation(**_fields(found, Evaluation), ids=place[:, 1].long(), ascent=found.loss)

    def evaluate(self, x: Tensor, y: Tensor, scale: Tensor, *, gradient: bool) -> LocatedEvaluation:
        """Loss, correctness and gradient at x; ``scale`` is [n, 2] from ``start``."""
        return self.plain(x, y, scale, gradient=gradient)


class AscentRule(RuleAround):
    """Hands ``ascent`` to a rule as the loss."""

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        assert isinstance(evaluation, LocatedEvaluation)
        return self.rule.next(x, dataclasses.replace(evaluation, loss=evaluation.ascent))


class JumpRule(RuleAround):
    """A random start as iterate 1: iterate 0 is what run_attack starts from, then ``jump(ids)``, then the rule.

    Args:
        rule: takes over at iterate 1.
        jump: rows of the call [n] int64 -> [n, C, H, W] float32 within the budget.
    """

    def __init__(self, rule: Rule, jump: Callable[[Tensor], Tensor]) -> None:
        super().__init__(rule)
        self.jump, self.jumped = jump, False

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        if self.jumped:
            return self.rule.next(x, evaluation)
        assert isinstance(evaluation, LocatedEvaluation)
        self.jumped = True
        return self.jump(evaluation.ids)


def extend_result(kind: type[Result], result: AttackResult, **more: Any) -> Result:
    """An AttackResult as one of its subclasses; ``more`` holds the new fields, or other values of the old ones."""
    return kind(**{**_fields(result, AttackResult), **more})


def _fields(of: Any, kind: type) -> dict[str, Any]:
    return {field.name: getattr(of, field.name) for field in dataclasses.fields(kind)}
