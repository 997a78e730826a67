"""The folder of a comparison: refuses another command's results, keeps a part for each finished model, and tells damage.

    run.json            what decides the figures of every model: settings, images
    models/<name>.json  all measures of one finished model, with what identifies it; written atomically
    gradients.json      the report; gradients.png, gradients-paths.png, gradients-slices.png  the plots

run.json and the parts carry digests (:mod:`rdc.storage.sealed`). A folder whose run.json has none was begun before there were any:
its parts may lack them too.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rdc.errors import ConfigError, DataError
from rdc.gradient_analysis.records import ModelIdentity, ModelPart
from rdc.storage.json_records import JsonObject
from rdc.storage.reading import reading
from rdc.storage.run_folder import ResumableFolder, as_written
from rdc.storage.sealed import read_sealed, write_sealed

__all__ = ["SCHEMA", "ComparisonFolder"]

SCHEMA = "rdc.gradients/1"
_OURS = ("run.json", "gradients.json", "gradients.png", "gradients-paths.png", "gradients-slices.png")
_ADVICE = "delete it, and the same command measures that model again; or use --overwrite to start afresh"
_RESTART = "use --overwrite to start afresh, or another folder"
_PART_BYTES = 2**30


class ComparisonFolder(ResumableFolder):
    """Opens, checks and locks a folder; a context manager.

    Args:
        path: the folder; made if missing.
        shared: what must be equal for a comparison to be continued.
        overwrite: throw away what is in it.

    Raises:
        ConfigError: it holds another command's results, something else, or is in use.
        DataError: its files are damaged.
    """

    COMMAND = "rdc gradients"
    WRITTEN = {"": _OURS.__contains__, "models": lambda name: name.endswith(".json")}

    def __init__(self, path: str | os.PathLike[str], shared: JsonObject, overwrite: bool) -> None:
        super().__init__(path)
        self._sealed = True
        self._claim(as_written(shared), overwrite)

    def __enter__(self) -> ComparisonFolder:
        return self

    def _read_identity(self, overwrite: bool) -> JsonObject | None:
        there, self._sealed = read_sealed(self.path / self.IDENTITY, advice=_RESTART)
        if there.get("schema") != SCHEMA:
            raise ConfigError(
                f"{self.path}: holds results that are none of rdc gradients ({SCHEMA}); choose another folder"
            )
        return None if overwrite else there

    def _write_identity(self, identity: JsonObject) -> None:
        write_sealed(self.path / self.IDENTITY, identity)
        self._sealed = True

    def _clear(self) -> None:
        for name in _OURS:
            (self.path / name).unlink(missing_ok=True)
        for file in (self.path / "models").glob("*.json"):
            file.unlink()

    def _file(self, label: str, words: str) -> Path:
        word = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in label)[:60].strip("-.")
        digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return self.path / "models" / f"{word}-{digest}.json"

    def load(self, label: str, words: str, identity: ModelIdentity) -> ModelPart | None:
        """The part of a finished model; None if there is none.

        Args:
            label, words: what the model is called, and its text on the command line.
            identity: what the part must have been measured on.

        Raises:
            ConfigError: it was measured on another model.
            DataError: it is damaged.
        """
        file = self._file(label, words)
        if not file.exists():
            return None
        content, sealed = read_sealed(file, advice=_ADVICE, limit=_PART_BYTES)
        with reading(file, DataError, "the measures of a model, but damaged", _ADVICE[0].upper() + _ADVICE[1:]):
            if self._sealed and not sealed:
                raise ValueError("its digest is missing")
            part = ModelPart.from_json(content, "model")
            if not part.measures.of_one_number_of_images:
                raise ValueError("measures of another number of images")
        self.expect_same(file, part.identity.to_json(), identity.to_json())
        return part

    def save(self, label: str, words: str, part: ModelPart) -> None:
        """Keep a finished model; on disk when this returns."""
        write_sealed(self._file(label, words), part.to_json())
