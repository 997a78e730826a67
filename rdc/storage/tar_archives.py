"""Tar archives, plain or compressed, read once from the front within bounds.

The standard library's ``tarfile`` believes the sizes of extended headers and sparse maps, and reads them into memory; here only plain
files matter, and names of up to 64 KiB in the forms of POSIX and GNU.

Source: POSIX.1-2001, ``pax``; GNU tar's manual, "Basic Tar Format".
"""

from __future__ import annotations

import bz2
import functools
import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from rdc.storage.reading import EXPANSION, FLOOR_BYTES

__all__ = ["MEMBERS", "tar_members"]

MEMBERS = 10_000  #: of an archive, directories and extended headers too
_BLOCK, _EXTENDED, _PIECE = 512, 65_536, 2**20
_NUMBER = re.compile(rb"[ 0]*([0-7]{0,12})[ \0]*")
_RECORD = re.compile(rb"\d{1,6} ([A-Za-z.]+)=([^\n]*)\n")

#: name, size in bytes, and what reads the content
Member = tuple[str, int, Callable[[], bytes]]


def tar_members(path: Path, most: int) -> Iterator[Member]:
    """The plain files of an archive, in order; the content can be read until the next one is asked for.

    To be used inside :func:`rdc.storage.reading.reading`: damage raises other exceptions.

    Args:
        path: the archive; gzip and bzip2 are told by their first bytes.
        most: most bytes of the unpacked archive; it may not have more than ``EXPANSION`` times its packed size either (or than
            ``FLOOR_BYTES``, if that is more).

    Raises:
        ValueError: it is no tar archive, or larger than that.
        EOFError: it ends too early.
    """
    with open(path, "rb") as file:
        start = file.read(3)
        file.seek(0)
        opens: dict[bytes, Callable[[IO[bytes]], gzip.GzipFile | bz2.BZ2File]] = {
            b"\x1f\x8b": gzip.open,
            b"BZ": bz2.open,
        }
        packed = opens.get(start[:2])
        size = path.stat().st_size
        with packed(file) if packed else file as unpacked:
            yield from _members(_Stream(unpacked, min(most, max(FLOOR_BYTES, EXPANSION * size))))


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Stream:
    """What comes out of the decompressor, counted."""

    def __init__(self, file: _Readable, most: int) -> None:
        self._file, self._most, self.at = file, most, 0

    def read(self, count: int) -> bytes:
        """As many bytes, all of them."""
        self._count(count)
        content = self._file.read(count)
        if len(content) < count:
            raise EOFError("it ends in the middle")
        return content

    def skip_to(self, place: int) -> None:
        """Leave out what comes before ``place``."""
        while self.at < place:
            self.read(min(_PIECE, place - self.at))

    def _count(self, count: int) -> None:
        self.at += count
        if self.at > self._most:
            raise ValueError(f"it unpacks to more than {self._most:,} bytes")


def _members(stream: _Stream) -> Iterator[Member]:
    long_name = None
    for _ in range(MEMBERS):
        header = stream.read(_BLOCK)
        if header == bytes(_BLOCK):
            return
        size, kind = _checked(header), header[156:157]
        end = stream.at + -(-size // _BLOCK) * _BLOCK
        if kind in (b"x", b"L"):
            if size > _EXTENDED:
                raise ValueError(f"a name of {size:,} bytes; expected {_EXTENDED:,} at most")
            content = stream.read(size)
            records = dict(_RECORD.findall(content))
            long_name = content.rstrip(b"\0") if kind == b"L" else records.get(b"path", long_name)
        elif kind in (b"0", b"\0", b"7"):
            name = (long_name or _name(header)).decode("utf-8", "replace")
            yield name, size, functools.partial(stream.read, size)
            long_name = None
        elif kind != b"g":
            long_name = None
        stream.skip_to(end)
    raise ValueError(f"more than {MEMBERS:,} members")


def _checked(header: bytes) -> int:
    """The size that a header states, after comparing the header's checksum."""
    stated = _NUMBER.fullmatch(header[148:156])
    signless = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    size = _NUMBER.fullmatch(header[124:136])
    if stated is None or size is None or int(stated[1] or b"0", 8) != signless:
        raise ValueError("a header that is none of a tar archive, or of a member beyond 8 GiB")
    return int(size[1] or b"0", 8)


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name
