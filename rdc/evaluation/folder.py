"""The folder of one run: its identity, per-image results as they come, adversarial images; survives kill -9 and tells damage.

    run.json              what decides the figures (settings, weights, images), and command, commits, versions
    sanity.json           what the sanity checks found
    results.jsonl         n lines for each finished batch, then one line that closes it; appended at once and fsynced
    results.1-of-2.jsonl  the same of process 1 of 2 while they run; merged into results.jsonl, in order, at the end
    batches/00000.npz     adversarial images and logits of a batch, written before its lines

JSON files carry a digest, lines a CRC-32, and a closing line the digest of its batch's arrays (:mod:`rdc.storage.sealed`).

A run that was killed goes on with the batches that are not closed, or whose arrays are damaged, by any number of processes. Lines
after the last closed batch of a file, whole or cut short, are dropped.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdc.errors import DataError
from rdc.evaluation.batch import BatchResult
from rdc.evaluation.files import (
    SCHEMA,
    Batch,
    arrays_digest,
    arrays_path,
    batch_lines,
    is_ours,
    is_results,
    read_arrays,
    read_run_file,
    read_sanity,
    results_name,
)
from rdc.evaluation.records import RunRecord
from rdc.evaluation.results import check_same_attacks, read_results
from rdc.evaluation.sanity_records import Sanity
from rdc.storage.files import atomic_write, open_in_place
from rdc.storage.json_records import ABSENT, JsonObject
from rdc.storage.run_folder import ResumableFolder, as_written
from rdc.storage.sealed import write_sealed

__all__ = ["RunFolder", "remove_run"]

_REPORTS = ("report.json", "report.html", "report.md", "model_info.json", "adversarial.npz")


class RunFolder(ResumableFolder):
    """Opens, checks and locks a folder; a context manager.

    Args:
        path: the folder; made if missing.
        run: this start; its identity must be equal for a run to be continued, the rest is kept from the first start, and the
            commit is added if it makes figures.
        overwrite: throw away the results of another (or the same) run in it.
        shard: (number of this process, number of processes): whose file of results this is.
        ids: of all images, in their order, see :func:`rdc.evaluation.files.read_batch`.
        alone: hold the folder; of several processes the first does, which opens it before the others and merges at the end.

    Raises:
        ConfigError: it holds another command's results (the message names the settings), something else, or is in use.
        DataError: its files are damaged.
    """

    COMMAND = "rdc evaluate"
    WRITTEN = {"": is_ours, "batches": lambda name: name.endswith(".npz")}
    DIFFERING, GO_ON = "These settings differ", "continue that run"

    def __init__(
        self,
        path: str | os.PathLike[str],
        run: RunRecord,
        *,
        overwrite: bool = False,
        shard: tuple[int, int] = (0, 1),
        ids: Sequence[int] | None = None,
        alone: bool = True,
    ) -> None:
        super().__init__(path)
        self._shard, self._ids = shard, ids
        self._start = RunRecord.from_json(as_written(run.to_json()), "run")
        self._closed: dict[int, Batch] = {}  # by number
        self._claim(self._start.identity.to_json(), overwrite, alone=alone)

    def _read_identity(self, overwrite: bool) -> JsonObject | None:
        if overwrite:
            return None
        self.run = read_run_file(self.path / self.IDENTITY)
        if self.run.identity.networks is ABSENT:  # of an earlier version: the digest of all weights tells them apart
            known = dataclasses.replace(self.run.identity, networks=self._start.identity.networks)
            self.run = dataclasses.replace(self.run, identity=known)
        return {**self.run.identity.to_json(), "schema": SCHEMA}

    def _write_identity(self, identity: JsonObject) -> None:
        self._keep_run(self._start)

    def _keep_run(self, run: RunRecord) -> None:
        self.run = run
        write_sealed(self.path / self.IDENTITY, run.to_json())

    def _begin(self, identity: JsonObject, overwrite: bool, alone: bool) -> None:
        super()._begin(identity, overwrite, alone)
        if not alone:
            self.reread()
            return
        self.merge()
        if not self._sealed:
            self._upgrade()

    def __enter__(self) -> RunFolder:
        return self

    @property
    def _sealed(self) -> bool:
        """Whether every file says if it was damaged."""
        return self.run.identity.schema == SCHEMA

    @property
    def results(self) -> Path:
        """The per-image results of this process."""
        return self.path / results_name(*self._shard)

    @property
    def batches(self) -> list[Batch]:
        """The finished batches that this process knows of, in order: ``images`` and ``totals``."""
        return [self._closed[index] for index in sorted(self._closed)]

    def closed(self, index: int) -> Batch:
        """A finished batch: ``images`` and ``totals``."""
        return self._closed[index]

    def reread(self) -> None:
        """Read the merged results again."""
        found = read_results(self.path / "results.jsonl", self.run.identity.settings, self._sealed, self._ids)
        self._closed = self._whole(found.batches)

    def has(self, index: int) -> bool:
        """Whether a batch is finished."""
        return index in self._closed

    @property
    def sanity(self) -> Sanity | None:
        """What the sanity checks found; None if they were not made yet."""
        file = self.path / "sanity.json"
        return read_sanity(file, self._sealed) if file.exists() else None

    def keep_sanity(self, found: Sanity) -> None:
        """Write down what the sanity checks found."""
        write_sealed(self.path / "sanity.json", found.to_json())

    def adopt_sanity(self, file: Path) -> None:
        """Take over what another part of the run found."""
        self.keep_sanity(read_sanity(file, self._sealed))

    def arrays_path(self, index: int) -> Path:
        """Where the arrays of a batch are."""
        return arrays_path(self.path, index)

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Arrays of a finished batch, see BatchResult.

        Raises:
            DataError: damaged.
        """
        return read_arrays(self.arrays_path(index), self._closed[index].totals, self._sealed)

    def append(self, index: int, result: BatchResult) -> None:
        """Keep batch ``index``: its arrays first, then its lines in one write. Both are on disk when this returns.

        Raises:
            OSError: the disk is full, say; the batch then does not count as finished.
        """
        commits = self.run.commits
        if self._shard[0] == 0 and self._start.commits[0] not in commits:  # this part comes from another source tree
            self._keep_run(dataclasses.replace(self.run, commits=(*commits, self._start.commits[0])))
        packed = io.BytesIO()
        arrays: dict[str, Any] = dict(result.arrays)
        np.savez_compressed(packed, **arrays)
        totals = dataclasses.replace(result.totals, arrays=arrays_digest(packed.getvalue()))
        self.adopt(Batch(result.images, totals), packed.getvalue())

    def adopt(self, batch: Batch, arrays: bytes) -> None:
        """Keep a batch that is whole: the content of its arrays' file first, then its lines in one write.

        Raises:
            OSError: the disk is full, say; the batch then does not count as finished.
        """
        index = batch.totals.end_of_batch
        with atomic_write(self.arrays_path(index)) as out:
            out.write(arrays)
        content = batch_lines(batch)
        with open_in_place(self.results, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._closed[index] = batch

    def gather(self) -> None:
        """Merge what all processes have finished, in the place of one that held the folder and is dead, if need be."""
        if self._lock is None:
            self._hold(f"another {self.COMMAND} is writing to this folder. Wait for it, or name another --out")
        self.merge()

    def merge(self) -> None:
        """Read what all processes have finished; leave one file, in order (only the process that holds the folder).

        Raises:
            DataError: a line is damaged; nothing was changed.
        """
        files = self._files()
        found = [read_results(file, self.run.identity.settings, self._sealed, self._ids) for file in files]
        listed = [index for result in found for index in result.order]
        self._closed = self._whole({index: batch for result in found for index, batch in result.batches.items()})
        check_same_attacks(self.path, self._closed.values())
        untidy = len(self._closed) < len(listed) or listed != sorted(listed)
        if files and (len(files) > 1 or files[0].name != "results.jsonl" or untidy):
            self._write_results()
            for file in files:
                if file.name != "results.jsonl":
                    file.unlink()
        elif files and found[0].kept < found[0].length:
            with open_in_place(files[0], "r+b") as results:
                results.truncate(found[0].kept)
                results.flush()
                os.fsync(results.fileno())

    def _files(self) -> list[Path]:
        return _results_files(self.path)

    def _write_results(self) -> None:
        with atomic_write(self.path / "results.jsonl") as out:
            for batch in self.batches:
                out.write(batch_lines(batch))

    def _upgrade(self) -> None:
        """Give a folder of an older schema its checksums; run.json last, so that a killed process does it again."""
        for index, batch in self._closed.items():
            digest = arrays_digest(self.arrays_path(index).read_bytes())
            self._closed[index] = Batch(batch.images, dataclasses.replace(batch.totals, arrays=digest))
        if self._closed:
            self._write_results()
        sanity = self.sanity
        if sanity is not None:
            self.keep_sanity(sanity)
        self._keep_run(dataclasses.replace(self.run, identity=dataclasses.replace(self.run.identity, schema=SCHEMA)))

    def _clear(self) -> None:
        remove_run(self.path)

    def _whole(self, batches: dict[int, Batch]) -> dict[int, Batch]:
        """The batches whose arrays are not damaged; the others are computed again."""
        return {index: batch for index, batch in batches.items() if self._arrays_are_whole(index, batch)}

    def _arrays_are_whole(self, index: int, batch: Batch) -> bool:
        try:
            read_arrays(self.arrays_path(index), batch.totals, self._sealed)
        except DataError:
            return False
        return True


def remove_run(path: Path) -> None:
    """Remove the files of a run from a folder; other files, and the folder, stay."""
    for name in ("run.json", "sanity.json", *_REPORTS):  # run.json first: without it nothing here is continued
        (path / name).unlink(missing_ok=True)
    for file in _results_files(path):
        file.unlink()
    for file in (path / "batches").glob("[0-9]*.npz"):
        file.unlink()


def _results_files(path: Path) -> list[Path]:
    """results.jsonl and those of single processes."""
    return sorted(file for file in path.glob("results*.jsonl") if is_results(file.name))
