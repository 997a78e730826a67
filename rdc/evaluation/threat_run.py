"""An evaluation under several threats: a run in a folder of its own for each, radii of a norm in rising order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rdc.contracts import Defence
from rdc.data import Dataset
from rdc.errors import ConfigError
from rdc.evaluation.run import Evaluation, evaluate, evaluate_part
from rdc.evaluation.settings import EvaluationSettings
from rdc.evaluation.smaller import Smaller
from rdc.evaluation.threat_folder import SCHEMA, ThreatFolder
from rdc.evaluation.threat_report import (
    ImageUnderThreats,
    ThreatsReport,
    image_records,
    threat_report,
    threats_report,
)
from rdc.evaluation.threats import Threat
from rdc.execution.processes import by_the_first
from rdc.storage.json_records import JsonObject
from rdc.storage.sealed import digest_of

__all__ = ["ThreatEvaluation", "evaluate_threats", "evaluate_threats_part", "rising"]


@dataclasses.dataclass(frozen=True, eq=False)
class ThreatEvaluation:
    """A finished run under several threats.

    Args:
        figures: report.json's content, as a frozen dataclass.
        runs: of each threat, in the order given.
        images: every image under every threat.
        out: the folder.
    """

    figures: ThreatsReport
    runs: tuple[Evaluation, ...]
    images: tuple[ImageUnderThreats, ...]
    out: Path

    @functools.cached_property
    def report(self) -> JsonObject:
        """report.json's content."""
        return self.figures.to_json()


def rising(threats: Sequence[Threat]) -> list[tuple[int, int | None]]:
    """In which order threats are run: norm after norm as they come, the radii of each rising.

    Args:
        threats: as given.

    Returns:
        Of each its place among those given, and that of the next smaller radius of the same norm; None for the smallest.
    """
    found: list[tuple[int, int | None]] = []
    for norm in dict.fromkeys(threat.norm for threat in threats):
        mine = [place for place, threat in enumerate(threats) if threat.norm == norm]
        mine.sort(key=lambda place: threats[place].radius)
        found += list(zip(mine, [None, *mine], strict=False))
    return found


def evaluate_threats(
    classifier: Defence | Callable[[Tensor], Tensor],
    dataset: Dataset,
    settings: Sequence[EvaluationSettings],
    out: str | os.PathLike[str],
    *,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    on_batch: Callable[[int, int], None] | None = None,
    on_threat: Callable[[EvaluationSettings, Path], None] | None = None,
) -> ThreatEvaluation:
    """Run, or continue, an evaluation under several threats.

    Of the same norm, a larger radius begins with the images that the smaller one left: those broken are broken, attacks that take a
    start begin at the others.

    Args:
        classifier, dataset, command, overwrite, progress: see :func:`rdc.evaluation.evaluate`.
        settings: of each threat, see :func:`rdc.evaluation.threats.settings_of_threats`; alike but for norm, eps, attacks and sanity.
        out: folder of the run, see ``ThreatFolder``.
        on_batch: called after each finished batch with images finished and all images, over all threats.
        on_threat: called before each threat with its settings and its folder.

    Raises:
        ConfigError, DataError, InputError: as of ``evaluate``; no threat, or one without attacks.
    """
    threats, path, runs = _threats(settings), Path(out), dict[int, Evaluation]()
    options: dict[str, Any] = {"command": command, "overwrite": overwrite, "progress": progress}

    def work(place: int, folder: Path, **more: Any) -> Smaller:
        run = runs[place] = evaluate(classifier, dataset, settings[place], folder, **options, **more)
        standing = np.array([record.standing for record in run.records])
        return Smaller(threats[place].eps, digest_of(run.run["identity"]), run.x_adv, standing)

    with _held(path, threats, settings, overwrite) as folder:
        _in_turn(threats, settings, path, work, on_batch, on_threat)
        found = _together(path, threats, [runs[place] for place in range(len(threats))])
        by_the_first(lambda: (folder or ThreatFolder(path, _identity(threats, settings))).keep(found.images))
    return found


def evaluate_threats_part(
    classifier: Defence | Callable[[Tensor], Tensor],
    dataset: Dataset,
    settings: Sequence[EvaluationSettings],
    out: str | os.PathLike[str],
    mine: Callable[[int], bool],
    *,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    on_batch: Callable[[int, int], None] | None = None,
    on_threat: Callable[[EvaluationSettings, Path], None] | None = None,
) -> None:
    """Some batches of an evaluation under several threats; see :func:`evaluate_threats` and ``rdc.evaluation.run.evaluate_part``."""
    threats, path = _threats(settings), Path(out)
    options: dict[str, Any] = {"command": command, "overwrite": overwrite, "progress": progress}

    def work(place: int, folder: Path, **more: Any) -> Smaller:
        return evaluate_part(classifier, dataset, settings[place], folder, mine, **options, **more)

    with _held(path, threats, settings, overwrite):
        _in_turn(threats, settings, path, work, on_batch, on_threat)


def _threats(settings: Sequence[EvaluationSettings]) -> list[Threat]:
    threats = [Threat(str(one.norm), str(one.eps)) for one in settings if one.attacks]
    if not threats or len(threats) < len(settings):
        raise ConfigError("threats: expected at least one, each with attacks")
    return threats


@contextlib.contextmanager
def _held(
    path: Path, threats: Sequence[Threat], settings: Sequence[EvaluationSettings], overwrite: bool
) -> Iterator[ThreatFolder | None]:
    """The folder of all threats, in the process that opened it."""
    folder = by_the_first(lambda: ThreatFolder(path, _identity(threats, settings), overwrite=overwrite))
    try:
        yield folder
    finally:
        if folder is not None:
            folder.close()


def _in_turn(
    threats: Sequence[Threat],
    settings: Sequence[EvaluationSettings],
    path: Path,
    work: Callable[..., Smaller],
    on_batch: Callable[[int, int], None] | None,
    on_threat: Callable[[EvaluationSettings, Path], None] | None,
) -> None:
    """Work on each threat; what one leaves is handed to the next radius of its norm."""
    left: dict[int, Smaller] = {}
    finished, total = 0, sum(one.n for one in settings)
    for place, before in rising(threats):
        folder = path / threats[place].folder
        if on_threat is not None:
            on_threat(settings[place], folder)
        count = None if on_batch is None else _counting(on_batch, finished, total)
        left[place] = work(place, folder, on_batch=count, smaller=None if before is None else left[before])
        finished += settings[place].n


def _identity(threats: Sequence[Threat], settings: Sequence[EvaluationSettings]) -> JsonObject:
    """What must be the same for a folder to be continued; the folders of the threats say the rest."""
    named = [
        {"threat": threat.text, "folder": threat.folder, "attacks": list(one.attacks)}
        for threat, one in zip(threats, settings, strict=True)
    ]
    return {"schema": SCHEMA, "threats": named}


def _together(path: Path, threats: Sequence[Threat], runs: Sequence[Evaluation]) -> ThreatEvaluation:
    """What finished runs, in the order of the threats, say together."""
    smaller = {place: None if before is None else threats[before].text for place, before in rising(threats)}
    rows = [
        threat_report(threat.text, threat.folder, smaller[place], run)
        for place, (threat, run) in enumerate(zip(threats, runs, strict=True))
    ]
    images = image_records([threat.text for threat in threats], runs)
    report = threats_report(rows, runs, images, runs[0].record.command)
    return ThreatEvaluation(report, tuple(runs), images, path)


def _counting(on_batch: Callable[[int, int], None], finished: int, total: int) -> Callable[[int, int], None]:
    return lambda more, _: on_batch(finished + more, total)
