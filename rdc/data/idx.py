"""The idx format of MNIST and its kin: a big-endian header, then raw bytes.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

from __future__ import annotations

import math
import struct

import numpy as np

from rdc.errors import DataError

__all__ = ["parse_idx"]

_UINT8 = 0x08


def parse_idx(content: bytes, shape: tuple[int | None, ...], name: str) -> np.ndarray:
    """Parse an idx file of unsigned bytes.

    Args:
        content: the decompressed file.
        shape: the expected shape; None where any size will do.
        name: what to call the file in errors.

    Returns:
        uint8 array of the header's shape (a writable copy).

    Raises:
        DataError: wrong magic number, wrong sizes, or fewer or more bytes than the header says.
    """
    header = 4 + 4 * len(shape)
    expected = _UINT8 << 8 | len(shape)
    magic = struct.unpack(">I", content[:4])[0] if len(content) >= 4 else None
    if magic is not None and magic != expected:
        raise DataError(
            f"{name}: magic number 0x{magic:08x}, expected 0x{expected:08x} (idx, unsigned bytes, {len(shape)} "
            f"dimension{'s' * (len(shape) > 1)}); this is another kind of file"
        )
    if len(content) < header:
        raise DataError(f"{name}: truncated, {len(content)} bytes where the header alone has {header}. Get it again")
    got = struct.unpack(f">{len(shape)}I", content[4:header])
    if any(want is not None and want != size for want, size in zip(shape, got, strict=True)):
        wanted = " x ".join("any" if size is None else f"{size}" for size in shape)
        raise DataError(f"{name}: sizes {' x '.join(map(str, got))}, expected {wanted}; this is another data set")
    if len(content) - header != math.prod(got):
        raise DataError(
            f"{name}: truncated or damaged, the header promises {math.prod(got):,} bytes of data "
            f"({' x '.join(map(str, got))}) and {len(content) - header:,} follow. Get it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(got).copy()
