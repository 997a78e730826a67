"""Arrays of ``.npz`` archives and ``.npy`` files, read within a budget: nothing is evaluated, unpickled or unpacked before it fits.

Source: NEP 1, "A Simple File Format for NumPy Arrays"; the header's text is matched, not evaluated.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from rdc.errors import DataError, one_line
from rdc.storage.reading import Budget

__all__ = ["array_names", "read_arrays", "read_rows"]

_MAGIC = b"\x93NUMPY"
_DIRECTORY = 2**20  # bytes of an archive's directory: about 20,000 members
_HEADER = 10_000  # bytes, as NumPy's own limit
_AXES = 8
_PIECE = 2**20
_FIELD = re.compile(
    r"""\s*(['"])(?:(descr)\1\s*:\s*(['"])([^'"]*)\3|(fortran_order)\1\s*:\s*(True|False)"""
    r"""|(shape)\1\s*:\s*\(([\dL,\s]*)\))\s*(?:,|(?=\}))"""
)
_TYPE = re.compile(r"[<>|=]?[biufcSUOMmV]\d{0,19}(?:\[\w{1,10}\])?")


class _Archive(io.BufferedReader):
    """A file whose single reads are bounded while the archive's directory is looked for."""

    limit = _DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.limit:
            return super().read(size)
        content = super().read(self.limit + 1 if size is None or not 0 <= size <= self.limit else size)
        if len(content) > self.limit:
            raise DataError(
                f"{self.name}: the archive's directory has more than the {self.limit:,} bytes expected at most"
            )
        return content


def read_arrays(
    path: Path, wanted: tuple[str, ...], required: tuple[str, ...], budget: Budget
) -> dict[str, np.ndarray]:
    """The arrays of these names that the archive has.

    Args:
        path: a plain file.
        wanted: names.
        required: of them, those that must be there.
        budget: what all of them may take together.

    Raises:
        DataError: not such an archive, one that lacks an array, or one that asks for more than the budget. Other exceptions mean that
            it is damaged.
    """
    with _Archive(io.FileIO(str(path))) as file:
        _no_single_array(file, path)
        with zipfile.ZipFile(file) as archive:
            file.limit = 0
            members = _members(archive)
            for unread in (member for name, found in members.items() if name not in wanted for member in found):
                archive.open(unread).close()  # its two names must be the same: a changed letter would hide an array
            missing = [name for name in required if name not in members]
            if missing:
                has = one_line(", ".join(list(members)[:20]) or "nothing")
                raise DataError(f"{path}: has no {' and no '.join(missing)}; it has {has}")
            twice = [name for name in wanted if len(members.get(name, ())) > 1]
            if twice:
                raise DataError(f"{path}: has {twice[0]} more than once")
            return {
                name: _array(archive, members[name][0], f"array {name}", budget) for name in wanted if name in members
            }


def array_names(path: Path) -> list[str]:
    """Names of the arrays that the archive's directory lists; nothing is unpacked.

    Raises:
        DataError: a single array. Other exceptions mean that it is damaged.
    """
    with _Archive(io.FileIO(str(path))) as file:
        _no_single_array(file, path)
        with zipfile.ZipFile(file) as archive:
            return list(_members(archive))


def _no_single_array(file: io.BufferedReader, path: Path) -> None:
    if file.peek(len(_MAGIC))[: len(_MAGIC)] == _MAGIC:
        raise DataError(f"{path}: a single array (.npy), expected .npz with images and labels")


def _members(archive: zipfile.ZipFile) -> dict[str, list[zipfile.ZipInfo]]:
    members: dict[str, list[zipfile.ZipInfo]] = {}
    for member in archive.infolist():
        members.setdefault(member.filename.removesuffix(".npy"), []).append(member)
    return members


def read_rows(path: Path, part: int = 0, parts: int = 1) -> np.ndarray:
    """The rows of a ``.npy`` file, or one of several equal parts of them; nothing else of it is read.

    To be used inside :func:`rdc.storage.reading.reading`: damage raises other exceptions.

    Args:
        path: a plain file.
        part, parts: number of the part, from 0, and how many there are.

    Raises:
        DataError: the rows do not make up so many equal parts.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        dtype, fortran, shape, header = _header(file)
        if not shape or math.prod(shape) * dtype.itemsize != size - header:
            raise ValueError(
                f"its header promises {math.prod(shape) * dtype.itemsize:,} bytes, {size - header:,} follow"
            )
        if fortran and len(shape) > 1:
            raise ValueError("an array in Fortran's order; expected C's")
        if shape[0] % parts:
            raise DataError(f"{path}: {shape[0]:,} rows; expected {parts} equal parts of them")
        count = shape[0] // parts
        content = np.empty(count * math.prod(shape[1:]) * dtype.itemsize, np.uint8)
        file.seek(header + part * len(content))
        if file.readinto(content.data) < len(content):
            raise EOFError("it is cut short")
    return content.view(dtype).reshape(count, *shape[1:])


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str, budget: Budget) -> np.ndarray:
    """One array: its header first, then, if the budget has it, its values; the archive's checksum is compared."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{what} is compressed in a way that NumPy does not write")
    with archive.open(member) as file:
        dtype, fortran, shape, header = _header(file)
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - header:
            raise ValueError(f"{what}: the header promises {size:,} bytes, {member.file_size - header:,} follow")
        _take(budget, size, what)
        values = np.empty(size, np.uint8)
        for begin in range(0, size, _PIECE):
            piece = file.read(min(_PIECE, size - begin))
            values[begin : begin + len(piece)] = np.frombuffer(piece, np.uint8)
            if len(piece) < min(_PIECE, size - begin):
                raise EOFError(f"{what} is cut short")
        if file.read(1):
            raise ValueError(f"{what} has more bytes than its header promises")
    values = values.view(dtype)
    return values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)


def _take(budget: Budget, size: int, what: str) -> None:
    try:
        budget.take(size, what)
    except DataError as error:
        raise DataError(f"{error}. If it is neither: store it uncompressed (numpy.savez)") from error


def _header(file: IO[bytes]) -> tuple[np.dtype, bool, tuple[int, ...], int]:
    """dtype, whether in Fortran's order, shape, and the header's own bytes."""
    start = file.read(8)
    if start[:6] != _MAGIC or start[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError("a member is no array (.npy) of format 1 to 3")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > _HEADER:
        raise ValueError(f"an array's header has {length:,} bytes; expected at most {_HEADER:,}")
    text = file.read(length).decode("utf-8" if start[6] == 3 else "latin-1")
    found = {}
    inside = text.strip().removeprefix("{")
    while match := _FIELD.match(inside):
        _, descr, _, kind, order, truth, shape, sizes = match.groups()
        found[descr or order or shape] = kind if descr else truth if order else sizes
        inside = inside[match.end() :]
    if set(found) != {"descr", "fortran_order", "shape"} or inside.strip() != "}":
        raise ValueError(f"an array's header is not of the form that NumPy writes: {one_line(text, 100)}")
    if not _TYPE.fullmatch(found["descr"]):
        raise ValueError(f"an array of type {one_line(found['descr'], 40)}; expected numbers or text")
    dtype = np.dtype(found["descr"])
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"an array of type {dtype}; expected numbers or text")
    return dtype, found["fortran_order"] == "True", _shape(found["shape"]), len(start) + width + length


def _shape(text: str) -> tuple[int, ...]:
    sizes = [size.strip().removesuffix("L") for size in text.split(",")]
    sizes = sizes[:-1] if not sizes[-1] else sizes
    if len(sizes) > _AXES or not all(re.fullmatch(r"[0-9]{1,19}", size) for size in sizes):
        raise ValueError(
            f"an array of {len(sizes):,} axes of the sizes ({one_line(text, 60)}); expected at most {_AXES} axes"
        )
    return tuple(map(int, sizes))
