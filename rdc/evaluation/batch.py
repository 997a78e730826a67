"""One batch: clean decisions, then attacks one after another, each on what is still robust, then the final scores.

Under policy "known" the defence keeps one draw of noise, which the attacker has: an image is robust if it is right when
clean and right on every image that any attack tried.

Under policy "fresh" the defence draws anew in every call and an image is *submitted* R times to a judge whose draws no
attack has seen, when clean and after each attack. Three figures come of it: the average share of right answers; majority:
the class most often answered is right; worst of R: right all R times. Later attacks go on with images that were right
at least once; the adversarial image with the fewest right answers is kept.

Noise "all" runs both, one after the other; adversarial images of either are submitted to fresh noise too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.attacks import AttackResult
from rdc.attacks.registry import AttackSpec, applies
from rdc.attacks.stadv import StAdvResult
from rdc.contracts import Defence, NoisePolicy
from rdc.errors import ConfigError
from rdc.evaluation.answers import refuse_meaningless
from rdc.evaluation.attacking import Bench, run_attack
from rdc.evaluation.records import (
    AttackOutcome,
    AttackTotals,
    BatchTotals,
    Decision,
    FreshScore,
    ImageRecord,
    ImageScores,
    OutputChecks,
)
from rdc.evaluation.sanity import check_output
from rdc.evaluation.scoring import is_kept, submit
from rdc.evaluation.settings import EvaluationSettings
from rdc.evaluation.smaller import Smaller
from rdc.storage.json_records import ABSENT, Absent

__all__ = ["BatchResult", "evaluate_batch"]

_MOST_BYTES = 8 * 2**30  # of answers kept at once

Progress = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """What a batch of n images leaves behind.

    Args:
        images: n records for results.jsonl.
        totals: the record that closes the batch, still without the digest of its arrays.
        arrays: ``x_adv`` [n, C, H, W]; ``clean_logits``, ``adversarial_logits`` [n, K] (mean over draws); all float32.
    """

    images: tuple[ImageRecord, ...]
    totals: BatchTotals
    arrays: dict[str, np.ndarray]


def evaluate_batch(
    classifier: Defence,
    pixels: Tensor,
    labels: Tensor,
    ids: Tensor,
    settings: EvaluationSettings,
    index: int,
    progress: Progress | None = None,
    smaller: Smaller | None = None,
) -> BatchResult:
    """Evaluate one batch. The result depends on the arguments only, never on batches done before.

    Args:
        classifier: the defence.
        pixels: [n, C, H, W] float32 in [0, 1].
        labels: [n] int64.
        ids: [n] int64, positions in the data set.
        settings: what to do.
        index: number of the batch; batch 0 also checks the classifier's output.
        progress: called with attack, step, steps, restart, restarts, active, robust, total.
        smaller: what a smaller radius of the same norm left of these images; it is submitted before the first attack.

    Raises:
        ConfigError: more answers would be kept than fit into memory.
        InputError: the answers to the first batch mean nothing, see ``rdc.evaluation.answers``.
    """
    begun = time.monotonic()
    pixels, labels = pixels.to(classifier.device), labels.to(classifier.device)
    judge = _judge(classifier, settings, index)
    _check_size(settings, len(pixels), classifier.num_classes)
    rounds = [_Round(classifier, pixels, labels, ids, settings, index, policy, judge) for policy in settings.policies]
    if index == 0 and (len(pixels) > 1 or settings.n == 1):
        refuse_meaningless(rounds[0].clean.logits, settings.model)
    checks = check_output(rounds[0].bench.model(), pixels) if index == 0 else OutputChecks()
    for around in rounds:
        around.go_through(smaller, progress)
    fresh = _fresh_scores(rounds, classifier, judge, labels, settings)
    images = _records(rounds, fresh, settings, smaller)
    first = rounds[0]
    logits = [around.clean.logits for around in rounds] + [around.final.logits for around in rounds]
    totals = BatchTotals(
        end_of_batch=index,
        images=len(images),
        attacks=tuple(total for around in rounds for total in around.totals),
        checks=checks,
        mismatches=sum(around.mismatches for around in rounds),
        non_finite=sum(int((~torch.isfinite(found)).any(1).sum()) for found in logits),
        network_evaluations=sum(around.bench.evaluations for around in rounds) + judge.network_evaluations,
        seconds=time.monotonic() - begun,
    )
    shown = [_worse(rounds, row) for row in range(len(labels))]
    arrays = {
        "x_adv": torch.stack([rounds[which].x_adv[row] for row, which in enumerate(shown)]),
        "clean_logits": first.clean.logits,
        "adversarial_logits": torch.stack([rounds[which].final.logits[row] for row, which in enumerate(shown)]),
    }
    return BatchResult(images, totals, {name: value.float().cpu().numpy() for name, value in arrays.items()})


def _check_size(settings: EvaluationSettings, n: int, classes: int) -> None:
    """Answers of all submissions of a batch are kept at once."""
    times = 1 if settings.policies == ("known",) and not settings.attacks else settings.resubmissions
    size = 4 * times * n * classes
    if size > _MOST_BYTES:
        raise ConfigError(
            f"resubmissions: {times:,} answers to {n:,} images of {classes:,} classes take {size / 2**30:,.0f} GiB; expected at most "
            f"{_MOST_BYTES / 2**30:.0f} GiB. Lower --resubmissions or --batch"
        )


class _Round:
    """Everything under one noise policy: what each attack left of the n images."""

    def __init__(
        self,
        classifier: Defence,
        pixels: Tensor,
        labels: Tensor,
        ids: Tensor,
        settings: EvaluationSettings,
        index: int,
        policy: str,
        judge: Defence,
    ) -> None:
        self.pixels, self.labels, self.ids, self.settings, self.policy = pixels, labels, ids, settings, policy
        self.bench = Bench(classifier, settings, index, policy)
        self.scorer, self.times = (self.bench.model(), 1) if policy == "known" else (judge, settings.resubmissions)
        self.clean = self.final = submit(self.scorer, pixels, labels, self.times)
        self.share, self.majority = self.clean.share.clone(), self.clean.majority.clone()
        self.x_adv = pixels.clone()
        self.endpoints: list[Tensor] = []
        self.begin: Tensor | None = None
        self.histories: list[list[AttackOutcome]] = [[] for _ in labels]
        self.totals: list[AttackTotals] = []
        self.mismatches = 0

    def go_through(self, smaller: Smaller | None, progress: Progress | None) -> None:
        """Images of a smaller radius, every attack, then the final scores."""
        if smaller is not None:
            self.inherit(smaller)
        for spec in self.settings.specs:
            self.attack(spec, progress)
        if self.settings.attacks:
            self.close()

    def inherit(self, smaller: Smaller) -> None:
        """Submit the images of a smaller radius as an attack without steps; later attacks begin at them."""
        at, before = time.monotonic(), self.bench.evaluations
        found = torch.from_numpy(smaller.x_adv).to(self.pixels.device)
        rows = (self.share > 0).nonzero()[:, 0]
        if len(rows):
            score = submit(self.scorer, found[rows], self.labels[rows], self.times)
            self._keep_worse(found[rows], rows, score.share, score.majority)
            for row, share in zip(rows.tolist(), score.share.tolist(), strict=True):
                fell = 0 if share == 0 else -1
                way = ABSENT if self.policy == "known" else share == 0
                outcome = AttackOutcome(smaller.attack, self.policy, share, fell, fell, 0, query=fell, on_the_way=way)
                self.histories[row].append(outcome)
        self.begin = found
        self.endpoints.append(found)
        self._total(smaller.attack, len(rows), at, before)

    def attack(self, spec: AttackSpec, progress: Progress | None) -> None:
        """Run one attack on the images that are right at least once, and keep what is worse than before."""
        if applies(spec, self.bench.classifier, self.settings.norm, self.policy) is not None:
            return
        at = time.monotonic()
        before = self.bench.evaluations
        rows = (self.share > 0).nonzero()[:, 0]
        result = None
        if len(rows):
            ends = [end[rows] for end in self.endpoints]
            chosen = (self.pixels[rows], self.labels[rows], self.ids[rows.cpu()])
            begin = {} if self.begin is None else {"start": self.begin[rows]}
            result = run_attack(self.bench, spec, *chosen, self.settings, ends, progress, **begin)
            self._keep(spec, result, rows)
            endpoint = self.x_adv.clone()
            endpoint[rows] = result.x_adv
            self.endpoints.append(endpoint)
        self._total(spec.text, len(rows), at, before, self.bench.gradient_of(spec), result)

    def _total(
        self,
        name: str,
        attacked: int,
        at: float,
        before: int,
        gradient: str | None = None,
        result: AttackResult | None = None,
    ) -> None:
        """Sum up an attack that began at time ``at``, after ``before`` evaluations of the network."""
        self.totals.append(
            AttackTotals(
                name=name,
                policy=self.policy,
                steps=0 if result is None else result.steps,
                restarts=0 if result is None else result.restarts,
                gradient=gradient,
                loss=None if result is None else result.loss,
                attacked=attacked,
                survivors=int((self.share == 1).sum()),
                right=float(self.share.sum()),
                blind_images=0 if result is None else result.zero_gradient_images,
                non_finite_images=0 if result is None else int(result.non_finite_logits.sum()),
                verify_mismatches=0 if result is None else int(result.verify_mismatches or 0),
                evaluations=self.bench.evaluations - before,
                seconds=time.monotonic() - at,
                queries=ABSENT if result is None or result.queries is None else int(result.queries.max()),
                calls=ABSENT if result is None else result.forward_evaluations + result.gradient_evaluations,
            )
        )

    def _keep(self, spec: AttackSpec, result: AttackResult, rows: Tensor) -> None:
        labels = self.labels[rows]
        if self.policy == "known":
            found, majority = result.correct.double(), result.correct
        else:
            score = submit(self.scorer, result.x_adv, labels, self.times)
            found, majority = score.share, score.majority
        self._keep_worse(result.x_adv, rows, found, majority)
        for place, row in enumerate(rows.tolist()):
            self.histories[row].append(_outcome(spec.text, result, place, float(found[place]), self.policy))

    def _keep_worse(self, found: Tensor, rows: Tensor, share: Tensor, majority: Tensor) -> None:
        better = is_kept(share, self.share[rows])
        self.x_adv[rows[better]] = found[better]
        self.share[rows] = torch.minimum(self.share[rows], share)
        self.majority[rows] = self.majority[rows] & majority

    def close(self) -> None:
        """Score the adversarial images once more; what was right before and is wrong now counts as wrong."""
        self.final = submit(self.scorer, self.x_adv, self.labels, self.times)
        if self.policy == "known":
            self.mismatches = int(((self.final.share > 0) != (self.share > 0)).sum())
        self.share = torch.minimum(self.share, self.final.share)
        self.majority = self.majority & self.final.majority


def _judge(classifier: Defence, settings: EvaluationSettings, index: int) -> Defence:
    """A copy that draws fresh noise, other than any attack sees."""
    word = hashlib.sha256(f"rdc evaluation judge {settings.seed} {index}".encode()).digest()[:8]
    return classifier.with_(noise=NoisePolicy.FRESH, noise_seed=int.from_bytes(word, "little"))


def _fresh_scores(
    rounds: list[_Round], classifier: Defence, judge: Defence, labels: Tensor, settings: EvaluationSettings
) -> dict[str, Tensor] | None:
    """Adversarial images under fresh noise, the lowest over all rounds: average, majority, worst of R; [n] each."""
    shares, majorities = [], []
    for around in rounds:
        if around.policy == "fresh":
            shares.append(around.share)
            majorities.append(around.majority)
        elif settings.attacks and classifier.stochastic:
            score = submit(judge, around.x_adv, labels, settings.resubmissions)
            shares.append(score.share)
            majorities.append(score.majority)
    if not shares:
        return None
    share = torch.stack(shares).amin(0)
    return {"average": share, "majority": torch.stack(majorities).all(0), "worst": share == 1}


def _worse(rounds: list[_Round], row: int) -> int:
    """Which round's adversarial image of this row is kept: the one with the fewest right answers."""
    return min(range(len(rounds)), key=lambda which: float(rounds[which].share[row]))


def _records(
    rounds: list[_Round], fresh: dict[str, Tensor] | None, settings: EvaluationSettings, smaller: Smaller | None
) -> tuple[ImageRecord, ...]:
    """Of every image; what was broken in a smaller ball is broken in this one, whatever fresh draws say now."""
    found = tuple(_record(rounds, fresh, settings, row) for row in range(len(rounds[0].labels)))
    if smaller is None:
        return found
    stood = smaller.robust.tolist()
    return tuple(
        dataclasses.replace(one, robust=bool(one.robust) and was) for one, was in zip(found, stood, strict=True)
    )


def _record(
    rounds: list[_Round], fresh: dict[str, Tensor] | None, settings: EvaluationSettings, row: int
) -> ImageRecord:
    first = rounds[0]
    record = ImageRecord(
        image=int(first.ids[row]),
        label=int(first.labels[row]),
        clean=Decision(int(first.clean.predicted[row]), float(first.clean.share[row])),
        attacks=tuple(outcome for around in rounds for outcome in around.histories[row]),
        adversarial=None,
        robust=None,
    )
    if not settings.attacks:
        return record
    kept = rounds[_worse(rounds, row)]
    robust = all(bool(around.share[row] == 1) for around in rounds)
    if fresh is not None and "fresh" in settings.policies:
        robust = robust and bool(fresh["worst"][row])
    adversarial = Decision(int(kept.final.predicted[row]), float(kept.share[row]))
    scores = _scores(rounds, fresh, row)
    return dataclasses.replace(record, adversarial=adversarial, robust=robust, scores=scores)


def _scores(rounds: list[_Round], fresh: dict[str, Tensor] | None, row: int) -> ImageScores:
    """How one adversarial image fares: known noise (bool), fresh noise (share of right answers, and majority)."""
    known = [bool(around.share[row] == 1) for around in rounds if around.policy == "known"]
    score = None if fresh is None else FreshScore(float(fresh["average"][row]), bool(fresh["majority"][row]))
    return ImageScores(known[0] if known else ABSENT, ABSENT if score is None else score)


def _outcome(name: str, result: AttackResult, place: int, share: float, policy: str) -> AttackOutcome:
    """One image in one attack."""
    penalty: float | None | Absent = ABSENT
    way = result.wrong_on_the_way
    if isinstance(result, StAdvResult):
        penalty = float(result.flow_penalty[place])
        penalty = round(penalty, 6) if math.isfinite(penalty) else None
    return AttackOutcome(
        name=name,
        noise=policy,
        right=share,
        step=int(result.broken_at[place]),
        restart=int(result.broken_restart[place]),
        blind_steps=int(result.zero_gradient_steps[place]),
        flow_penalty=penalty,
        query=ABSENT if result.broken_query is None else int(result.broken_query[place]),
        on_the_way=ABSENT if way is None or policy == "known" else bool(way[place]),
    )
