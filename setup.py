"""Thin: hands RDC_BUILD=auto|cpu|cuda|off to CMake. CMakeLists.txt holds the only list of native sources.

auto (default) builds the CPU kernels, and the CUDA kernels where nvcc works; cuda insists on them; off builds nothing, and
rdc runs on its torch reference. Under auto a failing CUDA build falls back to the CPU alone, and a failing CPU build to none:
the installation goes on, and `rdc info` says so.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cpu", "cuda", "off")
MODE = os.environ.get("RDC_BUILD") or "auto"
if MODE not in MODES:
    raise SystemExit(f"RDC_BUILD must be one of {', '.join(MODES)}, but it is {MODE!r}.")


def missing_tools() -> list[str]:
    """Build requirements beyond pyproject.toml's: cmake and ninja, where the system has none."""
    if MODE == "off":
        return []
    return [
        name
        for name, tools in (("cmake>=3.20", ["cmake"]), ("ninja", ["ninja", "make"]))
        if not any(map(shutil.which, tools))
    ]


def build_folder(mode: str) -> Path:
    """One folder for each (nvcc, CXX, CMAKE_ARGS, RDC_BUILD): a stale cache would otherwise silently stay CPU-only."""
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    key = [
        nvcc,
        os.environ.get("CUDACXX"),
        os.environ.get("CXX"),
        os.environ.get("CMAKE_ARGS"),
        mode,
        sysconfig.get_config_var("EXT_SUFFIX"),
        str(ROOT),
    ]
    return ROOT / "build" / f"native-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"


def pybind11_include() -> str:
    """Folder of pybind11/pybind11.h: the package's, or else (a build without isolation) torch's copy. Headers are all we use."""
    try:
        import pybind11
    except ModuleNotFoundError:
        found = importlib.util.find_spec("torch")  # finds it without importing it
        for place in found.submodule_search_locations if found else ():
            if (Path(place) / "include" / "pybind11" / "pybind11.h").is_file():
                return str(Path(place) / "include")
        raise
    return pybind11.get_include()


class CMakeBuild(build_ext):
    """Runs CMake, puts the module where setuptools wants it, and removes left-overs of other Python tags."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.remove_modules(target)
        attempts = [(MODE, "")] + [("cpu", "not built: the CUDA build failed when rdc was installed")] * (
            MODE == "auto"
        )
        for mode, why in attempts:
            try:
                shutil.copy2(self.run_cmake(target, mode, why), target)
                return
            except (OSError, subprocess.CalledProcessError) as error:
                if MODE != "auto":
                    raise SystemExit(
                        f"rdc: the native build failed ({error}); RDC_BUILD=off installs without it."
                    ) from error
                print(f"rdc: the native build ({mode}) failed: {error}", file=sys.stderr)
        print("rdc: no native build; rdc will run on its torch reference.", file=sys.stderr)

    def run_cmake(self, target: Path, mode: str, why_no_cuda: str) -> Path:
        folder = build_folder(mode + why_no_cuda)
        folder.mkdir(parents=True, exist_ok=True)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        subprocess.run(
            [
                "cmake",
                "-S",
                str(ROOT),
                "-B",
                str(folder),
                *generator,
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DRDC_BUILD={mode}",
                f"-DRDC_WHY_NO_CUDA={why_no_cuda}",
                f"-DRDC_MODULE_NAME={target.name}",
                f"-DRDC_PYTHON_INCLUDE={sysconfig.get_path('include')}",
                f"-DRDC_PYBIND11_INCLUDE={pybind11_include()}",
                *os.environ.get("CMAKE_ARGS", "").split(),
            ],
            check=True,
        )
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(min(os.cpu_count() or 1, 16))
        subprocess.run(["cmake", "--build", str(folder), "--parallel", jobs], check=True)
        return folder / target.name

    def remove_modules(self, target: Path) -> None:
        """A left-over _C.*.so of another tag, or of an earlier build, would shadow the new one."""
        for folder in {target.parent, ROOT / "rdc"} if self.inplace or self.editable_mode else {target.parent}:
            for old in folder.glob("_C.*"):
                if old.suffix in (".so", ".pyd"):
                    old.unlink()


if MODE == "off" and "clean" not in sys.argv:
    for old in (ROOT / "rdc").glob("_C.*.so"):
        old.unlink()

setup(
    ext_modules=[] if MODE == "off" else [Extension("rdc._C", sources=[], optional=MODE == "auto")],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=missing_tools(),
)
