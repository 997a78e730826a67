"""One run scored by every protocol in use: attacks alone and one after another, known noise, one draw, majority, worst of N, and
every iterate ("evaluate while optimising", disputed)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rdc.evaluation.records import ImageRecord, SettingsRecord
from rdc.evaluation.report import Rate, Report, rate
from rdc.statistics.bootstrap import worst_of
from rdc.storage.json_records import ABSENT

__all__ = ["WHILE_OPTIMISING", "Protocol", "protocols"]

#: scoring -> why it is disputed
WHILE_OPTIMISING = "every iterate, one fresh draw each"
_DISPUTED = (
    "Evaluated while optimising, an image counts as broken if any iterate of the search is misclassified in one fresh draw, so that every "
    "step is one more try: the figure falls with the number of steps even where no single image is misclassified more often, and says "
    "how a search of that length ends, not how the image that it hands in is classified."
)
_SIZES = (2, 5)  # of worst of N, beside the number of submissions that were made


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A way to score a run.

    Args:
        attacks: "no attack", "apgd-ce alone", "up to apgd-dlr", "all attacks".
        scoring: "known noise", "one fresh draw", "majority of 10", "worst of 5".
        rate: accuracy under it; a mean of chances where draws are averaged.
        headline: it is the run's robust accuracy.
        disputed: why it is, in a sentence; "" where it is not.
    """

    attacks: str
    scoring: str
    rate: Rate
    headline: bool = False
    disputed: str = ""


def protocols(report: Report, images: Sequence[ImageRecord], settings: SettingsRecord) -> tuple[Protocol, ...]:
    """Every protocol that this run can be scored by, the mildest attacks first.

    An attack alone is measured where it attacked every image that is right when clean, as the first one does; of others, which attack
    what is left, nothing is said. "One fresh draw" is the mean over all, what a single submission gives on average; worst of N is the
    chance that N of them, drawn without replacement, are all right.

    Args:
        report: of the run.
        images: all of its records.
        settings: of the run.
    """
    n = report.n
    draw = "one fresh draw" if settings.noise == "fresh" else "known noise"
    found = [Protocol("no attack", draw, report.clean)]
    if not settings.attacks:
        return tuple(found)
    whole = sum(record.clean.ever_right for record in images)
    for attack in report.attacks:
        scoring = "known noise" if attack.noise == "known" else f"worst of {settings.resubmissions}"
        if attack.attacked == whole and attack.steps:  # images of a smaller radius are no attack by themselves
            outcomes = [one for record in images for one in record.attacks if one.attack == attack.attack]
            right = sum(one.right == 1 for one in outcomes)
            found.append(Protocol(f"{attack.name} alone", scoring, rate(right, n)))
            if attack.noise == "fresh" and not any(one.on_the_way is ABSENT for one in outcomes):
                stood = rate(sum(one.stood_all_the_way for one in outcomes), n)
                found.append(Protocol(f"{attack.name} alone", WHILE_OPTIMISING, stood, disputed=_DISPUTED))
        found.append(Protocol(f"up to {attack.name}", scoring, Rate(attack.accuracy, attack.ci95)))
        if attack.average:
            found.append(Protocol(f"up to {attack.name}", "one fresh draw", attack.average))
    return (*found, *_of_all(report, images, settings))


def _of_all(report: Report, images: Sequence[ImageRecord], settings: SettingsRecord) -> list[Protocol]:
    """Every scoring of the most damaging images."""
    scores, found = report.scores, []
    if scores.known:
        found.append(Protocol("all attacks", "known noise", scores.known, settings.noise == "known"))
    if not (scores.average and scores.majority and scores.worst):
        return found
    submissions = settings.resubmissions
    shares = [record.scores.fresh.right for record in images if record.scores and record.scores.fresh]
    right = np.arange(submissions)[None] < np.rint(np.array(shares) * submissions)[:, None]
    sizes = [size for size in _SIZES if size < submissions]
    found.append(Protocol("all attacks", "one fresh draw", scores.average))
    found.append(Protocol("all attacks", f"majority of {submissions}", scores.majority))
    if sizes:
        chances = worst_of(right.astype(np.int64), sizes).sum(0)
        found += [
            Protocol("all attacks", f"worst of {size}", rate(float(chance), report.n))
            for size, chance in zip(sizes, chances, strict=True)
        ]
    found.append(Protocol("all attacks", f"worst of {submissions}", scores.worst, settings.noise == "fresh"))
    if scores.while_optimising:
        found.append(Protocol("all attacks", WHILE_OPTIMISING, scores.while_optimising, disputed=_DISPUTED))
    robust = report.robust
    if settings.noise == "all" and robust.accuracy is not None and robust.ci95 is not None:
        both = Rate(robust.accuracy, robust.ci95)
        found.append(Protocol("all attacks", f"known noise, and worst of {submissions}", both, True))
    return found
