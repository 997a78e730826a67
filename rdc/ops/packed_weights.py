"""Transformed weights of :mod:`rdc.ops.convolution`, kept from call to call as long as they are true; oneDNN's too."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # torch does not list it, its pages do
from torch.utils.weak import WeakIdKeyDictionary

from rdc.execution.memory import MOST_KEPT_MB, kept_mb
from rdc.ops import _native

__all__ = ["MOST_KEPT", "kept_bytes", "kept_for", "packed_for", "share_budget"]

#: All transformed weights that are kept take at most so many bytes, enough for the shipped networks of Fashion-MNIST and their gradients.
#: Others are made in every call: a tenth of a call of two rows, nothing of one of a hundred.
MOST_KEPT = int(MOST_KEPT_MB * 2**20)

_limit = MOST_KEPT
#: weight -> {what it is for, such as (reversed, instruction set): (fingerprint and layout, packed, its bytes)}
_KEPT: WeakIdKeyDictionary = WeakIdKeyDictionary()
_LOCK = threading.Lock()
_THREAD = threading.local()


def kept_bytes() -> int:
    """What is kept now."""
    return sum(size for found in _KEPT.values() for _, _, size in found.values())


def share_budget(megabytes: float) -> None:
    """Keep no more than a share of a memory budget of ``megabytes`` MiB. What is kept beyond is let go; the last budget counts."""
    global _limit
    _limit = int(kept_mb(megabytes) * 2**20)
    with _LOCK:
        if kept_bytes() > _limit:
            _KEPT.clear()


def packed_for(weight: Tensor, reversed_: bool) -> tuple[Tensor, str]:
    """The transformed weight, and the instruction set that it is for.

    Args:
        weight: [O, I, 3, 3] float32 on the CPU.
        reversed_: for the gradient of the input.
    """
    isa = _native.cpu_isa()
    native, now, key = _native.extension(), _fingerprint(weight), (reversed_, isa)
    with _LOCK:
        found = _KEPT.get(weight, {}).get(key)
        if found is not None and found[0] == now:
            return found[1], isa
    plain = weight.detach().contiguous()
    inputs, outputs = plain.shape[:2] if reversed_ else plain.shape[1::-1]
    size = native.convolution_packed_size(outputs, inputs, isa)
    keep = _fits(4 * size, found)
    # over the old ones, in training: fresh pages would cost ten times as much as the transform
    again = keep and found is not None and found[2] == 4 * size
    packed = found[1] if again and found is not None else _room(size) if keep else _lent(size)
    native.convolution_pack(to_dlpack(plain), to_dlpack(packed), reversed_, torch.get_num_threads(), isa)
    if keep:
        with _LOCK:
            _KEPT.setdefault(weight, {})[key] = now, packed, 4 * size
    return packed, isa


def kept_for(weight: Tensor, key: Hashable, size: int, make: Callable[[], Any]) -> Any:
    """What ``make`` makes of a weight, from call to call as long as it is true; None where it has no room.

    Args:
        weight: float32 on the CPU.
        key: what tells it from other things that are made of this weight.
        size: its bytes, about.
        make: called without arguments.
    """
    now = _fingerprint(weight)
    with _LOCK:
        found = _KEPT.get(weight, {}).get(key)
        if found is not None and found[0] == now:
            return found[1]
    if not _fits(size, found):
        return None
    made = make()
    with _LOCK:
        _KEPT.setdefault(weight, {})[key] = now, made, size
    return made


def _fingerprint(weight: Tensor) -> tuple[int, tuple[int, ...]]:
    """Of all values, and the layout."""
    as_it_lies = weight.detach()
    if as_it_lies.ndim == 4 and as_it_lies.is_contiguous(memory_format=torch.channels_last):
        as_it_lies = as_it_lies.permute(0, 2, 3, 1)
    return _native.extension().fingerprint(to_dlpack(as_it_lies.contiguous())), weight.stride()


def _fits(size: int, found: tuple[Any, Any, int] | None) -> bool:
    """Whether ``size`` bytes may be kept in the place of what was found."""
    with _LOCK:
        return kept_bytes() + size - (0 if found is None else found[2]) <= _limit


def _room(floats: int) -> Tensor:
    """Memory beside the heap: a block that stays must not lie between those of a call, nor be counted among its tensors."""
    with _disable_current_modes():
        return torch.frombuffer(mmap.mmap(-1, max(4, 4 * floats)), dtype=torch.float32)[:floats]


def _lent(floats: int) -> Tensor:
    """For one call of this thread's; the next one writes over it."""
    if floats > getattr(_THREAD, "size", 0):
        _THREAD.room, _THREAD.size = _room(floats), floats
    with _disable_current_modes():
        room: Tensor = _THREAD.room[:floats]
    return room
