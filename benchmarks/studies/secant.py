"""How to train for margins: first order by second derivatives, by differences, or one whole step. A small student on CIFAR-10, one thread.

    python -m benchmarks.studies.secant --data-root ~/cifar10 --out out/secant --threads 1     # about seven minutes a row, resumable
    python -m benchmarks.studies.secant --data-root ~/cifar10 --rows "secant 0.05-0.3" --images 100000

A teacher of 60,000 images comes first, then every row trains a student from it for --images and is attacked: first 256 test images,
l_inf 8/255, APGD-CE, 20 steps, exact gradient, known noise. The row "secant 1" is adversarial training with one step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import rdc
from benchmarks.measuring import about
from benchmarks.starting import start
from rdc import training
from rdc.cli import main as rdc_main
from rdc.data import Dataset
from rdc.models.checkpoints import load_model, save_model
from rdc.networks.presets import NETWORK_PRESETS, build_network, network_preset
from rdc.storage.json_files import write_json
from rdc.training import Recipe
from rdc.training.config import TrainConfig
from rdc.training.distillation import DistillationTerms, Secant, student_from_teacher
from rdc.training.recipes import NoiseChoice

EPS = 8 / 255
NETWORK = "secant-32"  #: a preset of this study alone
CHANNELS = 48  #: of a student's last residual block
TEACHER_IMAGES = 60_000
ROWS: dict[str, dict[str, Any]] = {
    "none": {},
    "margin": {"margin_eps": EPS},
    "secant 0.05-0.3": {"secant": Secant(EPS, low=0.05, high=0.3)},
    "secant 0.1-1": {"secant": Secant(EPS, low=0.1, high=1.0)},
    "secant 1": {"secant": Secant(EPS, low=1.0, high=1.0)},
}


def train(folder: Path, recipe: Recipe, data: Dataset) -> None:
    """The model of a recipe, in ``folder``; a run that is there is continued. The global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        training.run(recipe, data, folder, device="cpu")


def schedule(images: int, learning_rate: float) -> TrainConfig:
    """What all runs share."""
    return TrainConfig(
        images=images, batch_size=64, learning_rate=learning_rate, warmup_images=3000, ema_images=8000,
        precision="bfloat16", flip=True,
    )  # fmt: skip


def begin(folder: Path, network: torch.nn.Module, config: dict[str, Any]) -> str:
    """Keep drawn weights as the model that a run begins with; what is there stays, for runs that are continued."""
    if not (folder / "model.json").exists():
        save_model(folder / "model", network, config, {})
    return str(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="where CIFAR-10 is")
    parser.add_argument(
        "--out", type=Path, default=Path("out/secant"), help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="which (default: all)")
    parser.add_argument(
        "--images", type=int, default=30_000, help="training images of a student (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if unknown := [name for name in args.rows.split(",") if name not in ROWS]:
        parser.error(f"--rows: expected some of {', '.join(ROWS)}; got {unknown[0]!r}")
    torch.set_num_threads(args.threads)
    data = rdc.load_dataset("cifar10", "train", args.data_root)
    NETWORK_PRESETS[NETWORK] = network_preset("medium-32", 10)
    NETWORK_PRESETS[NETWORK]["unet"] |= {"model_channels": 32, "channel_mult": [1, 2]}
    config = network_preset(NETWORK, 10)
    torch.manual_seed(0)
    drawn = begin(args.out / "begin" / "teacher", build_network(config), config)
    settings: dict[str, Any] = {"data": "cifar10", "holdout": 2000}
    generative = Recipe(
        "diffusion", network=NETWORK, init=drawn, train=schedule(TEACHER_IMAGES, 2e-3), noise=NoiseChoice(-0.6, 1.1),
        **settings,
    )  # fmt: skip
    train(args.out / "teacher", generative, data)
    settings |= {"teacher": str(args.out / "teacher"), "wide_channels": CHANNELS, "shift": 2}
    settings |= {"train": schedule(args.images, 1e-3), "noise": NoiseChoice(-1.2, 0.7)}
    result = args.out / "study.json"
    rows = json.loads(result.read_text())["rows"] if result.exists() else {}
    for name in args.rows.split(","):
        folder = args.out / name.replace(" ", "-")
        teacher, _, _ = load_model(args.out / "teacher")
        drawn = begin(args.out / "begin" / folder.name, *student_from_teacher(teacher, config, CHANNELS))
        terms = DistillationTerms(classes_per_image=0, posterior_weight=1.0, posterior_scale=0.03, **ROWS[name])
        train(folder, Recipe("distill", init=drawn, distillation=terms, **settings), data)
        words = [
            "--model",
            folder,
            "--data",
            "cifar10",
            "--data-root",
            args.data_root,
            "--levels",
            "log:4:0.08:0.7:eps",
        ]
        words += ["--n", 256, "--batch", 128, "--attacks", "apgd-ce", "--steps", 20, "--sanity", 0, "--quiet"]
        words += ["--threads", args.threads, "--out", folder / "evaluation"]
        if status := rdc_main(["evaluate", *map(str, words)]):
            return status
        report = json.loads((folder / "evaluation" / "report.json").read_text())
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        rows[name] = {"clean": report["clean"], "robust": report["robust"], "seconds_of_training": last["seconds"]}
        write_json(result, {"about": about(), "images": args.images, "rows": rows})
        print(
            f"{name:16s} clean {100 * report['clean']['accuracy']:.1f} %, robust {100 * report['robust']['accuracy']:.1f} %"
        )
    return 0


if __name__ == "__main__":
    start(main)
