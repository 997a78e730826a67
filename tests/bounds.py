"""What no file may cost: two seconds (of the processor, so that a busy machine does not matter) and half a gigabyte."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Iterator


@contextlib.contextmanager
def bounded(seconds: float = 2.0, megabytes: float = 500) -> Iterator[None]:
    """Fail if the body takes longer, or if Python and NumPy hold more memory at any time in it."""
    tracemalloc.start()
    try:
        started = time.process_time()
        yield
        taken, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < seconds, f"{taken:.1f} s"
    assert peak < megabytes * 2**20, f"{peak / 2**20:.0f} MiB"
