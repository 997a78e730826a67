"""How many noise levels? Clean and first-order robust accuracy against T', from one table of margins and gradients.

    python -m benchmarks.studies.level_curve --model fashion-mnist --range 0.1 1 --n 300 --out benchmarks/results/level-curve.json

All candidates are computed once; T' levels are every (32 / T')-th of them, in each of the 32 / T' possible offsets, so that a
row shows how much a choice of T' levels with their noise matters, beside the interval that the images cause. Images: the
second half of the hold-out (benchmarks/studies/level_weights.py); the weights of a weighting are those of rdc.method.levels.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import rdc
from benchmarks.starting import start
from benchmarks.studies.levels import holdout
from rdc.attacks import parse_eps
from rdc.method.levels import WEIGHTINGS
from rdc.plots.drawing import drawing, new_figure
from rdc.statistics.proportions import wilson_interval
from rdc.storage.json_files import write_json
from rdc.training.level_weights import level_margins, worst_margins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--range", type=float, nargs=2, default=(0.1, 1.0), metavar=("LOW", "HIGH"), help="of sigma")
    parser.add_argument("--candidates", type=int, default=32, help="a power of two (default: 32)")
    parser.add_argument("--weightings", nargs="+", default=["flat", "eps"], choices=list(WEIGHTINGS))
    parser.add_argument("--n", type=int, default=300, help="held-out images, at most 1000 (default: 300)")
    parser.add_argument("--rivals", type=int, default=2, help="wrong classes of each image (default: 2)")
    parser.add_argument("--eps", type=parse_eps, default=8 / 255)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="JSON; a plot is written beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.time()
    data = holdout(2000, None).subset(slice(1000, 1000 + args.n))
    low, high = args.range
    classifier = rdc.load(args.model, levels=f"log:{args.candidates}:{low}:{high}:flat", lm=None)
    batches = list(zip(data.pixels().split(args.batch), data.labels.split(args.batch), strict=True))
    parts = [level_margins(classifier, x, y, args.rivals) for x, y in tqdm(batches, unit="batch")]
    losses, margins, gradients = (torch.cat(column) for column in zip(*parts, strict=True))
    sigma = np.array(classifier.levels.sigma)
    rows = []
    for name in args.weightings:
        full = torch.tensor(WEIGHTINGS[name](sigma), dtype=torch.float32)
        count = args.candidates
        while count >= 1:
            stride = args.candidates // count
            found = []
            for offset in range(stride):
                weight = torch.zeros_like(full)
                weight[offset::stride] = full[offset::stride] / full[offset::stride].sum()
                right = torch.einsum("ntk,t->nk", losses, weight).argmin(1) == data.labels
                robust = right & (worst_margins(weight, margins, gradients, args.eps, data.pixels()) > 0)
                found.append((right.double().mean().item(), robust.double().mean().item()))
            clean, robust = np.array(found).T
            row = {"weighting": name, "levels": count, "offsets": stride}
            for key, values in (("clean", clean), ("robust_first_order", robust)):
                row[key] = values.mean()
                row[f"{key}_std_over_offsets"] = values.std()
                row[f"{key}_ci95"] = list(wilson_interval(round(values.mean() * args.n), args.n))
            rows.append(row)
            print(
                f"{name:5s} T' {count:3d}  clean {100 * clean.mean():5.2f} +- {100 * clean.std():.2f}  "
                f"first-order robust {100 * robust.mean():5.2f} +- {100 * robust.std():.2f}"
            )
            count //= 2
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "model": args.model, "sigma": sigma.tolist(), "rows": rows, "n": args.n, "eps": args.eps,
        "command": "python " + " ".join(sys.argv), "commit": commit,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "seconds": round(time.time() - began, 1),
    }  # fmt: skip
    write_json(args.out, result)
    _plot(rows, args.out.with_suffix(".png"), args.n)


@drawing()
def _plot(rows: list[dict], path: Path, n: int) -> None:
    figure = new_figure(6.4, 3.8, layout="constrained")
    axes = figure.subplots()
    for name, style in zip(dict.fromkeys(row["weighting"] for row in rows), ("-", "--", ":"), strict=False):
        mine = [row for row in rows if row["weighting"] == name]
        for key, colour, words in (("clean", "C0", "clean"), ("robust_first_order", "C3", "8/255, first order")):
            counts = [row["levels"] for row in mine]
            middle = np.array([100 * row[key] for row in mine])
            spread = np.array([100 * row[f"{key}_std_over_offsets"] for row in mine])
            axes.plot(counts, middle, style, color=colour, marker="o", markersize=3, label=f"{words}, {name}")
            axes.fill_between(counts, middle - spread, middle + spread, color=colour, alpha=0.15)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("network passes for one image (T')")
    axes.set_ylabel(f"accuracy of {n} held-out images (%)")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    start(main)
