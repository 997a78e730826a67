"""What an evaluation's folder says, as frozen dataclasses: whose run it is, each image, each batch, the sanity checks.

``to_json`` gives the JSON on disk, ``from_json`` reads and checks it (:mod:`rdc.storage.json_records`). What counts as right, broken
or late is a property here and is decided nowhere else. Figures of the whole run: ``totals.py``, ``report.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rdc.evaluation.network_records import NetworkRecord
from rdc.models.precision import PrecisionChoice
from rdc.storage.json_records import ABSENT, Absent, JsonObject, JsonRecord, anything, entry
from rdc.storage.structure import choice, flag, integer, mapping, number, optional, record, sequence, text

__all__ = [
    "AttackKey",
    "AttackOutcome",
    "AttackTotals",
    "BatchTotals",
    "Decision",
    "FreshScore",
    "Identity",
    "ImageRecord",
    "ImageScores",
    "OutputChecks",
    "RunRecord",
    "SettingsRecord",
]

#: name and noise policy of an attack: what tells it apart within a run
AttackKey = tuple[str, str]

NOISE = choice("known", "fresh")
SHARE = number(0, 1)
COUNT = integer(0)
_LAST_TENTH = 0.9  # of an attack's steps begins after this share of them


# --- an image ---------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Decision(JsonRecord):
    """How one image fares over its submissions.

    Args:
        predicted: class of the mean logits.
        right: share of the submissions that were right; 0 or 1 under known noise.
    """

    predicted: int = entry(COUNT)
    right: float = entry(SHARE)

    @property
    def always_right(self) -> bool:
        """Right in every submission: what counts as right where images are counted."""
        return self.right == 1

    @property
    def ever_right(self) -> bool:
        """Right in at least one: what an attack still has to break."""
        return self.right > 0


@dataclasses.dataclass(frozen=True)
class AttackOutcome(JsonRecord):
    """One image in one attack.

    Args:
        name, noise: of the attack.
        right: share of right answers to its image.
        step, restart: when it was first misclassified, -1: never.
        blind_steps: steps without a usable gradient.
        flow_penalty: of a flow attack alone; None where it is not finite.
        query: which of the model calls for this image first found it misclassified, counted over restarts; 0: the clean image was,
            -1: never. Absent in folders of earlier versions.
        on_the_way: under fresh noise, whether some iterate was misclassified when submitted once. Absent likewise.
    """

    name: str = entry(text())
    noise: str = entry(NOISE)
    right: float = entry(SHARE)
    step: int = entry(integer(-1))
    restart: int = entry(integer(-1))
    blind_steps: int = entry(COUNT)
    flow_penalty: float | None | Absent = entry(optional(number()), absent=True)
    query: int | Absent = entry(integer(-1), absent=True)
    on_the_way: bool | Absent = entry(flag(), absent=True)

    @property
    def attack(self) -> AttackKey:
        """Which attack."""
        return self.name, self.noise

    @property
    def broken(self) -> bool:
        """Wrong at least once."""
        return self.right < 1

    @property
    def misclassified(self) -> bool:
        """The attack saw it wrong, or it was never right afterwards."""
        return self.step >= 0 or self.right == 0

    @property
    def stood_all_the_way(self) -> bool:
        """Right in a single fresh draw at every iterate, and at least once in the end."""
        return not self.on_the_way and self.right > 0

    def is_late(self, steps: int) -> bool:
        """First misclassified in the last tenth of the attack's ``steps``."""
        return self.step > _LAST_TENTH * steps


@dataclasses.dataclass(frozen=True)
class FreshScore(JsonRecord):
    """An adversarial image before fresh draws of the noise: share of right answers, and whether they are a majority."""

    right: float = entry(SHARE)
    majority: bool = entry(flag())

    @property
    def worst(self) -> bool:
        """Right in every draw."""
        return self.right == 1


@dataclasses.dataclass(frozen=True)
class ImageScores(JsonRecord):
    """How an adversarial image fares: against the known noise (right or not), against fresh noise."""

    known: bool | Absent = entry(flag(), absent=True)
    fresh: FreshScore | Absent = entry(of=FreshScore, absent=True)

    @property
    def kinds(self) -> set[str]:
        """Those there are."""
        return {name for name in ("known", "fresh") if getattr(self, name) is not ABSENT}


@dataclasses.dataclass(frozen=True)
class ImageRecord(JsonRecord):
    """One image: a line of results.jsonl.

    Args:
        image: position in the data set.
        label: its true class.
        clean: unattacked.
        attacks: those it went through, in order.
        adversarial: the most damaging image; None where nothing attacked.
        robust: right under everything that the noise policy asks for; None where nothing attacked.
        scores: absent where nothing attacked.
    """

    image: int = entry(COUNT)
    label: int = entry(COUNT)
    clean: Decision = entry(of=Decision)
    attacks: tuple[AttackOutcome, ...] = entry(of=AttackOutcome, many=True)
    adversarial: Decision | None = entry(of=Decision, nullable=True)
    robust: bool | None = entry(optional(flag()))
    scores: ImageScores | Absent = entry(of=ImageScores, absent=True)

    @property
    def standing(self) -> bool:
        """Robust; or, where nothing attacked, right when clean."""
        return self.clean.always_right if self.robust is None else self.robust

    @property
    def score_kinds(self) -> set[str]:
        """The kinds of scores it has."""
        return set() if isinstance(self.scores, Absent) else self.scores.kinds


# --- a batch ----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class AttackTotals(JsonRecord):
    """One attack on one batch.

    Args:
        name, policy: of the attack; the policy is the noise it ran under.
        steps, restarts: 0 where no image was left to attack.
        gradient: mode; None without gradients.
        loss: what it maximised; None where it did not run.
        attacked, survivors: images before it that are ever right, and after it always right.
        right: sum of their shares of right answers.
        blind_images, non_finite_images, verify_mismatches: see ``AttackResult``.
        evaluations: of the network.
        queries: the most model calls that an image got. Absent in folders of earlier versions, as is
        calls: images sent through the model in all, first looks and final checks among them.
    """

    name: str = entry(text())
    policy: str = entry(NOISE)
    steps: int = entry(COUNT)
    restarts: int = entry(COUNT)
    gradient: str | None = entry(optional(text()))
    loss: str | None = entry(optional(text()))
    attacked: int = entry(COUNT)
    survivors: int = entry(COUNT)
    right: float = entry(number(0))
    blind_images: int = entry(COUNT)
    non_finite_images: int = entry(COUNT)
    verify_mismatches: int = entry(COUNT)
    evaluations: int = entry(COUNT)
    seconds: float = entry(number(0))
    queries: int | Absent = entry(COUNT, absent=True)
    calls: int | Absent = entry(COUNT, absent=True)

    @property
    def attack(self) -> AttackKey:
        """Which attack."""
        return self.name, self.policy


@dataclasses.dataclass(frozen=True)
class OutputChecks(JsonRecord):
    """What ``sanity.check_output`` found, on the first batch alone; None where a figure is not finite."""

    repeat_difference: float | None | Absent = entry(optional(number()), absent=True)
    logit_spread: float | None | Absent = entry(optional(number()), absent=True)
    repeat_decisions_changed: int | Absent = entry(COUNT, absent=True)
    log_sum_exp: float | None | Absent = entry(optional(number()), absent=True)
    probabilities: bool | Absent = entry(flag(), absent=True)
    gradients_inside: int | Absent = entry(COUNT, absent=True)

    @property
    def made(self) -> bool:
        """Whether the checks that every version makes are there."""
        first = (self.repeat_difference, self.logit_spread, self.repeat_decisions_changed, self.log_sum_exp)
        return not any(value is ABSENT for value in first)


@dataclasses.dataclass(frozen=True)
class BatchTotals(JsonRecord):
    """The line of results.jsonl that closes a batch.

    Args:
        end_of_batch: number of the batch.
        images: how many it has.
        attacks: in order, policy after policy.
        checks: of the model's output.
        mismatches: decisions under known noise that were another the second time.
        non_finite: answers that are not finite, clean and adversarial.
        network_evaluations, seconds: of the batch.
        arrays: digest of the batch's arrays; absent in folders of schema 2.
    """

    end_of_batch: int = entry(COUNT)
    images: int = entry(integer(1))
    attacks: tuple[AttackTotals, ...] = entry(of=AttackTotals, many=True)
    checks: OutputChecks = entry(of=OutputChecks)
    mismatches: int = entry(COUNT)
    non_finite: int = entry(COUNT)
    network_evaluations: int = entry(COUNT)
    seconds: float = entry(number(0))
    arrays: str | Absent = entry(text(), absent=True)


# --- the run ----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingsRecord(JsonRecord):
    """``EvaluationSettings`` as a run was made with them; those of the attacks are None where there is none."""

    model: str = entry(text())
    dataset: str = entry(text())
    n: int = entry(integer(1))
    split: str = entry(text())
    start: int = entry(COUNT)
    attacks: tuple[str, ...] = entry(sequence(text()))
    norm: str | None | Absent = entry(optional(text()), absent=True)
    eps: str | None | Absent = entry(optional(text()), absent=True)
    steps: int | None | Absent = entry(absent=True)
    restarts: int | None | Absent = entry(absent=True)
    gradient: str | None | Absent = entry(optional(text()), absent=True)
    noise: str = entry(choice("known", "fresh", "all"))
    eot: int | None | Absent = entry(optional(integer(1)), absent=True)
    resubmissions: int = entry(integer(1))
    sanity: int | None | Absent = entry(absent=True)
    seed: int = entry(COUNT)
    batch: int = entry(integer(1))
    levels: str | None | Absent = entry(absent=True)
    lm: str | None | Absent = entry(absent=True)
    precision: str | None | Absent = entry(absent=True)
    preset: str | Absent = entry(text(), absent=True)
    lm_model: str | None | Absent = entry(absent=True)
    attack_precision: str | Absent = entry(text(), absent=True)
    lpips_model: str | Absent = entry(text(), absent=True)

    @property
    def score_kinds(self) -> set[str]:
        """The scores that every attacked image must have."""
        return ({"known", "fresh"} if self.noise == "all" else {self.noise}) if self.attacks else set()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity(JsonRecord):
    """What decides a run's figures; a folder goes on only where all of it is the same.

    Args:
        schema: of the folder.
        settings: of the evaluation.
        radius: eps as a number; None where nothing attacks.
        classifier: what the defence says of itself (``describe``).
        purifies: whether it changes images before it classifies.
        weights, images: digests.
        networks: those that are known, one by one; absent in folders of earlier versions.
        device, torch: kind of device, version.
        smaller: radius of the run whose images this one began with, and digest of its identity; absent where there was none.
    """

    schema: int = entry(COUNT)
    settings: SettingsRecord = entry(of=SettingsRecord)
    radius: float | None = entry(optional(number(0)))
    classifier: JsonObject = entry(record({"lm": anything}))
    purifies: bool | Absent = entry(absent=True)
    weights: str = entry(text())
    images: str = entry(text())
    networks: tuple[NetworkRecord, ...] | Absent = entry(of=NetworkRecord, many=True, absent=True)
    device: str | Absent = entry(absent=True)
    torch: str | Absent = entry(absent=True)
    smaller: str | Absent = entry(text(), absent=True)


@dataclasses.dataclass(frozen=True)
class RunRecord(JsonRecord):
    """run.json: the identity, and how the run came about.

    Args:
        identity: see above.
        command: that began it.
        commits: of the source trees that made figures, None: unknown.
        versions: of the packages.
        precision_choice: how ``--precision auto`` chose, where it was asked for.
    """

    identity: Identity = entry(of=Identity)
    command: str = entry(text())
    commits: tuple[str | None, ...] = entry(sequence(optional(text()), 1))
    versions: Mapping[str, str] = entry(mapping(text()))
    precision_choice: PrecisionChoice | Absent = entry(of=PrecisionChoice, absent=True)
