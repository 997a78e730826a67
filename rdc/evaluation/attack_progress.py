"""When each attack of a run broke what it broke: accuracy against its steps, and against its queries of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rdc.evaluation.records import AttackOutcome, AttackTotals, ImageRecord
from rdc.evaluation.report import AttackProgress, Fall
from rdc.storage.json_records import ABSENT, Absent

__all__ = ["MOST_POINTS", "attack_progress"]

MOST_POINTS = 100  #: of a curve in report.json
_DIGITS = 6


def attack_progress(
    attacks: Sequence[AttackTotals], images: Sequence[ImageRecord]
) -> tuple[AttackProgress | Absent, ...]:
    """How accuracy fell during each attack; what the attack saw counts, which under fresh noise is the mean of its draws.

    Args:
        attacks: sums over all batches, in the order of the run, policy after policy.
        images: all records of the run.

    Returns:
        One for each attack; absent for one without steps.
    """
    standing: dict[str, set[int]] = {}  # by policy: the images that nothing has misclassified so far
    found: list[AttackProgress | Absent] = []
    for attack in attacks:
        left = standing.setdefault(attack.policy, {record.image for record in images if record.clean.ever_right})
        fallen = {
            record.image: outcome
            for record in images
            if record.image in left
            for outcome in record.attacks
            if outcome.attack == attack.attack and outcome.misclassified
        }
        found.append(_progress(attack, list(fallen.values()), len(left), len(images)))
        left.difference_update(fallen)
    return tuple(found)


def _progress(attack: AttackTotals, fallen: list[AttackOutcome], standing: int, n: int) -> AttackProgress | Absent:
    if not attack.steps:
        return ABSENT
    end = max(1, attack.restarts) * (attack.steps + 1) - 1
    steps = [_step(outcome, attack.steps, end) for outcome in fallen]
    queries = [outcome.query for outcome in fallen if not isinstance(outcome.query, Absent)]
    counted, calls = attack.queries, attack.calls
    if isinstance(counted, Absent) or isinstance(calls, Absent) or len(queries) < len(fallen):
        return AttackProgress(_fall(steps, standing, n, end))
    seen = [query if query >= 0 else counted for query in queries]  # found by the final check alone: at the end
    passes = ABSENT if calls == 0 else round(attack.evaluations / calls, 3)
    return AttackProgress(_fall(steps, standing, n, end), _fall(seen, standing, n, counted), passes)


def _step(outcome: AttackOutcome, steps: int, end: int) -> int:
    if outcome.step < 0:
        return end
    return min(end, max(0, outcome.restart) * (steps + 1) + outcome.step)


def _fall(falls: list[int], standing: int, n: int, end: int) -> Fall:
    """The curve of ``standing`` of ``n`` images that fall at these places, the last of which is ``end`` at most."""
    count, at, left = Counter(falls), [0], [standing - falls.count(0)]
    for place in sorted(count.keys() - {0}):
        at.append(place)
        left.append(left[-1] - count[place])
    if at[-1] < end:
        at.append(end)
        left.append(left[-1])
    if len(at) > MOST_POINTS:  # what is left out lies between two points that are right
        kept = [place * (len(at) - 1) // (MOST_POINTS - 1) for place in range(MOST_POINTS)]
        at, left = [at[place] for place in kept], [left[place] for place in kept]
    ordered = sorted(falls)
    median, last = (ordered[(len(ordered) - 1) // 2], ordered[-1]) if ordered else (None, None)
    return Fall(tuple(at), tuple(round(one / n, _DIGITS) for one in left), median, last)
