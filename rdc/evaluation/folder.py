"""The folder of one run: its identity, per-image results as they come, adversarial images; survives kill -9.

    run.json              what decides the figures (settings, weights, images), and command, commits, versions
    sanity.json           what the sanity checks found
    results.jsonl         n lines for each finished batch, then one line that closes it; appended at once and fsynced
    results.1-of-2.jsonl  the same of process 1 of 2 while they run; merged into results.jsonl, in order, at the end
    batches/00000.npz     adversarial images and logits of a batch, written before its lines

A run that was killed goes on with the batches that are not closed, by any number of processes. Lines after the last closed
batch of a file, whole or cut short, are dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from rdc.errors import ConfigError, DataError
from rdc.evaluation.batch import BatchResult
from rdc.storage.files import atomic_write
from rdc.storage.json_files import read_json, write_json

__all__ = ["SCHEMA", "RunFolder"]

SCHEMA = 2
_REPORTS = ("report.json", "report.html", "report.md", "model_info.json")


class RunFolder:
    """Opens, checks and locks a folder; a context manager.

    Args:
        path: the folder; made if missing.
        identity: JSON values that must be equal for a run to be continued.
        about: ``command``, ``commit``, ``versions`` of this start; kept from the first one.
        overwrite: throw away the results of another (or the same) run in it.
        shard: (number of this process, number of processes); number 0 opens the folder first and merges at the end.

    Raises:
        ConfigError: it holds another command's results (the message names the settings), something else, or is in use.
        DataError: its files are damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        identity: dict[str, Any],
        about: dict[str, Any],
        *,
        overwrite: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self._shard = shard
        self.path = Path(path)
        identity = json.loads(json.dumps({"schema": SCHEMA, **identity}))
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: expected a folder for the results, this is a file. Choose another")
        run_file = self.path / "run.json"
        if (
            not run_file.exists()
            and self.path.is_dir()
            and any(name.name != "run.lock" for name in self.path.iterdir())
        ):
            raise ConfigError(
                f"{self.path}: not empty, and no results of rdc evaluate (no run.json). Choose a new or empty folder"
            )
        if run_file.exists() and not overwrite:
            _compare(self.path, self._read_run(run_file)["identity"], identity)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path) if shard[0] == 0 else None
        if run_file.exists() and overwrite:
            self._clear()
        if run_file.exists():
            self.run = self._read_run(run_file)
        else:
            first = {"command": about["command"], "commits": [about["commit"]], "versions": about["versions"]}
            self.run = {"identity": identity, **first}
            write_json(run_file, self.run)
        self._commit = about["commit"]
        self._closed: dict[int, dict[str, Any]] = {}  # {"images": [...], "totals": {...}} by number
        if shard[0] == 0:
            self.merge()
        else:
            self._read(self.path / "results.jsonl", cut=False)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *problem: object) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def results(self) -> Path:
        """The per-image results of this process."""
        number, count = self._shard
        return self.path / ("results.jsonl" if count == 1 else f"results.{number}-of-{count}.jsonl")

    @property
    def batches(self) -> list[dict[str, Any]]:
        """The finished batches that this process knows of, in order: ``images`` and ``totals``."""
        return [self._closed[index] for index in sorted(self._closed)]

    def closed(self, index: int) -> dict[str, Any]:
        """A finished batch: ``images`` and ``totals``."""
        return self._closed[index]

    def reread(self) -> None:
        """Read the merged results again."""
        self._closed = {}
        self._read(self.path / "results.jsonl", cut=False)

    def has(self, index: int) -> bool:
        """Whether a batch is finished."""
        return index in self._closed

    @property
    def sanity(self) -> dict[str, Any] | None:
        """What the sanity checks found; None if they were not made yet."""
        file = self.path / "sanity.json"
        return read_json(file) if file.exists() else None

    def keep_sanity(self, found: dict[str, Any]) -> None:
        """Write down what the sanity checks found."""
        write_json(self.path / "sanity.json", found)

    def arrays_path(self, index: int) -> Path:
        """Where the arrays of a batch are."""
        return self.path / "batches" / f"{index:05d}.npz"

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Arrays of a finished batch, see BatchResult."""
        with np.load(self.arrays_path(index), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def append(self, index: int, result: BatchResult) -> None:
        """Keep batch ``index``: its arrays first, then its lines in one write. Both are on disk when this returns.

        Raises:
            OSError: the disk is full, say; the batch then does not count as finished.
        """
        if (
            self._shard[0] == 0 and self._commit not in self.run["commits"]
        ):  # this part of the figures comes from another source tree
            self.run["commits"].append(self._commit)
            write_json(self.path / "run.json", self.run)
        with atomic_write(self.arrays_path(index)) as file:
            np.savez_compressed(file, **result.arrays)
        close = {"end_of_batch": index, "images": len(result.images), **result.totals}
        batch = {"images": result.images, "totals": close}
        with open(self.results, "ab") as file:
            file.write(_lines(batch))
            file.flush()
            os.fsync(file.fileno())
        self._closed[index] = batch

    def merge(self) -> None:
        """Read what all processes have finished; leave one file, in order (only the process that holds the folder)."""
        files = sorted(self.path.glob("results*.jsonl"))
        self._closed, in_order = {}, True
        for file in files:
            order = self._read(file, cut=True)
            in_order = in_order and order == sorted(order)
        if files and (len(files) > 1 or files[0].name != "results.jsonl" or not in_order):
            with atomic_write(self.path / "results.jsonl") as out:
                for batch in self.batches:
                    out.write(_lines(batch))
            for file in files:
                if file.name != "results.jsonl":
                    file.unlink()

    def _clear(self) -> None:
        for name in ("run.json", "sanity.json", *_REPORTS):  # run.json first: without it nothing here is continued
            (self.path / name).unlink(missing_ok=True)
        for file in self.path.glob("results*.jsonl"):
            file.unlink()
        for file in (self.path / "batches").glob("[0-9]*.npz"):
            file.unlink()

    @staticmethod
    def _read_run(path: Path) -> dict[str, Any]:
        try:
            run = read_json(path)
            run["identity"]["schema"], run["commits"], run["command"], run["versions"]  # noqa: B018
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: damaged ({error!r}). Use --overwrite to start afresh, or another folder"
            ) from error
        return run

    def _read(self, path: Path, *, cut: bool) -> list[int]:
        """Read the closed batches of a file; ``cut`` off what follows the last one. Returns their numbers in its order."""
        if not path.exists():
            return []
        content = path.read_bytes()
        kept, at, images, order = 0, 0, [], []
        lines = content.split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line break was cut short
            at += len(line) + 1
            try:
                record = json.loads(line)
                closing = "end_of_batch" in record
                good = not closing or (isinstance(record["end_of_batch"], int) and record["images"] == len(images))
            except (ValueError, KeyError, TypeError):
                good = False
            if not good:
                raise DataError(
                    f"{path}: line {number} is damaged, and not by being cut short at the end. Restore the "
                    "file, delete everything from that line on, or use --overwrite to start afresh"
                )
            if not closing:
                images.append(record)
                continue
            if not self._arrays_are_whole(record["end_of_batch"]):
                break
            self._closed[record["end_of_batch"]] = {"images": images, "totals": record}
            order.append(record["end_of_batch"])
            kept, images = at, []
        if cut and kept < len(content):
            with open(path, "r+b") as file:
                file.truncate(kept)
                file.flush()
                os.fsync(file.fileno())
        return order

    def _arrays_are_whole(self, index: int) -> bool:
        try:
            self.arrays(index)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return False
        return True


def _lines(batch: dict[str, Any]) -> bytes:
    """The lines of a batch: its images, then the record that closes it."""
    records = (*batch["images"], batch["totals"])
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()


def _compare(path: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    differences = list(_differences(there, now, ""))
    if not differences:
        return
    raise ConfigError(
        f"{path} holds results of another command; nothing was changed. These settings differ:",
        *(f"  {name}: {_short(old)} there, {_short(new)} now" for name, old, new in differences),
        "Give the same settings to continue that run, name another --out, or use --overwrite to throw it away",
    )


def _differences(there: Any, now: Any, name: str) -> Any:
    if isinstance(there, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*there, *now)):
            yield from _differences(there.get(key), now.get(key), key if name in ("", "settings") else f"{name}.{key}")
    elif there != now:
        yield name, there, now


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lock(path: Path) -> IO[str] | None:
    """Hold the folder until closed or killed; two processes must not append to one file."""
    try:
        import fcntl
    except ImportError:  # not POSIX
        return None
    file = open(path / "run.lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(
            f"{path}: another rdc evaluate is writing to this folder. Wait for it, or name another --out"
        ) from error
    except OSError:  # a file system without locks
        with contextlib.suppress(OSError):
            file.close()
        return None
    return file
