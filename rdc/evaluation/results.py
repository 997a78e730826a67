"""Reading results.jsonl: whole batches, each line checked, and what follows the last of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from rdc.errors import DataError, RdcError
from rdc.evaluation.files import Batch, read_batch
from rdc.evaluation.records import SettingsRecord
from rdc.storage.json_records import JsonObject
from rdc.storage.reading import reading, regular_file
from rdc.storage.sealed import open_line

__all__ = ["Results", "check_same_attacks", "count_images", "finished_batches", "read_results"]

_CLOSE = b'{"end_of_batch"'  # how a closing line begins
_LINE_BYTES = 16 * 2**20  # longest line


@dataclasses.dataclass
class Results:
    """What a file of results holds.

    Args:
        batches: by number.
        order: their numbers as the file has them.
        kept: bytes up to the end of the last whole batch.
        length: bytes in all.
    """

    batches: dict[int, Batch]
    order: list[int]
    kept: int
    length: int


def read_results(
    path: str | os.PathLike[str], settings: SettingsRecord, sealed: bool, ids: Sequence[int] | None = None
) -> Results:
    """Read a file of results; a missing one is empty.

    Args:
        path: results.jsonl, or that of one process.
        settings: of the run; they say which images belong to which batch.
        sealed: every line must have a checksum; those that have one are checked anyway.
        ids: see :func:`rdc.evaluation.files.read_batch`.

    Raises:
        DataError: a line is damaged and others follow; the message says how to lose one batch alone.
    """
    path = Path(path)
    found = Results({}, [], 0, 0)
    if not path.exists():
        return found
    found.length = regular_file(path, DataError, "the results of rdc evaluate")
    with reading(path, DataError, "the results of rdc evaluate"), open(path, "rb") as file:
        _read(path, file, found, settings, sealed, ids)
    return found


def _read(
    path: Path,
    file: IO[bytes],
    found: Results,
    settings: SettingsRecord,
    sealed: bool,
    ids: Sequence[int] | None,
) -> None:
    images: list[JsonObject] = []
    seen: dict[int, int] = {}  # image -> its batch
    at, begin, number = 0, 1, 0
    while line := file.readline(_LINE_BYTES + 1):
        number += 1
        if not line.endswith(b"\n"):
            if len(line) > _LINE_BYTES:
                raise _damaged(path, number, begin, None, "it is too long")
            break  # cut short
        at += len(line)
        try:
            record, has_crc = open_line(line[:-1], f"line {number}")
            if sealed and not has_crc:
                raise DataError("its checksum is missing")
            batch = read_batch(images, record, settings, ids) if "end_of_batch" in record else None
            if batch is not None:
                _check_new(batch, seen)
        except (RdcError, ValueError) as error:
            following = _next_close(file, number)
            if following is None:
                break  # no batch ends after it: what follows the last whole one is computed again
            end = number if line.startswith(_CLOSE) else following
            raise _damaged(path, number, begin, end, str(error)) from error
        if batch is None:
            images.append(record)
            continue
        index = batch.totals.end_of_batch
        found.batches[index] = batch
        found.order.append(index)
        found.kept, images, begin = at, [], number + 1


def _check_new(batch: Batch, seen: dict[int, int]) -> None:
    """No image twice; a batch that was computed twice, by two processes, may be there twice."""
    index = batch.totals.end_of_batch
    numbers = [record.image for record in batch.images]
    twice = [image for image in numbers if seen.get(image, index) != index]
    if twice or len(set(numbers)) < len(numbers):
        again = twice[0] if twice else next(image for image in numbers if numbers.count(image) > 1)
        raise ValueError(f"image {again} is there twice")
    seen.update(dict.fromkeys(numbers, index))


def check_same_attacks(path: str | os.PathLike[str], batches: Iterable[Batch]) -> None:
    """Whether all batches of a folder have the same attacks, in the same order.

    Raises:
        DataError: they do not.
    """
    named = ([attack.attack for attack in batch.totals.attacks] for batch in batches)
    first = next(named, None)
    if any(names != first for names in named):
        raise DataError(
            f"{os.fspath(path)}: damaged, its batches have different attacks. Use --overwrite to start afresh"
        )


def _next_close(file: IO[bytes], number: int) -> int | None:
    """The line that closes the batch with the damaged line: itself, or the next one that looks like it."""
    while line := file.readline(_LINE_BYTES):
        number += 1
        if line.startswith(_CLOSE):
            return number
    return None


def _damaged(path: Path, number: int, begin: int, end: int | None, why: str) -> DataError:
    lines = f"lines {begin} to {end}" if end is not None else f"everything from line {begin} on"
    return DataError(
        f"{path}: line {number} is damaged, and not by being cut short at the end ({why}). Restore the file; or delete {lines}, and "
        "the same command computes these images again; or use --overwrite to start afresh"
    )


def count_images(path: str | os.PathLike[str]) -> int:
    """How many lines of a file of results are about an image, damaged or not."""
    with reading(path, DataError, "the results of rdc evaluate"), open(path, "rb") as file:
        return sum(
            line.endswith(b"\n") and not line.startswith(_CLOSE)
            for line in iter(lambda: file.readline(_LINE_BYTES), b"")
        )


def finished_batches(folder: Path) -> int:
    """How many batches a run's folder holds, by their closing lines; nothing is checked, and 0 where there is no such folder."""
    try:
        return sum(_closing_lines(file) for file in folder.glob("results*.jsonl") if file.is_file())
    except OSError:
        return 0


def _closing_lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(line.startswith(_CLOSE) for line in iter(lambda: lines.readline(_LINE_BYTES), b""))
