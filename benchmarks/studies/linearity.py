"""How linear is a diffusion classifier within a ball? First-order predictions against what happens.

    python -m benchmarks.studies.linearity --model fashion-mnist --n 200 --out benchmarks/results/linearity.json

For every level alone and all together: how far the margin to the strongest rival falls at the steepest point of the l_inf ball
(a corner, cut by the pixel box), beside what its gradient at the image predicts; accuracy that the prediction leaves, accuracy at
that point, and accuracy under APGD. Images: the first half of the hold-out (benchmarks/studies/levels.py).
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from pathlib import Path

import torch

import rdc
from benchmarks.starting import start
from benchmarks.studies.levels import holdout
from rdc.attacks import ThreatModel, apgd, parse_eps
from rdc.data import Dataset
from rdc.storage.json_files import write_json


def measure(classifier: rdc.DiffusionClassifier, data: Dataset, eps: float, steps: int) -> dict[str, float]:
    """Means over the images; margins and drops in units of the clean margin's mean size."""
    x, y, rows = data.pixels(), data.labels, torch.arange(len(data))
    leaf = x.clone().requires_grad_()
    loss = classifier.class_losses(leaf)
    rival = loss.detach().scatter(1, y[:, None], float("inf")).argmin(1)
    margin = loss[rows, rival] - loss[rows, y]
    (slope,) = torch.autograd.grad(margin.sum(), leaf)
    corner = (x - eps * slope.sign()).clamp(0, 1)
    predicted = (slope * (corner - x)).flatten(1).sum(1)
    with torch.no_grad():
        there = classifier.class_losses(corner)
    margin = margin.detach()
    actual = there[rows, rival] - there[rows, y] - margin
    found = apgd(classifier, x, y, ThreatModel("linf", eps), seed=0, image_ids=data.indices, steps=steps)
    unit = margin.abs().mean()
    return {
        "clean": (margin > 0).double().mean().item(),
        "predicted_drop": (-predicted.mean() / unit).item(),
        "actual_drop": (-actual.mean() / unit).item(),
        "first_order_robust": (margin + predicted > 0).double().mean().item(),
        "corner_robust": (there.argmin(1) == y).double().mean().item(),
        "apgd_robust": found.correct.double().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--levels", nargs="*", default=[], help="further settings of levels")
    parser.add_argument("--n", type=int, default=200, help="held-out images, at most 1000 (default: 200)")
    parser.add_argument("--eps", type=parse_eps, default=8 / 255)
    parser.add_argument("--steps", type=int, default=20, help="of APGD (default: 20)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data, classifier = holdout(2000, None).subset(slice(0, args.n)), rdc.load(args.model, lm=None)
    settings = {"recommended": classifier}
    for sigma in classifier.levels.sigma if len(classifier.levels) > 1 else ():
        settings[f"sigma {sigma:.3g}"] = classifier.with_(levels=rdc.NoiseLevels((sigma,), (1.0,)))
    settings |= {text: classifier.with_(levels=rdc.parse_levels(text)) for text in args.levels}
    rows = {}
    for name, made in settings.items():
        rows[name] = measure(made, data, args.eps, args.steps)
        print(f"{name:28s} " + "  ".join(f"{key} {value:.3f}" for key, value in rows[name].items()), flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {"model": args.model, "n": args.n, "eps": args.eps, "steps": args.steps, "commit": commit}
    about |= {"machine": platform.machine(), "torch": torch.__version__, "command": "python " + " ".join(sys.argv)}
    write_json(args.out, {**about, "rows": rows})


if __name__ == "__main__":
    start(main)
