import json

import pytest

from rdc.errors import DataError
from rdc.storage.sealed import open_line, read_sealed, seal_line, write_sealed
from rdc.storage.structure import choice, flag, integer, mapping, number, optional, record, sequence, text

VALUE = {"a": [1, 2.5, None, True], "text": "\u00e9\ud800", "deep": {"b": -0.0}}


def test_a_file_comes_back_and_layout_does_not_matter(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    assert read_sealed(path, advice="") == (VALUE, True)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items()))))
    assert read_sealed(path, advice="") == (VALUE, True)
    path.write_text(json.dumps(VALUE))
    assert read_sealed(path, advice="") == (VALUE, False)


@pytest.mark.parametrize(
    "change", [{"a": [1, 2.5, None]}, {"more": 1}, {"deep": {"b": 0.0}}, {"digest": None}, {"digest": 7}]
)
def test_a_changed_file_is_refused_with_what_to_do(tmp_path, change):
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="a.json: damaged.*: do this"):
        read_sealed(path, advice="do this")


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, '{"a": NaN}', "\x00"])
def test_what_is_no_such_file_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match="It is damaged: do this") as error:
        read_sealed(tmp_path / "a.json", advice="do this")
    assert "\n" not in str(error.value)


def test_lines():
    line = seal_line(VALUE)
    assert line.endswith(b"\n") and json.loads(line)["a"] == VALUE["a"]
    assert open_line(line[:-1], "line 1") == (VALUE, True)
    assert open_line(json.dumps(VALUE).encode(), "line 1") == (VALUE, False)
    for bit in range(8 * (len(line) - 1)):
        changed = bytearray(line[:-1])
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found, sealed = open_line(bytes(changed), "line 1")
        except DataError as error:
            assert "line 1" in str(error) and "\n" not in str(error)
            continue
        assert not sealed and found != VALUE  # the key "crc" itself: whoever wants a checksum misses it
    for content in (b"", b"[" * 100_000, b"[]", b"\xff", b'{"crc": "00000000"}', b'{"a": 1, "crc": "zzzzzzzz"}'):
        with pytest.raises(DataError):
            open_line(content, "line 1")
    with pytest.raises(ValueError):
        seal_line({"a": float("nan")})


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (integer(0, 3), [0, 3], [-1, 4, True, 1.0, "1", None]),
        (number(0, 1), [0, 1, 0.5], [-0.1, 1.1, float("nan"), float("inf"), True, "1", 10**400]),
        (number(), [-1e300, 0], [float("nan"), float("-inf"), 10**400, -(10**400)]),
        (text(), ["", "x"], [1, None, []]),
        (flag(), [True, False], [0, 1, None]),
        (choice("a", 1), ["a", 1], ["b", True, 1.0]),
        (optional(flag()), [None, True], [0]),
        (sequence(integer(), 1, 2), [[1], [1, 2]], [[], [1, 2, 3], (1,), ["1"], {}]),
        (mapping(flag()), [{}, {"a": True}], [[], {"a": 1}]),
        (record({"a": flag()}, {"b": text()}), [{"a": True}, {"a": True, "b": "x", "c": 1}], [{}, {"a": 1}, {"a": True, "b": 1}, []]),
    ],
)  # fmt: skip
def test_structure(check, good, bad):
    for value in good:
        check(value, "file.part")
    for value in bad:
        with pytest.raises(ValueError, match=r"^file\.part") as error:
            check(value, "file.part")
        assert len(str(error.value)) < 400
