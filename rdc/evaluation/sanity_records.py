"""sanity.json as frozen records: what the short extra attacks of an evaluation found (:mod:`rdc.evaluation.sanity`)."""

from __future__ import annotations

import dataclasses

from rdc.evaluation.records import COUNT, SHARE
from rdc.storage.json_records import ABSENT, Absent, JsonRecord, anything, entry
from rdc.storage.structure import number, optional, sequence, text

__all__ = ["GradientPath", "GradientShape", "GradientShares", "NoiseShares", "Sanity", "ShortAttack"]


@dataclasses.dataclass(frozen=True)
class ShortAttack(JsonRecord):
    """A short attack on a few images: radius, steps, accuracy after it, mean loss (None: not finite)."""

    eps: float = entry(number())
    steps: int = entry(COUNT)
    accuracy: float = entry(SHARE)
    loss: float | None = entry(optional(number()))


@dataclasses.dataclass(frozen=True)
class GradientPath(JsonRecord):
    """Steps along the gradient: share of those in which the loss fell, its gain, share of the radius used."""

    falls: float | None = entry(optional(number()))
    gain: float | None = entry(optional(number()))
    used: float | None = entry(optional(number()))
    steps: int = entry(COUNT)


@dataclasses.dataclass(frozen=True)
class GradientShape(JsonRecord):
    """Share of the clean gradients' entries that are 0, and mean cosine similarity along the path."""

    zero_entries: float | None = entry(optional(number()))
    constant: float | None = entry(optional(number()))


@dataclasses.dataclass(frozen=True)
class GradientShares(JsonRecord):
    """Accuracies after a short attack with exact and with BPDA gradients."""

    exact: float = entry(SHARE)
    bpda: float = entry(SHARE)


@dataclasses.dataclass(frozen=True)
class NoiseShares(JsonRecord):
    """Accuracies after a short attack on known, and on fresh noise."""

    known: float = entry(SHARE)
    fresh: float = entry(SHARE)


@dataclasses.dataclass(frozen=True)
class Sanity(JsonRecord):
    """sanity.json; what was not checked is absent, see ``sanity.run_sanity``."""

    n: int | Absent = entry(COUNT, absent=True)
    budgets: tuple[ShortAttack, ...] | Absent = entry(sequence(anything, 2, 2), of=ShortAttack, many=True, absent=True)
    steps: tuple[ShortAttack, ...] | Absent = entry(sequence(anything, 2, 2), of=ShortAttack, many=True, absent=True)
    large_eps: ShortAttack | Absent = entry(of=ShortAttack, absent=True)
    path: GradientPath | Absent = entry(of=GradientPath, absent=True)
    gradient: GradientShape | Absent = entry(of=GradientShape, absent=True)
    bpda: GradientShares | Absent = entry(of=GradientShares, absent=True)
    fresh: NoiseShares | Absent = entry(of=NoiseShares, absent=True)
    error: str | Absent = entry(text(), absent=True)
    network_evaluations: int | Absent = entry(COUNT, absent=True)

    @property
    def complete(self) -> bool:
        """Whether everything is there that its own ``n`` and ``error`` promise."""
        parts = (self.budgets, self.steps, self.large_eps, self.path, self.gradient)
        return not self.n or self.error is not ABSENT or not any(part is ABSENT for part in parts)
