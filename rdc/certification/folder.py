"""The folder of a certification: its identity, a line for each finished image; survives kill -9 and tells damage.

    run.json              what decides the figures (settings, weights, images), and command, commits, versions
    results.jsonl         one line for each image, with a CRC-32; appended at once and fsynced
    results.1-of-2.jsonl  the same of process 1 of 2 while they run; merged into results.jsonl, in order, at the end
    report.json, report.md, certified.png

A run that was killed goes on with the images that have no line, by any number of processes.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from rdc.certification.records import CertifiedImage, RunRecord
from rdc.errors import ConfigError, DataError, RdcError
from rdc.storage.files import atomic_write, open_in_place
from rdc.storage.json_records import JsonObject
from rdc.storage.reading import read_content, reading
from rdc.storage.run_folder import ResumableFolder, as_written
from rdc.storage.sealed import open_line, read_sealed, seal_line, write_sealed

__all__ = ["REPORTS", "SCHEMA", "CertificationFolder", "read_certified"]

SCHEMA = 1
REPORTS = ("report.json", "report.md", "certified.png")
_RESULTS = re.compile(r"results(\.\d+-of-\d+)?\.jsonl")
_ADVICE = "use --overwrite to start afresh, or another folder"
_LARGEST = 2**30  # bytes of a file of results


class CertificationFolder(ResumableFolder):
    """Opens, checks and locks a folder; a context manager.

    Args:
        path: the folder; made if missing.
        run: this start; its identity must be equal for a run to be continued.
        overwrite: throw away what is in it.
        shard: (number of this process, number of processes): whose file of results this is.
        alone: hold the folder; of several processes the first does, which opens it before the others and merges at the end.

    Raises:
        ConfigError: it holds another command's results, something else, or is in use.
        DataError: its files are damaged.
    """

    COMMAND = "rdc certify"
    WRITTEN = {"": lambda name: name in ("run.json", *REPORTS) or _RESULTS.fullmatch(name) is not None}
    DIFFERING, GO_ON = "These settings differ", "continue that run"

    def __init__(
        self,
        path: str | os.PathLike[str],
        run: RunRecord,
        *,
        overwrite: bool = False,
        shard: tuple[int, int] = (0, 1),
        alone: bool = True,
    ) -> None:
        super().__init__(path)
        self._shard = shard
        self._start = RunRecord.from_json(as_written(run.to_json()), "run")
        self.run = self._start
        self.images: dict[int, CertifiedImage] = {}  #: finished ones, by position in the data set
        self._claim(self._start.identity.to_json(), overwrite, alone=alone)

    def __enter__(self) -> CertificationFolder:
        return self

    def append(self, image: CertifiedImage) -> None:
        """Keep a finished image; on disk when this returns."""
        commit = self._start.commits[0]
        if self._shard[0] == 0 and commit not in self.run.commits:  # this part comes from another source tree
            self._keep_run(dataclasses.replace(self.run, commits=(*self.run.commits, commit)))
        with open_in_place(self._results, "ab") as file:
            file.write(seal_line(image.to_json()))
            file.flush()
            os.fsync(file.fileno())
        self.images[image.image] = image

    def gather(self) -> None:
        """Merge what all processes have finished, in the place of one that held the folder and is dead, if need be."""
        if self._lock is None:
            self._hold(f"another {self.COMMAND} is writing to this folder. Wait for it, or name another --out")
        self.merge()

    def merge(self) -> None:
        """Read what all processes have finished; leave one file, in order (only the process that holds the folder)."""
        files = _files(self.path)
        contents = [_content(file) for file in files]
        lists = [_read(file, content, self.run) for file, content in zip(files, contents, strict=True)]
        self.images = {image.image: image for images in lists for image in images}
        ordered = b"".join(seal_line(self.images[position].to_json()) for position in sorted(self.images))
        whole = self.path / "results.jsonl"
        if files and (files != [whole] or contents != [ordered]):
            with atomic_write(whole) as out:
                out.write(ordered)
            for file in files:
                if file != whole:
                    file.unlink()

    def reread(self) -> None:
        """Read the merged results again."""
        whole = self.path / "results.jsonl"
        found = _read(whole, _content(whole), self.run) if whole.exists() else []
        self.images = {image.image: image for image in found}

    # --- what the base asks for -----------------------------------------------------------------------------------
    def _read_identity(self, overwrite: bool) -> JsonObject | None:
        if overwrite:
            return None
        self.run = _read_run(self.path)
        return self.run.identity.to_json()

    def _write_identity(self, identity: JsonObject) -> None:
        self._keep_run(self._start)

    def _begin(self, identity: JsonObject, overwrite: bool, alone: bool) -> None:
        super()._begin(identity, overwrite, alone)
        if alone:
            self.merge()
        else:
            self.reread()

    def _clear(self) -> None:
        for name in ("run.json", *REPORTS):  # run.json first: without it nothing here is continued
            (self.path / name).unlink(missing_ok=True)
        for file in _files(self.path):
            file.unlink()

    # --- parts ----------------------------------------------------------------------------------------------------
    def _keep_run(self, run: RunRecord) -> None:
        self.run = run
        write_sealed(self.path / self.IDENTITY, run.to_json())

    @property
    def _results(self) -> Path:
        number, count = self._shard
        return self.path / ("results.jsonl" if count == 1 else f"results.{number}-of-{count}.jsonl")


def read_certified(path: str | os.PathLike[str]) -> tuple[RunRecord, list[CertifiedImage]]:
    """What a folder of ``rdc certify`` holds, finished or not; it may be in use.

    Returns:
        How the run came about, and the images that are finished, in order.

    Raises:
        ConfigError, DataError: the folder is another command's, or damaged.
    """
    run, path = _read_run(Path(path)), Path(path)
    found = [image for file in _files(path) for image in _read(file, _content(file), run)]
    return run, sorted(found, key=lambda image: image.image)


def _read_run(path: Path) -> RunRecord:
    """run.json of a folder, checked."""
    file = path / CertificationFolder.IDENTITY
    found, sealed = read_sealed(file, advice=_ADVICE)
    identity = found.get("identity")
    if not isinstance(identity, dict) or "base" not in identity:
        raise ConfigError(f"{path}: holds results that are none of rdc certify; choose another folder")
    if identity.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path}: written by another version of rdc (schema {identity.get('schema')!r}, this one reads {SCHEMA}). Certify again "
            "in a new folder"
        )
    with reading(file, DataError, "what rdc certify writes", _ADVICE.capitalize()):
        if not sealed:
            raise ValueError("its digest is missing")
        return RunRecord.from_json(found, "run.json")


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("results*.jsonl") if _RESULTS.fullmatch(file.name))


def _content(file: Path) -> bytes:
    return read_content(file, DataError, "the results of rdc certify", _LARGEST)


def _read(path: Path, content: bytes, run: RunRecord) -> list[CertifiedImage]:
    """The images of a file; what a killed process left of its last line is dropped.

    Raises:
        DataError: another line is damaged.
    """
    settings = run.identity.settings
    first, count = settings["start"], settings["n_images"]
    lines, images = content.splitlines(keepends=True), []
    for number, line in enumerate(lines, 1):
        try:
            images.append(_read_line(line, number, settings["n"], range(first, first + count)))
        except (RdcError, ValueError) as error:
            if number == len(lines):
                break
            raise DataError(
                f"{path}: line {number} is damaged ({error}). Delete it, and the same command computes this image again; or use "
                "--overwrite to start afresh"
            ) from error
    return images


def _read_line(line: bytes, number: int, votes: int, positions: range) -> CertifiedImage:
    if not line.endswith(b"\n"):
        raise DataError("it is cut short")
    record, sealed = open_line(line[:-1], f"line {number}")
    if not sealed:
        raise DataError("its checksum is missing")
    image = CertifiedImage.from_json(record, "image")
    if image.image not in positions or sum(image.votes) > votes:
        raise ValueError("it does not belong to this run")
    return image
