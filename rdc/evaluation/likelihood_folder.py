"""The folder of one run of ``rdc likelihood``: refuses another command's results, keeps a line for each finished image, tells damage.

    run.json        what decides the figures (settings, weights, images), and command, commits, versions; with a digest
    results.jsonl   a line for each image: log p(x|y) and ELBO of every class, in nats; each with a CRC-32, appended and fsynced
    report.json     the figures

A killed run goes on after its last whole line; what follows that line is cut off.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import IO

from rdc.errors import ConfigError, DataError, RdcError
from rdc.storage.files import open_in_place
from rdc.storage.json_records import JsonObject, JsonRecord, entry
from rdc.storage.reading import reading, regular_file
from rdc.storage.run_folder import ResumableFolder, as_written
from rdc.storage.sealed import open_line, read_sealed, seal_line, write_sealed
from rdc.storage.structure import integer, number, sequence, text

__all__ = ["SCHEMA", "ImageLikelihood", "LikelihoodFolder", "LikelihoodRun"]

SCHEMA = "rdc.likelihood/1"
_OURS = ("run.json", "results.jsonl", "report.json")
_RESTART = "use --overwrite to start afresh, or another folder"
_LINE_BYTES = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageLikelihood(JsonRecord):
    """One image.

    Args:
        image, label: position in the data set, and class.
        log_likelihood, elbo: in nats, K of each; of the dequantised image.
        logits: the classifier's own, K.
        seconds: its share of what its batch took.
    """

    image: int = entry(integer(0))
    label: int = entry(integer(0))
    log_likelihood: tuple[float, ...] = entry(sequence(number(), 1))
    elbo: tuple[float, ...] = entry(sequence(number(), 1))
    logits: tuple[float, ...] = entry(sequence(number(), 1))
    seconds: float = entry(number(0))

    @property
    def of_one_length(self) -> bool:
        """Whether every list has the same number of classes, the label's among them."""
        count = len(self.elbo)
        return len(self.log_likelihood) == len(self.logits) == count > self.label


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodRun(JsonRecord):
    """run.json.

    Args:
        schema: :data:`SCHEMA`.
        identity: what must be equal for a run to be continued.
        command: that began it.
        commits: of the source trees that made figures.
        versions: of rdc, Python, PyTorch, ...
    """

    schema: str = entry(text())
    identity: JsonObject = entry()
    command: str = entry(text())
    commits: tuple[str | None, ...] = entry(sequence(lambda value, where: None, 1))
    versions: JsonObject = entry()


class LikelihoodFolder(ResumableFolder):
    """Opens, checks and locks a folder; a context manager.

    Args:
        path: the folder; made if missing.
        run: this start.
        images: (position, label) of the images, in the order in which they are written.
        overwrite: throw away what is in it.

    Raises:
        ConfigError: it holds another command's results, something else, or is in use.
        DataError: its files are damaged.
    """

    COMMAND = "rdc likelihood"
    WRITTEN = {"": _OURS.__contains__}
    DIFFERING, GO_ON = "These settings differ", "continue that run"

    def __init__(
        self,
        path: str | os.PathLike[str],
        run: LikelihoodRun,
        images: Sequence[tuple[int, int]],
        overwrite: bool = False,
    ) -> None:
        super().__init__(path)
        self._start = LikelihoodRun.from_json(as_written(run.to_json()), "run")
        self._images = list(images)
        self.records: list[ImageLikelihood] = []
        self._claim(self._start.identity, overwrite)

    def __enter__(self) -> LikelihoodFolder:
        return self

    @property
    def _results(self) -> str:
        return os.fspath(self.path / "results.jsonl")

    def _read_identity(self, overwrite: bool) -> JsonObject | None:
        if overwrite:
            return None
        file = self.path / self.IDENTITY
        content, sealed = read_sealed(file, advice=_RESTART)
        if content.get("schema") != SCHEMA:
            raise ConfigError(
                f"{self.path}: holds results that are none of rdc likelihood ({SCHEMA}); choose another folder"
            )
        with reading(file, DataError, "what rdc likelihood writes", _RESTART[0].upper() + _RESTART[1:]):
            if not sealed:
                raise ValueError("its digest is missing")
            self.run = LikelihoodRun.from_json(content, "run.json")
        return self.run.identity

    def _write_identity(self, identity: JsonObject) -> None:
        self._keep(self._start)

    def _keep(self, run: LikelihoodRun) -> None:
        self.run = run
        write_sealed(self.path / self.IDENTITY, run.to_json())

    def _clear(self) -> None:
        for name in _OURS:
            (self.path / name).unlink(missing_ok=True)

    def _begin(self, identity: JsonObject, overwrite: bool, alone: bool) -> None:
        super()._begin(identity, overwrite, alone)
        if not os.path.exists(self._results):
            return
        length = regular_file(self._results, DataError, "the results of rdc likelihood")
        with reading(self._results, DataError, "the results of rdc likelihood"), open(self._results, "rb") as file:
            kept = self._read(file)
        if kept < length:
            with open_in_place(self._results, "r+b") as out:
                out.truncate(kept)
                out.flush()
                os.fsync(out.fileno())

    def _read(self, file: IO[bytes]) -> int:
        """Take the whole lines; how many bytes they are."""
        kept = 0
        while line := file.readline(_LINE_BYTES):
            try:
                self._take(line)
            except (RdcError, ValueError) as error:
                if not file.read(1):
                    break  # the last line, cut short
                raise DataError(
                    f"{self._results}: line {len(self.records) + 1} is damaged, and not by being cut short at the end ({error}). "
                    "Restore the file, or delete everything from this line on, and the same command computes these images again"
                ) from error
            kept += len(line)
        return kept

    def _take(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            raise ValueError("it is cut short")
        name = f"line {len(self.records) + 1}"
        record, sealed = open_line(line[:-1], name)
        found = ImageLikelihood.from_json(record, name)
        wanted = self._images[len(self.records)] if len(self.records) < len(self._images) else None
        if not sealed or not found.of_one_length or (found.image, found.label) != wanted:
            raise ValueError("it has no checksum, or belongs to another image")
        self.records.append(found)

    def append(self, records: Sequence[ImageLikelihood]) -> None:
        """Keep the next images; on disk when this returns.

        Raises:
            OSError: the disk is full, say; they then do not count as finished.
        """
        if self._start.commits[0] not in self.run.commits:  # this part comes from another source tree
            self._keep(dataclasses.replace(self.run, commits=(*self.run.commits, self._start.commits[0])))
        with open_in_place(self._results, "ab") as file:
            file.write(b"".join(seal_line(record.to_json()) for record in records))
            file.flush()
            os.fsync(file.fileno())
        self.records += records
