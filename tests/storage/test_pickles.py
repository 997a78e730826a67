"""The restricted pickle reader: reads what NumPy and Python write, runs nothing."""

from __future__ import annotations

import copyreg
import pickle
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from rdc.errors import DataError
from rdc.storage.pickles import load_plain_dict


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes that Python 2's cPickle (protocol 2) writes for a CIFAR-10 batch of uint8 data [n, 3072]."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)

    pixels = data.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85" + text(b"b") + b"\x87Rq\x04"
        b"(K\x01" + integer(data.shape[0]) + integer(data.shape[1]) + b"\x86"
        b"cnumpy\ndtype\nq\x05" + text(b"u1") + b"K\x00K\x01\x87Rq\x06"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    )
    return (
        b"\x80\x02}q\x01("
        + (text(b"data") + array)
        + (text(b"labels") + b"](" + b"".join(integer(label) for label in labels) + b"e")
        + (text(b"batch_label") + text(b"testing batch 1 of 1"))
        + (text(b"filenames") + b"](" + b"".join(text(b"domestic_cat_s_%06d.png" % i) for i in labels) + b"e")
        + b"u."
    )


DATA = np.arange(3 * 3072, dtype=np.int64).astype(np.uint8).reshape(3, 3072)


def test_python_2_pickle():
    content = python2_batch(DATA, [3, 8, 9])
    control = pickle.loads(content, encoding="latin1")  # the bytes above are what NumPy and pickle mean by them
    assert np.array_equal(control["data"], DATA)
    got = load_plain_dict(content, "f")
    assert got["data"].dtype == np.uint8
    assert np.array_equal(got["data"], DATA)
    assert got["labels"] == control["labels"] == [3, 8, 9]
    assert got["batch_label"] == b"testing batch 1 of 1"
    assert got["filenames"][0] == b"domestic_cat_s_000003.png"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        DATA,
        np.asfortranarray(DATA),
        np.array([1, -2, 300], dtype=">i4"),
        np.array([0.5, np.nan]),
        np.array([[True], [False]]),
        np.zeros((0, 5), dtype=np.uint16),
        np.array(7),
    ],
    ids=["uint8", "fortran", "big-endian", "float64", "bool", "empty", "scalar"],
)
def test_python_3_pickles_of_every_protocol(protocol, array):
    value = {"data": array, "labels": [1, 2], "name": "n", b"bytes": b"\x00\xff", "pair": (1.5, None)}
    got = load_plain_dict(pickle.dumps(value, protocol), "f")
    assert got["data"].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    assert np.array_equal(got["data"], array, equal_nan=array.dtype.kind == "f")
    assert got["labels"] == [1, 2]
    assert (got["name"], got["bytes"], got["pair"]) == ("n", b"\x00\xff", (1.5, None))


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_old_and_new_module_paths_of_numpy(module):
    content = python2_batch(DATA, [1, 2, 3]).replace(b"numpy.core.multiarray", module)
    assert np.array_equal(load_plain_dict(content, "f")["data"], DATA)


class Runs:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("way", ["function", "eval", "system", "constructor"])
def test_code_is_not_run(tmp_path, protocol, way):
    import os

    target = tmp_path / "ran"
    harmful = {
        "function": Runs(touch, str(target)),
        "eval": Runs(eval, f"open({str(target)!r}, 'w').close()"),
        "system": Runs(os.system, f"touch {target}"),
        "constructor": Runs(open, str(target), "w"),
    }[way]
    content = pickle.dumps({"labels": [1], "data": harmful}, protocol)
    with pytest.raises(DataError, match=r"asks for .* refused and nothing in it was run") as caught:
        load_plain_dict(content, "some/file")
    assert str(caught.value).startswith("some/file: ")
    assert not target.exists()
    pickle.loads(content)  # the same bytes do run for the ordinary reader: this test can fail
    assert target.exists()


ARRAY_NAME = b"cnumpy.core.multiarray\n_reconstruct\n"
DTYPE_NAME = b"cnumpy\ndtype\n"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"(S'true'\nios\nsystem\n.", "asks for os.system"),  # INST
        (b"(cos\nsystem\nS'true'\no.", "asks for os.system"),  # OBJ
        (b"Vnumpy.core.multiarray\nV_reconstruct.__globals__\n\x93.", "asks for numpy.core.multiarray._reconstruct._"),
        (b"cnumpy\nload\n.", "asks for numpy.load"),
        (b"cbuiltins\ngetattr\n.", "asks for builtins.getattr"),
        (b"Pname\n.", "asks for the external object"),  # PERSID
        (b"\x82\x01.", "asks for the registered object 1"),  # EXT1
        (ARRAY_NAME + b"}S'_build'\nK\x01sb.", "state given to a name"),  # BUILD on a permitted name
        (ARRAY_NAME + b")\x81.", "not a readable pickle"),  # NEWOBJ on a permitted name
        (b"cnumpy\nndarray\n)R.", "ndarray called"),
        (DTYPE_NAME + b"(S'O8'\ntR.", "dtype 'O8'"),
        (DTYPE_NAME + b"(S'V8'\ntR.", "dtype 'V8'"),
        (DTYPE_NAME + b"(S'u1'\ntR(K\x03S'|'\nNS'ab'\nNK\x08K\x01K\x3ftb.", "structured dtype"),
        (DTYPE_NAME + b"(S'u1'\ntR(K\x03S'!'\nNNNK\x08K\x01K\x3ftb.", "byte order '!'"),
        (ARRAY_NAME + b")R(K\x01(K\x02t" + DTYPE_NAME + b"(S'u1'\ntRI00\nS'abc'\ntb.", r"shape \(2,\) with 3 bytes"),
        (ARRAY_NAME + b")R(K\x01(I-3\nt" + DTYPE_NAME + b"(S'u1'\ntRI00\nS'abc'\ntb.", r"array shape \(-3,\)"),
        (ARRAY_NAME + b")R(K\x01(K\x03tS'u1'\nI00\nS'abc'\ntb.", "array state"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "bytes encoded as 'rot13'"),
        (b"](K\x01e.", "holds a list, expected a dict"),
        (b"", "EOFError"),
        (b"\x80\x02}q\x01(U\x04data", "not a readable pickle"),
        (b"\xff\xd8\xff\xe0 a JPEG", "not a readable pickle"),
    ],
)
def test_other_tricks_and_damage(program, message):
    with pytest.raises(DataError, match=message):
        load_plain_dict(program, "f")


def test_an_extension_registered_by_somebody_else_is_not_reached(monkeypatch):
    copyreg.add_extension("builtins", "print", 77)
    try:
        with pytest.raises(DataError, match="registered object 77"):
            load_plain_dict(b"\x80\x02\x82\x4d.", "f")
    finally:
        copyreg.remove_extension("builtins", "print", 77)


def test_a_huge_memo_index_costs_no_memory():
    got = load_plain_dict(b"\x80\x02}r\xff\xff\xff\xffU\x01aK\x01s.", "f")
    assert got == {"a": 1}


def test_random_damage_gives_a_dict_or_a_data_error():
    original = python2_batch(DATA[:1, :6], [1])
    rng = random.Random(0)
    refused = 0
    for _ in range(1500):
        content = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            assert isinstance(load_plain_dict(bytes(content[: rng.randint(1, len(content) * 4)]), "f"), dict)
        except DataError:
            refused += 1
    assert 300 < refused < 1500
