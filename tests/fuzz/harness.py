"""Watches workers and counts: crashes, too slow, too large, tracebacks, figures that changed without a word."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.readers import READERS

__all__ = ["FAULTS", "READER_NAMES", "Counts", "fuzz", "table"]

SECONDS, MEGABYTES = 2.0, 500.0  #: what one file may take
WALL, START = 30.0, 300.0  # seconds without a word after which a worker is ended: within a case, and between them
FAULTS = ("crash", "endless", "slow", "large", "traceback", "message", "silent")
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass
class Counts:
    """What came of one reader's files.

    Args:
        cases: files tried.
        accepted, refused: of these; the rest are faults.
        faults: (kind, index, file, words) of each.
        slowest, largest: CPU seconds and MiB.
    """

    reader: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    faults: list[tuple[str, int, str, str]] = dataclasses.field(default_factory=list)
    slowest: float = 0.0
    largest: float = 0.0

    def of(self, kind: str) -> int:
        """How many faults of a kind."""
        return sum(fault[0] == kind for fault in self.faults)

    def take(self, row: dict[str, Any]) -> None:
        """Count one finished case."""
        self.cases += 1
        self.slowest, self.largest = max(self.slowest, row["seconds"]), max(self.largest, row["megabytes"])
        kinds = [row["kind"]] if row["kind"] not in ("accepted", "refused") else []
        kinds += ["slow"] if row["seconds"] > SECONDS else []
        kinds += ["large"] if row["megabytes"] > MEGABYTES else []
        self.accepted += row["kind"] == "accepted"
        self.refused += row["kind"] == "refused"
        words = f"{row['seconds']} s, {row['megabytes']} MiB: {row['value']}"
        self.faults += [(kind, row.get("case", row["end"]), row["file"], words) for kind in kinds]


def fuzz(names: Sequence[str], cases: int, seed: int = 0) -> list[Counts]:
    """Try ``cases`` changed files on each reader; a worker that dies is replaced by another.

    Args:
        names: of ``READERS``; or "bombs" alone: the first ``cases`` of ``BOMBS``.

    Raises:
        RuntimeError: a reader refuses its own valid file.
    """
    counts = {name: Counts(name) for name in names}
    begin = 0
    with tempfile.TemporaryDirectory() as folder:
        while begin < cases * len(names):
            begin = _work(counts, seed, cases, begin, folder)
    return list(counts.values())


def _work(counts: dict[str, Counts], seed: int, cases: int, begin: int, folder: str) -> int:
    """One worker's life; returns the case to go on with."""
    command = [sys.executable, "-m", "tests.fuzz.worker", ",".join(counts), str(seed), str(cases), str(begin), folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": ""}
    errors, names = Path(folder) / "stderr", list(counts)
    with (
        open(errors, "wb") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, errors="replace"
        ) as worker,
    ):
        at, file = None, ""

        def give_up(kind: str, words: str) -> int:
            if not file:
                raise RuntimeError(
                    f"the worker failed between cases: {words}\n{errors.read_text(errors='replace')[-3000:]}"
                )
            counts[names[at // cases]].cases += 1
            counts[names[at // cases]].faults.append((kind, at % cases, file, words))
            return at + 1

        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(WALL if file else START):
                    worker.kill()
                    return give_up("endless", f"no answer in {WALL:g} s")
                line = worker.stdout.readline()
                if not line:
                    break
                row = json.loads(line)
                if "begin" in row:
                    at, file = row["begin"], row["file"]
                else:
                    counts[row["reader"]].take(row)
                    at, file = row["end"], ""
        code = worker.wait()
    if code == 0:
        return cases * len(names)
    return give_up("crash", f"exit status {code}: {errors.read_text(errors='replace')[-200:]!r}")


def table(found: list[Counts]) -> str:
    """Readable counts."""
    head = ("reader", "cases", "accepted", "refused", *FAULTS, "slowest s", "largest MiB")
    rows = [
        (
            c.reader,
            c.cases,
            c.accepted,
            c.refused,
            *(c.of(kind) for kind in FAULTS),
            f"{c.slowest:.2f}",
            f"{c.largest:.0f}",
        )
        for c in found
    ]
    rows.append(
        (
            "all",
            *(sum(r[i] for r in rows) for i in range(1, 4 + len(FAULTS))),
            *(max(float(r[i]) for r in rows) for i in (-2, -1)),
        )
    )
    widths = [max(len(str(row[i])) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(str(cell).rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
    )


READER_NAMES = tuple(READERS)
