"""Sums over the batches of a run: what figures and flags are made of."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from rdc.evaluation.files import Batch
from rdc.evaluation.records import (
    AttackKey,
    AttackTotals,
    BatchTotals,
    Identity,
    ImageRecord,
    ImageScores,
    OutputChecks,
    SettingsRecord,
)
from rdc.evaluation.report import Rate, RobustRate, ScoreRates, rate
from rdc.evaluation.sanity_records import Sanity
from rdc.storage.json_records import ABSENT, Absent

__all__ = ["RunTotals", "SummedAttack", "sum_batches"]


@dataclasses.dataclass(frozen=True)
class SummedAttack:
    """One attack under one noise policy over all batches.

    Args:
        totals: sums; steps and restarts are the most of any batch, loss is what it maximised where it ran.
        broken: images wrong at least once in it.
    """

    totals: AttackTotals
    broken: int


@dataclasses.dataclass(frozen=True)
class RunTotals:
    """A whole run.

    Args:
        n: images.
        clean, robust, scores: figures, see ``evaluation.report``.
        attacks: in order.
        late: attack's name -> images that it first misclassified in its last tenth of steps; those of none are left out.
        checks: of the model's output, on the first batch.
        mismatches, non_finite, network_evaluations, seconds: sums.
        sanity: what the sanity checks found.
    """

    n: int
    clean: Rate
    robust: RobustRate
    scores: ScoreRates
    attacks: tuple[SummedAttack, ...]
    late: dict[str, int]
    checks: OutputChecks
    mismatches: int
    non_finite: int
    network_evaluations: int
    seconds: float
    sanity: Sanity

    @property
    def of_attacks(self) -> tuple[AttackTotals, ...]:
        """The sums of every attack."""
        return tuple(attack.totals for attack in self.attacks)


def sum_batches(identity: Identity, batches: Sequence[Batch], sanity: Sanity) -> RunTotals:
    """The totals of all batches of a folder.

    Args:
        identity: of the run.
        batches: in order, at least one.
        sanity: what the sanity checks found.
    """
    images = [record for batch in batches for record in batch.images]
    closing = [batch.totals for batch in batches]
    n = len(images)
    scores, robust = _scores(identity.settings, images, n)
    return RunTotals(
        n=n,
        clean=rate(sum(record.clean.right for record in images), n),
        robust=robust,
        scores=scores,
        attacks=_attacks(images, closing),
        late=_broken_late(images, closing),
        checks=closing[0].checks,
        mismatches=sum(batch.mismatches for batch in closing),
        non_finite=sum(batch.non_finite for batch in closing),
        network_evaluations=sum(batch.network_evaluations for batch in closing),
        seconds=sum(batch.seconds for batch in closing),
        sanity=sanity,
    )


def _attacks(images: list[ImageRecord], closing: list[BatchTotals]) -> tuple[SummedAttack, ...]:
    """Every attack under every policy, summed over batches."""
    broken = Counter(outcome.attack for record in images for outcome in record.attacks if outcome.broken)
    found = []
    for parts in zip(*(batch.attacks for batch in closing), strict=True):
        first = parts[0]
        total = AttackTotals(
            name=first.name,
            policy=first.policy,
            steps=max(part.steps for part in parts),
            restarts=max(part.restarts for part in parts),
            gradient=first.gradient,
            loss=min((part.loss for part in parts if part.loss is not None), default=None),
            attacked=sum(part.attacked for part in parts),
            survivors=sum(part.survivors for part in parts),
            right=sum(part.right for part in parts),
            blind_images=sum(part.blind_images for part in parts),
            non_finite_images=sum(part.non_finite_images for part in parts),
            verify_mismatches=sum(part.verify_mismatches for part in parts),
            evaluations=sum(part.evaluations for part in parts),
            seconds=sum(part.seconds for part in parts),
            queries=max(counted) if (counted := _counted(parts, "queries")) else ABSENT,
            calls=sum(counted) if (counted := _counted(parts, "calls")) else ABSENT,
        )
        found.append(SummedAttack(total, broken[total.attack]))
    return tuple(found)


def _counted(parts: Sequence[AttackTotals], name: str) -> list[int]:
    """A count of every batch in which the attack ran; none where a batch that an earlier version made lacks it."""
    found = [getattr(part, name) for part in parts if part.loss is not None]
    return [] if ABSENT in found else found


def _scores(settings: SettingsRecord, images: list[ImageRecord], n: int) -> tuple[ScoreRates, RobustRate]:
    """Every scoring, and the headline: the lowest of those that the noise policy asks for."""
    if not settings.attacks:
        return ScoreRates(), RobustRate(None, None)
    scores = [record.scores for record in images if isinstance(record.scores, ImageScores)]
    known = [score.known for score in scores if not isinstance(score.known, Absent)]
    fresh = [score.fresh for score in scores if not isinstance(score.fresh, Absent)]
    found = ScoreRates(known=rate(sum(known), n) if known else ABSENT)
    if fresh:
        found = dataclasses.replace(
            found,
            average=rate(sum(score.right for score in fresh), n),
            majority=rate(sum(score.majority for score in fresh), n),
            worst=rate(sum(score.worst for score in fresh), n),
            submissions=settings.resubmissions,
            while_optimising=_while_optimising(images, n),
        )
    robust = rate(sum(bool(record.robust) for record in images), n)
    if settings.noise == "known":
        return found, RobustRate(robust.accuracy, robust.ci95)
    return found, RobustRate(robust.accuracy, robust.ci95, found.average, settings.resubmissions)


def _while_optimising(images: list[ImageRecord], n: int) -> Rate | Absent:
    """Images that no iterate of an attack under fresh noise was misclassified for; absent where that was not recorded."""
    outcomes = [[one for one in record.attacks if one.noise == "fresh"] for record in images]
    if not any(outcomes) or any(one.on_the_way is ABSENT for tried in outcomes for one in tried):
        return ABSENT
    pairs = zip(images, outcomes, strict=True)
    return rate(
        sum(record.clean.ever_right and all(one.stood_all_the_way for one in tried) for record, tried in pairs), n
    )


def _broken_late(images: list[ImageRecord], closing: list[BatchTotals]) -> dict[str, int]:
    """How many images each attack broke in the last tenth of its steps."""
    steps: dict[AttackKey, int] = {}
    for batch in closing:
        for part in batch.attacks:
            steps[part.attack] = max(steps.get(part.attack, 0), part.steps)
    late: dict[str, int] = {}
    for record in images:
        for outcome in record.attacks:
            if outcome.is_late(steps[outcome.attack]):
                late[outcome.name] = late.get(outcome.name, 0) + 1
    return late
