"""Whatever stdout and stderr are, commands do their work, say what they have to say and give the right exit status."""

import io
import json
import os
import subprocess
import sys

import pytest

from rdc.cli import main
from rdc.cli.streams import standard_streams
from tests.cli.conftest import ROOT, commands, run_all

EXPECTED = {name: 0 for name in commands(ROOT)} | {"classify": 1, "predict": 1}
QUICK = ("info", "run", "markdown", "compare", "classify", "predict", "bench", "help")
LETTER = {"utf-8": b"caf\xc3\xa9", "latin-1": b"caf\xe9", "cp1252": b"caf\xe9", "ascii": b"caf\\xe9"}


def expect_words(out, err, encoding):
    """The names of files hold a letter beyond ASCII, a byte that is no UTF-8 and a line break."""
    assert b"Traceback" not in err and b"rdc: bug" not in err
    budget = "l\u221e 4/255".encode() if encoding == "utf-8" else b"linf 4/255"
    assert b"images 0 to 3 of the test split" in out and b"robust to all" in out
    assert out.count(budget) == 2  # in the table and in markdown
    assert b"\xff" not in out + err and b"-\\udcff\\n/" in out and b"-\\udcff\\n/broken.png: " in err
    assert LETTER.get(encoding, b"caf\\udcc3\\udca9") in out


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "latin-1", "ascii"])
def test_poor_encodings(place, monkeypatch, encoding):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, "strict", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    statuses = {name: main(commands(place)[name]) for name in QUICK}
    out, err = (stream.buffer.getvalue() for stream in streams)
    assert statuses == {name: EXPECTED[name] for name in QUICK}, err
    expect_words(out, err, encoding)
    assert [stream.errors for stream in streams] == ["strict", "strict"]  # as before


def test_every_command_as_a_process_of_the_c_locale(place, tmp_path):
    wanted = commands(place, "run-C")  # another folder: in this locale its name is another text
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    statuses, out, err = run_all(wanted.values(), tmp_path, **environment)
    assert dict(zip(wanted, statuses, strict=True)) == EXPECTED, err.decode("latin-1")
    expect_words(out, err, "C")


def test_every_command_without_streams(place, tmp_path):
    wanted = commands(place, "run-closed")
    statuses, out, err = run_all(wanted.values(), tmp_path, redirect=">&- 2>&-")
    assert dict(zip(wanted, statuses, strict=True)) == EXPECTED and out == err == b""
    assert (place / "run-closed" / "report.html").stat().st_size > 1000
    weights = (place / "tiny.safetensors").read_bytes()  # nothing was printed into a file that had got number 1 or 2
    assert weights[8:9] == b"{" and b"rdc" not in weights[-200:]


class Closed(io.StringIO):
    def __init__(self):
        super().__init__()
        self.close()


@pytest.mark.parametrize("make", [lambda: None, Closed])
def test_missing_streams(place, monkeypatch, make):
    before = make(), make()
    monkeypatch.setattr(sys, "stdout", before[0])
    monkeypatch.setattr(sys, "stderr", before[1])
    statuses = {name: main(commands(place)[name]) for name in QUICK}
    mistakes = [main(["evaluate", "--nn"]), main(["evaluate", "--data", "nowhere"])]
    after = sys.stdout, sys.stderr
    monkeypatch.undo()
    assert statuses == {name: EXPECTED[name] for name in QUICK} and mistakes == [2, 2]
    assert after[0] is before[0] and after[1] is before[1]


def test_errors_do_not_mix_with_results_where_stderr_is_missing(place, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    status, printed = main([*commands(place)["classify"], "--json"]), sys.stdout.getvalue()
    monkeypatch.undo()
    assert status == 1 and ["error" in answer for answer in json.loads(printed)] == [False, True, True]


def test_streams_of_other_classes():
    class Odd:
        encoding = "ascii"

        def __init__(self):
            self.text = ""

        def write(self, text):
            text.encode("ascii")
            self.text += text
            return len(text)

    before, odd = sys.stdout, Odd()
    sys.stdout = odd
    try:
        with standard_streams():
            print("l\u221e \u2013 \xe9 \udcff", end="")
            assert sys.stdout.encoding == "ascii"
        assert sys.stdout is odd and odd.text == "linf - \\xe9 \\udcff"
    finally:
        sys.stdout = before


def rdc(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "rdc", *arguments], env=environment, stderr=subprocess.PIPE, **options
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_output_to_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        child = rdc("--version", stdout=full)
        error = child.communicate(timeout=100)[1]
    assert child.returncode == 2 and error == b"rdc: error: standard output: No space left on device\n"


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "--help"]])
def test_a_reader_that_leaves_is_no_error(arguments):
    child = rdc(*arguments, stdout=subprocess.PIPE)
    child.stdout.close()  # before anything is printed
    error = child.stderr.read()
    assert child.wait(timeout=100) == 1 and error == b""
