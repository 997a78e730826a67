"""Two finished evaluations on the same images: is the difference between them more than chance?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rdc.errors import ConfigError, DataError
from rdc.evaluation.records import SCHEMA, read_run_file, read_sanity
from rdc.evaluation.results import Batch, check_same_attacks, count_images, read_results
from rdc.evaluation.summary import summarize
from rdc.statistics import bootstrap_interval, paired_permutation_test
from rdc.storage.json_files import read_json
from rdc.storage.reading import reading
from rdc.storage.structure import integer, mapping, number, optional, record, sequence, text

__all__ = ["compare_runs", "read_run"]

#: settings that decide whether two robust accuracies mean the same; a difference is said beside the figures
_THREAT = ("norm", "eps", "attacks", "steps", "restarts", "gradient", "noise", "eot", "resubmissions", "seed")


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A finished run's folder, read only: ``path``, ``identity``, ``report``, and ``images``, its per-image records by image.

    The report is made again from the checked results, and that of report.json must have the same figures.

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
    sealed = run["identity"]["schema"] == SCHEMA
    with reading(path / "report.json", DataError, "the report of rdc evaluate", _REPORT_ADVICE):
        shown = read_json(path / "report.json", kind=dict, limit=_REPORT_BYTES)
        _FIGURES(shown, "report.json")
    batches = _batches(path, run["identity"]["settings"], sealed, shown["n"])
    sanity = read_sanity(path / "sanity.json", sealed) if (path / "sanity.json").exists() else {}
    with reading(path, DataError, "a run of rdc evaluate", "Evaluate again with --overwrite"):
        report = summarize(run, batches, sanity)
    if differing := _differing(shown, report):
        raise DataError(
            f"{path / 'report.json'}: damaged, its {differing} is not what results.jsonl says. {_REPORT_ADVICE}"
        )
    images = {record["image"]: record for batch in batches for record in batch["images"]}
    return {"path": str(path), "identity": run["identity"], "report": report, "images": images}


_REPORT_ADVICE = "Run the same rdc evaluate command again: the report is written anew, and nothing is computed twice"
_REPORT_BYTES = 64 * 2**20
_RATE = record({"accuracy": optional(number(0, 1)), "ci95": optional(sequence(number(0, 1), 2, 2))})
_FIGURES = record(
    {
        "n": integer(1),
        "model": text(),
        "clean": _RATE,
        "robust": _RATE,
        "scores": mapping(lambda value, where: None),
        "attacks": sequence(record({"name": text(), "noise": text(), "accuracy": number(0, 1)})),
    }
)
#: figures of an attack that are looked at; seconds and wording are not
_OF_AN_ATTACK = ("name", "noise", "accuracy", "ci95", "attacked", "broken", "survivors", "average")


def _batches(path: Path, settings: dict[str, Any], sealed: bool, expected: int) -> list[Batch]:
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
    if sum(len(batch["images"]) for batch in batches) != expected or expected != settings["n"]:
        raise DataError(f"{file}: damaged, some batches are missing. Run the same rdc evaluate command again")
    check_same_attacks(path, batches)
    return batches


def _differing(shown: dict[str, Any], report: dict[str, Any]) -> str | None:
    """What of report.json does not follow from the results."""
    for key in ("n", "model", "dataset", "seed", "clean", "robust", "scores"):
        if shown.get(key) != report[key]:
            return key
    parts = ([{key: attack.get(key) for key in _OF_AN_ATTACK} for attack in one["attacks"]] for one in (shown, report))
    return None if next(parts) == next(parts) else "attacks"


def compare_runs(
    a: dict[str, Any],
    b: dict[str, Any],
    *,
    common: bool = False,
    draws: int = 100_000,
    seed: int = 0,
    confidence: float = 0.95,
    backend: str = "auto",
) -> dict[str, Any]:
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
    found: dict[str, Any] = {}
    for name, of in _measures(a, b).items():
        left = np.array([of[0](a["images"][image]) for image in images], dtype=np.float64)
        right = np.array([of[1](b["images"][image]) for image in images], dtype=np.float64)
        found[name] = _difference(left, right, draws, seed, confidence, backend)
    return {
        "a": _about(a),
        "b": _about(b),
        "n": len(images),
        "confidence": confidence,
        "seed": seed,
        "notes": _notes(a, b),
        "differences": found,
    }


def _same_images(a: dict[str, Any], b: dict[str, Any], common: bool) -> list[int]:
    """The images to compare on, in order."""
    where = [run["identity"]["settings"] for run in (a, b)]
    words = [_images_words(run) for run in (a, b)]
    if a["identity"]["images"] == b["identity"]["images"]:
        return sorted(a["images"])
    if not common:
        raise ConfigError(
            f"expected two runs on the same images; {words[0]}, {words[1]}. Evaluate both with the same --data, --split, --start "
            "and --n, or use --common for the images that both have"
        )
    if any(where[0][key] != where[1][key] for key in ("dataset", "split")):
        raise ConfigError(f"--common: expected the same data set and split; {words[0]}, {words[1]}")
    images = sorted(set(a["images"]) & set(b["images"]))
    if not images:
        raise ConfigError(f"--common: the two runs have no image in common; {words[0]}, {words[1]}")
    if wrong := [i for i in images if a["images"][i]["label"] != b["images"][i]["label"]]:
        raise ConfigError(
            f"--common: image {wrong[0]} has label {a['images'][wrong[0]]['label']} in {a['path']} and "
            f"{b['images'][wrong[0]]['label']} in {b['path']}: these are different data"
        )
    return images


def _images_words(run: dict[str, Any]) -> str:
    settings, images = run["identity"]["settings"], run["images"]
    return (
        f"{run['path']} has {len(images)} images ({min(images)} to {max(images)}) of {settings['dataset']}, "
        f"{settings['split']} split"
    )


_Measure = Callable[[dict[str, Any]], float]


def _measures(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[_Measure, _Measure]]:
    """What can be compared: name -> a number of an image's record, for A and for B."""
    found: dict[str, tuple[_Measure, _Measure]] = {"clean": (_clean, _clean)}
    if not all(run["identity"]["settings"]["attacks"] for run in (a, b)):
        return found
    found["robust"] = (_robust, _robust)
    first = [next(iter(run["images"].values())) for run in (a, b)]
    if all("fresh" in (record.get("scores") or {}) for record in first):
        found["average of draws"] = (_average, _average)
    cascades = [[(attack["name"], attack["noise"]) for attack in run["report"]["attacks"]] for run in (a, b)]
    shared = [key for key in cascades[0] if key in cascades[1]]
    several = len({noise for _, noise in shared}) > 1
    for key in shared:
        name = f"after {key[0]}, {key[1]} noise" if several else f"after {key[0]}"
        found[name] = (_after(key, cascades[0]), _after(key, cascades[1]))
    return found


def _clean(record: dict[str, Any]) -> float:
    return record["clean"]["right"]


def _robust(record: dict[str, Any]) -> float:
    return float(record["robust"])


def _average(record: dict[str, Any]) -> float:
    return record["scores"]["fresh"]["right"]


def _after(key: tuple[str, str], cascade: list[tuple[str, str]]) -> _Measure:
    """Right (in all draws) when clean and under every attack of the same noise up to and including this one."""
    counted = {entry for entry in cascade[: cascade.index(key) + 1] if entry[1] == key[1]}

    def standing(record: dict[str, Any]) -> float:
        entries = [entry["right"] for entry in record["attacks"] if (entry["name"], entry["noise"]) in counted]
        return float(record["clean"]["right"] == 1 and all(right == 1 for right in entries))

    return standing


def _difference(
    left: np.ndarray, right: np.ndarray, draws: int, seed: int, confidence: float, backend: str
) -> dict[str, Any]:
    test = paired_permutation_test(left, right, draws=draws, seed=seed, backend=backend)
    around = bootstrap_interval(left - right, draws=draws, seed=seed, confidence=confidence, backend=backend)
    return {
        "a": round(float(left.mean()), 6),
        "b": round(float(right.mean()), 6),
        "difference": round(test.difference, 6),
        "interval": [round(float(around.low[0]), 6), round(float(around.high[0]), 6)],
        "p_value": float(f"{test.p_value:.4g}"),
        "exact": test.exact,
        "only_a": int(((left == 1) & (right < 1)).sum()),
        "only_b": int(((right == 1) & (left < 1)).sum()),
    }


def _about(run: dict[str, Any]) -> dict[str, Any]:
    return {"folder": run["path"], "model": run["report"]["model"], "n": len(run["images"])}


def _notes(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Settings of the attack that differ, and flags of severity warning."""
    settings = [run["identity"]["settings"] for run in (a, b)]
    found = [
        f"{name} differs: {_plain(settings[0].get(name))} in A, {_plain(settings[1].get(name))} in B"
        for name in _THREAT
        if settings[0].get(name) != settings[1].get(name)
    ]
    for which, run in (("A", a), ("B", b)):
        warned = [flag["name"] for flag in run["report"].get("flags", ()) if flag["severity"] == "warning"]
        if warned:
            found.append(f"{which} has warnings: {', '.join(warned)}")
    return found


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
