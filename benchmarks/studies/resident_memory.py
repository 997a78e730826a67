"""Resident memory of one call against its budget: growth of a process with the model loaded, over its first real call.

    python -m benchmarks.studies.resident_memory --threads 1 --out new.json                                        # an hour
    python -m benchmarks.studies.resident_memory --join old.json new.json --out benchmarks/results/resident-memory.json
    python -m benchmarks.studies.resident_memory --models fashion-mnist --work gradient --batches 64 --budgets 64 256 --threads 1

Each case runs in a process of its own (Linux). Counted: the growth of the high-water mark of resident memory (VmHWM, set back
just before) over what was resident with the model loaded and the images drawn. "first" is the first call on the process, with all
that is done once (measuring what an image needs, code that is read from disk, oneDNN's kernels); "code" is the part of it that is
mapped from files (RssFile); "again", if asked for, is the same call made a second time, counted in the same way. "tensors" is the
peak that ``rdc.execution.memory.peak_bytes`` counts in a last call. Where the system is short of memory it takes code pages
back and the growth looks smaller than it is: "code" is then below 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.starting import start

WORK = ("prediction", "gradient", "lm")


def status(name: str) -> float:
    """A line of /proc/self/status (Linux), MiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(f"{name}:"))


def growth(call: Any) -> dict[str, float]:
    """MiB by which ``call()`` raised the high-water mark over what was resident, what stayed, and CPU seconds."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts anew from what is resident now
    before, code, begun = status("VmRSS"), status("RssFile"), time.process_time()
    call()
    after = {"peak": status("VmHWM") - before, "stays": status("VmRSS") - before, "code": status("RssFile") - code}
    return {**{key: round(value, 1) for key, value in after.items()}, "seconds": round(time.process_time() - begun, 2)}


def measure(model: str, work: str, batch: int, budget: float, threads: int, calls: list[str]) -> dict[str, Any]:
    """One case, in this process."""
    import torch

    import rdc
    from rdc.execution.memory import peak_bytes

    torch.set_num_threads(threads)
    lm = {"lm": "paper-v2"} if work == "lm" else {}
    classifier = rdc.load(model, memory_budget_mb=budget, **lm)
    pixels = torch.rand(batch, *classifier.image_shape, generator=torch.Generator().manual_seed(0))

    def call() -> None:
        if work == "prediction":
            with torch.no_grad():
                classifier(pixels)
            return
        leaf = pixels.clone().requires_grad_()
        torch.autograd.grad(classifier(leaf)[:, 0].sum(), leaf)

    first = growth(call)
    found: dict[str, Any] = {"of_budget": round(first["peak"] / budget, 3), "first": first}
    if "again" in calls:
        found["again"] = growth(call)
    if "tensors" in calls:
        found["tensors"] = round(peak_bytes(call) / 2**20, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["fashion-mnist", "fashion-mnist-teacher"])
    parser.add_argument("--work", nargs="+", default=list(WORK), choices=WORK)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--budgets", type=float, nargs="+", default=[64, 256, 1024], help="MiB")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--calls", nargs="*", default=["tensors"], choices=["again", "tensors"], help="besides the first"
    )
    parser.add_argument("--join", type=Path, nargs=2, metavar=("OLD", "NEW"), help="two files of --out, side by side")
    parser.add_argument("--out", type=Path, help="JSON file, written after every case")
    args = parser.parse_args()
    from benchmarks.measuring import about
    from rdc.storage.json_files import read_json, write_json

    if args.join:
        old, new = (read_json(path) for path in args.join)
        write_json(args.out, {**new, "before": {"commit": old["about"]["commit"], "rows": old["rows"]}})
        return
    head, rows = {"about": about(), "unit": "MiB"}, []
    for case in itertools.product(args.models, args.work, args.batches, args.budgets, args.threads):
        os.environ["OMP_NUM_THREADS"] = str(case[-1])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (*case, args.calls))
        rows.append({**dict(zip(("model", "work", "batch", "budget", "threads"), case, strict=True)), **found})
        print(json.dumps(rows[-1]), flush=True)
        if args.out:
            write_json(args.out, {**head, "rows": rows})


if __name__ == "__main__":
    start(main)
