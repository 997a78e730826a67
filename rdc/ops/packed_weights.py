"""Transformed weights of :mod:`rdc.ops.convolution`, kept from call to call as long as they are true."""

from __future__ import annotations

import mmap
import threading

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # torch does not list it, its pages do
from torch.utils.weak import WeakIdKeyDictionary

from rdc.execution.memory import MOST_KEPT_MB, kept_mb
from rdc.ops import _native

__all__ = ["MOST_KEPT", "kept_bytes", "packed_for", "share_budget"]

#: All transformed weights that are kept take at most so many bytes, enough for the shipped networks of Fashion-MNIST and their gradients.
#: Others are made in every call: a tenth of a call of two rows, nothing of one of a hundred.
MOST_KEPT = int(MOST_KEPT_MB * 2**20)

_limit = MOST_KEPT
#: weight -> {(reversed, instruction set): (fingerprint and layout, packed)}
_KEPT: WeakIdKeyDictionary = WeakIdKeyDictionary()
_LOCK = threading.Lock()
_THREAD = threading.local()


def kept_bytes() -> int:
    """What is kept now."""
    return sum(packed.numel() * 4 for found in _KEPT.values() for _, packed in found.values())


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
    native, as_it_lies = _native.extension(), weight.detach()
    if as_it_lies.is_contiguous(memory_format=torch.channels_last):
        as_it_lies = as_it_lies.permute(0, 2, 3, 1)
    as_it_lies = as_it_lies.contiguous()
    now, key = (native.fingerprint(to_dlpack(as_it_lies)), weight.stride()), (reversed_, isa)
    with _LOCK:
        found = _KEPT.get(weight)
        if found is not None and key in found and found[key][0] == now:
            return found[key][1], isa
    plain = weight.detach().contiguous()
    inputs, outputs = plain.shape[:2] if reversed_ else plain.shape[1::-1]
    size = native.convolution_packed_size(outputs, inputs, isa)
    with _LOCK:
        old = found[key][1] if found is not None and key in found else None
        before = 0 if old is None else old.numel()
        keep = kept_bytes() + 4 * (size - before) <= _limit
    # over the old ones, in training: fresh pages would cost ten times as much as the transform
    packed = old if keep and old is not None and before == size else _room(size) if keep else _lent(size)
    native.convolution_pack(to_dlpack(plain), to_dlpack(packed), reversed_, torch.get_num_threads(), isa)
    if keep:
        with _LOCK:
            _KEPT.setdefault(weight, {})[key] = now, packed
    return packed, isa


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
