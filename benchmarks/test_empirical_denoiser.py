"""The empirical denoiser's kernel against torch: one class of Fashion-MNIST, 32 test images at 16 draws of one level, one thread.

    pytest --benchmark-only benchmarks/test_empirical_denoiser.py
    python -m benchmarks.test_empirical_denoiser --out benchmarks/results/empirical-denoiser-cpu.json

"matrix" is one softmax over all weights, "blocked" the reference, 2,048 images at a time. Each is checked against float64 before it is
timed: at most three times the error of the matrix (2-norm). The second form lets the contenders take turns and reads the CPU
seconds of the process. Needs all of Fashion-MNIST (docs/data.md).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.measuring import about, alternate, clock, on_one_thread, ratio, summary
from benchmarks.starting import start
from rdc.data import load_dataset
from rdc.errors import DataError
from rdc.ops.empirical_denoiser import empirical_denoiser
from rdc.storage.json_files import write_json

LEVELS = (0.1, 0.8, 1.5, 2.5, 4.0)
IMAGES, DRAWS = 32, 16
CONTENDERS = {"native": "native", "blocked": "reference", "matrix": "matrix"}


@functools.lru_cache(1)
def pictures() -> tuple[Tensor, Tensor]:
    """The 6,000 images of the first class, and test images, [n, 784] about the former's mean."""
    train = load_dataset("fashion-mnist", "train")
    images = train.images[train.labels == 0].flatten(1).float() / 127.5 - 1
    tests = load_dataset("fashion-mnist", "test").images[:IMAGES].flatten(1).float() / 127.5 - 1
    return images - images.mean(0), tests - images.mean(0)


def operands(level: float) -> list[Tensor]:
    images, tests = pictures()
    noise = level * torch.randn(DRAWS, images.shape[1], generator=torch.Generator().manual_seed(0))
    beta = torch.full((IMAGES * DRAWS,), level**-2)
    return [tests @ images.T, noise @ images.T, images, images.square().sum(1) / 2, beta]


def contender(backend: str, given: list[Tensor], backward: bool) -> Callable[[], Tensor]:
    """The mean, or the gradient of its sum of squares."""

    def forward() -> Tensor:
        with torch.no_grad():
            return empirical_denoiser(*given, backend=backend)

    def both() -> Tensor:
        inner = given[0].detach().requires_grad_()
        mean = empirical_denoiser(inner, *given[1:], backend=backend)
        return torch.autograd.grad(mean.square().sum(), inner)[0]

    return both if backward else forward


def checked(level: float, backward: bool) -> dict[str, Callable[[], Tensor]]:
    """The contenders, each found to be as right as the matrix."""
    given = operands(level)
    made = {name: contender(backend, given, backward) for name, backend in CONTENDERS.items()}
    truth = contender("matrix", [tensor.double() for tensor in given], backward)()
    error = {name: float((run() - truth).norm() / truth.norm()) for name, run in made.items()}  # rounding decides ties
    for name, found in error.items():
        assert found <= 3 * error["matrix"] + 1e-6, f"{name} at {level}: {found}, the matrix {error['matrix']}"
    return made


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("level", LEVELS)
def test_forward(benchmark, level, name):
    try:
        run = checked(level, False)[name]
    except DataError:
        pytest.skip("needs all of Fashion-MNIST (docs/data.md)")
    on_one_thread(benchmark, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    what, read = clock(1)
    rows = []
    for level in LEVELS:
        for work, backward in (("forward", False), ("forward and gradient", True)):
            seconds = alternate(checked(level, backward), args.rounds, read)
            row = {"level": level, "work": work, "seconds": {name: summary(s) for name, s in seconds.items()}}
            row["native_gain"] = {name: ratio(seconds[name], seconds["native"]) for name in ("blocked", "matrix")}
            rows.append(row)
            gains = {name: found["ratio"] for name, found in row["native_gain"].items()}
            print(f"s = {level}, {work}: native is {gains} times as fast", flush=True)
    write_json(args.out, {**about(), "clock": what, "images": IMAGES, "draws": DRAWS, "rows": rows})


if __name__ == "__main__":
    start(main)
