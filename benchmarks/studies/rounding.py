"""What float32 loses in log p(y|x): rdc's kernels and PyTorch's operators against the same classifier in float64.

    python -m benchmarks.studies.rounding --out rounding.json

The first images of the shipped sample, known noise, all classes. A minute.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

import rdc
from benchmarks.measuring import about
from benchmarks.starting import start
from rdc.data import load_dataset
from rdc.storage.json_files import write_json

__all__ = ["measured"]


def measured(name: str, images: int) -> dict[str, Any]:
    """Largest and mean error of log p over images and classes, by the kernels and by PyTorch, and decisions that differ from float64's.

    Args:
        name: of a shipped model.
        images: how many.
    """
    pixels = load_dataset("fashion-mnist-sample", "test").pixels(slice(0, images))
    found: dict[str, Any] = {"images": images}
    with torch.no_grad():
        answers = {"rdc": rdc.load(name)(pixels)}
        before = os.environ.get("RDC_DISABLE_NATIVE")
        os.environ["RDC_DISABLE_NATIVE"] = "1"
        try:
            exact: Any = rdc.load(name)
            answers["torch eager"] = exact(pixels)
            exact.denoiser.double()
            truth = exact(pixels.double())
        finally:
            os.environ.pop("RDC_DISABLE_NATIVE")
            if before is not None:
                os.environ["RDC_DISABLE_NATIVE"] = before
    for engine, answer in answers.items():
        error = (answer.double() - truth).abs()
        other = int((answer.argmax(1) != truth.argmax(1)).sum())
        found[engine] = {"largest": float(error.max()), "mean": float(error.mean()), "other_decisions": other}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="repeatable (default: fashion-mnist)")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "about": about(),
        "models": {name: measured(name, args.images) for name in args.model or ["fashion-mnist"]},
    }
    for name, found in result["models"].items():
        for engine in ("rdc", "torch eager"):
            print(
                f"{name}, {engine}: log p errs by at most {found[engine]['largest']:.1e}, {found[engine]['mean']:.1e} in the mean"
            )
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    start(main)
