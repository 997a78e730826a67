"""Fit the weights of the noise levels on held-out training images, for accuracy under attack (rdc/training/level_weights.py).

    python -m benchmarks.studies.level_weights --model fashion-mnist --n 500 --out benchmarks/results/level-weights.json

Images: the second half of the hold-out that the shipped networks were not trained on; the first half is for the check by
attack (benchmarks/studies/levels.py). --write LEVELS.json keeps the levels of the first fit for `--levels`.
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
from torch import Tensor
from tqdm import tqdm

import rdc
from benchmarks.starting import start
from benchmarks.studies.levels import holdout
from rdc.attacks import parse_eps
from rdc.method.levels import WEIGHTINGS, NoiseLevels
from rdc.storage.json_files import write_json
from rdc.training.level_weights import fit_weights, level_margins, worst_margins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--levels", default="log:16:0.2:8:eps", help="candidates (default: %(default)s)")
    parser.add_argument("--n", type=int, default=500, help="held-out images, at most 1000 (default: 500)")
    parser.add_argument("--rivals", type=int, default=3, help="wrong classes of each image (default: 3)")
    parser.add_argument("--eps", type=parse_eps, default=8 / 255, help="radius that is reported (default: 8/255)")
    parser.add_argument("--fit-eps", type=parse_eps, nargs="*", help="radii of the fits (default: --eps)")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-root", help="folder of Fashion-MNIST")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--write", type=Path, help="file for the levels of the first fit")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.time()
    data = holdout(2000, args.data_root).subset(slice(1000, 1000 + args.n))
    classifier = rdc.load(args.model, levels=args.levels, lm=None)
    labels, sigma = data.labels, np.array(classifier.levels.sigma)
    batches = list(zip(data.pixels().split(args.batch), labels.split(args.batch), strict=True))
    parts = [level_margins(classifier, x, y, args.rivals) for x, y in tqdm(batches, unit="batch")]
    losses, margins, gradients = (torch.cat(column) for column in zip(*parts, strict=True))
    rows = {}

    def describe(name: str, weight: Tensor) -> None:
        right = torch.einsum("ntk,t->nk", losses, weight).argmin(1) == labels
        robust = right & (worst_margins(weight, margins, gradients, args.eps, data.pixels()) > 0)
        rows[name] = {
            "weight": [round(value, 5) for value in weight.tolist()],
            "clean": right.double().mean().item(),
            "robust_first_order": robust.double().mean().item(),
        }
        print(f"{name:20s} clean {rows[name]['clean']:.3f}  first-order robust {rows[name]['robust_first_order']:.3f}")

    for name in ("flat", "eps"):
        describe(name, torch.tensor(WEIGHTINGS[name](sigma) / WEIGHTINGS[name](sigma).sum(), dtype=torch.float32))
    starts = [torch.tensor(WEIGHTINGS[name](sigma), dtype=torch.float32) for name in ("flat", "eps", "edm")]
    fits = {eps: fit_weights(margins, gradients, eps, data.pixels(), starts) for eps in args.fit_eps or [args.eps]}
    for eps, weight in fits.items():
        describe(f"fitted at {255 * eps:g}/255", weight)
    single = (losses.argmin(2) == labels[:, None]).double().mean(0)
    print("single levels:", " ".join(f"{s:.2f}:{100 * a:.1f}" for s, a in zip(sigma, single, strict=True)))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "model": args.model,
        "sigma": sigma.tolist(),
        "single_level_accuracy": single.tolist(),
        "weightings": rows,
        "n": len(labels),
        "eps": args.eps,
        "command": "python " + " ".join(sys.argv),
        "commit": commit,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "seconds": round(time.time() - began, 1),
    }
    write_json(args.out, result)
    if args.write:
        best = next(iter(fits.values())).numpy().astype(float)
        write_json(args.write, NoiseLevels(tuple(sigma), tuple(best), classifier.levels.scheme, "fitted").to_json())


if __name__ == "__main__":
    start(main)
