import os
import pickle

import pytest

from rdc.errors import CheckpointError, DataError, RdcError, one_line
from rdc.storage.json_files import parse_json, read_json
from rdc.storage.reading import Budget, read_content, reading


def test_a_budget_is_the_floor_or_a_multiple_of_the_file_whichever_is_more():
    assert Budget("a", 10, DataError, floor=100, expansion=16).total == 160
    budget = Budget("a", 1, DataError, floor=100, expansion=16)
    budget.take(60, "x")
    with pytest.raises(
        DataError, match=r"a: array y asks for 41 bytes of memory; a file of 1 bytes may take 100, of which 40"
    ):
        budget.take(41, "array y")
    budget.take(40, "y")


@pytest.mark.parametrize(
    "problem",
    [
        KeyError("k"),
        RecursionError(),
        MemoryError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        OSError("gzip"),
    ],
)
def test_the_outer_edge_turns_whatever_happens_into_one_line(problem):
    with pytest.raises(CheckpointError) as caught, reading("name\nof file", CheckpointError, "a cat"):
        raise problem
    assert str(caught.value).startswith("name\\nof file: ") and "a cat" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_rdc_and_interrupts_pass_the_edge():
    with pytest.raises(DataError, match="^mine$"), reading("a", CheckpointError, "a cat"):
        raise DataError("mine")
    with pytest.raises(KeyboardInterrupt), reading("a", CheckpointError, "a cat"):
        raise KeyboardInterrupt


def test_messages_cannot_add_lines_fill_the_screen_or_control_a_terminal():
    text = str(DataError("a\nb\x1b[2J\u202e\ud800" + "c" * 10**6, "second\rline"))
    first, second = text.split("\n")
    assert first.startswith("a\\nb\\x1b[2J\\u202e\\ud800ccc") and len(first) < 3000 and "1,000,0" in first
    assert second == "second\\rline"
    assert one_line("Größe ∞ 猫") == "Größe ∞ 猫"


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(DataError("a\nb", "c")))
    assert type(error) is DataError and str(error) == "a\\nb\nc"
    assert str(RdcError()) == ""


def test_only_plain_files_are_read(tmp_path):
    for path, words in ((tmp_path, "is a folder"), ("/dev/zero", "device or pipe"), (tmp_path / "no", "no such file")):
        with pytest.raises(DataError, match=words):
            read_content(path, DataError, "a cat")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="device or pipe"):
        read_content(tmp_path / "pipe", DataError, "a cat")
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    with pytest.raises(DataError, match="Git LFS pointer.*git lfs pull"):
        read_content(tmp_path / "pointer", DataError, "a cat")
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(DataError, match="5 bytes; expected a cat of at most 4 bytes"):
        read_content(tmp_path / "large", DataError, "a cat", 4)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_any_unicode_encoding(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_bytes('{"ü": [1, 2.5]}'.encode(encoding))
    assert read_json(path, kind=dict) == {"ü": [1, 2.5]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[1e999]", "beyond the range"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        (b'"\xed\xa0\x80"', "not JSON"),
        (b"", "not JSON"),
        (b"[" + b"1" * 5000 + b"]", "not JSON"),
        (b"[]", "expected an object in this JSON; got a list"),
    ],
)
def test_json_that_is_refused_in_one_line(content, words):
    with pytest.raises(DataError, match=words) as caught:
        parse_json(content, "a.json", kind=dict)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
