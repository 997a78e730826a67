"""The idx parser, on bytes written here."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from rdc.data.idx import parse_idx
from rdc.errors import DataError


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("shape", [(2, 3, 4), (None, 3, 4), (None, None, None)])
def test_reads_what_was_written(shape):
    got = parse_idx(idx(ARRAY), shape, "f")
    assert got.dtype == np.uint8
    assert np.array_equal(got, ARRAY)
    got[0] = 0  # a copy, writable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated, 0 bytes where the header alone has 16"),
        (idx(ARRAY)[:10], "truncated, 10 bytes"),
        (idx(ARRAY)[:-1], r"promises 24 bytes of data \(2 x 3 x 4\) and 23 follow"),
        (idx(ARRAY) + b"x", "and 25 follow"),
        (idx(ARRAY, magic=0x0D03), "magic number 0x00000d03, expected 0x00000803"),
        (idx(ARRAY.reshape(6, 4)), "magic number 0x00000802, expected 0x00000803"),
        (b"<html>not found</html>", "magic number 0x3c68746d"),
        (idx(ARRAY.reshape(2, 4, 3)), "sizes 2 x 4 x 3, expected any x 3 x 4"),
        (struct.pack(">4I", 0x0803, 2**32 - 1, 3, 4) + bytes(24), "promises 51,539,607,540 bytes"),
    ],
)
def test_refuses_other_files(content, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_idx(content, (None, 3, 4), "some/file")
    assert str(caught.value).startswith("some/file: ")
