"""Exported file against PyTorch eager (and, for DC, torch.compile), alternating within one run: p50 and p99 of one image,
images/s at larger batches, cold start; with one thread and with more.

python -m benchmarks.studies.onnx_latency --rounds 30 --out benchmarks/results/onnx-latency.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rdc
from benchmarks.contenders import multihead
from benchmarks.measuring import about, clock
from benchmarks.starting import start
from rdc.export import export_onnx
from rdc.ops import _native
from rdc.runtime import OnnxClassifier
from rdc.storage.json_files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--precisions", nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    classifier = rdc.load(args.model, lm="paper-v2")
    plain = classifier.with_(lm=None)
    images = rdc.load_dataset("fashion-mnist-sample").pixels(range(max(args.batches)))
    result: dict[str, Any] = {
        "about": about(),
        "model": args.model,
        "clock": {str(threads): clock(threads)[0] for threads in args.threads},
        "torch_op": "native" if not _native.why_not("cpu") else "reference",
    }
    with tempfile.TemporaryDirectory() as folder:
        for precision in args.precisions:
            export_onnx(classifier, Path(folder) / f"{precision}.onnx", precision=precision)
        for threads in args.threads:
            torch.set_num_threads(threads)
            models = {}
            for precision in args.precisions:
                path = Path(folder) / f"{precision}.onnx"
                started = time.process_time()
                models[precision] = OnnxClassifier(path, threads=threads)
                models[precision](images[:1].numpy(), lm_steps=0)
                seconds = time.process_time() - started
                result.setdefault(
                    f"onnx {precision}", {"bytes": path.stat().st_size, "cold_start_s": round(seconds, 3)}
                )
            for method, steps, eager in (("dc", 0, plain), ("rdc", classifier.lm.steps, classifier)):
                for batch in args.batches:
                    pixels, array = images[:batch], images[:batch].numpy()
                    candidates: dict[str, Callable[[], Any]] = {"torch eager": lambda e=eager, p=pixels: e(p)}
                    if method == "dc" and not args.no_compile:
                        call = multihead(plain, "compile", images=batch, images_at_once=batch, compiled=True).losses
                        candidates["torch.compile"] = lambda c=call, p=pixels: c(p)
                    for precision, model in models.items():
                        candidates[f"onnx {precision}"] = lambda m=model, a=array, s=steps: m(a, lm_steps=s)
                    rounds = max(5, args.rounds // batch)
                    found = alternate(candidates, batch, rounds, clock(threads)[1])
                    result[f"{method}, batch {batch}, threads {threads}"] = found
    print(json.dumps(result, indent=2))
    if args.out:
        write_json(args.out, result)


def alternate(
    candidates: dict[str, Callable[[], Any]], batch: int, rounds: int, read: Callable[[], float]
) -> dict[str, Any]:
    """Milliseconds (median, 99th percentile) and images/s of each, and each one's ratio of medians to the first's."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, call in candidates.items():
                started = read()
                call()
                if turn:  # the first is not counted
                    seconds[name].append(read() - started)
    first = np.median(next(iter(seconds.values())))
    return {
        name: {
            "p50_ms": round(1e3 * float(np.median(values)), 2),
            "p99_ms": round(1e3 * float(np.quantile(values, 0.99)), 2),
            "images_per_s": round(batch / float(np.median(values)), 1),
            "times_faster": round(float(first / np.median(values)), 3),
        }
        for name, values in seconds.items()
    }


if __name__ == "__main__":
    start(main)
