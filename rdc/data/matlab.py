"""Numeric arrays of MATLAB's ``.mat`` files, levels 5 to 7: sizes first, nothing is unpacked before it is known to fit.

Source: The MathWorks, "MAT-File Format" (R2023a), chapter 1, "Level 5 MAT-File Format".
"""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np

from rdc.errors import DataError, one_line
from rdc.storage.reading import Budget, reading, regular_file

__all__ = ["read_mat"]

_HEADER = 128
_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}  # types of elements
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # of arrays
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_COMPLEX = 0x08
_AXES, _LONGEST_NAME, _VARIABLES, _PIECE = 32, 64, 1000, 2**20

Order = Literal["<", ">"]


class _Readable(Protocol):
    def read(self, count: int) -> bytes: ...


def read_mat(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Real numeric arrays of these names; all must be there.

    Args:
        path: the file.
        wanted: names of variables; others are not unpacked.

    Raises:
        DataError: not such a file, damaged, a name that is missing or no real numeric array, or more memory than a file of its size may
            take (64 MiB, or 16 times its size).
    """
    size = regular_file(path, DataError, "a .mat file")
    budget = Budget(one_line(os.fspath(path), 400), size, DataError)
    found: dict[str, np.ndarray] = {}
    with reading(path, DataError, "a readable .mat file of MATLAB 5 to 7"), open(path, "rb") as file:
        order = _order(file.read(_HEADER), path)
        for matrix in _matrices(file, size, order):
            name, dtype, shape, values = _array(matrix, order, wanted, budget)
            if name in found:
                raise DataError(f"{path}: has {one_line(name)} more than once")
            if values is not None:
                found[name] = values.astype(dtype, copy=False).reshape(shape, order="F")
            if len(found) == len(wanted):
                break
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{path}: has no {' and no '.join(missing)}; expected variables {', '.join(wanted)}")
    return found


def _order(header: bytes, path: Path) -> Order:
    """The file's byte order."""
    if len(header) < _HEADER or header[126:128] not in (b"IM", b"MI"):
        if header.startswith(b"\x89HDF"):
            raise DataError(f"{path}: a .mat file of MATLAB 7.3 (HDF5); save it with save(..., '-v7')")
        raise ValueError("it has no header of a .mat file")
    order: Order = "<" if header[126:128] == b"IM" else ">"
    version = int.from_bytes(header[124:126], "little" if order == "<" else "big")
    if version == 0x0200:
        raise DataError(f"{path}: a .mat file of MATLAB 7.3 (HDF5); save it with save(..., '-v7')")
    if version != 0x0100:
        raise ValueError(f"version 0x{version:04x}; expected 0x0100")
    return order


def _matrices(file: IO[bytes], size: int, order: Order) -> Iterator[_Readable]:
    """Of every variable, what its elements can be read from."""
    at = _HEADER
    for _ in range(_VARIABLES):
        if at == size:
            return
        file.seek(at)
        kind, count = np.frombuffer(_exactly(file, 8), f"{order}u4").tolist()
        at += 8 + count
        if at > size:
            raise EOFError("it is cut short")
        if kind == _COMPRESSED:
            unpacked = _Inflated(file, count)
            kind, _ = np.frombuffer(_exactly(unpacked, 8), f"{order}u4").tolist()
            if kind == _MATRIX:
                yield unpacked
        elif kind == _MATRIX:
            yield file
    raise ValueError(f"more than {_VARIABLES:,} variables")


class _Inflated:
    """What ``count`` compressed bytes of a file unpack to; never more at once than is asked for."""

    def __init__(self, file: IO[bytes], count: int) -> None:
        self._file, self._left, self._stream = file, count, zlib.decompressobj()

    def read(self, count: int) -> bytes:
        made = io.BytesIO()
        while (missing := count - made.tell()) > 0:
            packed = self._stream.unconsumed_tail
            if not packed and self._left:
                packed = self._file.read(min(self._left, 65_536))
                self._left = self._left - len(packed) if packed else 0
            part = self._stream.decompress(packed, missing)
            made.write(part)
            if not part and (self._stream.eof or not (self._left or self._stream.unconsumed_tail)):
                break
        return made.getvalue()


def _exactly(source: _Readable, count: int) -> bytes:
    content = source.read(count)
    if len(content) < count:
        raise EOFError("it is cut short")
    return content


def _tag(source: _Readable, order: Order) -> tuple[int, int, bytes | None]:
    """Type, number of bytes, and the bytes themselves of a small element (they stand in its tag)."""
    tag = _exactly(source, 8)
    first, second = np.frombuffer(tag, f"{order}u4").tolist()
    if first >> 16:
        if first >> 16 > 4:
            raise ValueError("a small element of more than four bytes")
        return first & 0xFFFF, first >> 16, tag[4 : 4 + (first >> 16)]
    return first, second, None


def _element(source: _Readable, order: Order, kind: int, most: int) -> bytes:
    """The content of an element of this type with at most so many bytes."""
    found, count, content = _tag(source, order)
    if found != kind or count > most:
        raise ValueError(f"an element of type {found} and {count:,} bytes; expected type {kind} and at most {most:,}")
    if content is None:
        content = _exactly(source, count)
        _exactly(source, -count % 8)
    return content


def _array(
    source: _Readable, order: Order, wanted: tuple[str, ...], budget: Budget
) -> tuple[str, str, tuple[int, ...], np.ndarray | None]:
    """Name, dtype and shape of a variable, and its values in the file's order if it is wanted."""
    flags = np.frombuffer(_element(source, order, _UINT32, 8), f"{order}u4").tolist()
    shape = tuple(np.frombuffer(_element(source, order, _INT32, 4 * _AXES), f"{order}i4").tolist())
    name = _element(source, order, _INT8, _LONGEST_NAME).decode("ascii", "backslashreplace")
    if name not in wanted:
        return name, "", (), None
    dtype = _CLASSES.get(flags[0] & 0xFF)
    if dtype is None or (flags[0] >> 8) & _COMPLEX or len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"{name} is no array of real numbers")
    kind, count, content = _tag(source, order)
    stored = np.dtype(f"{order}{_NUMBERS[kind]}") if kind in _NUMBERS else None
    if stored is None or count != math.prod(shape) * stored.itemsize:
        raise ValueError(f"{name}: {count:,} bytes of type {kind} for the sizes {shape}")
    budget.take(count, f"array {name}")
    if stored != np.dtype(dtype):
        budget.take(math.prod(shape) * np.dtype(dtype).itemsize, f"array {name} as {dtype}")
    values = np.empty(count, np.uint8)
    if content is not None:
        values[:] = np.frombuffer(content, np.uint8)
    else:
        for begin in range(0, count, _PIECE):
            part = _exactly(source, min(_PIECE, count - begin))
            values[begin : begin + len(part)] = np.frombuffer(part, np.uint8)
    return name, dtype, shape, values.view(stored)
