"""The checks of ``rdc evaluate`` (:mod:`rdc.evaluation.sanity`) on a few images, and the flags that they raise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from rdc.audits.subject import Subject
from rdc.evaluation.flags import raise_flags
from rdc.evaluation.records import Identity, OutputChecks
from rdc.evaluation.report import RaisedFlag, RobustRate, ScoreRates, rate
from rdc.evaluation.run import identity_of
from rdc.evaluation.sanity import run_sanity
from rdc.evaluation.sanity_records import Sanity
from rdc.evaluation.settings import EvaluationSettings
from rdc.evaluation.totals import RunTotals
from rdc.storage.json_records import given

__all__ = ["ShortAttacks", "flags_of_settings", "measure_short_attacks"]


@dataclasses.dataclass(frozen=True, eq=False)
class ShortAttacks:
    """What short attacks found.

    Args:
        sanity: see ``rdc.evaluation.sanity.run_sanity``.
        flags: the flags of ``rdc evaluate`` that it raises, by name.
        n: images that were right, and attacked.
    """

    sanity: Sanity
    flags: dict[str, RaisedFlag]
    n: int

    def apart(self, name: str) -> float | None:
        """By how many images the two shares differ that a flag compares; None: it compares none.

        A flag's ten points are one image of ten, and on fewer images a single one raises it.

        Args:
            name: of the flag.
        """
        bpda, fresh = given(self.sanity.bpda), given(self.sanity.fresh)
        if name == "bpda-above-exact" and bpda is not None:
            return self.n * (bpda.bpda - bpda.exact)
        if name == "known-below-fresh" and fresh is not None:
            return self.n * (fresh.fresh - fresh.known)
        return None


def measure_short_attacks(subject: Subject, checks: OutputChecks, progress: Callable[[Any], None]) -> ShortAttacks:
    """Run the sanity checks of an evaluation on the first images.

    Args:
        subject: model and images.
        checks: of the model's output.
        progress: called after each step of an attack.
    """
    settings = _settings(subject)
    part = slice(0, settings.sanity)
    x, labels, ids = subject.pixels[part], subject.labels[part], subject.data.indices[part]
    sanity = run_sanity(subject.defence, x, labels, ids, settings, progress)
    subject.calls[1] += given(sanity.network_evaluations) or 0
    return ShortAttacks(sanity, flags_of(identity(subject), checks, sanity), given(sanity.n) or 0)


def flags_of_settings(subject: Subject, checks: OutputChecks) -> dict[str, RaisedFlag]:
    """The flags that a model raises by what it says of itself and by its answers, without an attack."""
    return flags_of(identity(subject), checks, Sanity())


def identity(subject: Subject) -> Identity:
    """Model and images as a run of ``rdc evaluate`` records them."""
    return identity_of(subject.defence, subject.data, _settings(subject))


def flags_of(who: Identity, checks: OutputChecks, sanity: Sanity) -> dict[str, RaisedFlag]:
    """Flags by name, of a run without any attack but the short ones."""
    totals = RunTotals(
        n=1,
        clean=rate(1, 1),
        robust=RobustRate(None, None),
        scores=ScoreRates(),
        attacks=(),
        late={},
        checks=checks,
        mismatches=0,
        non_finite=0,
        network_evaluations=0,
        seconds=0.0,
        sanity=sanity,
    )
    return {flag.name: flag for flag in raise_flags(who, totals)}


def _settings(subject: Subject) -> EvaluationSettings:
    own = subject.settings
    return EvaluationSettings(
        model="model",
        dataset=subject.data.name,
        n=len(subject.data),
        attacks=("apgd-ce",),
        norm=own.norm,
        eps=own.eps,
        steps=own.steps,
        sanity=min(own.sanity, len(subject.data)),
        gradient=str(subject.defence.gradient),
        seed=own.seed % 2**63,
    )
