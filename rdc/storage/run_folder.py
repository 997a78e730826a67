"""The folder of a run that may be killed and goes on: whose it is, who works in it, what differs, what is left over.

Evaluations, comparisons of gradients and training runs each keep a folder; what they share is here, what they keep in it is theirs.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from rdc.errors import ConfigError
from rdc.storage.files import sweep_temporaries
from rdc.storage.run_lock import RunLock, holds_nothing

__all__ = ["Difference", "ResumableFolder", "as_written", "differences", "differing_leaves"]

_LONGEST = 60  # letters of a value in a message


@dataclasses.dataclass(frozen=True)
class Difference:
    """A value that is not what was asked for.

    Args:
        name: where it is, keys joined by dots.
        there, now: what the folder has, and what was asked for; None where there is nothing.
    """

    name: str
    there: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.there)} there, {_short(self.now)} now"


def differences(there: Any, now: Any, *, unnamed: str = "settings") -> list[Difference]:
    """Where two JSON values differ; an object that stands against something else counts as one value.

    Args:
        there, now: compared; a missing key counts as null.
        unnamed: an outermost key that is left out of names.
    """
    return list(_differences(there, now, "", unnamed))


def _differences(there: Any, now: Any, name: str, unnamed: str) -> Iterator[Difference]:
    if isinstance(there, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*there, *now)):
            inner = key if name in ("", unnamed) else f"{name}.{key}"
            yield from _differences(there.get(key), now.get(key), inner, unnamed)
    elif there != now:
        yield Difference(name, there, now)


def differing_leaves(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The same down to the last value, by name: an object that stands against nothing is named by what is in it."""
    old, new = _leaves(there), _leaves(now)
    names = sorted({*old, *new})
    return [Difference(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        rows |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return rows


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def as_written(value: Any) -> Any:
    """``value`` as it will be when it is read back: tuples are lists, keys are texts."""
    return json.loads(json.dumps(value))


class ResumableFolder:
    """A folder that one command owns; a context manager that gives it free.

    A subclass says what it writes. :meth:`_claim` opens a folder whose identity is in run.json; whoever keeps it elsewhere calls
    :meth:`_hold` and :meth:`_sweep` when it is time.

    Args:
        path: the folder; nothing is made or read yet.
    """

    COMMAND: ClassVar[str]  #: as messages name it, "rdc evaluate"
    IDENTITY: ClassVar[str] = "run.json"  #: the file that says whose the folder is
    LOCK: ClassVar[str] = "run.lock"
    #: folder within the folder -> whether a file name is one that the command writes
    WRITTEN: ClassVar[Mapping[str, Callable[[str], bool]]]
    #: what differs, and what the same settings do, in the error of :meth:`expect_same`
    DIFFERING: ClassVar[str] = "These differ"
    GO_ON: ClassVar[str] = "go on"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: RunLock | None = None

    def __enter__(self) -> ResumableFolder:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder free."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # --- for subclasses -------------------------------------------------------------------------------------------
    def _read_identity(self, overwrite: bool) -> dict[str, Any] | None:
        """What the identity file says, checked; None if it does not matter, because it will be overwritten."""
        raise NotImplementedError

    def _write_identity(self, identity: dict[str, Any]) -> None:
        """Begin: write the identity file."""
        raise NotImplementedError

    def _clear(self) -> None:
        """Remove what an earlier run left, the identity file first: without it nothing is continued."""
        raise NotImplementedError

    # --- opening --------------------------------------------------------------------------------------------------
    def _claim(self, identity: dict[str, Any], overwrite: bool, alone: bool = True) -> None:
        """Check the folder, make it, hold it, and begin or go on; what fails leaves it as it was, and free.

        Args:
            identity: JSON values that must be equal for a run to be continued.
            overwrite: throw away the results of another (or the same) run in it.
            alone: hold the lock; False for further processes of the same run.

        Raises:
            ConfigError: it holds another command's results, something else, or is in use.
            DataError: its files are damaged.
        """
        self._check(identity, overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        if alone:
            self._hold(f"another {self.COMMAND} is writing to this folder. Wait for it, or name another --out")
        try:
            self._begin(identity, overwrite, alone)
        except BaseException:
            self.close()
            raise

    def _check(self, identity: dict[str, Any], overwrite: bool) -> None:
        """Refuse a folder that is not ours, or another command's; nothing is changed."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: expected a folder for the results, this is a file. Choose another")
        if not (self.path / self.IDENTITY).exists():
            if self.path.is_dir() and not holds_nothing(self.path):
                raise ConfigError(
                    f"{self.path}: not empty, and no results of {self.COMMAND} (no {self.IDENTITY}). Choose a new or empty folder"
                )
            return
        there = self._read_identity(overwrite)
        if there is not None:
            self.expect_same(self.path, there, identity)

    def _begin(self, identity: dict[str, Any], overwrite: bool, alone: bool) -> None:
        """Under the lock: sweep, and read what is there again, or begin."""
        file = self.path / self.IDENTITY
        if alone:
            self._sweep()
            if overwrite and file.exists():
                self._clear()
        if file.exists():
            self._check(identity, overwrite=False)  # again: another process may have been faster
        else:
            self._write_identity(identity)

    def _hold(self, busy: str) -> None:
        """Take the lock; the folder must exist. It goes with the process, however that ends.

        Args:
            busy: what to say if another process has it.
        """
        self._lock = RunLock(self.path / self.LOCK, f"{self.path}: {busy}")

    def _sweep(self) -> None:
        """Remove unfinished files of a killed process. Only for the process that holds the folder."""
        for folder, ours in self.WRITTEN.items():
            sweep_temporaries(self.path / folder, ours)

    @classmethod
    def expect_same(cls, path: Path, there: Any, now: Any) -> None:
        """Refuse results that were made of something else.

        Args:
            path: what holds them.
            there, now: their identity, and the one asked for.

        Raises:
            ConfigError: names what differs.
        """
        if found := differences(there, now):
            raise ConfigError(
                f"{path} holds results of another command; nothing was changed. {cls.DIFFERING}:",
                *(f"  {difference}" for difference in found),
                f"Give the same settings to {cls.GO_ON}, name another --out, or use --overwrite to throw it away",
            )
