"""What a run of ``rdc evaluate`` claims, beside the model and beside AutoAttack."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdc.attacks.registry import AttackSpec, parse_attack
from rdc.attacks.suites import AUTOATTACK, SUITES, suite
from rdc.audits.short_attacks import identity
from rdc.audits.subject import Subject
from rdc.errors import ConfigError, one_line
from rdc.evaluation.adversarial_files import AdversarialImages
from rdc.evaluation.comparison import FinishedRun, read_run
from rdc.evaluation.files import read_run_file
from rdc.evaluation.records import Identity
from rdc.evaluation.report import RaisedFlag
from rdc.evaluation.results import finished_batches
from rdc.evaluation.verification import verify
from rdc.norm_balls import BUDGETS
from rdc.storage.json_records import given

__all__ = ["Claims", "measure_claims", "settings_of_run"]

_STEPS, _QUERIES, _TARGETS = 100, 5000, 9  # of AutoAttack
_OF_A_MODEL = ("levels", "weighting", "lm", "head", "precision")


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """Stored adversarial images, checked by :func:`rdc.evaluation.verification.verify`.

    Args:
        n: images looked at.
        allowed: of these, within budget and pixel range.
        longest: largest distance; None where one is not finite.
        radius: of the budget.
        held, broken: said to be robust and wrong today; said to be broken and right today.
    """

    n: int
    allowed: int
    longest: float | None
    radius: float
    held: int
    broken: int


@dataclasses.dataclass(frozen=True, eq=False)
class Claims:
    """What a folder of ``rdc evaluate`` says, and what is missing.

    Args:
        folder: its path.
        asked, finished: images that the run was for, and that it has.
        unfinished: why it is not finished; "" if it is.
        attacks: that ran, as texts.
        standard: whether AutoAttack is defined for its threat model.
        missing: parts of AutoAttack (of its version for random models, under fresh noise) that did not run.
        short: parts that had less than AutoAttack gives them.
        width: of the 95 % interval of the lowest figure; None: nothing attacked.
        robust: the figure; None: nothing attacked.
        adaptive: attacks that ran and that go through what the model does at test time.
        differs: what of the model is another in the run.
        decisions: images in both of which the run has another clean decision; None: not compared.
        common: images in both.
        stored: what the model says today of the stored adversarial images of these; None: not compared.
        flags: that the run raised.
    """

    folder: str
    asked: int
    finished: int
    unfinished: str
    attacks: tuple[str, ...]
    standard: bool
    missing: tuple[str, ...]
    short: tuple[str, ...]
    width: float | None
    robust: float | None
    adaptive: tuple[str, ...]
    differs: tuple[str, ...]
    decisions: int | None
    common: int
    stored: StoredImages | None
    flags: tuple[RaisedFlag, ...]


def settings_of_run(folder: str | os.PathLike[str]) -> Identity:
    """Which model and which images a run was about.

    Raises:
        ConfigError: not a folder of ``rdc evaluate``. DataError: run.json is damaged.
    """
    path = Path(folder) / "run.json"
    if (Path(folder) / "threats.json").is_file():
        inner = sorted(found.parent.name for found in Path(folder).glob("*/run.json"))
        raise ConfigError(
            f"run: {one_line(folder, 400)} holds a run for each of several threats; expected one of them: "
            f"{one_line(', '.join(inner), 400) or 'none is begun'}"
        )
    if not path.is_file():
        raise ConfigError(
            f"run: expected the folder of a run of rdc evaluate; there is no run.json in {one_line(folder, 400)}"
        )
    return read_run_file(path).identity


def measure_claims(folder: str | os.PathLike[str], subject: Subject | None, logits: Tensor | None) -> Claims:
    """Read a run, finished or not.

    Args:
        folder: of the run.
        subject: the model that is audited, to be compared with the run's; None: not compared.
        logits: [n, K], its answers.

    Raises:
        ConfigError: not a folder of ``rdc evaluate``. DataError: its files are damaged.
    """
    who = settings_of_run(folder)
    path, settings = Path(folder), who.settings
    try:
        run, why = read_run(path), ""
    except ConfigError as error:
        run, why = None, str(error).partition(": ")[2] or str(error)
    specs = [parse_attack(text) for text in settings.attacks]
    names = [spec.name for spec in specs]
    norm = given(settings.norm)
    version = "rand" if settings.noise == "fresh" else "standard"
    wanted = [part.under(norm or "") for part in AUTOATTACK[version]]
    adaptive = {parse_attack(text).name for text in suite(SUITES[-1], norm)} - {"apgd-ce"}
    targets = _TARGETS if subject is None else min(_TARGETS, subject.defence.num_classes - 1)
    rate = None if run is None else run.report.robust
    return Claims(
        folder=str(path),
        asked=settings.n,
        finished=len(run.images) if run else min(settings.n, finished_batches(path) * settings.batch),
        unfinished=why,
        attacks=settings.attacks,
        standard=norm not in ("flow", "l0", "lpips", "corruption"),
        missing=tuple(part.name for part in wanted if part.name not in names),
        short=_short(run, specs, {part.name for part in wanted}, targets) if run else (),
        width=rate.ci95[1] - rate.ci95[0] if rate and rate.ci95 else None,
        robust=rate.accuracy if rate else None,
        adaptive=tuple(name for name in names if name in adaptive),
        differs=_differs(who, subject) if subject else (),
        decisions=_other_decisions(run, subject, logits),
        common=len(_common(run, subject)),
        stored=_stored(run, subject),
        flags=run.report.flags if run else (),
    )


def _short(run: FinishedRun, specs: list[AttackSpec], parts: set[str], most: int) -> tuple[str, ...]:
    """Parts of AutoAttack that had fewer steps, queries or targets than it gives them."""
    found = []
    steps = {attack.name: attack.steps for attack in run.report.attacks if attack.attacked}
    for spec in (spec for spec in specs if spec.name in parts):
        took = next((count for name, count in steps.items() if name.partition(":")[0] == spec.name), None)
        took = steps.get(spec.text, took)
        if spec.name == "square":
            queries = spec.get("queries", _QUERIES)
            found += [f"square: {queries:,} queries of {_QUERIES:,}"] if queries < _QUERIES else []
        elif took is not None and 0 < took < _STEPS:
            found.append(f"{spec.name}: {took} steps of {_STEPS}")
        targets = spec.get("targets", most)
        if targets < most:
            found.append(f"{spec.name}: {targets} targets of {most}")
    return tuple(found)


def _differs(who: Identity, subject: Subject) -> tuple[str, ...]:
    """What of the audited model is not as the run recorded it."""
    mine = identity(subject)
    found = [] if mine.weights == who.weights else [f"weights {who.weights} there, {mine.weights} here"]
    for key in _OF_A_MODEL:
        there, here = who.classifier.get(key), mine.classifier.get(key)
        if there != here and not (key == "head" and mine.weights == who.weights):
            found.append(f"{key} {one_line(there, 120)} there, {one_line(here, 120)} here")
    return tuple(found)


def _common(run: FinishedRun | None, subject: Subject | None) -> list[tuple[int, int]]:
    """(place here, position in the data) of the images that both have, with the same label."""
    if run is None or subject is None:
        return []
    pairs = zip(subject.data.indices.tolist(), subject.data.labels.tolist(), strict=True)
    found = [(place, image, label) for place, (image, label) in enumerate(pairs) if image in run.images]
    return [(place, image) for place, image, label in found if run.images[image].label == label]


def _other_decisions(run: FinishedRun | None, subject: Subject | None, logits: Tensor | None) -> int | None:
    common = _common(run, subject)
    if run is None or logits is None or not common or run.identity.settings.noise == "fresh":
        return None
    decided: list[int] = logits.argmax(1).tolist()
    return sum(int(run.images[image].clean.predicted != decided[place]) for place, image in common)


def _stored(run: FinishedRun | None, subject: Subject | None) -> StoredImages | None:
    """The adversarial images of the images in both, classified again; of balls, and under known noise."""
    common = [image for _, image in _common(run, subject)]
    if run is None or subject is None or not common or run.identity.settings.noise == "fresh":
        return None
    settings, norm, eps = run.identity.settings, given(run.identity.settings.norm), given(run.identity.settings.eps)
    found = run.adversarial(set(common)) if settings.attacks else {}
    if not found or norm not in BUDGETS or eps is None:
        return None
    x_adv = torch.from_numpy(np.stack([found[image] for image in common]))
    checked = verify(subject.defence, subject.data, AdversarialImages(x_adv, torch.tensor(common)), norm, eps)
    said = {image: bool(run.images[image].robust) for image in common}
    return StoredImages(
        n=checked.n,
        allowed=checked.allowed,
        longest=checked.longest,
        radius=checked.radius,
        held=sum(said[one.image] and not one.right for one in checked.images),
        broken=sum(one.clean and one.right and not said[one.image] for one in checked.images),
    )
