"""``rdc audit``: its exit status, its files, and the commands that it prints, which really run."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rdc.audits.report import in_shell
from rdc.cli import main
from rdc.data.npz import save_npz
from tests.audits import offenders as made
from tests.evaluation_models import save_tiny

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "audits" / "offenders.py"


@pytest.fixture
def blobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_npz(made.DATA, tmp_path / "blobs.npz")
    return str(tmp_path / "blobs.npz")


def audit(*words):
    return main(["audit", "--device", "cpu", "--quiet", *words])


def test_a_clean_model_ends_with_0_and_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, data = save_tiny(tmp_path)
    assert audit("--model", model, "--data", data) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"audit of {model} on ") and "0 errors, 0 warnings, 0 notes; 44 rules hold" in text
    kept = json.loads((tmp_path / "audit.json").read_text())
    assert kept["findings"] == [] and len(kept["fine"]) == 44 and kept["settings"]["n"] == 32


def test_an_offender_ends_with_1_and_its_commands_run_in_a_shell(blobs, tmp_path, capsys):
    words = ["--model", f"{FILE}:hidden_dropout", "--data", blobs, "--sanity", "0", "--json", "--out", "found.json"]
    assert audit(*words) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "found.json").read_text())
    findings = {finding["name"]: finding for finding in printed["findings"]}
    assert {"training-mode", "random-output", "global-generator"} <= set(findings)
    command = findings["training-mode"]["command"]
    assert command.startswith('python -c "import torch') and str(FILE) in command
    command = command.replace("python", sys.executable, 1)
    child = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd="/", env={"PYTHONPATH": str(ROOT)}
    )
    assert child.stdout == "True {'Dropout': 1}\n", child.stderr


def test_a_note_alone_ends_with_0(blobs, capsys):
    assert audit("--model", f"{FILE}:softmax", "--data", blobs, "--sanity", "0") == 0
    assert "0 errors, 0 warnings, 1 note" in capsys.readouterr().out


def test_a_model_without_logits_is_a_finding_and_one_that_fails_is_not(blobs, capsys):
    assert audit("--model", f"{FILE}:decisions", "--data", blobs) == 1
    text = capsys.readouterr().out
    assert "ERROR  no-logits" in text and f"rdc evaluate --model {FILE}:decisions --data {blobs} --attacks none" in text
    assert audit("--model", "fashion-mnist-trades", "--data", blobs) == 2
    assert "takes images [1, 28, 28]" in capsys.readouterr().err


def test_a_run_says_which_model_and_data(blobs, capsys):
    words = ["--model", f"{FILE}:smooth", "--data", blobs, "--n", "8", "--steps", "2", "--sanity", "0"]
    assert main(["evaluate", *words, "--attacks", "apgd-ce", "--out", "run", "--quiet", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert audit("--run", "run", "--sanity", "0") == 1
    text = capsys.readouterr().out
    assert text.startswith(f"audit of {FILE}:smooth on blobs") and "not-autoattack" in text and "'run'" in text
    assert audit("--run", "nowhere") == 2
    assert "there is no run.json in nowhere" in capsys.readouterr().err


def test_python_is_quoted_for_a_shell(tmp_path):
    for code in ("print('a' != 1)", "print('$HOME', \"it's\", '\\\\', '`', '!a')"):
        command = in_shell(code).replace("python", sys.executable, 1)
        child = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code)
        assert child.stdout == out.getvalue(), child.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["fashion-mnist", "--n", "16", "--sanity", "2"], ["fashion-mnist-trades"]], ids=" ".join
)
def test_shipped_models_raise_no_warning(tmp_path, monkeypatch, capsys, words):
    """The others: benchmarks/studies/audits.py."""
    monkeypatch.chdir(tmp_path)
    status = audit("--data", "fashion-mnist-sample", "--model", *words)
    assert status == 0, capsys.readouterr().out
