"""How much memory a computation needs: bytes of tensors alive at once, counted while it runs.

The count sees every tensor that an operator returns, on any device, forward and backward; it does not see what an operator
allocates and frees inside (a convolution's workspace), nor the allocator's own slack.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rdc.errors import ConfigError

__all__ = ["bytes_per_item", "device_of", "memory_budget", "peak_bytes"]

LEAST_MB = 2048.0  # the budget where nothing is known of the device's memory, and the least on a GPU


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
    if not megabytes > 0:
        raise ConfigError(f"memory_budget_mb: expected a number > 0; got {megabytes}")
    return float(megabytes)


class _LiveBytes(TorchDispatchMode):
    """Counts storages from the operator that made them to their release; those that were there before do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}  # address of a storage -> what tells that it is gone, or the storage itself

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._known.setdefault(storage._cdata, storage)  # held, so that its address is not used again
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
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
    return meter.peak


def bytes_per_item(work: Callable[[int], object]) -> int:
    """What one more item of a batch adds to the peak.

    Args:
        work: computes on a batch of n items; run for n = 1 and n = 3.

    Returns:
        Bytes, at least 1.
    """
    return max(1, (peak_bytes(lambda: work(3)) - peak_bytes(lambda: work(1))) // 2)
