"""Reading whole data files with a bound on their size, and checking what was read."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from pathlib import Path

from rdc.errors import DataError

__all__ = ["check_digest", "decompress", "digest", "read_content", "search_places"]

_GZIP = b"\x1f\x8b"
_GZIP_OVERHEAD = 1 << 20  # headers and stored blocks of a file that does not compress


def search_places(folder: str, root: str | os.PathLike[str] | None, *extra: Path) -> list[Path]:
    """Where a data set is looked for, in order.

    Args:
        folder: the data set's folder name, e.g. ``"fashion-mnist"``.
        root: a place the user named; then it is the only one.
        extra: further places, e.g. a distribution's folder; they come before the user's cache.
    """
    if root is not None:
        return [Path(root).expanduser()]
    places = []
    if os.environ.get("RDC_DATA"):
        places.append(Path(os.environ["RDC_DATA"]).expanduser() / folder)
    return [*places, *extra, Path("~/.cache/rdc").expanduser() / folder]


def read_content(path: Path, limit: int) -> bytes:
    """The bytes of a file, decompressed when it is gzip (told by its first bytes, not by its name).

    Args:
        path: the file.
        limit: a file with more (decompressed) bytes is refused before they are all in memory.

    Raises:
        DataError: unreadable, truncated or damaged gzip, or longer than ``limit``.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(limit + _GZIP_OVERHEAD)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return decompress(content, path, limit)


def decompress(content: bytes, name: Path | str, limit: int) -> bytes:
    """What is inside ``content`` if it is gzip, else ``content``; ``name`` and errors as in :func:`read_content`."""
    if content.startswith(_GZIP):
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(limit + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{name}: truncated or damaged gzip file ({error}). Delete it and get it again") from error
    if len(content) > limit:
        raise DataError(f"{name}: has more than the {limit:,} bytes expected, so it is another file. Get the right one")
    return content


def digest(content: bytes, algorithm: str) -> str:
    """Hexadecimal digest; ``algorithm`` as hashlib names it."""
    return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()


def check_digest(name: Path | str, content: bytes, algorithm: str, expected: str) -> None:
    """Raise DataError, naming the file, both digests and the way out, unless ``content`` has the expected digest."""
    got = digest(content, algorithm)
    if got != expected:
        raise DataError(
            f"{name}: the content's checksum ({algorithm.upper()}) is",
            f"  {got}, expected",
            f"  {expected}.",
            "The file is damaged or another version: delete it and get it again, or pass verify=False to use it as it is",
        )
