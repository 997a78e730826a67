"""Two finished evaluations on the same images: is the difference between them more than chance?"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from rdc.errors import ConfigError, DataError
from rdc.evaluation.files import SCHEMA, Batch, arrays_path, read_arrays, read_run_file, read_sanity
from rdc.evaluation.records import AttackKey, Identity, ImageRecord, SettingsRecord
from rdc.evaluation.report import Report
from rdc.evaluation.results import check_same_attacks, count_images, read_results
from rdc.evaluation.sanity_records import Sanity
from rdc.evaluation.summary import summarize
from rdc.statistics import bootstrap_interval, paired_permutation_test
from rdc.storage.json_files import read_json
from rdc.storage.json_records import JsonObject, JsonRecord, anything, entry
from rdc.storage.reading import reading
from rdc.storage.structure import flag, integer, mapping, number, optional, record, sequence, text

__all__ = ["Difference", "FinishedRun", "compare_runs", "read_run"]

#: settings that decide whether two robust accuracies mean the same; a difference is said beside the figures
_THREAT = (
    "norm",
    "eps",
    "attacks",
    "steps",
    "restarts",
    "gradient",
    "attack_precision",
    "lpips_model",
    "noise",
    "eot",
    "resubmissions",
    "seed",
)


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run's folder, read only.

    ``run["report"]``, ``run["identity"]`` and ``run["images"]`` are the JSON of the same, as plain dictionaries.

    Args:
        path: the folder.
        identity: what decided its figures.
        report: made again from the checked results; that of report.json has the same figures.
        images: per-image records, by position in the data set.
        batches: the same as the folder has them.
    """

    path: str
    identity: Identity
    report: Report
    images: dict[int, ImageRecord]
    batches: tuple[Batch, ...] = ()

    def adversarial(self, images: Collection[int]) -> dict[int, np.ndarray]:
        """The most damaging image that was found for each of these, [C, H, W] float32; those that the run lacks are left out.

        Args:
            images: positions in the data set. Only their batches are read.

        Raises:
            DataError: the arrays of a batch are missing or damaged.
        """
        found: dict[int, np.ndarray] = {}
        sealed = self.identity.schema == SCHEMA
        for batch in self.batches:
            rows = [(row, record.image) for row, record in enumerate(batch.images) if record.image in images]
            if rows:
                path = arrays_path(self.path, batch.totals.end_of_batch)
                arrays = read_arrays(path, batch.totals, sealed)
                found |= {image: arrays["x_adv"][row] for row, image in rows}
        return found

    def __getitem__(self, key: str) -> Any:
        return self._json[key]

    @functools.cached_property
    def _json(self) -> JsonObject:
        images = {image: record.to_json() for image, record in self.images.items()}
        return {
            "path": self.path,
            "identity": self.identity.to_json(),
            "report": self.report.to_json(),
            "images": images,
        }


def read_run(path: str | os.PathLike[str]) -> FinishedRun:
    """Read a finished run's folder.

    Raises:
        ConfigError: not a folder of rdc evaluate, or the run is not finished.
        DataError: its files are damaged.
    """
    path = Path(path)
    if not (path / "run.json").is_file():
        raise ConfigError(f"{path}: expected the folder of a run of rdc evaluate; there is no run.json in it")
    if not (path / "report.json").is_file():
        raise ConfigError(
            f"{path}: this run is not finished (no report.json). Run the same rdc evaluate command again; it goes on"
        )
    run = read_run_file(path / "run.json")
    sealed = run.identity.schema == SCHEMA
    with reading(path / "report.json", DataError, "the report of rdc evaluate", _REPORT_ADVICE):
        shown = read_json(path / "report.json", kind=dict, limit=_REPORT_BYTES)
        _FIGURES(shown, "report.json")
    batches = _batches(path, run.identity.settings, sealed, shown["n"])
    sanity = read_sanity(path / "sanity.json", sealed) if (path / "sanity.json").exists() else Sanity()
    with reading(path, DataError, "a run of rdc evaluate", "Evaluate again with --overwrite"):
        report = summarize(run, batches, sanity)
    if differing := _differing(shown, report.to_json()):
        raise DataError(
            f"{path / 'report.json'}: damaged, its {differing} is not what results.jsonl says. {_REPORT_ADVICE}"
        )
    images = {record.image: record for batch in batches for record in batch.images}
    return FinishedRun(str(path), run.identity, report, images, tuple(batches))


_REPORT_ADVICE = "Run the same rdc evaluate command again: the report is written anew, and nothing is computed twice"
_REPORT_BYTES = 64 * 2**20
_RATE = record({"accuracy": optional(number(0, 1)), "ci95": optional(sequence(number(0, 1), 2, 2))})
_FIGURES = record(
    {
        "n": integer(1),
        "model": text(),
        "clean": _RATE,
        "robust": _RATE,
        "scores": mapping(anything),
        "attacks": sequence(record({"name": text(), "noise": text(), "accuracy": number(0, 1)})),
    }
)
#: figures of an attack that are looked at; seconds and wording are not
_OF_AN_ATTACK = ("name", "noise", "accuracy", "ci95", "attacked", "broken", "survivors", "average")


def _batches(path: Path, settings: SettingsRecord, sealed: bool, expected: int) -> list[Batch]:
    """The batches in order, which must be all of the run.

    Raises:
        DataError: damaged, or of another number of images than the report.
    """
    file = path / "results.jsonl"
    if not file.exists():
        raise DataError(f"{file}: missing. Evaluate again with --overwrite")
    count = count_images(file)
    if count != expected:
        raise DataError(
            f"{path}: the report is about {expected} images, results.jsonl has {count}; one of them is damaged or of another "
            "run. Run rdc evaluate again"
        )
    found = read_results(file, settings, sealed)
    batches = [found.batches[index] for index in sorted(found.batches)]
    if sum(len(batch.images) for batch in batches) != expected or expected != settings.n:
        raise DataError(f"{file}: damaged, some batches are missing. Run the same rdc evaluate command again")
    check_same_attacks(path, batches)
    return batches


def _differing(shown: JsonObject, report: JsonObject) -> str | None:
    """What of report.json does not follow from the results."""
    for key in ("n", "model", "dataset", "seed", "clean", "robust", "scores"):
        if shown.get(key) != report[key]:
            return key
    parts = ([{key: attack.get(key) for key in _OF_AN_ATTACK} for attack in one["attacks"]] for one in (shown, report))
    return None if next(parts) == next(parts) else "attacks"


def compare_runs(
    a: FinishedRun,
    b: FinishedRun,
    *,
    common: bool = False,
    draws: int = 100_000,
    seed: int = 0,
    confidence: float = 0.95,
    backend: str = "auto",
) -> JsonObject:
    """Differences A - B on the same images: paired bootstrap intervals and paired permutation tests.

    Args:
        a, b: what :func:`read_run` returns.
        common: compare on the images that both have, where the two runs do not have the same ones.
        draws: of the permutation test and of the bootstrap.
        seed: of both.
        confidence: of the intervals.
        backend: of ``rdc.statistics``.

    Returns:
        ``a``, ``b`` (folder, model, n), ``n`` images compared, ``notes``: settings that differ, ``differences``: for "clean", "robust"
        and, where both have them, "average of draws" and each attack: ``a``, ``b`` accuracies, ``difference``, ``interval``,
        ``p_value``, ``only_a``, ``only_b``: images right (in all draws) under one alone.

    Raises:
        ConfigError: the images differ, with what to do.
    """
    images = _same_images(a, b, common)
    found = {}
    for name, of in _measures(a, b).items():
        left = np.array([of[0](a.images[image]) for image in images], dtype=np.float64)
        right = np.array([of[1](b.images[image]) for image in images], dtype=np.float64)
        found[name] = _difference(left, right, draws, seed, confidence, backend)
    return {
        "a": _about(a),
        "b": _about(b),
        "n": len(images),
        "confidence": confidence,
        "seed": seed,
        "notes": _notes(a, b),
        "differences": {name: row.to_json() for name, row in found.items()},
    }


def _same_images(a: FinishedRun, b: FinishedRun, common: bool) -> list[int]:
    """The images to compare on, in order."""
    where = [run.identity.settings for run in (a, b)]
    words = [_images_words(run) for run in (a, b)]
    if a.identity.images == b.identity.images:
        return sorted(a.images)
    if not common:
        raise ConfigError(
            f"expected two runs on the same images; {words[0]}, {words[1]}. Evaluate both with the same --data, --split, --start "
            "and --n, or use --common for the images that both have"
        )
    if (where[0].dataset, where[0].split) != (where[1].dataset, where[1].split):
        raise ConfigError(f"--common: expected the same data set and split; {words[0]}, {words[1]}")
    images = sorted(set(a.images) & set(b.images))
    if not images:
        raise ConfigError(f"--common: the two runs have no image in common; {words[0]}, {words[1]}")
    if wrong := [i for i in images if a.images[i].label != b.images[i].label]:
        raise ConfigError(
            f"--common: image {wrong[0]} has label {a.images[wrong[0]].label} in {a.path} and "
            f"{b.images[wrong[0]].label} in {b.path}: these are different data"
        )
    return images


def _images_words(run: FinishedRun) -> str:
    settings, images = run.identity.settings, run.images
    return f"{run.path} has {len(images)} images ({min(images)} to {max(images)}) of {settings.dataset}, {settings.split} split"


_Measure = Callable[[ImageRecord], float]


def _measures(a: FinishedRun, b: FinishedRun) -> dict[str, tuple[_Measure, _Measure]]:
    """What can be compared: name -> a number of an image's record, for A and for B."""
    found: dict[str, tuple[_Measure, _Measure]] = {"clean": (_clean, _clean)}
    if not all(run.identity.settings.attacks for run in (a, b)):
        return found
    found["robust"] = (_robust, _robust)
    if all("fresh" in next(iter(run.images.values())).score_kinds for run in (a, b)):
        found["average of draws"] = (_average, _average)
    cascades = [[attack.attack for attack in run.report.attacks] for run in (a, b)]
    shared = [key for key in cascades[0] if key in cascades[1]]
    several = len({noise for _, noise in shared}) > 1
    for key in shared:
        name = f"after {key[0]}, {key[1]} noise" if several else f"after {key[0]}"
        found[name] = (_after(key, cascades[0]), _after(key, cascades[1]))
    return found


def _clean(record: ImageRecord) -> float:
    return record.clean.right


def _robust(record: ImageRecord) -> float:
    return float(bool(record.robust))


def _average(record: ImageRecord) -> float:
    assert record.scores and record.scores.fresh
    return record.scores.fresh.right


def _after(key: AttackKey, cascade: list[AttackKey]) -> _Measure:
    """Right (in all draws) when clean and under every attack of the same noise up to and including this one."""
    counted = {entry for entry in cascade[: cascade.index(key) + 1] if entry[1] == key[1]}

    def standing(record: ImageRecord) -> float:
        broken = any(outcome.broken for outcome in record.attacks if outcome.attack in counted)
        return float(record.clean.always_right and not broken)

    return standing


@dataclasses.dataclass(frozen=True)
class Difference(JsonRecord):
    """A measure of both runs on the same images.

    Args:
        a, b: means.
        difference: a - b.
        interval: of the difference.
        p_value: two-sided, of the paired permutation test.
        exact: whether all permutations were looked at.
        only_a, only_b: images right (in all draws) under one alone.
    """

    a: float = entry(number())
    b: float = entry(number())
    difference: float = entry(number())
    interval: tuple[float, float] = entry(sequence(number(), 2, 2))
    p_value: float = entry(number(0, 1))
    exact: bool = entry(flag())
    only_a: int = entry(integer(0))
    only_b: int = entry(integer(0))


def _difference(
    left: np.ndarray, right: np.ndarray, draws: int, seed: int, confidence: float, backend: str
) -> Difference:
    test = paired_permutation_test(left, right, draws=draws, seed=seed, backend=backend)
    around = bootstrap_interval(left - right, draws=draws, seed=seed, confidence=confidence, backend=backend)
    return Difference(
        a=round(float(left.mean()), 6),
        b=round(float(right.mean()), 6),
        difference=round(test.difference, 6),
        interval=(round(float(around.low[0]), 6), round(float(around.high[0]), 6)),
        p_value=float(f"{test.p_value:.4g}"),
        exact=test.exact,
        only_a=int(((left == 1) & (right < 1)).sum()),
        only_b=int(((right == 1) & (left < 1)).sum()),
    )


def _about(run: FinishedRun) -> JsonObject:
    return {"folder": run.path, "model": run.report.model, "n": len(run.images)}


def _notes(a: FinishedRun, b: FinishedRun) -> list[str]:
    """Settings of the attack that differ, and flags of severity warning."""
    there, here = (run.identity.settings.to_json() for run in (a, b))
    found = [
        f"{name} differs: {_plain(there.get(name))} in A, {_plain(here.get(name))} in B"
        for name in _THREAT
        if there.get(name) != here.get(name)
    ]
    for which, run in (("A", a), ("B", b)):
        warned = [flag.name for flag in run.report.flags if flag.warns]
        if warned:
            found.append(f"{which} has warnings: {', '.join(warned)}")
    return found


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
