"""Accuracies of finished evaluations, to be drawn against costs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from rdc.errors import ConfigError, DataError
from rdc.storage.json_files import read_json
from rdc.storage.reading import reading
from rdc.storage.structure import integer, number, record, sequence

__all__ = ["Accuracy", "read_accuracy"]

_BYTES = 64 * 2**20
_RATE = record({"accuracy": number(0, 1), "ci95": sequence(number(0, 1), 2, 2)})
_REPORT = record({"n": integer(1), "clean": _RATE, "robust": _RATE})


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Of a model, from a report.

    Args:
        label: of the model in the comparison of costs.
        source: the file.
        n: images.
        clean, robust: shares.
        clean_ci95, robust_ci95: their intervals.
    """

    label: str
    source: str
    n: int
    clean: float
    clean_ci95: tuple[float, float]
    robust: float
    robust_ci95: tuple[float, float]


def read_accuracy(text: str) -> Accuracy:
    """``LABEL=PATH``, PATH a folder of rdc evaluate or its report.json; a label may hold ``=``, a path may not.

    Raises:
        ConfigError: not of this form.
        DataError: no report of an evaluation with an attack.
    """
    label, equals, name = text.rpartition("=")
    if not equals or not label.strip() or not name:
        raise ConfigError(f"report: expected LABEL=PATH, LABEL as the table has it; got {text[:200]!r}")
    path = Path(os.fspath(name))
    path = path / "report.json" if path.is_dir() else path
    with reading(path, DataError, "the report of an rdc evaluate with an attack"):
        found = read_json(path, DataError, kind=dict, limit=_BYTES)
        _REPORT(found, path.name)
    rates: dict[str, Any] = {}
    for kind in ("clean", "robust"):
        low, high = found[kind]["ci95"]
        rates |= {kind: found[kind]["accuracy"], f"{kind}_ci95": (low, high)}
    return Accuracy(label=label.strip(), source=str(path), n=found["n"], **rates)
