"""Parts of a run that machines without a common store do by themselves, and their folders put together again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from rdc.errors import ConfigError, DataError, one_line
from rdc.evaluation.files import SCHEMA, Batch, expected_images, is_results, read_arrays, read_run_file
from rdc.evaluation.folder import RunFolder
from rdc.evaluation.records import RunRecord, SettingsRecord
from rdc.evaluation.results import read_results
from rdc.evaluation.settings import EvaluationSettings
from rdc.storage.reading import read_content
from rdc.storage.run_folder import differences

__all__ = ["MOST_SHARDS", "Shard", "merge_folders", "run_of_part", "settings_of"]

MOST_SHARDS = 100_000  #: of one run


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``count``, counted from 1: of the batches every ``count``-th.

    Raises:
        ConfigError: there is no such part.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= MOST_SHARDS:
            raise ConfigError(
                f"shard: expected a part i/n with 1 <= i <= n <= {MOST_SHARDS:,}, as in 2/8; got {self.number}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """ "2/8".

        Raises:
            ConfigError: it is no such text.
        """
        number, _, count = text.partition("/")
        if not (number.isascii() and number.isdigit() and count.isascii() and count.isdigit() and len(text) < 20):
            raise ConfigError(f"shard: expected a part i/n, as in 2/8; got {one_line(repr(text), 60)}")
        return cls(int(number), int(count))

    def has(self, batch: int) -> bool:
        """Whether a batch belongs to this part."""
        return batch % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def merge_folders(
    folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], overwrite: bool = False
) -> RunRecord:
    """Put the batches of several folders of one run into one folder, checked: as if one process had done them all.

    The folders are only read. A merge that was killed goes on.

    Args:
        folders: of ``rdc evaluate --shard``, at least one.
        out: the folder to make.
        overwrite: throw away the run that is in it.

    Returns:
        run.json of the whole.

    Raises:
        ConfigError: no folders of one run, or batches are missing; the message names them.
        DataError: a folder is damaged.
    """
    paths = [Path(folder) for folder in folders]
    if Path(out).resolve() in [path.resolve() for path in paths]:
        raise ConfigError(f"{out}: expected a folder of its own for the whole; it is one of the parts")
    runs = [run_of_part(path) for path in paths]
    first = runs[0].identity.to_json()
    for path, run in zip(paths[1:], runs[1:], strict=True):
        if found := differences(first, run.identity.to_json()):
            raise ConfigError(f"{path} is a part of another run than {paths[0]}:", *(f"  {one}" for one in found))
    commits = tuple(dict.fromkeys(commit for run in runs for commit in run.commits))
    whole = dataclasses.replace(runs[0], commits=commits)
    found_batches = _batches(paths, whole)
    with RunFolder(out, whole, overwrite=overwrite) as folder:
        for path in paths:
            if folder.sanity is None and (path / "sanity.json").is_file():
                folder.adopt_sanity(path / "sanity.json")
        for index, (path, batch) in sorted(found_batches.items()):
            if not folder.has(index):
                folder.adopt(batch, read_content(_arrays(path, index), DataError, "the arrays of a batch"))
        folder.merge()
    return whole


def run_of_part(path: Path) -> RunRecord:
    """run.json of a part.

    Raises:
        ConfigError: no such folder, or of an earlier version. DataError: damaged.
    """
    if not (path / "run.json").is_file():
        raise ConfigError(f"{path}: expected the folder of a part of rdc evaluate; there is no run.json in it")
    run = read_run_file(path / "run.json")
    if run.identity.schema != SCHEMA:
        raise ConfigError(f"{path}: of an earlier version of rdc; continue it with its command first")
    return run


def _arrays(path: Path, index: int) -> Path:
    return path / "batches" / f"{index:05d}.npz"


def _batches(paths: Sequence[Path], run: RunRecord) -> dict[int, tuple[Path, Batch]]:
    """Every batch of the run -> the folder that has it, and its lines; arrays are checked.

    Raises:
        ConfigError: some are missing. DataError: damaged, or two folders say different things of one batch.
    """
    settings = run.identity.settings
    found: dict[int, tuple[Path, Batch]] = {}
    for path in paths:
        for file in sorted(file for file in path.glob("results*.jsonl") if is_results(file.name)):
            for index, batch in read_results(file, settings, sealed=True).batches.items():
                read_arrays(_arrays(path, index), batch.totals, sealed=True)
                if index in found and found[index][1].images != batch.images:
                    raise DataError(
                        f"{found[index][0]} and {path} say different things of batch {index}; one is damaged"
                    )
                found.setdefault(index, (path, batch))
    count = -(-settings.n // settings.batch)
    if missing := [index for index in range(count) if index not in found]:
        named = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        images = expected_images(settings, missing[0])
        raise ConfigError(
            f"{len(missing)} of {count} batches are missing: {named} (the first has images {images.start} to {images.stop - 1}). Run the "
            "parts that have them again, with the same command, and merge then"
        )
    return found


def settings_of(record: SettingsRecord) -> EvaluationSettings:
    """The settings that a run was made with."""
    known = {field.name for field in dataclasses.fields(EvaluationSettings)}
    return EvaluationSettings(**{name: value for name, value in record.to_json().items() if name in known})
