"""Pickles as data: the same values as the standard library's unpickler, whatever was pickled; nothing that a pickle can say hurts."""

from __future__ import annotations

import pickle
import random
import struct
import sys

import pytest

from rdc.errors import DataError
from rdc.storage.nesting import DEPTH, PARTS, Stub, check_nesting
from rdc.storage.pickle_machine import STEPS, Machine
from rdc.storage.pickles import NumpyMachine, load_plain_dict
from rdc.storage.reading import Budget
from tests.bounds import bounded


def read(content: bytes):
    return NumpyMachine(content, Budget("f", len(content), DataError)).load()


def value(rng: random.Random, depth: int):
    """Any value of plain data."""
    kinds = [
        lambda: rng.randrange(-3, 400),
        lambda: rng.randrange(-(2**70), 2**70),
        lambda: rng.uniform(-1, 1) * 10 ** rng.randrange(-9, 9),
        lambda: rng.choice([None, True, False, float("inf"), 2.0**-1074, "", b""]),
        lambda: "".join(rng.choice("a\n\\'\"é€😀\ud800") for _ in range(rng.randrange(6))),
        lambda: bytes(rng.randrange(256) for _ in range(rng.randrange(300))),
    ]
    inner = [
        lambda: [value(rng, depth - 1) for _ in range(rng.randrange(5))],
        lambda: tuple(value(rng, depth - 1) for _ in range(rng.randrange(6))),
        lambda: {
            rng.choice(["a", b"b", 3, 2.5, None, True, "é", -(2**59)]): value(rng, depth - 1)
            for _ in range(rng.randrange(5))
        },
        lambda: [rng.randrange(9)] * rng.randrange(1200),
        lambda: [value(rng, depth - 1)] * 2,
    ]
    return rng.choice(kinds + inner if depth else kinds)()


@pytest.mark.parametrize("protocol", range(6))
def test_the_same_as_the_standard_library(protocol):
    rng = random.Random(protocol)
    for _ in range(250):
        original = value(rng, 4)
        got = read(pickle.dumps(original, protocol))
        assert repr(got) == repr(original)  # types too


def test_sets_and_bytearrays():
    for original in ({1, b"x"}, frozenset({"a"}), set(), bytearray(b"abc"), [{2}, {3}]):
        assert read(pickle.dumps(original, 5)) == original


def test_one_after_the_other():
    content = pickle.dumps([1], 2) + pickle.dumps({"a": 2}, 4) + b"rest"
    machine = Machine(content)
    assert machine.load() == [1] and machine.load() == {"a": 2} and content[machine.at :] == b"rest"


DEEP = b")" + b"\x85" * 60_000
BOMBS = {
    "tuples as a key": (b"\x80\x02}" + DEEP + b"K\x01s.", "a key that is a tuple"),
    "tuples as a key, SETITEMS": (b"\x80\x02}(" + DEEP + b"K\x01u.", "a key that is a tuple"),
    "tuples as a key, DICT": (b"\x80\x02(" + DEEP + b"K\x01d.", "a key that is a tuple"),
    "tuples in a set": (b"\x80\x04\x8f(" + DEEP + b"\x90.", "a key that is a tuple"),
    "tuples in a frozenset": (b"\x80\x04(" + DEEP + b"\x91.", "a key that is a tuple"),
    "frozensets": (b"\x80\x04" + b"(" * 30_000 + b"\x91" * 30_000 + b".", "a key that is a frozenset"),
    "deep tuples": (b"\x80\x02" + DEEP + b".", "nested more than 200 levels"),
    "deep lists": (b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".", "nested more than 200 levels"),
    "deep dicts": (b"\x80\x02" + b"}K\x01" * 20_000 + b"N" + b"s" * 20_000 + b".", "nested more than 200 levels"),
    "deep, forgotten": (b"\x80\x02" + DEEP + b"0}.", None),
    "doubled tuples": (b"\x80\x02)" + b"2\x86" * 60 + b".", "more than 1,000,000 parts"),
    "contains itself": (b"\x80\x02]q\x00h\x00a.", "contains itself"),
    "contains itself, dict": (b"\x80\x02}q\x00(K\x01]h\x00au.", "contains itself"),
    "bytearray of 3 GiB": (b"\x80\x05\x96" + struct.pack("<Q", 3 << 30) + b".", "3,221,225,472 bytes announced"),
    "bytes of 3 GiB": (b"\x80\x05\x8e" + struct.pack("<Q", 3 << 30) + b".", "bytes announced"),
    "text of 2^63": (b"\x80\x05\x8d" + b"\xff" * 8 + b".", "bytes announced"),
    "old text of -1": (b"T\xff\xff\xff\xff.", "bytes announced"),
    "frame of 2^62": (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.", None),
    "number of 1 GiB": (b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b".", "expected 255 at most"),
    "number of -1 bytes": (b"\x80\x02\x8b\xff\xff\xff\xff.", "expected 255 at most"),
    "number in digits": (b"L" + b"9" * 300_000 + b"L\n.", "300,001 characters"),
    "number in hex": (b"I0x" + b"f" * 300_000 + b"\n.", "characters"),
    "memo index": (b"\x80\x02}r\xff\xff\xff\x7f.", None),
    "memo index in digits": (b"}p" + b"9" * 300_000 + b"\n.", "characters"),
    "keys that collide": (
        b"\x80\x02}("
        + b"".join(b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") + b"N" for k in range(1, 20_000))
        + b"u.",
        "too large",
    ),
    "a name of 1 MB": (b"c" + b"a" * 10**6 + b"\nb\n.", "characters"),
    "marks": (b"(" * 100_000, "EOFError"),
    "protocol 6": (b"\x80\x06}.", "protocol 6"),
    "no line's end": (b"S'abc", "within a line"),
    "a buffer outside": (b"\x80\x05\x97.", "instruction that data does not use"),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_bombs(name):
    content, message = BOMBS[name]
    recursion = sys.getrecursionlimit()
    with bounded():
        if message is None:
            assert load_plain_dict(content, "f") == {}
        else:
            with pytest.raises(DataError, match=message) as caught:
                load_plain_dict(content, "f")
            assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    assert sys.getrecursionlimit() == recursion


def test_instructions_are_counted():
    content = pickle.dumps(list(range(1000)), 2) * 2
    machine = Machine(content, steps=1500)
    machine.load()
    with pytest.raises(pickle.UnpicklingError, match="more than 500,000 instructions"):
        machine.load()
    with bounded(8), pytest.raises(DataError, match="more than 500,000 instructions"):  # the slowest of them
        load_plain_dict(b"\x80\x04(" + b"\x8f\x94" * (STEPS // 2) + b"l.", "f")


def test_copies_are_taken_from_the_budget():
    """One text, turned into bytes again and again."""
    encoded = b"\x80\x02c_codecs\nencode\nq\x000X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x010("
    content = encoded + b"h\x00h\x01U\x06latin1\x86R" * 300 + b"l."
    with bounded(), pytest.raises(DataError, match=r"its bytes asks for 1,000,000 bytes of memory"):
        load_plain_dict(content, "f")


def test_nesting():
    deep = []
    for _ in range(DEPTH - 1):
        deep = [deep]
    check_nesting(deep)
    check_nesting(7)
    with pytest.raises(ValueError, match="nested"):
        check_nesting([deep])
    shared = [deep, [0] * 10]
    with pytest.raises(ValueError, match="levels"):
        check_nesting([shared, [shared]])
    check_nesting([0] * (PARTS - 1))
    with pytest.raises(ValueError, match="parts"):
        check_nesting([0] * PARTS)
    stub = Stub("a", (1,), {})
    check_nesting([stub, stub])
    stub.state["me"] = stub
    with pytest.raises(ValueError, match="contains itself"):
        check_nesting(stub)
