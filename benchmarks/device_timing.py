"""Seconds, peak memory and roofline of a call on a GPU (CUDA events) or, for a dry run, on the CPU."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["flops_of", "measure", "peaks", "precision", "roofline"]


def measure(call: Callable[[], Any], device: torch.device, rounds: int = 10, warm: int = 2) -> dict[str, Any]:
    """Seconds of each round and peak MiB above what was held before.

    On CUDA each round stands between two events, and the L2 cache is overwritten before it.
    """
    for _ in range(warm):
        call()
    if device.type != "cuda":
        seconds = []
        for _ in range(rounds):
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
        return _summary(seconds, None)
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device=device)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held, pairs = torch.cuda.memory_allocated(device), []
    for _ in range(rounds):
        flush.zero_()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        pairs.append((first, last))
    torch.cuda.synchronize(device)
    peak = (torch.cuda.max_memory_allocated(device) - held) / 2**20
    return _summary([first.elapsed_time(last) / 1e3 for first, last in pairs], peak)


def _summary(seconds: list[float], peak: float | None) -> dict[str, Any]:
    return {
        "median": float(f"{statistics.median(seconds):.4g}"),
        "fastest": float(f"{min(seconds):.4g}"),
        "slowest": float(f"{max(seconds):.4g}"),
        "rounds": len(seconds),
        "peak_mib": None if peak is None else round(peak, 1),
    }


def peaks(device: torch.device, size: int = 8192) -> dict[str, float]:
    """What this device reaches: FLOP/s of a square matrix product in float32, tf32 and bfloat16, bytes/s of a copy.

    Measured, so that no table of products is needed; a roofline against it says how far a kernel is from a good library's.
    """
    found = {}
    for name, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(size, size, device=device).to(dtype)
        with precision(name, device, cast=False):
            found[name] = 2 * size**3 / measure(lambda a=a: a @ a, device, rounds=5)["fastest"]
    source = torch.empty(size * size * 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    found["bytes"] = 2 * source.nbytes / measure(lambda: target.copy_(source), device, rounds=5)["fastest"]
    return {name: float(f"{value:.4g}") for name, value in found.items()}


@contextlib.contextmanager
def precision(name: str, device: torch.device, cast: bool = True) -> Iterator[None]:
    """float32 (no tf32), tf32, or bfloat16 (autocast when ``cast``); the settings of before come back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=cast and name == "bfloat16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def flops_of(call: Callable[[], Any]) -> float:
    """Floating-point operations of a call's convolutions and products, counted on the torch reference (native ops hide theirs)."""
    from torch.utils.flop_counter import FlopCounterMode

    before = os.environ.get("RDC_DISABLE_NATIVE")
    os.environ["RDC_DISABLE_NATIVE"] = "1"
    try:
        with FlopCounterMode(display=False) as counter:
            call()
    finally:
        if before is None:
            del os.environ["RDC_DISABLE_NATIVE"]
        else:
            os.environ["RDC_DISABLE_NATIVE"] = before
    return float(counter.get_total_flops())


def roofline(seconds: float, flops: float, moved: float | None, top: dict[str, float], kind: str) -> dict[str, Any]:
    """TFLOP/s, share of the measured peak, and of the bound that applies.

    Args:
        moved: bytes that have to be read and written at least; None: compute-bound by assumption.
        top: what :func:`peaks` found.
        kind: the peak that applies: "float32", "tf32" or "bfloat16".
    """
    compute, memory = flops / top[kind], 0.0 if moved is None else moved / top["bytes"]
    return {
        "tflops": float(f"{flops / seconds / 1e12:.4g}"),
        "of_peak": float(f"{compute / seconds:.3g}"),
        "bound": "compute" if compute >= memory else "memory",
        "of_roofline": float(f"{max(compute, memory) / seconds:.3g}"),
    }
