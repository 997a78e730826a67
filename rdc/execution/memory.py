"""How much memory a computation needs: bytes of tensors alive at once, counted while it runs, and how many of its items fit a budget.

The count sees every tensor that an operator returns, on any device, forward and backward; it does not see what an operator
allocates and frees inside (a convolution's workspace), nor the allocator's own slack. Both are small but for one thing: on a CPU a
process holds up to 2.3 times the bytes of the tensors alive. glibc gives aligned blocks out of larger ones, small objects settle in
what is left over, and a block that is freed is then too short for the next of its size. :data:`RESIDENT` makes up for it, so that a
budget is kept by resident memory, which is what an operating system counts.
"""

from __future__ import annotations

import itertools
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rdc.arguments.scalars import as_number, shown
from rdc.errors import ConfigError

__all__ = [
    "MOST_KEPT_MB",
    "bytes_per_item",
    "device_of",
    "items_that_fit",
    "kept_mb",
    "memory_budget",
    "peak_bytes",
    "tensor_bytes",
]

LEAST_MB = 2048.0  # the budget where nothing is known of the device's memory, and the least on a GPU

#: Bytes that a process on a CPU holds for a byte of tensors alive: the shipped networks need 1.2 to 2.3
#: (benchmarks/studies/resident_memory.py).
RESIDENT = 2.3
#: MiB that a process's first call takes for good on a CPU: PyTorch's code as it is read from disk (20 to 25), kernels, small objects.
FIRST_CALL_MB = 32.0
#: The share of a budget that transformed weights may take for good (rdc.ops.packed_weights), and the most that they take, MiB.
KEPT_SHARE, MOST_KEPT_MB = 1 / 16, 96.0
#: Where a budget cannot be kept (the first call's part leaves nothing), tensors alone may take it, up to this many MiB.
TENSORS_ONLY_MB = 8.0


def device_of(module: nn.Module) -> torch.device:
    """Where the weights of ``module`` are; a CPU where it has none."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def memory_budget(megabytes: float | None, device: torch.device) -> float:
    """The working memory that a call may take, in MiB.

    Args:
        megabytes: what was asked for; None: 2048, but on a CUDA device half of what is free there now, if that is more.
        device: where the work is done.

    Raises:
        ConfigError: not a number above 0.
    """
    if megabytes is None:
        if device.type != "cuda":
            return LEAST_MB
        free, _ = torch.cuda.mem_get_info(device)
        return max(LEAST_MB, float(free // 2**21))
    number = as_number(megabytes)
    if number is None or not 0 < number < math.inf:
        raise ConfigError(f"memory_budget_mb: expected a number > 0; got {shown(megabytes)}")
    return number


def _tensors(value: Any) -> Iterator[Tensor]:
    """Of an operator's arguments or results; PyTorch's own walk over trees takes longer than most operators."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


class _LiveBytes(TorchDispatchMode):
    """Counts storages from the operator that made them to their release; those that were there before do not count."""

    takes_native = True  # kernels of csrc/ may run: their results are made by an operator

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}  # address of a storage -> what tells that it is gone, or the storage itself

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            self._known.setdefault(storage._cdata, storage)  # held, so that its address is not used again
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                size, key = storage.nbytes(), storage._cdata
                self._known[key] = weakref.finalize(storage, self._release, key, size)
                self.now += size
        self.peak = max(self.peak, self.now)
        return out

    def _release(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


def peak_bytes(work: Callable[[], object]) -> int:
    """Largest sum of the bytes of tensors that ``work()`` made and that were alive together.

    Args:
        work: any computation; run once.
    """
    with _LiveBytes() as meter:
        kept = work()
    del kept
    peak: int = meter.peak
    return peak


def bytes_per_item(work: Callable[[int], object]) -> int:
    """What one more item of a batch adds to the peak.

    Args:
        work: computes on a batch of n items; run for n = 1 and n = 3.

    Returns:
        Bytes, at least 1. Where one item takes more than 8 MiB that is all: it is next to what one more adds, and measuring is to
        keep a budget, too.
    """
    one = peak_bytes(lambda: work(1))
    return one if one > 8 * 2**20 else max(1, (peak_bytes(lambda: work(3)) - one) // 2)


def tensor_bytes(megabytes: float, device: torch.device) -> float:
    """How many bytes of tensors may be alive together so that resident memory keeps a budget of ``megabytes`` MiB.

    On a CPU a process grows by :data:`FIRST_CALL_MB` and :data:`KEPT_SHARE`, whatever is computed, and by :data:`RESIDENT` for a
    byte of tensors. A budget of less than some 55 MiB cannot be kept in that sense: there tensors alone count, up to
    :data:`TENSORS_ONLY_MB`.
    """
    if device.type != "cpu":
        return megabytes * 2**20
    within = (megabytes - FIRST_CALL_MB - kept_mb(megabytes)) / RESIDENT
    return max(within, min(megabytes, TENSORS_ONLY_MB)) * 2**20


def kept_mb(megabytes: float) -> float:
    """What transformed weights may keep of a budget of ``megabytes`` MiB, in MiB."""
    return min(MOST_KEPT_MB, megabytes * KEPT_SHARE)


def items_that_fit(megabytes: float, each: int, device: torch.device, what: str) -> int:
    """How many items a budget holds, at least 1: one item is the least that can be worked on, whatever it takes.

    Args:
        megabytes: the budget, MiB (:func:`tensor_bytes`).
        each: bytes of tensors that an item needs.
        device: where the work is done.
        what: an item in words, for the warning.

    Warns:
        UserWarning: not even one item fits.
    """
    count = int(tensor_bytes(megabytes, device) / each)
    if count < 1:
        need = each / 2**20
        least = need
        if device.type == "cpu" and need > TENSORS_ONLY_MB:
            resident = need * RESIDENT + FIRST_CALL_MB
            least = min(resident / (1 - KEPT_SHARE), resident + MOST_KEPT_MB)
        warnings.warn(
            f"memory_budget_mb: {megabytes:.4g} MiB do not hold {what}, which is computed all the same; at least {least:.4g} would",
            stacklevel=2,
        )
    return max(1, count)
