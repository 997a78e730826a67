"""Timing that survives a busy machine: candidates take turns, and the process's own seconds are read where that is fair."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["alternate", "clock"]


def clock(threads: int) -> tuple[str, Callable[[], float]]:
    """Which clock to read: with one thread the process's CPU time, which does not count what other programs took meanwhile.

    On a quiet machine both clocks show the same for one thread.
    """
    return ("CPU seconds of the process", time.process_time) if threads == 1 else ("wall clock", time.perf_counter)


def alternate(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    read: Callable[[], float] = time.perf_counter,
    done: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of ``rounds`` calls of every candidate, one after the other in each round, the first one of a round moving on.

    Whatever else the machine does then hits all candidates alike. Warm them up before.

    Args:
        candidates: by name.
        rounds: calls of each.
        read: the clock.
        done: called after each call.
    """
    names = list(candidates)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            begun = read()
            candidates[name]()
            found[name].append(read() - begun)
            if done is not None:
                done()
    return found
