"""Without a package: one line that says which, and how to get it; `rdc info` says what can be said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rdc.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
HIDE = "import sys; sys.modules[{!r}] = None; from rdc.cli import main; {}"
ARGUMENTS = {  # enough to get past the parser
    "classify": ["x.png"],
    "compare": ["a", "b"],
    "bench": ["compare", "a", "b"],
    "verify": ["x.npz"],
    "merge": ["x", "--out", "y"],
    "train": ["--out", "x"],
    "distill": ["--out", "x"],
    "sample": ["x"],
    "export": ["a", "b"],
    "calibrate": ["--out", "x"],
    "predict": ["--onnx", "x.onnx", "y.png"],
    "convert": ["a", "b"],
    "data": ["info", "x"],
}


def without(package, program, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", HIDE.format(package, program)], env=environment, cwd=cwd, capture_output=True, text=True
    )
    assert "Traceback" not in child.stderr
    return child


def test_every_command_without_torch(tmp_path):
    program = (
        f"[print(name, main([name, *{ARGUMENTS!r}.get(name, [])]), file=sys.stderr) for name in {list(COMMANDS)!r}]"
    )
    lines = without("torch", program, tmp_path).stderr.splitlines()
    assert lines[0] == "info 0"
    said = {line.split()[0]: words for words, line in zip(lines[1::2], lines[2::2], strict=True)}
    torchless = {"predict", "bench"}
    for name, words in said.items():
        assert words.startswith("rdc: error: ")
        assert ("torch is not installed: pip install torch" in words) == (name not in torchless), name
        assert ("`rdc predict` classifies without it" in words) == (name not in torchless)
    assert set(said) == set(COMMANDS) - {"info"} and not list(tmp_path.iterdir())


def test_info_without_torch(tmp_path):
    child = without("torch", "sys.exit(main(['info']))", tmp_path)
    assert child.returncode == 0 and child.stderr == ""
    lines = {line.split()[0]: line for line in child.stdout.splitlines()}
    assert list(lines) == ["versions", "extension", "cpu", "missing"]
    assert "rdc 0.1.0" in lines["versions"] and "numpy 2" in lines["versions"] or "numpy 1" in lines["versions"]
    assert "torch is not installed: pip install torch" in lines["missing"] and "rdc predict" in lines["missing"]


@pytest.mark.parametrize(
    ("package", "arguments", "expected"),
    [
        ("onnx", ["export", "fashion-mnist", "x.onnx"], "pip install robust-diffusion-classifier[onnx]"),
        ("PIL", ["classify", "x.png"], "PIL is not installed: pip install pillow"),
        (
            "matplotlib",
            ["evaluate", "--data", "fashion-mnist-sample"],
            "matplotlib is not installed: pip install matplotlib",
        ),
        ("safetensors", ["sample", "fashion-mnist"], "safetensors is not installed: pip install safetensors"),
    ],
)
def test_other_packages(package, arguments, expected, tmp_path):
    child = without(package, f"sys.exit(main({arguments!r}))", tmp_path)
    assert child.returncode == 2 and child.stdout == "" and not list(tmp_path.iterdir())
    assert child.stderr.startswith("rdc: ") and child.stderr.count("\n") == 1 and expected in child.stderr
