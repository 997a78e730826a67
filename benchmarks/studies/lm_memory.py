"""Peak memory of one exact gradient through likelihood maximisation, against the number of LM steps.

    python -m benchmarks.studies.lm_memory --model fashion-mnist --batch 64 --steps 1 5 20 --out benchmarks/results/lm-memory.json

Each N runs in a process of its own; the peak is the growth of its resident memory over what it had before the call (CPU), or
PyTorch's peak of allocated memory (CUDA).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import time
from pathlib import Path
from typing import Any

from benchmarks.starting import start


def measure(model: str, batch: int, steps: int, budget: float, device: str) -> dict[str, Any]:
    """Peak MiB and seconds of one gradient at ``batch`` images."""
    import torch

    import rdc

    torch.set_num_threads(1)
    classifier = rdc.load(model, device=device, lm=f"paper-v2,steps={steps}", memory_budget_mb=budget)
    data = rdc.load_dataset("fashion-mnist-sample")
    x = data.pixels(range(batch)).to(device)
    classifier(x[:1])  # weights, caches and libraries are there before we count
    unit = 1024 if platform.system() != "Darwin" else 1024**2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    begun = time.monotonic()
    leaf = x.requires_grad_()
    torch.autograd.grad(classifier(leaf)[:, 0].sum(), leaf)
    seconds = time.monotonic() - begun
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
    if device != "cpu":
        peak = (torch.cuda.max_memory_allocated() - held) / 2**20
    return {"steps": steps, "peak_mib": round(peak, 1), "seconds": round(seconds, 1)}


def main() -> None:
    """Measure every N and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 20], help="N of likelihood maximisation")
    parser.add_argument("--budget", type=float, default=512, help="the classifier's memory budget, MiB")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    rows = []
    for steps in args.steps:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (args.model, args.batch, steps, args.budget, args.device)))
        print(
            f"N = {steps:3d}: peak {rows[-1]['peak_mib']:8.1f} MiB above the start, {rows[-1]['seconds']} s", flush=True
        )
    if args.out:
        from rdc.provenance.run import commit
        from rdc.storage.json_files import write_json

        about = {key: getattr(args, key) for key in ("model", "batch", "budget", "device")}
        write_json(
            args.out, {**about, "rows": rows, "commit": commit(), "machine": platform.processor() or platform.machine()}
        )
        print(json.dumps(about))


if __name__ == "__main__":
    start(main)
