"""The network's CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: random shapes, every array a block of its own size.

    python -m benchmarks.studies.sanitized --shapes 2000

One program for each instruction set of this machine (tests/ops/sanitized/network_ops.cpp), compiled here; convolutions and gradients of
weights are compared with loops in double on the way. Two minutes for 2,000 shapes and four instruction sets. g++ 10 or clang++ 9 is needed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.starting import start
from rdc.ops import _native

__all__ = ["built", "instruction_sets", "run"]

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"),
}
FLAGS["avx512bf16"] = (*FLAGS["avx512"], "-mavx512bf16")
KERNELS = ("convolution", "convolution_weight", "norm_act")


def instruction_sets() -> list[str]:
    """Those that this machine runs."""
    best = _native.extension().cpu_isa()
    return list(_native.ISAS[: _native.ISAS.index(best) + 1])


def built(isa: str, folder: Path) -> Path:
    """The program for one instruction set.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    program = folder / f"network_ops_{isa}"
    sources = [ROOT / "tests/ops/sanitized/network_ops.cpp", *(ROOT / f"csrc/cpu/{name}.cpp" for name in KERNELS)]
    words = [
        os.environ.get("CXX", "g++"),
        "-std=c++17",
        "-O1",
        "-g",
        "-fopenmp",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    words += [f"-DRDC_ISA={isa}", *FLAGS[isa], f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program)]
    subprocess.run(words, check=True, capture_output=True, text=True)
    return program


def run(program: Path, shapes: int, seed: int) -> str:
    """What the program says: "N shapes", or what was found.

    Args:
        program: of :func:`built`.
        shapes: how many of each kernel.
        seed: of shapes and values.
    """
    done = subprocess.run(
        [program, str(shapes), str(seed)],
        capture_output=True,
        text=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    return done.stdout.strip() if done.returncode == 0 else f"exit status {done.returncode}: {done.stdout}{done.stderr}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=2000, help="of each kernel (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for isa in instruction_sets():
            print(f"{isa:11s} {run(built(isa, Path(folder)), args.shapes, args.seed)}", flush=True)


if __name__ == "__main__":
    start(main)
