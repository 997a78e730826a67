"""Reading whole data files within bounds, and checking what was read."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from rdc.errors import DataError
from rdc.storage import reading
from rdc.storage.home import cache_folder, expanded

__all__ = [
    "check_digest",
    "check_file_digest",
    "decompress",
    "digest",
    "find_folder",
    "read_content",
    "search_places",
]

_PIECE = 1 << 20
_GZIP = b"\x1f\x8b"
_GZIP_OVERHEAD = 1 << 20  # headers and stored blocks of a file that does not compress


def search_places(folder: str, root: str | os.PathLike[str] | None, *extra: Path) -> list[Path]:
    """Where a data set is looked for, in order.

    Args:
        folder: the data set's folder name, e.g. ``"fashion-mnist"``.
        root: a place the user named; then it is the only one.
        extra: further places, e.g. a distribution's folder; they come before the user's cache.

    Raises:
        DataError: there is no place at all: no ``root``, no ``RDC_DATA``, and a user without a home folder.
    """
    if root is not None:
        return [expanded(root)]
    own, cache = os.environ.get("RDC_DATA"), cache_folder(folder)
    places = [*([expanded(own) / folder] if own else []), *extra, *([cache] if cache else [])]
    if not places:
        raise DataError(
            f"{folder}: no place to look in: RDC_DATA is not set, and this user has no home folder. Set RDC_DATA, or name a folder "
            "with root= (--data-root)"
        )
    return places


def read_content(path: Path, limit: int) -> bytes:
    """The bytes of a file, decompressed when it is gzip (told by its first bytes, not by its name).

    Args:
        path: the file.
        limit: a file with more (decompressed) bytes is refused before they are all in memory. A compressed one may not grow to more
            than ``rdc.storage.reading.EXPANSION`` times its size (or ``FLOOR_BYTES`` if that is more) either.

    Raises:
        DataError: unreadable, no plain file, truncated or damaged gzip, or longer than ``limit``.
    """
    size = reading.regular_file(path, DataError, "a data file")
    with reading.reading(path, DataError, "a data file"), open(path, "rb") as file:
        content = file.read(min(limit + _GZIP_OVERHEAD, size))  # as much memory is taken as is asked for
    budget = max(reading.FLOOR_BYTES, reading.EXPANSION * size)
    return decompress(content, path, min(limit, budget))


def decompress(content: bytes, name: Path | str, limit: int) -> bytes:
    """What is inside ``content`` if it is gzip, else ``content``; ``name`` and errors as in :func:`read_content`."""
    if content.startswith(_GZIP):
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(limit + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{name}: truncated or damaged gzip file ({error}). Delete it and get it again") from error
    if len(content) > limit:
        raise DataError(f"{name}: has more than the {limit:,} bytes expected, so it is another file. Get the right one")
    return content


def digest(content: bytes, algorithm: str) -> str:
    """Hexadecimal digest; ``algorithm`` as hashlib names it."""
    return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()


def check_digest(name: Path | str, content: bytes, algorithm: str, expected: str) -> None:
    """Raise DataError, naming the file, both digests and the way out, unless ``content`` has the expected digest."""
    _compare(name, digest(content, algorithm), algorithm, expected)


def check_file_digest(path: Path, algorithm: str, expected: str) -> None:
    """The same of a whole file, read in pieces."""
    reading.regular_file(path, DataError, "a data file")
    made = hashlib.new(algorithm, usedforsecurity=False)
    with reading.reading(path, DataError, "a data file"), open(path, "rb") as file:
        while piece := file.read(_PIECE):
            made.update(piece)
    _compare(path, made.hexdigest(), algorithm, expected)


def _compare(name: Path | str, got: str, algorithm: str, expected: str) -> None:
    if got != expected:
        raise DataError(
            f"{name}: the content's checksum ({algorithm.upper()}) is",
            f"  {got}, expected",
            f"  {expected}.",
            "The file is damaged or another version: delete it and get it again, or pass verify=False to use it as it is",
        )


def find_folder(title: str, names: Sequence[str], places: Sequence[Path], below: Sequence[str], advice: str) -> Path:
    """The first folder that has all of these files.

    Args:
        title: what is looked for, for errors, such as ``"SVHN, test split"``.
        names: the files (or folders) in it.
        places: where to look, in order.
        below: names of folders in a place that may have them.
        advice: where to get it.

    Raises:
        DataError: there is none; all places are listed.
    """
    for place in places:
        for folder in (place, *(place / name for name in below)):
            if all((folder / name).exists() for name in names):
                return folder
    raise DataError(
        f"{title}: {' and '.join(names)} not found {'together ' if len(names) > 1 else ''}in",
        *(f"  {place}{'' if place.exists() else '  (does not exist)'}" for place in places),
        advice,
        "and name the folder with root= (--data-root), or put it into one of these places",
    )
