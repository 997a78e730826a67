"""Zip archives within a budget: no member is unpacked before it is known to fit, and every checksum is looked at."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from typing import cast

from rdc.errors import RdcError, one_line
from rdc.storage.reading import Budget, regular_file

__all__ = ["ZipArchive", "open_archive"]

_DIRECTORY = 8 * 2**20  # bytes of an archive's directory: about 100,000 members
_PIECE = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others are unpacked in pieces of any size


@contextlib.contextmanager
def open_archive(path: str | os.PathLike[str], error: type[RdcError], expected: str) -> Iterator[ZipArchive]:
    """Open an archive; to be used inside :func:`rdc.storage.reading.reading`, as damage raises what ``zipfile`` raises.

    Args:
        path: the file.
        error: the class of errors.
        expected: what it should be, for errors.

    Raises:
        RdcError: (of the class given) not a plain file.
        ValueError: a directory of more than 8 MiB, two members of one name, or a member packed in an unusual way.
    """
    size = regular_file(path, error, expected)
    with _DirectoryFile(path) as file, zipfile.ZipFile(file) as archive:
        file.bound = None
        yield ZipArchive(archive, Budget(one_line(os.fspath(path), 400), size, error))


class ZipArchive:
    """Members of an open archive.

    Attributes:
        budget: what members are taken from; to be used for whatever is made of them, too.
        sizes: size of every member, unpacked, by name.
    """

    def __init__(self, archive: zipfile.ZipFile, budget: Budget) -> None:
        self.budget, self._zip = budget, archive
        self._unread = {member.filename: member for member in archive.infolist()}
        self.sizes = {name: member.file_size for name, member in self._unread.items()}
        if len(self.sizes) < len(archive.infolist()):
            raise ValueError("two members of one name")
        for name, member in self._unread.items():
            if member.compress_type not in _METHODS:
                raise ValueError(f"{one_line(name, 80)} is packed by method {member.compress_type}")

    def read(self, name: str) -> bytes:
        """The content of a member, which is taken from the budget.

        Raises:
            RdcError: see :class:`rdc.storage.reading.Budget`.
            KeyError: there is no such member.
        """
        size = self.sizes[name]
        self.budget.take(size, one_line(name, 80))
        content = bytearray(size)
        self.read_into(name, memoryview(content))
        return bytes(content)

    def read_into(self, name: str, target: memoryview) -> None:
        """Fill ``target``, of the member's size, with its content; its checksum is compared."""
        with self._zip.open(name) as opened:
            file = cast(zipfile.ZipExtFile, opened)  # which the stubs call IO[bytes]
            filled = 0
            while filled < len(target) and (count := file.readinto(target[filled : filled + _PIECE])):
                filled += count
            if filled != len(target) or file.read(1):
                raise EOFError(f"{one_line(name, 80)} has another size than the archive's directory says")
        self._unread.pop(name, None)

    def check_rest(self) -> None:
        """Compare the checksums of the members that were not read."""
        for name, member in self._unread.items():
            self.budget.take(member.file_size, one_line(name, 80))
            with self._zip.open(member) as file:
                while file.read(_PIECE):
                    pass
        self._unread = {}


class _DirectoryFile(io.FileIO):
    """A file of which no more than ``bound`` bytes are read at once while the archive's directory is looked for."""

    bound: int | None = _DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if self.bound is None:
            return super().read(size)
        content = super().read(self.bound + 1 if size is None or not 0 <= size <= self.bound else size)
        if len(content) > self.bound:
            raise ValueError(f"its directory has more than {self.bound:,} bytes")
        return content
