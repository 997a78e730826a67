"""Two finished evaluations on the same images: is the difference between them more than chance?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rdc.errors import ConfigError, DataError
from rdc.evaluation.folder import SCHEMA
from rdc.resampling import bootstrap_interval, paired_permutation_test
from rdc.storage.json_files import read_json

__all__ = ["compare_runs", "read_run"]

#: settings that decide whether two robust accuracies mean the same; a difference is said beside the figures
_THREAT = ("norm", "eps", "attacks", "steps", "restarts", "gradient", "noise", "eot", "resubmissions", "seed")


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A finished run's folder, read only: ``path``, ``identity``, ``report``, and ``images``, its per-image records by image.

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
    try:
        identity, report = read_json(path / "run.json")["identity"], read_json(path / "report.json")
        lines = (path / "results.jsonl").read_text(encoding="utf-8").splitlines()
        records = [record for record in map(json.loads, lines) if "end_of_batch" not in record]
        images = {record["image"]: record for record in records}
        settings, expected = identity["settings"], int(report["n"])
        identity["images"], settings["dataset"], settings["split"]  # noqa: B018
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error!r}). Evaluate again with --overwrite") from error
    if identity.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path}: written by another version of rdc (schema {identity.get('schema')}, this one reads {SCHEMA}). "
            "Evaluate again in a new folder"
        )
    if len(images) != expected:
        raise DataError(
            f"{path}: the report is about {expected} images, results.jsonl has {len(images)}. Run rdc evaluate again"
        )
    return {"path": str(path), "identity": identity, "report": report, "images": images}


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
        backend: of ``rdc.resampling``.

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
