"""Resident memory of an exported file's calls against their budget (Linux).

    python -m benchmarks.studies.onnx_memory --out benchmarks/results/onnx-memory.json
    python -m benchmarks.studies.onnx_memory --models fashion-mnist --batches 256 --budgets 64

Each case runs in a process of its own that opens the file and makes one call: growth of the high-water mark of resident memory
(VmHWM, set back just before) over what was resident with the file open and the images loaded. What onnxruntime keeps for later
calls is in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.starting import start


def resident(name: str) -> float:
    """A line of /proc/self/status, MiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(f"{name}:"))


def export(model: str, lm: str | None, path: str) -> None:
    """Write the file; in a process of its own, so that PyTorch is not there when memory is measured."""
    from rdc.export import export_onnx
    from rdc.models.zoo import load

    export_onnx(load(model, **({} if lm is None else {"lm": lm})), path, check=False)


def measure(path: str, batch: int, budget: float, threads: int) -> dict[str, Any]:
    """One case, in this process: MiB and seconds."""
    import numpy as np

    from rdc.runtime import OnnxClassifier

    classifier = OnnxClassifier(path, threads=threads, memory_budget_mb=budget)
    random = np.random.Generator(np.random.Philox(key=7))
    pixels = random.integers(0, 256, (batch, *classifier.image_shape), dtype=np.uint8)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts anew from what is resident now
    before, begun = resident("VmRSS"), time.process_time()
    classifier(pixels)
    seconds, peak = time.process_time() - begun, resident("VmHWM") - before
    return {
        "images_at_once": classifier.images_at_once,
        "of_budget": round(peak / budget, 3),
        "peak": round(peak, 1),
        "stays": round(resident("VmRSS") - before, 1),
        "cpu_seconds": round(seconds, 2),
    }


def alone(function: Any, *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["fashion-mnist", "cifar10"])
    parser.add_argument("--lm", nargs="+", default=["none", "paper-v2"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--budgets", type=float, nargs="+", default=[64, 256], help="MiB")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--out", type=Path, help="JSON file, written after every case")
    args = parser.parse_args()
    from benchmarks.measuring import about

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for model, lm in itertools.product(args.models, args.lm):
            path = os.path.join(folder, "model.onnx")
            alone(export, model, None if lm == "none" else lm, path)
            for batch, budget, threads in itertools.product(args.batches, args.budgets, args.threads):
                case = {"model": model, "lm": lm, "batch": batch, "budget": budget, "threads": threads}
                rows.append({**case, **alone(measure, path, batch, budget, threads)})
                print(json.dumps(rows[-1]), flush=True)
                if args.out:
                    args.out.write_text(json.dumps({"about": about(), "unit": "MiB", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    start(main)
