"""Timing that survives a busy machine: candidates take turns, medians and ratios within one run, and a record of where it was run."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from rdc.costs.measure import cpu_name
from rdc.execution.timing import alternate, clock

__all__ = ["about", "alternate", "clock", "median", "on_one_thread", "ratio", "summary"]


def median(values: list[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def on_one_thread(benchmark: Any, run: Callable[[], object]) -> None:
    """Time ``run`` by pytest-benchmark's fixture while torch has one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        benchmark(run)
    finally:
        torch.set_num_threads(threads)


def ratio(slow: list[float], fast: list[float], slow_images: int = 1, fast_images: int = 1) -> dict[str, float]:
    """How many times more seconds an image takes: ratio of medians, and the smallest and largest ratio of one round."""
    each = [(a / slow_images) / (b / fast_images) for a, b in zip(slow, fast, strict=True)]
    middle = (median(slow) / slow_images) / (median(fast) / fast_images)
    return {"ratio": _short(middle), "lowest": _short(min(each)), "highest": _short(max(each))}


def summary(values: list[float], images: int = 1) -> dict[str, float]:
    """Median, smallest and largest seconds an image."""
    return {
        "seconds_per_image": _short(median(values) / images),
        "fastest": _short(min(values) / images),
        "slowest": _short(max(values) / images),
        "rounds": len(values),
        "images": images,
    }


def about() -> dict[str, Any]:
    """Machine, commit, command and versions, for the head of a results file."""
    import torch

    from rdc.ops.backends import describe
    from rdc.provenance.run import commit, versions

    found = describe()
    gpus = found["gpus"]
    return {
        "machine": {
            "cpu": cpu_name(),
            "logical_cpus": os.cpu_count(),
            "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "load_at_start": _short(os.getloadavg()[0]) if hasattr(os, "getloadavg") else None,
            "system": platform.platform(),
            "gpus": gpus,
            "gpu_label": "measured on " + gpus[0] if gpus else "not yet run on a GPU",
        },
        "threads": torch.get_num_threads(),
        "isa": found["cpu"]["isa"],
        "commit": commit(),
        "command": _command(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(torch.device("cpu")),
    }


def _command() -> str:
    """As it can be given again: ``python -m benchmarks.studies.speed ...``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = sys.argv[:1] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return shlex.join(["python", *start, *sys.argv[1:]])


def _short(value: float) -> float:
    return float(f"{value:.4g}")
