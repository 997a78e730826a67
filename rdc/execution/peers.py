"""Processes that share one piece of work and may die: who is alive, who comes first, who has taken which part.

Everything goes through the store that ``torchrun`` brings (or whoever set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT), never through a
collective, which would wait for the dead. Each process counts up a number of its own; one whose number stands still for some time
counts as dead. Its parts are taken by others, and one of them comes first in its place. A process that was only slow does a part that
another does, too: a part must come out the same whoever does it.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from rdc.errors import CheckpointError, ConfigError, DataError, InputError, RdcError

__all__ = ["Peers", "seconds_of_silence"]

_T = TypeVar("_T")

_SIGNS = 6  # that a process gives in the time after which it would count as dead
_FREE = ""  # in place of the number of a process: nobody's
_MADE = b"[]"  # what the first process made is there
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (RdcError, InputError, ConfigError, DataError, CheckpointError, OSError)
}


def seconds_of_silence() -> float:
    """After which a process counts as dead: RDC_SILENT_SECONDS, or 60."""
    try:
        return max(0.1, float(os.environ.get("RDC_SILENT_SECONDS", "60")))
    except ValueError:
        return 60.0


class Peers:
    """This process among those that share the work.

    Args:
        store: a key-value store that all of them reach (``torch.distributed.Store``).
        rank: number of this process.
        count: of processes.
        silent: seconds without a sign after which one counts as dead.
    """

    def __init__(self, store: Any, rank: int, count: int, silent: float) -> None:
        self.rank, self.count, self.first = rank, count, 0
        self._store, self._silent = store, silent
        self._seen: dict[
            int, tuple[bytes, float]
        ] = {}  # number of a process -> its last sign, and when that was new here
        self._calls = 0
        self._stopped = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True, name="rdc-peers")
        self._pulse.start()
        atexit.register(self.close)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that speaks and writes, as far as it knows."""
        return self.rank == self.first

    def close(self) -> None:
        """Give no more signs."""
        atexit.unregister(self.close)
        self._stopped.set()
        self._pulse.join(timeout=5)  # a store that is gone may keep it longer

    def _beat(self) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            try:
                self._store.set(f"sign/{self.rank}", str(number))
            except Exception:  # the store is gone: whoever waits for it learns that himself
                return
            self._stopped.wait(self._silent / _SIGNS)

    def is_dead(self, rank: int) -> bool:
        """Whether a process has given no sign for so long; it must be asked again and again to know."""
        if rank == self.rank:
            return False
        sign = self._read(f"sign/{rank}") or b""
        now = time.monotonic()
        if rank not in self._seen or self._seen[rank][0] != sign:
            self._seen[rank] = (sign, now)
        return now - self._seen[rank][1] > self._silent

    def _ask(self, operation: str, *arguments: Any) -> Any:
        """An operation of the store.

        Raises:
            RdcError: it is out of reach.
        """
        try:
            return getattr(self._store, operation)(*arguments)
        except Exception as error:
            raise RdcError(
                f"process {self.rank} of {self.count} lost the store through which they share the work ({type(error).__name__}). What is "
                "finished is kept; run the same command again, it goes on"
            ) from error

    def _read(self, key: str) -> bytes | None:
        """What is there; None where nothing is. It never waits."""
        found: bytes | None = self._ask("get", key) if self._ask("check", [key]) else None
        return found

    def _taken(self, key: str, before: str = _FREE) -> bool:
        """Put this process's number in the place of ``before``; whether that was still there."""
        found: bytes = self._ask("compare_set", key, before, str(self.rank))
        return found == str(self.rank).encode()

    def _owner(self, key: str) -> int | None:
        owner = self._read(key)
        return None if owner is None else int(owner)

    def _wait(self) -> None:
        time.sleep(min(0.5, self._silent / _SIGNS / 4))

    def lead(self) -> bool:
        """Whether this process comes first; in the place of one that is dead, from now on."""
        owner = self._owner("first")
        self.first = 0 if owner is None else owner
        if not self.is_first and self.is_dead(self.first):
            before = _FREE if owner is None else str(owner)
            if self._taken("first", before):
                self.first = self.rank
        return self.is_first

    def by_the_first(self, make: Callable[[], _T]) -> _T | None:
        """What the first process makes, in that process, and None in the others, once it is made; each must ask for it, in the same order.

        Raises:
            Exception: what ``make`` raised in the first process, in every process.
        """
        self._calls += 1
        key = f"made/{self._calls}"
        while (found := self._read(key)) is None:
            if self.lead():
                return self._told(key, make)
            self._wait()
        if found != _MADE:
            raise _problem(found)
        return None

    def _told(self, key: str, make: Callable[[], _T]) -> _T:
        try:
            made = make()
        except Exception as error:
            self._ask("set", key, _said(error))
            raise
        self._ask("set", key, _MADE)
        return made

    def shared_out(self, parts: Sequence[int]) -> Iterator[int]:
        """The parts of a work that this process is to do, one after another, until all are done by anybody.

        A part counts as done when the next one is asked for. What a process has taken is its own until it is dead.

        Args:
            parts: numbers, the same in every process; works are begun in the same order everywhere.
        """
        self._calls += 1
        work, others = self._calls, []
        for part in parts:
            if self._taken(f"owner/{work}/{part}"):
                yield part
                self._ask("set", f"done/{work}/{part}", "1")
            else:
                others.append(part)
        while others := [part for part in others if not self._ask("check", [f"done/{work}/{part}"])]:
            for part in [part for part in others if self._is_left_behind(work, part)]:
                yield part
                self._ask("set", f"done/{work}/{part}", "1")
            self._wait()

    def _is_left_behind(self, work: int, part: int) -> bool:
        """Whether a part was taken by a process that is dead, and is this one's from now on."""
        key = f"owner/{work}/{part}"
        owner = self._owner(key)
        return owner is not None and self.is_dead(owner) and self._taken(key, str(owner))

    def add(self, name: str, amount: int) -> int:
        """Add to a number that all share, 0 at first; what it is now."""
        total: int = self._ask("add", f"number/{name}", amount)
        return total

    def leave(self) -> None:
        """Say goodbye; the process that may hold the store waits until the others have, or are dead."""
        self._ask("set", f"left/{self.rank}", "1")
        others = [rank for rank in range(1, self.count)] if self.rank == 0 else []
        while others := [rank for rank in others if not (self._ask("check", [f"left/{rank}"]) or self.is_dead(rank))]:
            self._wait()
        self.close()


def _said(error: Exception) -> bytes:
    """An exception as words for other processes: nothing that comes out of the store is run."""
    parts = [str(part) for part in error.args] if isinstance(error, RdcError) else [str(error)]
    return json.dumps(["OSError" if isinstance(error, OSError) else type(error).__name__, *parts]).encode()


def _problem(said: bytes) -> Exception:
    """The exception that the first process told of; one that is not rdc's own is a RuntimeError here."""
    kind, *parts = json.loads(said)
    made = _KINDS.get(kind)
    return RuntimeError(f"{kind}: {' '.join(parts)}") if made is None else made(*parts)
