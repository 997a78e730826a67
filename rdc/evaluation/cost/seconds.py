"""Seconds by two clocks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

__all__ = ["Seconds", "timed"]


@dataclasses.dataclass(frozen=True)
class Seconds:
    """By the clock, and of the processor in this process."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def times(self, factor: float) -> Seconds:
        """So many of it."""
        return Seconds(self.wall * factor, self.cpu * factor)

    @property
    def positive(self) -> Seconds:
        """At least 0: differences of measured times may be less."""
        return Seconds(max(0.0, self.wall), max(0.0, self.cpu))

    @property
    def own(self) -> float:
        """What it would take by the clock if nothing else ran: several threads share the processor's seconds."""
        return min(self.wall, self.cpu) or self.wall


def timed(work: Callable[[], object], device: torch.device) -> Seconds:
    """Seconds of one call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)
