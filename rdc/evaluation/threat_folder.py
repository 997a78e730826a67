"""The folder of a run under several threats: one folder within it for each, and what they say together.

    threats.json     the threats, and how each began
    linf-8-255/      the run under that threat, as ``rdc evaluate --norm linf --eps 8/255`` writes it (:mod:`rdc.evaluation.folder`)
    results.jsonl    a line for each image when all are finished: whether it stands under each threat
    report.json, report.html, report.md

A run that was killed goes on in the folder of the threat that it was at.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from rdc.errors import ConfigError, DataError
from rdc.evaluation.folder import remove_run
from rdc.evaluation.threat_report import ImageUnderThreats
from rdc.evaluation.threats import parse_threats
from rdc.storage.files import atomic_write
from rdc.storage.json_records import JsonObject
from rdc.storage.reading import reading
from rdc.storage.run_folder import ResumableFolder
from rdc.storage.sealed import read_sealed, seal_line, write_sealed
from rdc.storage.structure import integer, record, sequence, text

__all__ = ["ThreatFolder", "is_threat_folder", "read_threats"]

SCHEMA = 1
_REPORTS = ("report.json", "report.html", "report.md")
_RESTART = "use --overwrite to start afresh, or another folder"
_IDENTITY = record({"schema": integer(1), "threats": sequence(record({"folder": text(), "threat": text()}), 1)})


def is_threat_folder(path: str | os.PathLike[str]) -> bool:
    """Whether several threats were run in a folder."""
    return (Path(path) / ThreatFolder.IDENTITY).is_file()


class ThreatFolder(ResumableFolder):
    """Opens, checks and locks a folder; a context manager.

    Args:
        path: the folder; made if missing.
        identity: what must be equal for a run to be continued: ``schema``, and of each of the ``threats`` its ``folder``, ``threat``
            and what else decides it.
        overwrite: throw away what is in it.

    Raises:
        ConfigError: it holds other threats, something else, or is in use.
        DataError: threats.json is damaged.
    """

    COMMAND = "rdc evaluate --threats"
    IDENTITY = "threats.json"
    WRITTEN = {"": ("threats.json", "results.jsonl", *_REPORTS).__contains__}
    DIFFERING, GO_ON = "These threats differ", "continue that run"

    def __init__(self, path: str | os.PathLike[str], identity: JsonObject, *, overwrite: bool = False) -> None:
        super().__init__(path)
        self._claim(identity, overwrite)

    def __enter__(self) -> ThreatFolder:
        return self

    def _read_identity(self, overwrite: bool) -> JsonObject | None:
        return None if overwrite else read_threats(self.path)

    def _write_identity(self, identity: JsonObject) -> None:
        write_sealed(self.path / self.IDENTITY, identity)

    def _clear(self) -> None:
        for run in sorted(self.path.glob("*/run.json")):
            remove_run(run.parent)
            with contextlib.suppress(OSError):  # files of somebody else's stay
                (run.parent / "batches").rmdir()
        for name in ("results.jsonl", *_REPORTS, self.IDENTITY):
            (self.path / name).unlink(missing_ok=True)

    def keep(self, images: Sequence[ImageUnderThreats]) -> None:
        """Write results.jsonl."""
        with atomic_write(self.path / "results.jsonl") as file:
            for image in images:
                file.write(seal_line(image.to_json()))


def read_threats(folder: Path) -> JsonObject:
    """threats.json of a folder.

    Raises:
        ConfigError: of a later version. DataError: missing or damaged.
    """
    file = folder / ThreatFolder.IDENTITY
    found, sealed = read_sealed(file, advice=_RESTART)
    if isinstance(found.get("schema"), int) and found["schema"] > SCHEMA:
        raise ConfigError(f"{folder}: written by a later version of rdc. Evaluate again in a new folder")
    with reading(file, DataError, "the threats of rdc evaluate", _RESTART[0].upper() + _RESTART[1:]):
        _IDENTITY(found, ThreatFolder.IDENTITY)
        if not sealed:
            raise ValueError("its digest is missing")
        if odd := [
            one["folder"] for one in found["threats"] if parse_threats(one["threat"])[0].folder != one["folder"]
        ]:
            raise ValueError(f"folder {odd[0]!r} is not that of its threat")
    return found
