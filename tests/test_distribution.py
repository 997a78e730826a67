"""The sdist holds everything, the wheel from it runs in an environment of its own; the changelog's gate."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT = {".git", "build", "dist", "out", "runs", "site", "node_modules", "wheelhouse"}
IN_SDIST = (
    "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "mkdocs.yml",
    "csrc/bindings.cpp", "docs/design.md", "docs/images/report.png", "examples/triton_server/README.md", "benchmarks/results/speed.json",
    "benchmarks/studies/speed.py", "tests/oracles.py", "tests/test_distribution.py", "rdc/assets/fashion-mnist.safetensors",
    "rdc/assets/cifar10.safetensors",
)  # fmt: skip
MOST_BYTES = 22_000_000  # of the wheel; 25 MB are the limit that we set ourselves
IN_WHEEL = (
    "rdc/assets/cifar10.json",
    "rdc/py.typed",
    "rdc/assets/fashion-mnist.safetensors",
    "rdc/assets/recipes/fashion-mnist.toml",
    "rdc/cli/evaluate.py",
)


def _run(*command, cwd, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(folder, sdist, wheel), built from a copy: a build under RDC_BUILD=off removes the native module of its tree."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("build is not installed (it is in the extra 'test')")
    folder = tmp_path_factory.mktemp("distribution")
    tree = folder / "tree"

    def left(where, names):
        made = {name for name in names if name == "__pycache__" or name.endswith((".so", ".egg-info"))}
        return made | {name for name in names if Path(where) == ROOT and (name in LEFT or name.startswith(".venv"))}

    shutil.copytree(ROOT, tree, ignore=left)
    build = (sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", folder)
    _run(*build, "--sdist", tree, cwd=folder, RDC_BUILD="off")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    _run(*build, "--wheel", source, cwd=folder, RDC_BUILD="off")
    (wheel,) = folder.glob("*.whl")
    return folder, sdist, wheel


@pytest.mark.slow
def test_the_sdist_and_the_wheel_are_complete(built):
    _, sdist, wheel = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in IN_SDIST if name not in names]
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in IN_WHEEL if name not in packed]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "rdc").rglob("*.py")}
    assert modules <= packed and modules <= names
    assert not [name for name in packed if name.startswith(("tests/", "benchmarks/", "docs/"))]
    assert "rdc/assets/cifar10.safetensors" not in packed and wheel.stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_the_wheel_runs_in_an_environment_of_its_own(built):
    """rdc comes from the wheel; what it needs is lent by this environment, so that nothing is downloaded."""
    folder, _, wheel = built
    home = folder / "environment"
    _run(sys.executable, "-m", "venv", "--without-pip", home, cwd=folder)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    lent = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "lent.pth").write_text("\n".join(lent) + "\n")  # .pth files in there are not read: no editable rdc
    _run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--no-compile",
        wheel,
        cwd=folder,
    )
    where = _run(python, "-c", "import rdc; print(rdc.__file__)", cwd=folder).strip()
    assert Path(where).is_relative_to(site)
    assert "torch" in _run(home / "bin" / "rdc", "info", cwd=folder)
    words = "evaluate --model fashion-mnist --n 4 --steps 2 --attacks apgd-ce --threads 1 --quiet --out run".split()
    _run(home / "bin" / "rdc", *words, "--data", "fashion-mnist-sample", cwd=folder)
    assert (folder / "run" / "report.json").is_file()
    _cifar10_is_asked_for_once(home / "bin" / "rdc", folder)


def _cifar10_is_asked_for_once(rdc, folder):
    """The wheel leaves one model's weights out: one line says where they belong, and with RDC_ASSETS they are found."""
    words = [rdc, "export", "cifar10", "cifar10.onnx", "--no-check", "--quiet"]
    if importlib.util.find_spec("onnx") is None:
        words = [rdc, "sample", "cifar10", "--per-class", "1", "--steps", "1", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RDC_ASSETS")}
    environment["HOME"] = str(folder)
    done = subprocess.run([*map(str, words)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "17 MB) are not in the wheel" in done.stderr and done.stderr.count("\n") == 1
    _run(*words, cwd=folder, RDC_ASSETS=str(ROOT / "rdc" / "assets"))


def test_the_version_has_its_section():
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", sections[1])


@pytest.mark.parametrize(
    ("files", "status"),
    [(("rdc/a.py",), 1), (("csrc/a.h",), 1), (("rdc/a.py", "CHANGELOG.md"), 0), (("docs/a.md", "tests/rdc/a.py"), 0)],
)
def test_code_that_changes_without_an_entry_is_refused(tmp_path, files, status):
    git = (
        "git",
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "core.hooksPath=/dev/null",
    )
    _run(*git, "init", "-q", "-b", "base", cwd=tmp_path)
    _run(*git, "commit", "-q", "--allow-empty", "-m", "first", cwd=tmp_path)
    _run(*git, "switch", "-q", "-c", "change", cwd=tmp_path)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("new\n")
    _run(*git, "add", "-A", cwd=tmp_path)
    _run(*git, "commit", "-q", "-m", "second", cwd=tmp_path)
    done = subprocess.run([ROOT / ".ci/changelog", "base"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert (files[0] in done.stderr) is bool(status)
