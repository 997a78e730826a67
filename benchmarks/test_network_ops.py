"""The CPU kernels of the network against PyTorch, in the shapes of the shipped networks: 3 x 3 convolution, group norm with SiLU.

    pytest --benchmark-only benchmarks/test_network_ops.py
    python -m benchmarks.test_network_ops --out network-ops-cpu.json

One thread, 64 rows, channels_last. Before it is timed, each is checked against float64: it errs at most twice as much as PyTorch's in
float32 (convolution: root mean square). The second form lets the contenders take turns and reads the CPU seconds of the process. "of
the limit": the operations of the direct convolution a second, over those of PyTorch's product of two matrices of 2,048 x 2,048 in the
same type, measured before everything else; minimal filtering needs fewer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import about, alternate, clock, median, on_one_thread, ratio, summary
from benchmarks.starting import start
from rdc.networks.fused import norm_act
from rdc.ops import _native
from rdc.ops.convolution import convolution
from rdc.storage.json_files import write_json

ROWS, SIDE_OF_PRODUCT = 64, 2048
#: inputs, outputs, side: Fashion-MNIST's student and teacher, then CIFAR-10's student, then a network of EDM's size
CONVOLUTIONS = (
    (48, 48, 14), (96, 96, 7), (192, 96, 7), (96, 96, 14), (144, 48, 14), (48, 156, 14), (156, 156, 14),
    (128, 128, 16), (192, 192, 8), (320, 128, 16), (256, 256, 16), (256, 256, 32),
)  # fmt: skip
#: channels, groups, side
NORMS = ((48, 12, 14), (96, 24, 7), (96, 24, 14), (156, 26, 14), (128, 32, 16), (256, 32, 16))

WORK = {"forward": "forward", "gradient": "forward and gradient", "weight": "forward and gradient of the weight"}

Contenders = dict[str, Callable[[], Tensor]]


def drawn(*shape: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def convolutions(inputs: int, outputs: int, side: int, work: str) -> Contenders:
    """Of x, or the gradient of x alone (weights frozen, as in an attack), or of the weight alone (as in training)."""
    rows = ROWS if side * side * inputs < 40_000 else 8
    x, weight, bias = drawn(rows, inputs, side, side), drawn(outputs, inputs, 3, 3) / (3 * inputs**0.5), drawn(outputs)
    upstream = drawn(rows, outputs, side, side)

    def contender(kind: torch.dtype, native: bool) -> Callable[[], Tensor]:
        given, grad, own = x.to(kind), upstream.to(kind), torch.float32 if native else kind
        w, b = weight.to(own).contiguous(memory_format=torch.channels_last), bias.to(own)
        leaf = {"forward": None, "gradient": given, "weight": w}[work]
        if leaf is not None:
            leaf.requires_grad_()

        def run() -> Tensor:
            y = convolution(given, w, b) if native else F.conv2d(given, w, b, padding=1)
            return y if leaf is None else torch.autograd.grad(y, leaf, grad)[0]

        return run

    made = {"native": contender(torch.float32, True), "torch": contender(torch.float32, False)}
    made |= {"native bfloat16": contender(torch.bfloat16, True), "torch bfloat16": contender(torch.bfloat16, False)}
    truth = contender(torch.float64, False)()
    error = {
        name: float((run().double() - truth).square().mean().sqrt() / truth.square().mean().sqrt())
        for name, run in made.items()
    }
    floor = 5e-7 if work == "weight" else 1e-7  # of the transforms, where a sum has few terms
    assert error["native"] <= 2 * error["torch"] + floor and error["native bfloat16"] <= 2 * error["torch bfloat16"], (
        error
    )
    return made


def norms(channels: int, groups: int, side: int, work: str) -> Contenders:
    backward = work == "gradient"
    x, upstream = drawn(ROWS, channels, side, side), drawn(ROWS, channels, side, side).flip(0)
    weight, bias = drawn(channels), drawn(channels).flip(0)

    def contender(kind: torch.dtype, native: bool) -> Callable[[], Tensor]:
        given, grad = x.to(kind).requires_grad_(backward), upstream.to(kind)
        w, b = (weight, bias) if native else (weight.to(kind), bias.to(kind))

        def run() -> Tensor:
            y = norm_act(given, w, b, groups, 1e-6) if native else F.silu(F.group_norm(given, groups, w, b, 1e-6))
            return torch.autograd.grad(y, given, grad)[0] if backward else y

        return run

    made = {"native": contender(torch.float32, True), "torch": contender(torch.float32, False)}
    made |= {"native bfloat16": contender(torch.bfloat16, True), "torch bfloat16": contender(torch.bfloat16, False)}
    truth = contender(torch.float64, False)()
    error = {name: float((run().double() - truth).abs().max() / truth.abs().max()) for name, run in made.items()}
    assert error["native"] <= 2 * error["torch"] + 1e-6 and error["native bfloat16"] <= 2 * error["torch bfloat16"], (
        error
    )
    return made


needs_extension = pytest.mark.skipif(bool(_native.why_not("cpu")), reason=f"native kernels: {_native.why_not('cpu')}")


@needs_extension
@pytest.mark.parametrize("name", ["native", "torch"])
@pytest.mark.parametrize("shape", CONVOLUTIONS[::3])
def test_convolution(benchmark, shape, name):
    on_one_thread(benchmark, convolutions(*shape, "forward")[name])


@needs_extension
@pytest.mark.parametrize("name", ["native", "torch"])
@pytest.mark.parametrize("shape", NORMS[::2])
def test_norm(benchmark, shape, name):
    on_one_thread(benchmark, norms(*shape, "forward")[name])


def limit(kind: torch.dtype, read: Callable[[], float]) -> float:
    """Operations a second of a product of large matrices, the fastest of seven."""
    a, b = (torch.randn(SIDE_OF_PRODUCT, SIDE_OF_PRODUCT).to(kind) for _ in range(2))
    return 2 * SIDE_OF_PRODUCT**3 / min(alternate({"": lambda: a @ b}, 7, read)[""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    what, read = clock(1)
    limits = {"": limit(torch.float32, read), " bfloat16": limit(torch.bfloat16, read)}
    rows = []
    for op, shapes, make in (("convolution", CONVOLUTIONS, convolutions), ("group norm", NORMS, norms)):
        for shape in shapes:
            for work, words in WORK.items():
                if op != "convolution" and work == "weight":
                    continue
                seconds = alternate(make(*shape, work), args.rounds, read)
                row: dict[str, Any] = {"op": op, "shape": shape, "work": words}
                row["seconds"] = {name: summary(s) for name, s in seconds.items()}
                row["gain"] = {
                    kind: ratio(seconds[f"torch{kind}"], seconds[f"native{kind}"]) for kind in ("", " bfloat16")
                }
                if op == "convolution":
                    inputs, outputs, side = shape
                    count = ROWS if side * side * inputs < 40_000 else 8
                    flop = 18 * inputs * outputs * side**2 * count * (1 if work == "forward" else 2)
                    row["of_the_limit"] = {
                        name: round(flop / median(s) / limits[" bfloat16" if "bfloat16" in name else ""], 3)
                        for name, s in seconds.items()
                    }
                rows.append(row)
                gains = {kind or " float32": found["ratio"] for kind, found in row["gain"].items()}
                print(f"{op} {shape}, {row['work']}: native is {gains} times as fast", flush=True)
    write_json(
        args.out,
        {**about(), "clock": what, "rows_of_a_batch": ROWS, "limit_flop_per_second": limits, "rows": rows},
    )


if __name__ == "__main__":
    start(main)
