"""report.json as frozen dataclasses: figures with their intervals, one run at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rdc.evaluation.network_records import NetworkRecord
from rdc.evaluation.records import COUNT, NOISE, SHARE, AttackKey
from rdc.evaluation.sanity_records import Sanity
from rdc.models.precision import PrecisionChoice
from rdc.statistics.proportions import wilson_interval
from rdc.storage.json_records import Absent, JsonObject, JsonRecord, anything, entry
from rdc.storage.structure import integer, mapping, number, optional, sequence, text

__all__ = [
    "REPORT_SCHEMA",
    "AttackProgress",
    "AttackReport",
    "Fall",
    "PresetReport",
    "RaisedFlag",
    "Rate",
    "Report",
    "RobustRate",
    "ScoreRates",
    "rate",
]

REPORT_SCHEMA = "rdc-report-2"
_DIGITS = 6
_ENDS = sequence(number(0, 1), 2, 2)


@dataclasses.dataclass(frozen=True)
class Rate(JsonRecord):
    """An accuracy with its 95 % Wilson interval."""

    accuracy: float = entry(SHARE)
    ci95: tuple[float, float] = entry(_ENDS)


def rate(successes: float, n: int) -> Rate:
    """``successes`` of ``n`` images, rounded to six digits; shares of images may be summed."""
    low, high = wilson_interval(successes, n)
    return Rate(round(successes / n, _DIGITS), (round(low, _DIGITS), round(high, _DIGITS)))


@dataclasses.dataclass(frozen=True)
class RobustRate(JsonRecord):
    """The headline: the lowest of the scores that the noise policy asks for; None where nothing attacked.

    Args:
        accuracy, ci95: see :class:`Rate`.
        average: over fresh draws, where there are any.
        worst_of: their number.
    """

    accuracy: float | None = entry(optional(SHARE))
    ci95: tuple[float, float] | None = entry(optional(_ENDS))
    average: Rate | Absent = entry(of=Rate, absent=True)
    worst_of: int | Absent = entry(integer(1), absent=True)


@dataclasses.dataclass(frozen=True)
class ScoreRates(JsonRecord):
    """Every way of scoring the adversarial images: against known noise, and over ``submissions`` fresh draws.

    ``while_optimising`` scores no image but a search: right in a single fresh draw at every iterate of every attack (disputed,
    docs/threat_models.md); absent where an attack of an earlier version did not record it.
    """

    known: Rate | Absent = entry(of=Rate, absent=True)
    average: Rate | Absent = entry(of=Rate, absent=True)
    majority: Rate | Absent = entry(of=Rate, absent=True)
    worst: Rate | Absent = entry(of=Rate, absent=True)
    submissions: int | Absent = entry(integer(1), absent=True)
    while_optimising: Rate | Absent = entry(of=Rate, absent=True)


@dataclasses.dataclass(frozen=True)
class Fall(JsonRecord):
    """Accuracy while an attack goes on, as a step function.

    Args:
        at: steps or queries, rising from 0; the last is where the attack ends. At most a hundred.
        accuracy: of all images, those right when clean that neither an attack before nor this one up to there has misclassified.
        median, last: when half of those that it misclassified were, and when all were; None: it misclassified none.
    """

    at: tuple[int, ...] = entry(sequence(COUNT, 1))
    accuracy: tuple[float, ...] = entry(sequence(SHARE, 1))
    median: int | None = entry(optional(COUNT))
    last: int | None = entry(optional(COUNT))


@dataclasses.dataclass(frozen=True)
class AttackProgress(JsonRecord):
    """When one attack broke what it broke.

    Args:
        steps: restart r begins at r (steps + 1); runs at different classes count from the same step.
        queries: model calls for an image, over all restarts and runs; absent where a batch was made by an earlier version.
        passes_per_query: network passes of a call, on average; absent likewise.
    """

    steps: Fall = entry(of=Fall)
    queries: Fall | Absent = entry(of=Fall, absent=True)
    passes_per_query: float | Absent = entry(number(0), absent=True)


@dataclasses.dataclass(frozen=True)
class AttackReport(JsonRecord):
    """One attack under one noise policy.

    Args:
        name, noise: which.
        norm, eps: its threat.
        steps, restarts, gradient, eot: how it ran.
        accuracy, ci95: of the cascade under its policy: right when clean and under every attack up to and including this one.
        seconds: it took.
        attacked, broken, survivors: images before it that are ever right, wrong at least once in it, always right after it.
        network_evaluations: it took.
        average: over fresh draws, under that policy.
        progress: accuracy while it goes on; absent where it made no step.
    """

    name: str = entry(text())
    norm: str | None = entry(optional(text()))
    eps: float | None = entry(optional(number(0)))
    steps: int = entry(COUNT)
    restarts: int = entry(COUNT)
    gradient: str | None = entry(optional(text()))
    noise: str = entry(NOISE)
    eot: int | None = entry(optional(integer(1)))
    accuracy: float = entry(SHARE)
    ci95: tuple[float, float] = entry(_ENDS)
    seconds: float = entry(number(0))
    attacked: int = entry(COUNT)
    broken: int = entry(COUNT)
    survivors: int = entry(COUNT)
    network_evaluations: int = entry(COUNT)
    average: Rate | Absent = entry(of=Rate, absent=True)
    progress: AttackProgress | Absent = entry(of=AttackProgress, absent=True)

    @property
    def attack(self) -> AttackKey:
        """Which attack."""
        return self.name, self.noise


@dataclasses.dataclass(frozen=True)
class RaisedFlag(JsonRecord):
    """A flag that holds, see ``evaluation.flags.Flag``, with what raised it."""

    name: str = entry(text())
    severity: str = entry(text())
    raised_if: str = entry(text())
    explanation: str = entry(text())
    what_to_do: str = entry(text())
    evidence: str = entry(text())

    @property
    def warns(self) -> bool:
        """The figure must not be quoted without dealing with this."""
        return self.severity == "warning"


@dataclasses.dataclass(frozen=True)
class PresetReport(JsonRecord):
    """The version of the paper that a run was to follow.

    Args:
        name: a key of ``rdc.arguments.paper_presets.PAPER_PRESETS``.
        deviations: what differs from it, in words.
    """

    name: str = entry(text())
    deviations: tuple[str, ...] = entry(sequence(text()))


@dataclasses.dataclass(frozen=True)
class Report(JsonRecord):
    """report.json.

    Args:
        schema: of the report.
        model, dataset, n, seed: what was evaluated, on how many images.
        classifier: levels, weighting, lm, noise, head and precision of the defence.
        clean, robust: the two figures.
        scores: every way of scoring.
        attacks: in order, policy after policy.
        sanity, flags: reasons to doubt them.
        network_evaluations, seconds: of the run.
        networks: every known network with the digest of its weights.
        command, commit, versions: how it was made.
        preset: absent where none was named.
        precision_choice: how ``--precision auto`` chose; absent where it was not asked for.
    """

    schema: str = entry(text())
    model: str = entry(text())
    dataset: str = entry(text())
    n: int = entry(integer(1))
    seed: int = entry(COUNT)
    classifier: JsonObject = entry(mapping(anything))
    clean: Rate = entry(of=Rate)
    robust: RobustRate = entry(of=RobustRate)
    scores: ScoreRates = entry(of=ScoreRates)
    attacks: tuple[AttackReport, ...] = entry(of=AttackReport, many=True)
    sanity: Sanity = entry(of=Sanity)
    flags: tuple[RaisedFlag, ...] = entry(of=RaisedFlag, many=True)
    network_evaluations: int = entry(COUNT)
    seconds: float = entry(number(0))
    command: str = entry(text())
    commit: str | None = entry(optional(text()))
    versions: Mapping[str, str] = entry(mapping(text()))
    preset: PresetReport | Absent = entry(of=PresetReport, absent=True)
    precision_choice: PrecisionChoice | Absent = entry(of=PrecisionChoice, absent=True)
    networks: tuple[NetworkRecord, ...] | Absent = entry(of=NetworkRecord, many=True, absent=True)
