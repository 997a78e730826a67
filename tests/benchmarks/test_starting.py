"""Scripts of benchmarks/ say what is wrong with their input in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.starting import start
from rdc.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def _fails(error: BaseException) -> int | str | None:
    def main() -> int | None:
        raise error

    with pytest.raises(SystemExit) as caught:
        start(main)
    return caught.value.code


def test_a_wrong_input_is_one_line_and_status_2(capsys):
    assert _fails(DataError("x.json: no such file; expected a JSON file")) == 2
    assert capsys.readouterr().err == "rdc: error: x.json: no such file; expected a JSON file\n"
    assert _fails(FileNotFoundError(2, "No such file or directory", "weights.npz")) == 2
    assert capsys.readouterr().err == "rdc: error: weights.npz: No such file or directory\n"


def test_a_stop_is_status_130_and_silent(capsys):
    assert _fails(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("status", [None, 0, 1])
def test_a_status_of_its_own_is_kept(status):
    with pytest.raises(SystemExit) as caught:
        start(lambda: status)
    assert caught.value.code == status


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        start(lambda: 1 // 0)
    with pytest.raises(ImportError):  # of rdc itself: no package would help

        def main() -> None:
            raise ImportError("cannot import name", name="rdc.method")

        start(main)


def test_every_script_starts_so():
    others = []
    for file in sorted((ROOT / "benchmarks").rglob("*.py")):
        block = re.search(r'^if __name__ == "__main__":\n((?: {4}.*\n)+)', file.read_text(), re.MULTILINE)
        if block and not block[1].endswith("    start(main)\n"):
            others.append(str(file.relative_to(ROOT)))
    assert others == []


def test_a_missing_file_of_a_real_script(tmp_path):
    command = [sys.executable, "-m", "benchmarks.peers", "--show", str(tmp_path / "none.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"rdc: error: {tmp_path / 'none.json'}: no such file; expected a JSON file\n"
