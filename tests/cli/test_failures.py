"""Which exception is answered by what; and commands in messages, which a shell must read back as they were."""

import os
import shutil
import subprocess

import pytest
import torch

from rdc.cli import main
from rdc.cli.failures import explain, words
from rdc.cli.shell import command_line
from rdc.errors import ConfigError
from tests.cli.conftest import commands


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


SPILLED = "CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has"
CPU_SPILLED = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
ANSWERS = [
    (ConfigError("n: expected\n1"), 2, "rdc: error: n: expected\\n1"),
    (FileNotFoundError(2, "No such file or directory", "a\nb"), 2, "rdc: error: a\\nb: No such file or directory"),
    (OSError(22, "Invalid", os.fsencode("a\udcff"), None, b"c"), 2, "rdc: error: a\\udcff: c: Invalid"),
    (OSError("torch's own\nwords"), 2, "rdc: error: torch's own\\nwords"),
    (MemoryError(), 2, "rdc: error: not enough memory (MemoryError); lower --batch or --memory-mb"),
    (OutOfMemoryError(SPILLED), 2, "rdc: error: not enough memory (CUDA out of memory. Tried to"),
    (RuntimeError(CPU_SPILLED), 2, "rdc: error: not enough memory ([enforce fail at"),
    (ModuleNotFoundError("No module", name="onnx.helper"), 2, "robust-diffusion-classifier[onnx]"),
    (ImportError("libx.so: no\nfile", name="torch"), 2, "rdc: error: torch cannot be imported (libx.so: no\\nfile)"),
    (ImportError("numpy: what it says"), 2, "rdc: error: a package cannot be imported (numpy: what it says)"),
    (
        ImportError("cannot import name 'x'", name="rdc.method.noise"),
        70,
        "rdc: bug: ImportError: cannot import name 'x'",
    ),
    (SystemExit(0), 2, "rdc: error: the code that ran ended the program (SystemExit: 0)"),
    (SystemExit("bye\nbye"), 2, "(SystemExit: bye\\nbye)"),
    (RecursionError("maximum recursion depth exceeded"), 70, "rdc: bug: RecursionError: maximum recursion"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), 70, "rdc: bug: UnicodeDecodeError: 'utf-8' codec"),
    (KeyError("x" * 10**6), 70, "(1,000,002 characters in all)"),
    (TypeError(), 70, "rdc: bug: TypeError: TypeError; please report it, RDC_DEBUG=1 shows the traceback"),
]


@pytest.mark.parametrize(("error", "status", "text"), ANSWERS, ids=lambda value: type(value).__name__)
def test_every_exception_has_its_line(place, monkeypatch, capsys, error, status, text):
    def load(*names, **settings):
        raise error

    monkeypatch.setattr("rdc.models.zoo.load", load)
    assert main(commands(place)["classify"]) == status
    printed = capsys.readouterr()
    line = printed.err.replace(" (rdc/models/choice.py, line ", "\0").split("\0")
    assert text.split("; please")[0] in line[0] and printed.err.count("\n") == 1 and printed.out == ""
    assert len(printed.err) < 2500 and printed.err[:-1].isprintable()
    assert (len(line) == 2) == (status == 70) and ("please report it" in printed.err) == (status == 70)
    monkeypatch.setenv("RDC_DEBUG", "1")
    with pytest.raises(type(error)):
        main(commands(place)["classify"])


def test_explain_without_options_or_traceback():
    assert explain(MemoryError("1 GiB")) == (
        "rdc: error: not enough memory (1 GiB); close other programs or use a smaller file",
        2,
    )
    assert explain(ConfigError("first", "  second\n")) == ("rdc: error: first\n  second\\n", 2)
    assert "line" not in explain(ZeroDivisionError("x"))[0]
    assert words(OSError(13, "Permission denied", "")) == "'': Permission denied"


def test_torch_says_it_as_expected():
    """A real one: no allocator gives 2^60 bytes."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert explain(caught.value)[0].startswith("rdc: error: not enough memory (")


def test_an_error_after_the_interrupt_is_still_an_interrupt(place, monkeypatch, capsys):
    def load(*names, **settings):
        raise KeyboardInterrupt("kept in\nx", "  rdc again")

    monkeypatch.setattr("rdc.models.zoo.load", load)
    assert main(commands(place)["classify"]) == 130
    assert capsys.readouterr().err == "rdc: interrupted. kept in\\nx\n  rdc again\n"


WORDS = [
    "plain",
    "two words",
    "it's",
    "",
    "-x=1",
    "é∞",
    os.fsdecode(b"\xff\xfe'\\7"),
    "a\nb",
    "\x1b[2J1",
    "$HOME `x` !",
    "\u2028",
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_reads_the_command_back():
    line = command_line(WORDS, without=["left out"])
    assert (
        line.isprintable() and line.startswith("rdc plain 'two words' ") and command_line(["a", "b"], ["a"]) == "rdc b"
    )
    program = ["bash", "-c", f"rdc() {{ printf '%s\\0' \"$@\"; }}; {line}"]
    found = subprocess.run(program, capture_output=True, check=True).stdout.split(b"\0")[:-1]
    assert found == [os.fsencode(word) for word in WORDS]
