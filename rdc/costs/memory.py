"""The most memory that a process holds for one call: a process of its own for every model, batch and kind of work."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

import numpy as np
import torch

from rdc.costs.calls import prepared
from rdc.costs.settings import MeasuredModel

__all__ = ["in_a_process", "resident"]


class _Images:
    """What a model given as ``package.module:factory`` is shown to learn what it is."""

    def __init__(self, pixels: torch.Tensor, class_names: tuple[str, ...]) -> None:
        self._pixels, self.class_names = pixels, class_names

    def __len__(self) -> int:
        return len(self._pixels)

    def pixels(self, chosen: Any = slice(None)) -> torch.Tensor:
        return self._pixels[list(chosen)] if isinstance(chosen, range) else self._pixels[chosen]


def in_a_process(
    model: MeasuredModel, work: str, pixels: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...], threads: int
) -> dict[str, float] | None:
    """Resident memory in MiB of a new process: ``loaded``, with the model and the images, and ``peak``, the most until after one call.

    Python and PyTorch themselves are in both. None where the system does not say (Windows).
    """
    arguments = (model, work, pixels.numpy(), labels.numpy(), names, threads, list(sys.path))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, float] | None = pool.apply(_peak, arguments)
    return found


def _peak(
    model: MeasuredModel,
    work: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    threads: int,
    path: list[str],
) -> dict[str, float] | None:
    """In the new process."""
    sys.path[:] = path
    torch.set_num_threads(threads)
    images = _Images(torch.from_numpy(pixels), names)
    call = prepared(model.load(images), work, images.pixels(), torch.from_numpy(labels))
    loaded = resident("VmRSS")
    call()
    peak = resident("VmHWM")
    return None if loaded is None or peak is None else {"loaded": loaded, "peak": peak}


def resident(what: str) -> float | None:
    """Resident memory of this process in MiB: "VmRSS" now, "VmHWM" the most so far; None where the system does not say.

    Where there is no /proc (macOS) both are the most so far.
    """
    try:
        with open("/proc/self/status") as file:
            return next(round(int(line.split()[1]) / 1024, 1) for line in file if line.startswith(f"{what}:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
