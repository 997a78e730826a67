"""Transformed weights of :mod:`rdc.ops.convolution`, kept from call to call as long as they are true."""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # torch does not list it, its pages do
from torch.utils.weak import WeakIdKeyDictionary

from rdc.ops import _native

__all__ = ["MOST_KEPT", "keep_at_most", "kept_bytes", "packed_for"]

#: All transformed weights that are kept take at most so many bytes, enough for the shipped networks of Fashion-MNIST and their gradients.
#: Others are made in every call: a tenth of a call of two rows, nothing of one of a hundred.
MOST_KEPT = 96 << 20

_limit = MOST_KEPT
_KEPT: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> {(reversed, instruction set): (fingerprint, packed)}
_LOCK = threading.Lock()


def kept_bytes() -> int:
    """What is kept now."""
    return sum(packed.numel() * 4 for found in _KEPT.values() for _, packed in found.values())


def keep_at_most(size: float) -> None:
    """Keep so many bytes, and at most :data:`MOST_KEPT`: a share of a memory budget. What is kept beyond is let go."""
    global _limit
    _limit = int(min(MOST_KEPT, size))
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
    native, plain = _native.extension(), weight.detach().contiguous()
    now, key = native.fingerprint(to_dlpack(plain)), (reversed_, isa)
    with _LOCK:
        found = _KEPT.get(weight)
        if found is not None and key in found and found[key][0] == now:
            return found[key][1], isa
    inputs, outputs = plain.shape[:2] if reversed_ else plain.shape[1::-1]
    with _disable_current_modes():  # whoever counts the tensors of a call would count one that stays
        packed = torch.empty(native.convolution_packed_size(outputs, inputs, isa))
    native.convolution_pack(to_dlpack(plain), to_dlpack(packed), reversed_, torch.get_num_threads(), isa)
    with _LOCK:
        before = found[key][1].numel() * 4 if found is not None and key in found else 0
        if kept_bytes() - before + packed.numel() * 4 <= _limit:
            _KEPT.setdefault(weight, {})[key] = now, packed
    return packed, isa
