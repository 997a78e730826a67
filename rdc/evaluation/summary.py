"""From a run's records to its report, accuracy against steps, accuracy per class."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rdc.arguments.paper_presets import PAPER_PRESETS
from rdc.evaluation.attack_progress import attack_progress
from rdc.evaluation.files import Batch
from rdc.evaluation.flags import raise_flags
from rdc.evaluation.records import Identity, ImageRecord, RunRecord
from rdc.evaluation.report import REPORT_SCHEMA, AttackReport, PresetReport, Report, rate
from rdc.evaluation.sanity_records import Sanity
from rdc.evaluation.totals import SummedAttack, sum_batches
from rdc.method.deviations import deviations
from rdc.storage.json_records import ABSENT, Absent, JsonObject, given

__all__ = ["Curve", "accuracy_per_class", "accuracy_per_step", "summarize"]

#: of what a defence says of itself, in the report
_OF_A_CLASSIFIER = ("levels", "weighting", "lm", "noise", "head", "precision")
#: where there is such a thing: a second network, parts, a denoiser that is no network of rdc's own, an encoder, stages of elimination
_WHERE_THERE_IS = ("lm_network", "parts", "denoiser", "latents", "noise_per_class", "elimination")


def summarize(run: RunRecord, batches: Sequence[Batch], sanity: Sanity) -> Report:
    """The report of a run.

    Args:
        run: run.json.
        batches: all batches of the folder, in order.
        sanity: what ``evaluation.sanity`` found.
    """
    identity = run.identity
    settings = identity.settings
    totals = sum_batches(identity, batches, sanity)
    described = identity.classifier
    images = [record for batch in batches for record in batch.images]
    attacks = [_attack(attack, identity, totals.n) for attack in totals.attacks]
    progress = attack_progress(totals.of_attacks, images)
    return Report(
        schema=REPORT_SCHEMA,
        model=settings.model,
        dataset=settings.dataset,
        n=totals.n,
        seed=settings.seed,
        classifier={
            **{key: described.get(key) for key in _OF_A_CLASSIFIER},
            **{key: described[key] for key in _WHERE_THERE_IS if key in described},
        },
        clean=totals.clean,
        robust=totals.robust,
        scores=totals.scores,
        attacks=tuple(
            dataclasses.replace(attack, progress=found) for attack, found in zip(attacks, progress, strict=True)
        ),
        sanity=sanity,
        flags=raise_flags(identity, totals),
        network_evaluations=totals.network_evaluations + (given(sanity.network_evaluations) or 0),
        seconds=round(totals.seconds, 3),
        command=run.command,
        commit=", ".join(map(str, run.commits)) if run.commits != (None,) else None,
        versions=run.versions,
        preset=_preset(identity),
        precision_choice=run.precision_choice,
        networks=identity.networks,
    )


def _preset(identity: Identity) -> PresetReport | Absent:
    """The version of the paper that was asked for, and what the run has otherwise."""
    name = identity.settings.preset
    if isinstance(name, Absent) or name not in PAPER_PRESETS:
        return ABSENT
    return PresetReport(name, deviations(PAPER_PRESETS[name], identity.classifier, identity.settings.noise))


def _attack(attack: SummedAttack, identity: Identity, n: int) -> AttackReport:
    settings, total, fresh = identity.settings, attack.totals, attack.totals.policy == "fresh"
    cascade = rate(total.survivors, n)
    return AttackReport(
        name=total.name,
        norm=given(settings.norm),
        eps=identity.radius,
        steps=total.steps,
        restarts=total.restarts,
        gradient=total.gradient,
        noise=total.policy,
        eot=given(settings.eot) if fresh else 1,
        accuracy=cascade.accuracy,
        ci95=cascade.ci95,
        seconds=round(total.seconds, 3),
        attacked=total.attacked,
        broken=attack.broken,
        survivors=total.survivors,
        network_evaluations=total.evaluations,
        average=rate(total.right, n) if fresh else ABSENT,
    )


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracy while one attack goes on.

    Args:
        name: of the attack.
        noise: policy.
        steps, restarts: of the attack.
        at: m places in [0, 1], the attack's steps over all restarts; 0 and 1 are among them.
        accuracy: m fractions of all images that are not misclassified up to there, by this attack, those before it under
            the same policy, or when clean.
    """

    name: str
    noise: str
    steps: int
    restarts: int
    at: list[float]
    accuracy: list[float]


def accuracy_per_step(
    attacks: Sequence[AttackReport | JsonObject], images: Sequence[ImageRecord | JsonObject]
) -> list[Curve]:
    """Robust accuracy while the attacks go on.

    Args:
        attacks: of the report, or of report.json (name, noise, steps, restarts).
        images: all image records, or their JSON.

    Returns:
        One curve for each attack, in order.
    """
    records = _as_records(images)
    right: dict[str, dict[int, bool]] = {}
    curves = []
    for attack in attacks:
        name, policy, steps, restarts = (_value(attack, key) for key in ("name", "noise", "steps", "restarts"))
        state = right.setdefault(policy, {record.image: record.clean.ever_right for record in records})
        standing = sum(state.values())
        length = max(1, restarts) * (steps + 1)
        falls: Counter[float] = Counter()
        for record in records:
            for outcome in record.attacks:
                if outcome.attack != (name, policy) or not state[record.image] or not outcome.misclassified:
                    continue
                place = 1.0
                if outcome.step >= 0:
                    place = min(1.0, (max(outcome.restart, 0) * (steps + 1) + outcome.step) / length)
                falls[place] += 1
                state[record.image] = False
        curves.append(Curve(name, policy, steps, restarts, *_falling(standing, falls, len(records))))
    return curves


def _falling(standing: int, falls: Counter[float], n: int) -> tuple[list[float], list[float]]:
    """Places and accuracies of a curve that begins with ``standing`` of ``n`` images."""
    at, accuracy = [0.0], [(standing - falls.pop(0.0, 0)) / n]
    for place in sorted(falls):
        at.append(place)
        accuracy.append(accuracy[-1] - falls[place] / n)
    if at[-1] < 1:
        at.append(1.0)
        accuracy.append(accuracy[-1])
    return at, accuracy


def accuracy_per_class(images: Sequence[ImageRecord | JsonObject], num_classes: int) -> list[JsonObject]:
    """How classes fare.

    Args:
        images: all image records, or their JSON.
        num_classes: K.

    Returns:
        Per class ``label``, ``n``, and how many are right, in all draws: ``clean``, and ``robust`` under attack (None without
        attacks).
    """
    members: dict[int, list[ImageRecord]] = {label: [] for label in range(num_classes)}
    for record in _as_records(images):
        members.setdefault(record.label, []).append(record)
    return [
        {
            "label": label,
            "n": len(members[label]),
            "clean": sum(record.clean.always_right for record in members[label]),
            "robust": None
            if any(record.robust is None for record in members[label])
            else sum(bool(record.robust) for record in members[label]),
        }
        for label in range(num_classes)
    ]


def _as_records(images: Sequence[ImageRecord | JsonObject]) -> list[ImageRecord]:
    return [
        image if isinstance(image, ImageRecord) else ImageRecord.from_json(image, f"images[{place}]")
        for place, image in enumerate(images)
    ]


def _value(attack: AttackReport | JsonObject, key: str) -> Any:
    return attack[key] if isinstance(attack, dict) else getattr(attack, key)
