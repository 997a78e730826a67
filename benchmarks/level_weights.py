"""Learn how much each noise level should count, for accuracy under attack, on held-out training images.

    python benchmarks/level_weights.py --model fashion-mnist --n 500 --out benchmarks/results/level-weights.json

A diffusion classifier subtracts class losses that are sums over levels, margin_k = sum_t w_t (l_tk - l_ty). To first order the
worst l_inf perturbation of size eps lowers a margin by eps |sum_t w_t (grad l_tk - grad l_ty)|_1. Losses and their exact
gradients are computed once, for each image at each level; then the weights that keep most first-order margins positive are
found by gradient descent on a smooth count, starting from several named weightings. The result is a recommendation: it is
attacked for real (APGD, benchmarks/level_study.py) on images that took no part in the fit.

No network weight changes. Images: the hold-out that the shipped networks were not trained on, second half of its shuffle.
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
from level_study import holdout
from torch import Tensor
from tqdm import tqdm

import rdc
from rdc.attacks import parse_eps
from rdc.files import write_json
from rdc.timesteps import WEIGHTINGS


def margins_and_gradients(
    classifier: rdc.DiffusionClassifier, x: Tensor, y: Tensor, rivals: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Per-level margins of the nearest wrong classes and their gradients in pixels.

    Returns:
        all losses [n, T, K]; margins [n, T, R] (positive: right); gradients of the margins [n, T, R, pixels].
    """
    with torch.no_grad():
        losses = classifier.losses_per_level(x)
    weight = torch.tensor(WEIGHTINGS["eps"](np.array(classifier.levels.sigma)), dtype=torch.float32)
    total = torch.einsum("ntk,t->nk", losses, weight)
    total[torch.arange(len(y)), y] = float("inf")
    wrong = total.argsort(1)[:, :rivals]
    sigma, _ = classifier.levels.tensors()
    noise = classifier.noise.normal(0, len(sigma), classifier.image_shape)
    count, levels = len(x), len(sigma)
    values, slopes = [], []
    for labels in (y, *wrong.T):
        leaf = x.repeat_interleave(levels, 0).requires_grad_()  # a copy for each level: one pass gives every gradient
        x0 = 2 * leaf - 1
        rows = sigma.repeat(count)
        x_t = x0 + rows[:, None, None, None] * noise.repeat(count, 1, 1, 1)
        target = classifier.denoiser.precondition.target(x0, x_t, rows[:, None, None, None])
        f = classifier.denoiser.f(x_t, rows, labels.repeat_interleave(levels))
        loss = (f - target).square().flatten(1).sum(1)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
        values.append(loss.detach().reshape(count, levels))
        slopes.append(slope.reshape(count, levels, -1))
    margins = torch.stack(values[1:], 2) - values[0][:, :, None]
    return losses, margins, torch.stack(slopes[1:], 2) - slopes[0][:, :, None]


def worst_margin(weight: Tensor, margins: Tensor, gradients: Tensor, eps: float) -> Tensor:
    """Smallest first-order margin [n] over the rival classes at radius eps."""
    value = torch.einsum("ntr,t->nr", margins, weight)
    drop = torch.einsum("ntrp,t->nrp", gradients, weight).abs().sum(2)
    return (value - eps * drop).amin(1)


def fit(margins: Tensor, gradients: Tensor, eps: float, start: Tensor, steps: int) -> Tensor:
    """Weights [T] >= 0 that keep most worst margins positive: sigmoid of the margin over its own size, annealed."""
    parameter = start.clamp_min(1e-6).log().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    for step in range(steps):
        weight = parameter.softmax(0)
        margin = worst_margin(weight, margins, gradients, eps)
        sharpness = 2 + 6 * step / steps
        loss = torch.sigmoid(-sharpness * margin / margin.detach().abs().median()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return parameter.detach().softmax(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--levels", default="log:16:0.2:8:eps", help="candidates")
    parser.add_argument("--n", type=int, default=500, help="held-out images")
    parser.add_argument("--rivals", type=int, default=3, help="wrong classes of each image")
    parser.add_argument("--eps", type=parse_eps, default=8 / 255)
    parser.add_argument("--eps-fit", type=parse_eps, help="radius of the fit (default: --eps)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-root", help="folder of Fashion-MNIST")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.time()
    data = holdout(2000, args.data_root)
    data = data.subset(slice(1000, 1000 + args.n))  # the first half is for the check by attack
    classifier = rdc.load(args.model, levels=args.levels, lm=None)
    pixels, labels = data.pixels(), data.labels
    parts = [
        margins_and_gradients(classifier, x, y, args.rivals)
        for x, y in tqdm(list(zip(pixels.split(args.batch), labels.split(args.batch), strict=True)), unit="batch")
    ]
    losses, margins, gradients = (torch.cat(column) for column in zip(*parts, strict=True))
    sigma = np.array(classifier.levels.sigma)
    starts = {name: WEIGHTINGS[name](sigma) for name in ("flat", "eps")}
    starts |= {f"flat from {low}": WEIGHTINGS["flat"](sigma) * (sigma >= low) for low in (0.5, 1.0)}
    fit_eps = args.eps if args.eps_fit is None else args.eps_fit
    rows = {}

    def describe(name: str, weight: Tensor) -> None:
        right = torch.einsum("ntk,t->nk", losses, weight).argmin(1) == labels
        robust = worst_margin(weight, margins, gradients, args.eps) > 0
        rows[name] = {
            "weight": [round(value, 5) for value in weight.tolist()],
            "clean": right.double().mean().item(),
            "robust_first_order": (robust & right).double().mean().item(),
        }
        print(f"{name:28s} clean {rows[name]['clean']:.3f}  first-order robust {rows[name]['robust_first_order']:.3f}")

    for name, values in starts.items():
        start = torch.tensor(values / values.sum(), dtype=torch.float32)
        describe(name, start)
        describe(f"{name}, fitted", fit(margins, gradients, fit_eps, start, args.steps))
    single = (losses.argmin(2) == labels[:, None]).double().mean(0)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    write_json(
        args.out,
        {
            "model": args.model,
            "sigma": sigma.tolist(),
            "single_level_accuracy": single.tolist(),
            "weightings": rows,
            "n": len(labels),
            "eps": args.eps,
            "eps_fit": fit_eps,
            "command": "python " + " ".join(sys.argv),
            "commit": commit,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
            "seconds": round(time.time() - began, 1),
        },
    )
    print("single levels:", " ".join(f"{s:.2f}:{100 * a:.1f}" for s, a in zip(sigma, single, strict=True)))


if __name__ == "__main__":
    main()
