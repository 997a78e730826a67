"""Figures of a run under several threats: each threat, their mean, and the images that stand under all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rdc.evaluation.records import COUNT, SHARE
from rdc.evaluation.report import Rate, RobustRate, rate
from rdc.statistics import bootstrap_interval
from rdc.storage.json_records import ABSENT, Absent, JsonObject, JsonRecord, anything, entry
from rdc.storage.structure import flag, integer, mapping, number, optional, sequence, text

if TYPE_CHECKING:
    from rdc.evaluation.run import Evaluation

__all__ = [
    "THREATS_SCHEMA",
    "ImageUnderThreats",
    "ThreatReport",
    "ThreatsReport",
    "image_records",
    "threat_report",
    "threats_report",
]

THREATS_SCHEMA = "rdc-threats-1"
_DIGITS = 6


@dataclasses.dataclass(frozen=True)
class ThreatReport(JsonRecord):
    """One threat of several.

    Args:
        threat: "linf:8/255".
        norm, eps, radius: norm, radius as given and as a number.
        folder: of its own run, within that of the whole.
        robust: as its own report has it.
        attacks: those that ran, in order.
        flags: names of its warnings.
        network_evaluations, seconds: of its run.
        smaller: the smaller radius that it began with; absent where there was none.
    """

    threat: str = entry(text())
    norm: str = entry(text())
    eps: str = entry(text())
    radius: float = entry(number(0))
    folder: str = entry(text())
    robust: RobustRate = entry(of=RobustRate)
    attacks: tuple[str, ...] = entry(sequence(text()))
    flags: tuple[str, ...] = entry(sequence(text()))
    network_evaluations: int = entry(COUNT)
    seconds: float = entry(number(0))
    smaller: str | Absent = entry(text(), absent=True)


@dataclasses.dataclass(frozen=True)
class ThreatsReport(JsonRecord):
    """report.json of a run under several threats.

    Args:
        schema: of the report.
        model, dataset, n, seed: what was evaluated, on how many images.
        classifier: as in each threat's own report.
        clean: accuracy.
        threats: in the order given.
        mean: of the threats' robust accuracies, its interval by a bootstrap over images.
        union: images that stand under every threat.
        network_evaluations, seconds: of all.
        command, commit, versions: how it was made.
    """

    schema: str = entry(text())
    model: str = entry(text())
    dataset: str = entry(text())
    n: int = entry(integer(1))
    seed: int = entry(COUNT)
    classifier: JsonObject = entry(mapping(anything))
    clean: Rate = entry(of=Rate)
    threats: tuple[ThreatReport, ...] = entry(of=ThreatReport, many=True)
    mean: Rate = entry(of=Rate)
    union: Rate = entry(of=Rate)
    network_evaluations: int = entry(COUNT)
    seconds: float = entry(number(0))
    command: str = entry(text())
    commit: str | None = entry(optional(text()))
    versions: Mapping[str, str] = entry(mapping(text()))


@dataclasses.dataclass(frozen=True)
class ImageUnderThreats(JsonRecord):
    """One image: a line of results.jsonl.

    Args:
        image, label: position in the data set, true class.
        clean: share of right answers, unattacked.
        threats: threat -> whether the image stands under it.
        union: whether it stands under all.
    """

    image: int = entry(COUNT)
    label: int = entry(COUNT)
    clean: float = entry(SHARE)
    threats: Mapping[str, bool] = entry(mapping(flag()))
    union: bool = entry(flag())


def image_records(names: Sequence[str], runs: Sequence[Evaluation]) -> tuple[ImageUnderThreats, ...]:
    """Every image under every threat.

    Args:
        names: of the threats.
        runs: their finished runs, on the same images.
    """
    found = []
    for records in zip(*(run.records for run in runs), strict=True):
        standing = {name: record.standing for name, record in zip(names, records, strict=True)}
        first = records[0]
        found.append(ImageUnderThreats(first.image, first.label, first.clean.right, standing, all(standing.values())))
    return tuple(found)


def threats_report(
    threats: Sequence[ThreatReport], runs: Sequence[Evaluation], images: Sequence[ImageUnderThreats], command: str
) -> ThreatsReport:
    """The report of all.

    Args:
        threats: what is said of each.
        runs: their finished runs, in the same order.
        images: every image under every threat.
        command: that made them.
    """
    first = runs[0].figures
    standing = np.array([[float(stands) for stands in image.threats.values()] for image in images])
    spread = bootstrap_interval(standing.mean(1), seed=first.seed)
    ends = (round(float(spread.low[0]), _DIGITS), round(float(spread.high[0]), _DIGITS))
    commits = dict.fromkeys(run.figures.commit for run in runs)
    return ThreatsReport(
        schema=THREATS_SCHEMA,
        model=first.model,
        dataset=first.dataset,
        n=first.n,
        seed=first.seed,
        classifier=first.classifier,
        clean=first.clean,
        threats=tuple(threats),
        mean=Rate(round(float(standing.mean()), _DIGITS), ends),
        union=rate(sum(image.union for image in images), len(images)),
        network_evaluations=sum(run.figures.network_evaluations for run in runs),
        seconds=round(sum(run.figures.seconds for run in runs), 3),
        command=command,
        commit=None if set(commits) == {None} else ", ".join(map(str, commits)),
        versions=first.versions,
    )


def threat_report(threat: str, folder: str, smaller: str | None, run: Evaluation) -> ThreatReport:
    """What is said of one threat.

    Args:
        threat: "linf:8/255".
        folder: of its run, within that of the whole.
        smaller: the radius that it began with.
        run: finished.
    """
    identity, figures = run.record.identity, run.figures
    return ThreatReport(
        threat=threat,
        norm=str(identity.settings.norm),
        eps=str(identity.settings.eps),
        radius=identity.radius or 0.0,
        folder=folder,
        robust=figures.robust,
        attacks=identity.settings.attacks,
        smaller=ABSENT if smaller is None else smaller,
        flags=tuple(raised.name for raised in figures.flags if raised.warns),
        network_evaluations=figures.network_evaluations,
        seconds=figures.seconds,
    )
