"""The distribution is called robust-diffusion-classifier: ``rdc`` on PyPI is somebody else's package."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OTHERS = "rdc" + "["  # with an extra in brackets pip would fetch the stranger's package
ENDS = r"[`\"'#;&|(),:]"  # of what is installed
TEXT = {".py", ".md", ".toml", ".txt", ".cff", ".in", ".html", ".json", ".yaml", ".yml", ""}


def _files():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: the list of files is git's")
    return [ROOT / name for name in listed.split("\0") if name and Path(name).suffix in TEXT]


def test_nothing_tells_a_user_to_install_somebody_elses_package():
    wrong = []
    for path in _files():
        if not path.is_file() or path.stat().st_size > 2_000_000:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            named = "rdc" in (
                word for part in line.split("pip install")[1:] for word in re.split(ENDS, part)[0].split()
            )
            if OTHERS in line or named:
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not wrong


def test_the_metadata_carry_the_name_and_the_extras():
    found = importlib.metadata.metadata("robust-diffusion-classifier")
    assert found["Name"] == "robust-diffusion-classifier"
    assert {"onnx", "gpu", "numba", "test"} <= set(found.get_all("Provides-Extra"))
    scripts = importlib.metadata.entry_points(group="console_scripts", name="rdc")
    assert [script.value for script in scripts] == ["rdc.cli:main"]
