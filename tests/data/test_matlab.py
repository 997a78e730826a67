"""The reader of .mat files against SciPy's writer, hostile files, and SVHN on small files of its form."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from rdc.data import load_dataset, svhn
from rdc.data.matlab import read_mat
from rdc.errors import DataError
from tests.bounds import bounded

HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(
    name: bytes = b"X", kind: int = 9, shape: tuple = (2, 3), stored: int = 2, content: bytes = bytes(6), flags: int = 0
) -> bytes:
    return element(
        14,
        element(6, struct.pack("<II", kind | flags, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name)
        + element(stored, content),
    )  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_what_scipy_writes(tmp_path, dtype, compressed):
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(dtype)
    small = np.array([[3], [1]], dtype)  # fits into its tag, or not
    savemat(
        tmp_path / "a.mat", {"text": "abc", "cell": {"a": [1, 2]}, "X": values, "y": small}, do_compression=compressed
    )
    found = read_mat(tmp_path / "a.mat", ("X", "y"))
    assert list(found) == ["X", "y"]
    assert np.array_equal(found["X"], values) and found["X"].dtype == values.dtype
    assert np.array_equal(found["y"], small)


def test_big_endian_and_narrower_storage(tmp_path):
    """MATLAB stores doubles that are small integers as bytes."""
    (tmp_path / "a.mat").write_bytes(HEADER + matrix(kind=6, content=bytes(range(6))))
    assert read_mat(tmp_path / "a.mat", ("X",))["X"].tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    big = struct.pack(">II", 14, 56) + struct.pack(">IIII", 6, 8, 9, 0) + struct.pack(">IIii", 5, 8, 1, 2)
    big += struct.pack(">HHc3x", 1, 1, b"X") + struct.pack(">HH2s2x", 2, 2, b"\x07\x09")
    (tmp_path / "b.mat").write_bytes(HEADER[:124] + b"\x01\x00MI" + big + bytes(64 - len(big)))
    assert read_mat(tmp_path / "b.mat", ("X",))["X"].tolist() == [[7, 9]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no header"),
        (bytes(128), "no header"),
        (HEADER[:124] + b"\x00\x02IM", "MATLAB 7.3"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "MATLAB 7.3"),
        (HEADER[:124] + b"\x00\x07IM", "version 0x0700"),
        (HEADER, "has no X"),
        (HEADER + matrix(b"Z"), "has no X"),
        (HEADER + matrix() * 2, None),  # the first is taken, and nothing after it looked at
        (HEADER + matrix()[:-4], "cut short"),
        (HEADER + matrix(content=bytes(5)), r"5 bytes of type 2 for the sizes \(2, 3\)"),
        (HEADER + matrix(shape=(2, 4)), "6 bytes of type 2"),
        (HEADER + matrix(shape=(-2, -3)), "no array of real numbers"),
        (HEADER + matrix(shape=(6,)), "no array of real numbers"),
        (HEADER + matrix(shape=(1,) * 40), "at most 128"),
        (HEADER + matrix(kind=1), "no array of real numbers"),
        (HEADER + matrix(flags=0x800), "no array of real numbers"),
        (HEADER + matrix(stored=99), "of type 99"),
        (HEADER + matrix(b"X" * 70), "at most 64"),
        (HEADER + struct.pack("<II", 14, 2**32 - 1), "cut short"),
        (HEADER + element(15, b"no zlib!"), "not a readable"),
        (HEADER + element(15, zlib.compress(matrix())[:-9]), "cut short"),
        (HEADER + element(3, b"") * 2000, "more than 1,000 variables"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_files(tmp_path, content, message):
    (tmp_path / "a.mat").write_bytes(content)
    if message is None:
        assert read_mat(tmp_path / "a.mat", ("X",))["X"].shape == (2, 3)
        return
    with bounded(megabytes=20), pytest.raises(DataError, match=message) as caught:
        read_mat(tmp_path / "a.mat", ("X",))
    assert "\n" not in str(caught.value)


def test_files_that_inflate(tmp_path):
    """A gigabyte of zeros in a megabyte: refused before it is unpacked, or passed over if nobody asks for it."""
    head = matrix(shape=(2**15, 2**15), content=b"")[8:-8] + struct.pack("<II", 2, 2**30)
    pieces = zlib.compressobj(9)
    packed = pieces.compress(struct.pack("<II", 14, len(head) + 2**30) + head) + b"".join(
        pieces.compress(bytes(2**24)) for _ in range(16)
    )
    packed += pieces.flush()
    (tmp_path / "a.mat").write_bytes(HEADER + struct.pack("<II", 15, len(packed)) + packed)
    with bounded(megabytes=20), pytest.raises(DataError, match="array X asks for 1,073,741,824 bytes"):
        read_mat(tmp_path / "a.mat", ("X",))
    with bounded(megabytes=20), pytest.raises(DataError, match="has no Y"):
        read_mat(tmp_path / "a.mat", ("Y",))


# ---------------------------------------------------------------------------------------------------------------- SVHN


@pytest.fixture
def digits() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (32, 32, 3, 12), dtype=np.uint8), (np.arange(12) % 10 + 1).astype(np.uint8)[:, None]


def write(path: Path, images: np.ndarray, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"X": images, "y": labels}, do_compression=True)
    monkeypatch.setattr(svhn, "MD5", {"test": hashlib.md5(path.read_bytes()).hexdigest(), "train": "0" * 32})


def test_svhn(tmp_path, digits, monkeypatch):
    images, labels = digits
    write(tmp_path / "svhn" / "test_32x32.mat", images, labels, monkeypatch)
    monkeypatch.setenv("RDC_DATA", str(tmp_path))
    for root in (None, tmp_path, tmp_path / "svhn"):
        data = load_dataset("svhn", root=root)
        assert data.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
        for n, channel, row, column in [(0, 0, 0, 0), (5, 2, 30, 1), (11, 1, 3, 31)]:
            assert data.images[n, channel, row, column] == images[row, column, channel, n]
        assert data.class_names == tuple("0123456789") and data.images.is_contiguous()
    with pytest.raises(DataError, match="SVHN, train split: train_32x32.mat not found in"):
        load_dataset("svhn", "train", root=tmp_path)
    (tmp_path / "svhn" / "train_32x32.mat").write_bytes((tmp_path / "svhn" / "test_32x32.mat").read_bytes())
    with pytest.raises(DataError, match="checksum"):
        load_dataset("svhn", "train", root=tmp_path)
    assert len(load_dataset("svhn", "train", root=tmp_path, verify=False)) == 12


def test_other_arrays_than_svhns(tmp_path, digits, monkeypatch):
    images, labels = digits
    for wrong, message in (
        ((images.transpose(3, 0, 1, 2), labels), r"X must be uint8 \[32, 32, 3, N\]; got uint8 \[12, 32, 32, 3\]"),
        ((images.astype(np.int16), labels), "X must be uint8"),
        ((images, labels[:11]), r"y must be \[12, 1\]"),
        ((images, labels - 1), r"y must be in 1\.\.10"),
        ((images, labels * 0.3), r"y must be in 1\.\.10"),
    ):
        write(tmp_path / "test_32x32.mat", *wrong, monkeypatch)
        with pytest.raises(DataError, match=message):
            load_dataset("svhn", root=tmp_path)
