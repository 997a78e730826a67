"""Tensors out of a pickle: what the file says of them first, checked; their numbers when all of it has been read.

In every format of PyTorch a tensor is a part of a storage (a flat array): offset, sizes and strides, in numbers.
"""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.storage.nesting import Stub
from rdc.storage.reading import Budget

__all__ = ["DTYPES", "STORAGE_DTYPES", "Held", "Storage", "TensorMaker", "bytes_of"]

#: type of the numbers in a storage, by the name of its class; of quantized ones, whose tensors are not read, the size is right
STORAGE_DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
    "QUInt8Storage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
}
_NAMES = (
    "float16 bfloat16 float32 float64 complex32 complex64 complex128 bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 "
    "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz"
)
#: types of numbers by their name, those that this PyTorch has
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES.split() if hasattr(torch, name)}

_AXES, _LONGEST = 64, 2**48


class Storage:
    """The numbers of tensors: how many of which type, as the file says; the bytes follow.

    Args:
        dtype: type of the numbers.
        count: how many.
        whole: the storage that this one is a part of.
        start: where in ``whole``.
    """

    __slots__ = ("_content", "_whole", "count", "dtype", "start")
    _whole: Storage | None
    count: int
    dtype: torch.dtype

    def __init__(self, dtype: torch.dtype, count: Any, whole: Storage | None = None, start: Any = 0) -> None:
        if type(count) is not int or type(start) is not int or min(count, start) < 0:
            raise pickle.UnpicklingError("a storage whose size is not a number")
        if whole is not None and (whole._whole is not None or start + count > whole.count or dtype != whole.dtype):
            raise pickle.UnpicklingError("a part of a storage outside it")
        self.dtype, self.count, self._whole, self.start = dtype, count, whole, start
        self._content: Tensor | None = None

    def fill(self, content: Tensor) -> None:
        """Take the bytes [n] uint8; as many as were announced (less than one number more is allowed)."""
        size = self.dtype.itemsize
        if not 0 <= len(content) - self.count * size < size:
            raise pickle.UnpicklingError(f"a storage of {self.count:,} numbers with {len(content):,} bytes")
        self._content = content[: self.count * size]

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """All of them, flat."""
        if self._whole is not None:
            return self._whole.numbers(self._whole.dtype)[self.start : self.start + self.count].view(dtype)
        if self._content is None:
            raise pickle.UnpicklingError("a storage whose bytes are not in the file")
        return self._content.view(dtype)


class Held:
    """A tensor that was described, out of reach of the pickle's own instructions."""

    __slots__ = ("_flags", "_place", "dtype", "storage")

    def __init__(self, storage: Storage, dtype: torch.dtype, place: tuple[Any, ...], flags: tuple[bool, bool]) -> None:
        self.storage, self.dtype, self._place, self._flags = storage, dtype, place, flags

    def tensor(self) -> Tensor:
        """The tensor, a view of its storage (a copy where the file marks it as conjugate or negative)."""
        size, stride, offset = self._place
        found = self.storage.numbers(self.dtype).as_strided(size, stride, offset)
        conjugate, negative = self._flags
        found = found.conj().resolve_conj() if conjugate else found
        return -found if negative else found


class TensorMaker:
    """What stands for PyTorch's functions that rebuild tensors.

    Args:
        budget: what the tensors are taken from, each with all of its elements.
        expanded: whether a tensor may have more elements than its storage has numbers.
    """

    def __init__(self, budget: Budget, expanded: bool) -> None:
        self.budget, self.expanded = budget, expanded

    def version_2(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        _grad: Any = None,
        _hooks: Any = None,
        metadata: Any = None,
    ) -> Held:
        """``torch._utils._rebuild_tensor_v2``; with four arguments ``_rebuild_tensor``."""
        return self._held(storage, offset, size, stride, None, metadata)

    def version_3(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        _grad: Any,
        _hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> Held:
        """``torch._utils._rebuild_tensor_v3``, for types of numbers without a class of storage."""
        label = getattr(dtype, "label", dtype)  # a Name, or the text
        found = DTYPES.get(label.removeprefix("torch.")) if isinstance(label, str) else None
        if found is None:
            raise pickle.UnpicklingError("a tensor of unknown type")
        return self._held(storage, offset, size, stride, found, metadata)

    def parameter(self, data: Any, *_rest: Any) -> Any:
        """``torch._utils._rebuild_parameter``, and with state."""
        if type(data) not in (Held, Stub):
            raise pickle.UnpicklingError("parameter without a tensor")
        return data

    def _held(
        self, storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None, metadata: Any
    ) -> Held:
        if type(storage) is not Storage:
            raise pickle.UnpicklingError("tensor without a storage")
        dtype = dtype or storage.dtype
        size, stride = tuple(size), tuple(stride)
        numbers = (offset, *size, *stride)
        fits = len(size) == len(stride) <= _AXES
        if not fits or any(type(number) is not int or not 0 <= number < _LONGEST for number in numbers):
            raise pickle.UnpicklingError(f"tensor of size {size[:_AXES]}, stride {stride[:_AXES]}, offset {offset!r}")
        available, count = storage.count * storage.dtype.itemsize // dtype.itemsize, math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count and (last >= available or (count > available and not self.expanded)):
            raise pickle.UnpicklingError(f"tensor of size {size} in a storage of {available:,} numbers")
        self.budget.take(count * dtype.itemsize, f"tensor of size {size}")
        return Held(storage, dtype, (size, stride, offset), _flags(metadata))


def _flags(metadata: Any) -> tuple[bool, bool]:
    """Whether a tensor is the conjugate, or the negative, of what is stored."""
    if metadata is not None and not isinstance(metadata, dict):
        raise pickle.UnpicklingError("tensor with unknown properties")
    return bool((metadata or {}).get("conj")), bool((metadata or {}).get("neg"))


def bytes_of(content: memoryview, budget: Budget) -> Tensor:
    """A copy as a tensor [n] uint8, aligned as PyTorch's own."""
    budget.take(len(content), "a storage")
    made = torch.empty(len(content), dtype=torch.uint8)
    if len(content):
        made.numpy()[:] = np.frombuffer(content, np.uint8)
    return made
