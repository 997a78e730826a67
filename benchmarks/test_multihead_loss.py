"""multihead_loss against eager torch and torch.compile: one thread, each timed only after its result was checked.

    pytest --benchmark-only benchmarks/test_multihead_loss.py --benchmark-json=out.json
    python -m benchmarks.test_multihead_loss --out benchmarks/results/multihead-loss-cpu.json

The second form alternates the candidates, call by call, takes medians of CPU seconds of the process (which a busy neighbour disturbs
less than wall-clock time) and measures peak memory; docs/kernels.md quotes it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.starting import start
from rdc.ops import _native
from rdc.ops.multihead_loss import multihead_loss

#: K, C, c, H = W. "shipped": the head of the shipped networks, where C counts the 2 x 2 pixels of a patch
CASES = {
    "shipped": (10, 4, 160, 14),
    "K10 c64": (10, 3, 64, 32),
    "K10 c128": (10, 3, 128, 32),
    "K100 c64": (100, 3, 64, 32),
    "K100 c128": (100, 3, 128, 32),
    "K1000 c64": (1000, 3, 64, 32),
    "K1000 c128": (1000, 3, 128, 32),
}
IMAGES, LEVELS = 8, 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: what is wanted, and whether only two classes of an image carry gradient (an attack on a margin)
WORK = {"forward": ("", False), "h": ("h", False), "h, two classes": ("h", True), "all gradients": ("all", False)}


def eager(h, weight, bias, target, level_weight):
    """The usual way: the prediction of all classes exists, and autograd keeps it."""
    prediction = F.conv2d(h, weight, bias, padding=1).unflatten(1, (-1, target.shape[1]))
    error = (prediction - target[:, None]).square().sum((2, 3, 4))
    return torch.einsum("ntk,t->nk", error.unflatten(0, (-1, len(level_weight))), level_weight.to(error.dtype))


def native(*x):
    return multihead_loss(*x, backend="native")


def auto(*x):
    """What ``multihead_loss`` chooses by itself: the Gram form for very many classes."""
    return multihead_loss(*x)


def candidates(case: str) -> dict[str, Callable]:
    torch._dynamo.reset()
    own = {"native": native} | ({"auto": auto} if CASES[case][0] == 1000 else {})
    return own | {"eager": eager, "compile": torch.compile(eager, dynamic=False)}


def make(case: str, dtype: str, layout=torch.channels_last) -> list[torch.Tensor]:
    classes, channels, width, side = CASES[case]
    g, rows = torch.Generator().manual_seed(0), IMAGES * LEVELS
    x = [
        torch.randn(rows, width, side, side, generator=g).contiguous(memory_format=layout),
        torch.randn(classes * channels, width, 3, 3, generator=g) * 0.05,
        torch.randn(classes * channels, generator=g),
        torch.randn(rows, channels, side, side, generator=g),
    ]
    return [*(v.to(DTYPES[dtype]) for v in x), torch.rand(LEVELS, generator=g)]


def upstream(case: str, work: str) -> torch.Tensor:
    classes = CASES[case][0]
    if not WORK[work][1]:
        return torch.ones(IMAGES, classes)
    up, n = torch.zeros(IMAGES, classes), torch.arange(IMAGES)
    up[n, n % classes], up[n, (n + 3) % classes] = 1.0, -1.0
    return up


def run(function: Callable, x: list[torch.Tensor], work: str, up: torch.Tensor) -> list[torch.Tensor]:
    """Loss and the gradients wanted."""
    wanted = {"": 0, "h": 1, "all": 5}[WORK[work][0]]
    leaves = [v.detach().requires_grad_(i < wanted) for i, v in enumerate(x)]
    loss = function(*leaves)
    return [loss.detach(), *(torch.autograd.grad(loss, leaves[:wanted], up.to(loss.dtype)) if wanted else ())]


def check(got: list[torch.Tensor], expected: list[torch.Tensor], dtype: str) -> None:
    for a, b in zip(got, expected, strict=True):
        error = (a.float() - b.float()).norm() / b.float().norm()
        assert error <= {"float32": 1e-4, "bfloat16": 5e-2}[dtype], float(error)


# --- pytest-benchmark -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["native", "eager", "compile"])
@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_multihead_loss(benchmark, case, dtype, work, name):
    if name == "native" and _native.why_not("cpu"):
        pytest.skip(f"native kernels: {_native.why_not('cpu')}")
    function, x, up = candidates(case)[name], make(case, dtype), upstream(case, work)
    check(run(function, x, work, up), run(eager, x, work, up), dtype)
    benchmark.group = f"{work}, {case}, {dtype}"
    benchmark.extra_info.update(isa=_native.cpu_isa() if name == "native" else "", torch=torch.__version__)
    benchmark.pedantic(run, args=(function, x, work, up), rounds=5, warmup_rounds=1)


# --- The table ----------------------------------------------------------------------------------------------------------------------


def seconds(case: str, dtype: str, repeats: int) -> list[dict[str, Any]]:
    """Median CPU milliseconds of every candidate for each kind of work, the candidates alternating."""
    functions, x, rows = candidates(case), make(case, dtype), []
    for work in WORK:
        up, times = upstream(case, work), {name: [] for name in functions}
        expected = run(eager, x, work, up)
        for function in functions.values():
            check(run(function, x, work, up), expected, dtype)  # warms up, too
        del expected
        for _ in range(repeats):
            for name, function in functions.items():
                begun = time.process_time()
                run(function, x, work, up)
                times[name].append(time.process_time() - begun)
        median = {name: statistics.median(values) * 1e3 for name, values in times.items()}
        row = {"case": case, "dtype": dtype, "work": work, "ms": {name: round(v, 2) for name, v in median.items()}}
        best = median.get("auto", median["native"])
        row["times_eager"] = round(median["eager"] / best, 2)
        row["times_compile"] = round(median["compile"] / best, 2)
        rows.append(row)
        print(row, flush=True)
    return rows


def peak(case: str, dtype: str, work: str, name: str) -> float:
    """MiB that a call takes beyond its inputs and results, median of nine after one that warmed everything up (Linux only).

    Where the heap finds room differs from call to call.
    """
    torch.set_num_threads(1)
    function, x, up = candidates(case)[name], make(case, dtype), upstream(case, work)
    results = sum(v.numel() * v.element_size() for v in run(function, x, work, up))

    def status(field: str) -> int:
        (line,) = [v for v in Path("/proc/self/status").read_text().splitlines() if v.startswith(field)]
        return int(line.split()[1]) * 1024

    taken = []
    for _ in range(9):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = status("VmRSS")
        run(function, x, work, up)
        taken.append((status("VmHWM") - before - results) / 2**20)
    return statistics.median(taken)


def memory(case: str, dtype: str, work: str) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case, "dtype": dtype, "work": work}
    for name in [name for name in candidates(case) if name != "compile"]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row[name] = round(pool.apply(peak, (case, dtype, work, name)), 1)
    print(row, flush=True)
    return row


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [v.split(":")[1].strip() for v in info.read_text().splitlines() if v.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=7, help="calls of each candidate (3 at K = 1000)")
    parser.add_argument(
        "--memory", nargs="*", default=list(CASES), choices=CASES, help="cases to measure the memory of"
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    times, peaks = [], []
    for case in args.cases:
        for dtype in args.dtypes:
            times += seconds(case, dtype, min(args.repeats, 3) if CASES[case][0] == 1000 else args.repeats)
    for case in args.memory:
        peaks += [memory(case, dtype, work) for dtype in args.dtypes for work in ("h", "all gradients")]
    if args.out:
        from rdc.provenance.run import commit
        from rdc.storage.json_files import write_json

        about = {
            "command": " ".join(["python", *sys.argv]),
            "commit": commit(),
            "processor": processor(),
            "isa": _native.cpu_isa(),
            "torch": torch.__version__,
            "threads": 1,
            "images": IMAGES,
            "levels": LEVELS,
            "clock": "CPU seconds of the process, median, candidates alternating",
        }
        write_json(args.out, {**about, "times": times, "peak_mib_beyond_inputs_and_results": peaks})


if __name__ == "__main__":
    start(main)
