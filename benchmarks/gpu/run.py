"""What the parts of gpu.py share: device, sizes, time that is left."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.device_timing import measure, peaks

__all__ = ["Run"]


class Run:
    """Device, sizes, time that is left, and what was found."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.dry, self.deadline = args.dry_run, time.monotonic() + 60 * args.minutes
        self.architectures, self.cases, self.native = args.architectures, args.cases.split(","), args.native
        self.device = torch.device("cpu" if self.dry else "cuda")
        self.rounds = 1 if self.dry else 10
        self.top: dict[str, float] | None = None

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def peaks(self) -> dict[str, float]:
        """Measured once."""
        if self.top is None:
            self.top = peaks(self.device, 256 if self.dry else 8192)
        return self.top

    def measure(self, call: Callable[[], Any]) -> dict[str, Any]:
        """:func:`device_timing.measure` on this device."""
        return measure(call, self.device, self.rounds, warm=1 if self.dry else 2)
