"""The folder of a comparison: refuses another command's results, keeps a part for each finished model, and tells damage.

    run.json            what decides the figures of every model: settings, images
    models/<name>.json  all measures of one finished model, with what identifies it; written atomically
    gradients.json      the report; gradients.png, gradients-paths.png, gradients-slices.png  the plots

run.json and the parts carry digests (:mod:`rdc.storage.sealed`). A folder whose run.json has none was begun before there were any:
its parts may lack them too.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from rdc.errors import ConfigError, DataError
from rdc.storage.files import sweep_temporaries
from rdc.storage.reading import reading
from rdc.storage.run_lock import RunLock, holds_nothing
from rdc.storage.sealed import read_sealed, write_sealed
from rdc.storage.structure import flag, integer, mapping, number, optional, record, sequence, text

__all__ = ["SCHEMA", "ComparisonFolder"]

SCHEMA = "rdc.gradients/1"
_OURS = ("run.json", "gradients.json", "gradients.png", "gradients-paths.png", "gradients-slices.png")
_ADVICE = "delete it, and the same command measures that model again; or use --overwrite to start afresh"
_RESTART = "use --overwrite to start afresh, or another folder"
_PART_BYTES = 2**30

_NUMBERS = sequence(optional(number()))
_STATISTICS = ("mean", "median", "q05", "q25", "q75", "q95", "min", "max")
_ENDS = optional(sequence(number(), 2, 2))
_PART = record(
    {
        "identity": record({"text": text(), "classifier": optional(mapping(lambda value, where: None))}),
        "label": text(),
        "commit": optional(text()),
        "classes": integer(1),
        "stochastic": flag(),
        "fixed_noise": flag(),
        "note": text(),
        "jacobian_method": text(),
        "accuracy": number(0, 1),
        "images": sequence(
            record(
                {
                    "image": integer(0),
                    "label": integer(0),
                    "predicted": integer(0),
                    "right": flag(),
                    "logit_scale": number(),
                    "margin": optional(number()),
                }
            )
        ),
        "summary": mapping(
            record(
                {
                    "n": integer(0),
                    "undefined": integer(0),
                    **dict.fromkeys(_STATISTICS, optional(number())),
                    "mean_ci95": _ENDS,
                    "median_ci95": _ENDS,
                }
            )
        ),
        "per_image": mapping(_NUMBERS),
        "slices": sequence(
            record(
                {
                    "image": integer(0),
                    "offsets": sequence(number()),
                    "margin": sequence(_NUMBERS),
                    "plane_fit": optional(number()),
                }
            )
        ),
        "path": mapping(record(dict.fromkeys(("mean", "q25", "q75"), _NUMBERS))),
        "forward_evaluations": integer(0),
        "gradient_evaluations": integer(0),
        "seconds": number(0),
    }
)


class ComparisonFolder:
    """Opens, checks and locks a folder; a context manager.

    Args:
        path: the folder; made if missing.
        shared: what must be equal for a comparison to be continued.
        overwrite: throw away what is in it.

    Raises:
        ConfigError: it holds another command's results, something else, or is in use.
        DataError: its files are damaged.
    """

    def __init__(self, path: str | os.PathLike[str], shared: dict[str, Any], overwrite: bool) -> None:
        self.path = Path(path)
        shared = json.loads(json.dumps(shared))
        self._sealed = True
        self._check(shared, overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        busy = f"{self.path}: another rdc gradients is writing to this folder. Wait for it, or name another --out"
        self._lock = RunLock(self.path / "run.lock", busy)
        try:
            self._open(shared, overwrite)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> ComparisonFolder:
        return self

    def __exit__(self, *problem: object) -> None:
        self._lock.close()

    def _check(self, shared: dict[str, Any], overwrite: bool) -> None:
        """Refuse a folder that is not ours, or another command's; nothing is changed."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: expected a folder for the results, this is a file. Choose another")
        file = self.path / "run.json"
        if not file.exists():
            if self.path.is_dir() and not holds_nothing(self.path):
                raise ConfigError(
                    f"{self.path}: not empty, and no results of rdc gradients (no run.json). Choose a new or empty folder"
                )
            return
        there, self._sealed = read_sealed(file, advice=_RESTART)
        if there.get("schema") != SCHEMA:
            raise ConfigError(
                f"{self.path}: holds results that are none of rdc gradients ({SCHEMA}); choose another folder"
            )
        if not overwrite:
            compare_identity(self.path, there, shared)

    def _open(self, shared: dict[str, Any], overwrite: bool) -> None:
        """Under the lock: read what is there again, or begin."""
        file = self.path / "run.json"
        sweep_temporaries(self.path, _OURS.__contains__)
        sweep_temporaries(self.path / "models", lambda name: name.endswith(".json"))
        if file.exists() and overwrite:
            self._clear()
        if file.exists():
            self._check(shared, overwrite=False)  # again: another process may have been faster
        else:
            write_sealed(file, shared)
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

    def load(self, label: str, words: str, identity: dict[str, Any]) -> dict[str, Any] | None:
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
        part, sealed = read_sealed(file, advice=_ADVICE, limit=_PART_BYTES)
        with reading(file, DataError, "the measures of a model, but damaged", _ADVICE[0].upper() + _ADVICE[1:]):
            if self._sealed and not sealed:
                raise ValueError("its digest is missing")
            _PART(part, "model")
            lengths = {len(values) for values in part["per_image"].values()}
            if lengths - {len(part["images"])} or len(part["slices"]) > len(part["images"]):
                raise ValueError("measures of another number of images")
        compare_identity(file, part["identity"], identity)
        return part

    def save(self, label: str, words: str, part: dict[str, Any]) -> None:
        """Keep a finished model; on disk when this returns."""
        write_sealed(self._file(label, words), part)


def compare_identity(path: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse results that were made of something else.

    Raises:
        ConfigError: names what differs.
    """
    differences = list(_differences(there, now, ""))
    if differences:
        raise ConfigError(
            f"{path} holds results of another command; nothing was changed. These differ:",
            *(f"  {name}: {_short(old)} there, {_short(new)} now" for name, old, new in differences),
            "Give the same settings to go on, name another --out, or use --overwrite to throw it away",
        )


def _differences(there: Any, now: Any, name: str) -> Any:
    if isinstance(there, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*there, *now)):
            inner = key if name in ("", "settings") else f"{name}.{key}"
            yield from _differences(there.get(key), now.get(key), inner)
    elif there != now:
        yield name, there, now


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
