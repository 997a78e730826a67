"""Which noise levels and weights make a diffusion classifier robust? Clean and robust accuracy of many settings.

    python -m benchmarks.studies.levels --model fashion-mnist --n 64 --steps 15 --out benchmarks/results/levels.json

Images: a class-balanced hold-out of the training set that the shipped networks were not trained on (2,000 images, seed 0).
Attack: APGD, cross-entropy, l_inf, exact gradient, the classifier's own noise. Finished settings are kept in the JSON file,
so that an interrupted study continues; --plot draws what is there.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import rdc
from benchmarks.starting import start
from rdc.attacks import ThreatModel, apgd, parse_eps
from rdc.data import Dataset, train_holdout
from rdc.plots.drawing import drawing, new_figure
from rdc.statistics.proportions import wilson_interval
from rdc.storage.json_files import read_json, write_json

RANGES = ["0.25:1", "0.25:3", "0.5:2", "0.5:3", "0.5:4", "1:3", "1:5", "2:7"]
SETTINGS = [f"log:8:{span}:flat" for span in RANGES] + [f"log:8:{span}:eps" for span in RANGES[:5]]


def holdout(count: int, root: str | None, name: str = "fashion-mnist") -> Dataset:
    """The first ``count`` images of a seeded shuffle of the hold-out."""
    held = train_holdout(rdc.load_dataset(name, "train", root=root), 2000, seed=0)[1]
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))
    return held.subset(order[:count])


def measure(classifier: rdc.DiffusionClassifier, data: Dataset, eps: float, steps: int, batch: int) -> dict:
    """Clean and robust hits of one setting."""
    clean = robust = 0
    started = time.time()
    classifier.network_evaluations = 0
    for begin in range(0, len(data), batch):
        part = data.subset(slice(begin, begin + batch))
        result = apgd(
            classifier,
            part.pixels(),
            part.labels,
            ThreatModel("linf", eps),
            seed=0,
            image_ids=part.indices,
            steps=steps,
        )
        clean += int(result.clean_correct.sum())
        robust += int(result.correct.sum())
    return {
        "n": len(data),
        "clean": clean / len(data),
        "clean_ci95": list(wilson_interval(clean, len(data))),
        "robust": robust / len(data),
        "robust_ci95": list(wilson_interval(robust, len(data))),
        "eps": eps,
        "steps": steps,
        "seconds": round(time.time() - started, 1),
        "network_evaluations": classifier.network_evaluations,
    }


@drawing()
def plot(rows: dict[str, dict], path: Path) -> None:
    """One line a setting, sorted by robust accuracy: clean and robust, with 95 % intervals."""
    names = sorted(rows, key=lambda name: (rows[name]["robust"], rows[name]["clean"]))
    figure = new_figure(7.6, 1.4 + 0.32 * len(names), dpi=150)
    axis = figure.subplots()
    for what, colour, shift in (("clean", "#7a8ca5", 0.12), ("robust", "#1f5a99", -0.12)):
        middle = [100 * rows[name][what] for name in names]
        low = [100 * (rows[name][what] - rows[name][f"{what}_ci95"][0]) for name in names]
        high = [100 * (rows[name][f"{what}_ci95"][1] - rows[name][what]) for name in names]
        place = [row + shift for row in range(len(names))]
        axis.errorbar(middle, place, xerr=[low, high], fmt="o", color=colour, elinewidth=1, label=what, markersize=5)
    axis.set_yticks(range(len(names)), [f"{_words(name)}   n = {rows[name]['n']}" for name in names], fontsize=8)
    first = rows[names[-1]]
    attack = f"APGD-CE, {first['steps']} steps, l_inf {255 * first['eps']:g}/255, exact gradient, known noise"
    axis.set_xlabel(f"accuracy, %   (robust: {attack})", fontsize=8)
    axis.set_title("Noise levels and weighting, held-out training images, 95 % intervals", fontsize=10, loc="left")
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _words(name: str) -> str:
    levels, *lm = name.split()
    if levels.count(":") == 4:
        scheme, count, low, high, weighting = levels.split(":")
        levels = f"{weighting}, {count} {scheme} levels in [{low}, {high}]"
    return ", ".join([Path(levels).name, *lm])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--n", type=int, default=64, help="held-out images")
    parser.add_argument("--eps", type=parse_eps, default=8 / 255)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--settings", nargs="*", default=SETTINGS, help="scheme:count:min:max:weighting or preset names"
    )
    parser.add_argument(
        "--lm", nargs="*", default=["none"], help="likelihood maximisation, each with every setting (default: none)"
    )
    parser.add_argument("--gradient", default="exact", choices=("exact", "bpda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-root", help="folder of Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/levels.json"))
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = holdout(args.n, args.data_root)
    base = rdc.load(args.model)
    study = read_json(args.out) if args.out.exists() else {"settings": {}}
    for levels, lm in tqdm([(levels, lm) for levels in args.settings for lm in args.lm], unit="setting"):
        name = levels if lm == "none" else f"{levels} {lm} {args.gradient}"
        if name in study["settings"]:
            continue
        classifier = base.with_(levels=rdc.parse_levels(levels), lm=lm, gradient=args.gradient)
        study["settings"][name] = measure(classifier, data, args.eps, args.steps, args.batch)
        study |= {
            "model": args.model,
            "command": "python " + " ".join(sys.argv),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
            "torch": torch.__version__,
        }
        write_json(args.out, study)
        row = study["settings"][name]
        tqdm.write(f"{name:28s} clean {row['clean']:.3f}  robust {row['robust']:.3f}  {row['seconds']:.0f} s")
    if args.plot:
        plot(study["settings"], args.plot)


if __name__ == "__main__":
    start(main)
