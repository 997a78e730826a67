"""Make the shipped models from finished training runs: averaged weights in float16, recommended levels, fitted logit scale.

    python -m benchmarks.studies.ship runs/student rdc/assets/fashion-mnist --levels log:4:0.08:0.7:eps --accurate log:16:0.08:0.7:eps
    python -m benchmarks.studies.ship runs/teacher rdc/assets/fashion-mnist-teacher --levels log:12:0.1:1.5:eps

    python -m benchmarks.studies.ship runs/several rdc/assets/fashion-mnist-several    # levels and scale that the run recorded itself

    python -m benchmarks.studies.ship runs/trades rdc/assets/fashion-mnist-trades
    python -m benchmarks.studies.ship out rdc/assets/cifar10 --levels log:4:0.1:0.7:eps --data cifar10 --data-root ~/cifar10

RUN is a folder of rdc train or rdc distill, or what benchmarks/studies/cifar10/__main__.py brought back (student-1-of-2.safetensors ...).

The logit scale minimises the cross-entropy of 400 held-out training images; it never changes a decision. Without --levels a diffusion
classifier keeps the levels (--levels of rdc distill) and the calibration of its run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar

import rdc
from benchmarks.starting import start
from benchmarks.studies.cifar10.shards import read_shards, shard_files
from benchmarks.studies.levels import holdout
from rdc.models.checkpoints import load_model, save_model
from rdc.networks.presets import DISCRIMINATIVE

LICENCES = {
    "fashion-mnist": "Apache-2.0 (weights); trained on Fashion-MNIST (MIT, Zalando SE)",
    "cifar10": "Apache-2.0 (weights); trained on CIFAR-10 (no formal licence; cite Krizhevsky 2009)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="checkpoint of rdc train or rdc distill")
    parser.add_argument("out", help="where to write NAME.safetensors and NAME.json")
    parser.add_argument("--levels", help="recommended levels, as for rdc evaluate (a diffusion classifier's)")
    parser.add_argument("--accurate", help="levels for the name 'accurate'; --levels gets the name 'fast'")
    parser.add_argument("--data", default="fashion-mnist", choices=tuple(LICENCES), help="what it was trained on")
    parser.add_argument("--data-root", help="where that is")
    parser.add_argument("--n", type=int, default=400, help="held-out images for the logit scale")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Path(args.run)
    if shard_files(run, "student"):
        folder = tempfile.TemporaryDirectory()
        read_shards(run, "student", Path(folder.name) / "model")
        run = Path(folder.name)
    network, config, info = load_model(run)
    licence = LICENCES[args.data]
    if config["kind"] in DISCRIMINATIVE and args.levels is not None:
        parser.error(f"--levels: expected for diffusion classifiers alone; {args.run} is of kind {config['kind']}")
    if config["kind"] not in DISCRIMINATIVE and args.levels is None and "classifier" not in info:
        parser.error(f"--levels: expected, for {args.run} has recorded none")
    if args.levels is None:
        save_model(args.out, network, config, {**info, "licence": licence}, dtype=torch.float16)
        if config["kind"] not in DISCRIMINATIVE:  # its run may have held out other images than the 2,000 below
            return
        data = holdout(2000, args.data_root, args.data)
        right = (rdc.load(args.out)(data.pixels()).argmax(1) == data.labels).double().mean()
        print(f"{args.out}: held-out accuracy {right:.4f} ({len(data)} images)")
        return
    levels = rdc.parse_levels(args.levels)
    save_model(args.out, network, config, {**info, "licence": licence}, dtype=torch.float16)
    data = holdout(2000, args.data_root, args.data).subset(slice(1000, 1000 + args.n))
    classifier = rdc.load(args.out, levels=levels, logit_scale="sum")  # the float16 weights
    with torch.no_grad():
        losses = torch.cat([classifier.class_losses(x) for x in data.pixels().split(20)]).double()

    def entropy(log_scale: float) -> float:
        return torch.nn.functional.cross_entropy(-np.exp(log_scale) * losses, data.labels).item()

    scale = float(f"{np.exp(minimize_scalar(entropy, bounds=(-8, 4), method='bounded').x):.2g}")
    named = args.levels if not args.levels.endswith(".json") else levels.to_json()
    about = {**info, "classifier": {"levels": named, "logit_scale": scale}, "licence": licence}
    if args.accurate:
        about["level_presets"] = {"fast": named, "accurate": args.accurate}
    save_model(args.out, network, config, about, dtype=torch.float16)
    right = (losses.argmin(1) == data.labels).double().mean()
    print(f"{args.out}: logit scale {scale}, cross-entropy {entropy(np.log(scale)):.3f}, held-out accuracy {right:.3f}")


if __name__ == "__main__":
    start(main)
