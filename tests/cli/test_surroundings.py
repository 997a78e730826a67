"""Commands in a container: no HOME, a user that nobody knows; folders that cannot be written; full disks."""

import os
import resource
import subprocess
import sys

import pytest

from rdc.cli import main
from tests.cli.conftest import PROGRAM, ROOT, commands, run_all
from tests.cli.test_streams import EXPECTED

NOBODY = """
import os, pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
for name in ("HOME", "USER", "LOGNAME", "USERNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "RDC_DATA", "TMPDIR"):
    os.environ.pop(name, None)
"""


def test_every_command_without_home(place, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.cli.conftest.PROGRAM", NOBODY + PROGRAM)
    wanted = {**commands(place, "run-nobody"), "help": ["--help"]}
    statuses, out, err = run_all(wanted.values(), tmp_path)
    assert b"Traceback" not in err and b"rdc: bug" not in err
    assert dict(zip(wanted, statuses, strict=True)) == EXPECTED, err


TILDES = [
    (["evaluate", "--data", "fashion-mnist", "--data-root", "~/x", "--out", "run"], "~/x"),
    (["evaluate", "--data", "~/blobs.npz", "--out", "run"], "~/blobs.npz"),
    (["evaluate", "--data", "cifar10", "--out", "run"], "no home folder"),
    (["classify", "--model", "~nobody-here/model", "x.png"], "~nobody-here/model"),
    (["train", "--data", "cifar10", "--out", "run"], "no home folder"),
]


def test_a_tilde_without_home(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.cli.conftest.PROGRAM", NOBODY + PROGRAM)
    statuses, out, err = run_all([words for words, _ in TILDES], tmp_path)
    assert statuses == [2] * len(TILDES) and out == b"" and b"Traceback" not in err and b"rdc: bug" not in err
    said = err.decode().split("rdc: error: ")[1:]
    assert all(expected in text for text, (_, expected) in zip(said, TILDES, strict=True)), said


def evaluation(place, out, *more):
    return [*commands(place)["run"][:-2], "--quiet", "--batch", "1", "--out", str(out), *more]


def test_a_folder_that_cannot_be_made(place, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert main(evaluation(place, out)) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"rdc: error: {out}: ") and error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_default_folder_that_cannot_be_made(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("mine")
    assert main(evaluation(place, "unused")[:-2]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rdc: error: runs/tiny-blobs.npz-4-linf-4-255-exact-known: ") and error.count("\n") == 1


def refuse(monkeypatch, number):
    """From write ``number`` on the disk is full."""
    real, left = os.fsync, [number]

    def full(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device", str(file))
        return real(file)

    monkeypatch.setattr(os, "fsync", full)


def test_a_disk_that_fills_up(place, tmp_path, capsys, monkeypatch):
    """What is kept, how to go on; and that it goes on, to the same figures."""
    out, whole = tmp_path / "run\n", tmp_path / "whole"
    with monkeypatch.context() as patch:
        refuse(patch, 4)
        assert main(evaluation(place, out, "--overwrite")) == 2
    first, command = capsys.readouterr().err.splitlines()
    assert "No space left on device. " in first and first.endswith("; once this is mended, run the same command again:")
    assert "of 4 images are finished and kept in " in first and "run\\n" in first
    assert command.startswith("  rdc evaluate --model $'") and "--overwrite" not in command
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    assert main(evaluation(place, out)) == 0 and main(evaluation(place, whole)) == 0
    lines = [
        [line for line in (run / "results.jsonl").read_text().splitlines() if "end_of" not in line]
        for run in (out, whole)
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 4


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from rdc.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("command", ["export", "convert", "sample"])
def test_files_that_may_not_grow(place, tmp_path, command):
    """A real limit of the system: one line, and nothing half-written."""
    words = commands(place)[command]
    target = {"export": 2, "convert": 2, "sample": 3}[command]
    words = [*words[:target], str(tmp_path / "made"), *words[target + 1 :]]
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, "1000", *words, *([] if command == "convert" else ["--quiet"])],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == 2 and child.stderr.count("\n") == 1 and "File too large" in child.stderr, child.stderr
    assert child.stderr.startswith("rdc: error: ") and not list(tmp_path.iterdir())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000
