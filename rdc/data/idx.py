"""The idx format of MNIST and its kin: big-endian header, then raw bytes; plain or gzip-compressed.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np

from rdc.errors import DataError

__all__ = ["parse_idx", "read_content"]

_GZIP = b"\x1f\x8b"
_UINT8 = 0x08


def read_content(path: Path, limit: int) -> bytes:
    """The bytes of a file, decompressed when it is gzip (told by its first bytes, not its name).

    Args:
        path: the file.
        limit: more decompressed bytes than this are refused before they are read into memory.

    Raises:
        DataError: unreadable, truncated or damaged gzip, or longer than ``limit``.
    """
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            source = gzip.GzipFile(fileobj=raw) if packed else raw
            content = source.read(limit + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged gzip file ({error}). Get it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > limit:
        raise DataError(f"{path}: holds more than the {limit:,} bytes expected; this is another file. Get it again")
    return content


def check_digest(path: Path | str, content: bytes, algorithm: str, expected: str) -> None:
    """Raise DataError unless the digest of ``content`` is ``expected``; ``path`` is only named in the message."""
    got = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if got != expected:
        raise DataError(
            f"{path}: {algorithm.upper()} of the content is {got}, expected {expected}. The file is damaged or another "
            "version: get it again, or pass verify=False if it is what you mean to use"
        )


def parse_idx(content: bytes, shape: tuple[int | None, ...], name: str) -> np.ndarray:
    """Parse idx bytes of unsigned bytes.

    Args:
        content: the decompressed file.
        shape: the expected shape, None where any size will do.
        name: what to call it in errors.

    Returns:
        uint8 array of the header's shape.

    Raises:
        DataError: wrong magic number, wrong sizes, or fewer or more bytes than the header says.
    """
    header = 4 + 4 * len(shape)
    if len(content) < header:
        raise DataError(f"{name}: {len(content)} bytes are too few for an idx header of {header}; the file is truncated")
    magic = struct.unpack(">I", content[:4])[0]
    if magic != (_UINT8 << 8 | len(shape)):
        raise DataError(
            f"{name}: not an idx file of {len(shape)}-dimensional unsigned bytes: magic number "
            f"0x{magic:08x}, expected 0x{_UINT8 << 8 | len(shape):08x}"
        )
    got = struct.unpack(f">{len(shape)}I", content[4:header])
    if any(want is not None and want != size for want, size in zip(shape, got, strict=True)):
        wanted = [size if size is not None else "any" for size in shape]
        raise DataError(f"{name}: holds sizes {list(got)}, expected {wanted}; this is another file")
    count = int(np.prod([int(size) for size in got], dtype=object))
    if len(content) - header != count:
        raise DataError(
            f"{name}: header promises {count:,} bytes of data ({' x '.join(map(str, got))}), the file has "
            f"{len(content) - header:,}; it is truncated or damaged"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(got).copy()
