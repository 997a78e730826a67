"""Transformed weights of :mod:`rdc.ops.convolution`, kept from call to call as long as they are true."""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # torch does not list it, its pages do
from torch.utils.weak import WeakIdKeyDictionary

from rdc.ops import _native

__all__ = ["KEPT_BYTES", "kept_bytes", "packed_for"]

#: All transformed weights that are kept take at most this; those of larger networks are made in every call.
KEPT_BYTES = 256 << 20

_KEPT: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> {(reversed, instruction set): (fingerprint, packed)}
_LOCK = threading.Lock()


def kept_bytes() -> int:
    """What is kept now."""
    return sum(packed.numel() * 4 for found in _KEPT.values() for _, packed in found.values())


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
    packed = torch.empty(native.convolution_packed_size(outputs, inputs, isa))
    native.convolution_pack(to_dlpack(plain), to_dlpack(packed), reversed_, torch.get_num_threads(), isa)
    with _LOCK:
        before = found[key][1].numel() * 4 if found is not None and key in found else 0
        if kept_bytes() - before + packed.numel() * 4 <= KEPT_BYTES:
            _KEPT.setdefault(weight, {})[key] = now, packed
    return packed, isa
