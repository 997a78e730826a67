"""A file in eight bits beside the one in float32, in onnxruntime on one thread: decisions on test images, milliseconds by batch, size.

    python -m benchmarks.studies.onnx_int8 --out benchmarks/results/onnx-int8.json

Calibrated on held-out training images, compared on the first test images; the two take turns, CPU seconds of the process, medians. Goes on
where it was stopped: what the file of results has is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch

import rdc
from benchmarks.measuring import about, alternate, clock, summary
from benchmarks.starting import start
from rdc.data import Dataset, train_holdout
from rdc.export import Int8Images, export_onnx
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

_HELD_OUT = 2000  # what the shipped models were trained without


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--calibration", type=int, default=128, help="held-out images")
    parser.add_argument("--compared", type=int, default=10_000, help="test images")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    test = rdc.load_dataset(args.data)
    found: dict[str, Any] = read_json(args.out) if args.out.exists() else {"about": about(), "model": args.model}
    with tempfile.TemporaryDirectory() as folder:
        files = (Path(folder) / "int8.onnx", Path(folder) / "float32.onnx")
        known = found.get("decisions")
        made = exported(args, test, files, 64 if known else args.compared)
        found["decisions"] = known or with_interval(made["int8"])
        found["megabytes"] = {path.stem: round(path.stat().st_size / 1e6, 2) for path in files}
        write_json(args.out, found)
        sessions = {path.stem: session(path) for path in files}
        for batch in args.batches:
            if f"batch {batch}" not in found:
                found[f"batch {batch}"] = timed(sessions, test.pixels(range(batch)).numpy(), args.rounds)
                write_json(args.out, found)
    print(json.dumps(found, indent=2))


def exported(args: argparse.Namespace, test: Dataset, files: tuple[Path, Path], compared: int) -> dict[str, Any]:
    """Both files; the summary of the one in eight bits."""
    held = train_holdout(rdc.load_dataset(args.data, split="train"), _HELD_OUT)[1]
    part = test.subset(range(compared))
    images = Int8Images(held.pixels(range(args.calibration)), part.pixels(), part.labels, test.name)
    classifier = rdc.load(args.model)
    export_onnx(classifier, files[1])
    return export_onnx(classifier, files[0], precision="int8", int8=images, say=print)


def with_interval(decisions: dict[str, Any]) -> dict[str, Any]:
    """With the difference of the accuracies, in points, and the widest 95 % interval that so many different decisions allow."""
    count, other = decisions["images"], decisions["images"] - decisions["same_decisions"]
    points = 100 * (decisions["accuracy_int8"]["accuracy"] - decisions["accuracy_float32"]["accuracy"])
    half = 100 * 1.96 * math.sqrt(other) / count
    return {**decisions, "points": round(points, 3), "points_ci95": [round(points - half, 3), round(points + half, 3)]}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def timed(sessions: dict[str, Any], pixels: Any, rounds: int) -> dict[str, Any]:
    """Seconds an image of each file, in turn."""
    calls = {name: (lambda s=one: s.run(["log_probabilities"], {"pixels": pixels})) for name, one in sessions.items()}
    for call in calls.values():
        call()
    with bar(total=rounds * len(calls), desc=f"batch {len(pixels)}") as shown:
        seconds = alternate(calls, rounds, clock(1)[1], lambda: shown.update(1))
    found: dict[str, Any] = {name: summary(values, len(pixels)) for name, values in seconds.items()}
    middle = {name: entry["seconds_per_image"] for name, entry in found.items()}
    return {**found, "times_as_fast": round(middle["float32"] / middle["int8"], 3)}


if __name__ == "__main__":
    start(main)
