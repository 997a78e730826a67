"""A command that goes on, or that has nothing left to do, says so; into a log file it writes plain lines."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

import rdc.evaluation.run
from rdc.cli import main
from tests.cli.conftest import ROOT, commands
from tests.evaluation_models import save_tiny

COMPLETE = "already complete, {0} of {0} {1}; nothing is computed again\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("on")
    save_tiny(path)
    return path


@pytest.mark.parametrize(
    ("name", "count", "unit"), [("run", 4, "images"), ("gradients", 1, "models"), ("likelihood", 2, "images")]
)
def test_nothing_left_to_do(folder, name, count, unit, capsys):
    words = commands(folder, "done")[name]
    assert main(words) == 0
    assert "already" not in capsys.readouterr().err
    assert main(words) == 0
    error = capsys.readouterr().err
    assert COMPLETE.format(count, unit) in error and error.count("\n") == 1  # no bar beside it
    assert main([*words, "--quiet"]) == 0 and capsys.readouterr().err == ""


def test_certify_and_train(folder, capsys):
    small = ["--model", str(folder / "tiny"), "--data", str(folder / "blobs.npz"), "--device", "cpu"]
    certify = ["certify", *small, "--n-images", "3", "--n0", "2", "--n", "4", "--noised-levels", "1"]
    certify += ["--out", str(folder / "certify")]
    for _ in range(2):
        assert main(certify) == 0
    error = capsys.readouterr().err
    assert COMPLETE.format(3, "images") in error and error.count("3/3") == 1


def test_an_evaluation_goes_on(folder, tmp_path, capsys, monkeypatch):
    words = ["evaluate", "--model", str(folder / "tiny"), "--data", str(folder / "blobs.npz"), "--n", "12"]
    words += ["--attacks", "none", "--batch", "4", "--device", "cpu", "--out", str(tmp_path / "run")]
    real = rdc.evaluation.run.evaluate_batch

    def stop(*parts, **options):
        if parts[5] == 2:
            raise KeyboardInterrupt
        return real(*parts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(rdc.evaluation.run, "evaluate_batch", stop)
        assert main(words) == 130
    assert "resuming" not in capsys.readouterr().err
    assert main(words) == 0
    error = capsys.readouterr().err
    assert f"rdc: {tmp_path / 'run'}: resuming at 8 of 12 images\n" in error
    assert re.search(r"\nevaluate 100% 12/12 images \[.*clean \d+\.\d %\]\n$", error)


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}


def evaluation(folder, out):
    words = [
        "evaluate",
        "--model",
        str(folder / "tiny"),
        "--data",
        str(folder / "blobs.npz"),
        "--n",
        "8",
        "--steps",
        "3",
    ]
    return [sys.executable, "-m", "rdc", *words, "--attacks", "apgd-ce", "--device", "cpu", "--out", str(out)]


def test_a_log_file_has_whole_lines(folder, tmp_path):
    done = subprocess.run(evaluation(folder, tmp_path / "run"), env=environment(), capture_output=True, timeout=120)
    assert done.returncode == 0
    text = done.stderr.decode()
    assert "\r" not in text and "\x1b" not in text and "|" not in text and text.count("\n") == 2
    assert text.startswith("rdc: about ") and "\nevaluate 100% 8/8 images [" in text


def test_a_terminal_has_bars(folder, tmp_path):
    """The other half of the same thing: with a terminal bars are drawn and wiped."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    command = evaluation(folder, tmp_path / "run")
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=child) as process:
        os.close(child)
        shown = b""
        try:
            while part := os.read(parent, 4096):
                shown += part
        except OSError:  # the other side is closed
            pass
        os.close(parent)
    assert process.returncode == 0
    assert b"\r" in shown and b"%|" in shown and b"apgd-ce: step" in shown
