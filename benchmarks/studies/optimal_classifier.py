"""The optimal diffusion classifier and nearest neighbours: clean and robust accuracy, and what the number of images does to them.

    python -m benchmarks.studies.optimal_classifier --list
    python -m benchmarks.studies.optimal_classifier --threads 1
    python -m benchmarks.studies.optimal_classifier --write docs/optimal.md

Three protocols: fit on the training images and attack test images; fit and attack the same images, as the authors' program does, once with
2 s^2 and once with its 2 s. A cell is one `rdc evaluate` (its command is in the report), resumable; finished reports are kept in
benchmarks/results/optimal/. --write runs nothing: tables behind the page's marker, and docs/images/optimal.png.

Needs all of Fashion-MNIST, and CIFAR-10 for its rows (docs/data.md).
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.starting import start
from benchmarks.studies.robustness_table import THREATS
from rdc.cli import main as rdc_main
from rdc.data import first_balanced, load_dataset
from rdc.plots.drawing import drawing, new_figure
from rdc.statistics import wilson_interval
from rdc.storage.files import atomic_write
from rdc.storage.json_files import read_json

RESULTS = Path(__file__).resolve().parents[1] / "results" / "optimal"
FIGURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "optimal.png"
MARKER = "<!-- below: written by benchmarks/studies/optimal_classifier.py -->"

LEVELS = "log:8:0.3:4:flat"
COUNTS = (500, 2000, 6000, 20000, 60000)
N = 512  # attacked images; the sample that comes with rdc has as many
_ATTACKS = "apgd-ce:steps=20,apgd-t:targets=2:steps=10"
_NEAREST = "apgd-ce:steps=50,apgd-t:targets=4:steps=25"

#: row -> (model, options)
PROTOCOLS = {
    "train-test": "optimal:fashion-mnist",
    "same": "optimal:fashion-mnist-sample,split=test",
    "same-released": "optimal:fashion-mnist-sample,split=test,exponent=released",
}
#: the same on CIFAR-10: fewer images and the paper's two balls, for a step costs five times as much there
CIFAR10 = {
    "cifar10-train-test": ("optimal:cifar10", "fit on 50,000 training images"),
    "cifar10-same": ("optimal:cifar10,split=test", "fit on the 10,000 test images, the attacked ones among them"),
}
CIFAR10_THREATS, CIFAR10_N = ("linf-8", "l2-0.5"), 128
#: cell -> reports on all of its images, in parts, of more steps (apgd-ce:steps=60,apgd-dlr:steps=30), which left fewer
MORE = {"train-test-linf-25": ("more", "more-b", "more-c")}
WORDS = {
    "train-test": "fit on 60,000 training images",
    "same": "fit on the 512 attacked images",
    "same-released": "the same, with 2 s",
}


class NearestNeighbour(nn.Module):
    """Logits: minus the squared distance to the nearest image of each class; the gradient is exact almost everywhere.

    Args:
        images: [n, C, H, W] in [0, 1].
        labels: [n].
        num_classes: K.
    """

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int) -> None:
        super().__init__()
        for label in range(num_classes):
            self.register_buffer(f"class_{label}", images[labels == label].flatten(1))
        self.num_classes = num_classes

    def forward(self, pixels: Tensor) -> Tensor:
        flat = pixels.flatten(1)
        nearest = []
        for label in range(self.num_classes):
            images = getattr(self, f"class_{label}")
            with torch.no_grad():
                closest = (flat @ images.T - images.square().sum(1) / 2).argmax(1)
            nearest.append((flat - images[closest]).square().sum(1))
        return -torch.stack(nearest, 1)


def nearest() -> NearestNeighbour:
    """For ``rdc evaluate --model benchmarks.studies.optimal_classifier:nearest``: of RDC_NEAREST images (default: all)."""
    data = load_dataset("fashion-mnist", "train")
    data = first_balanced(data, int(os.environ.get("RDC_NEAREST", len(data))))
    return NearestNeighbour(data.pixels(), data.labels, data.num_classes)


def cells() -> dict[str, list[str]]:
    """Name of each cell -> its options for rdc evaluate."""
    found = {}
    for row, model in PROTOCOLS.items():
        for threat in THREATS:
            found[f"{row}-{threat}"] = ["--model", model, "--levels", LEVELS, *_threat(threat, _ATTACKS)]
    for row, (model, _) in CIFAR10.items():
        for threat in CIFAR10_THREATS:
            found[f"{row}-{threat}"] = ["--model", model, "--levels", LEVELS, *_threat(threat, _ATTACKS)]
    for count in COUNTS:
        model = f"optimal:fashion-mnist,images={count}"
        for threat in ("linf-8", "linf-25"):
            if count != COUNTS[-1]:
                found[f"images-{count}-{threat}"] = ["--model", model, "--levels", LEVELS, *_threat(threat, _ATTACKS)]
            found[f"nearest-{count}-{threat}"] = [
                "--model",
                "benchmarks.studies.optimal_classifier:nearest",
                *_threat(threat, _NEAREST),
            ]
    return found


def _threat(threat: str, attacks: str) -> list[str]:
    norm, eps, _ = THREATS[threat]
    return ["--norm", norm, "--eps", eps, "--attacks", "stadv" if norm == "flow" else attacks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", help="names separated by commas (default: all; --list has them)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--work", type=Path, default=Path("out/optimal"), help="folders of the runs")
    parser.add_argument("--list", action="store_true", help="show what is there and what is missing")
    parser.add_argument("--write", type=Path, help="page whose end is written, with the figure; runs nothing")
    args = parser.parse_args()
    if args.write:
        before, _, _ = args.write.read_text().partition(MARKER)
        args.write.write_text(f"{before.rstrip()}\n\n{MARKER}\n\n{tables()}")
        draw()
        return
    known = cells()
    names = args.cells.split(",") if args.cells else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--cells: expected names of {', '.join(known)}; got {unknown[0]!r}")
    for name in names:
        kept = RESULTS / f"{name}.json"
        if not (kept.exists() or args.list):
            _run(name, known[name], args)
        print(f"{name:24s} {_summary(kept) if kept.exists() else 'missing'}", flush=True)


def _run(name: str, options: list[str], args: argparse.Namespace) -> None:
    out = args.work / name
    if name.startswith("nearest"):
        os.environ["RDC_NEAREST"] = name.split("-")[1]
    data, n = ("cifar10", CIFAR10_N) if name.startswith("cifar10") else ("fashion-mnist-sample", N)
    command = ["evaluate", *options, "--data", data, "--n", str(n), "--noise", "known", "--sanity", "0"]
    command += ["--batch", str(args.batch), "--threads", str(args.threads), "--quiet", "--out", str(out)]
    if status := rdc_main(command):
        raise SystemExit(status)
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / "report.json", RESULTS / f"{name}.json")


def _summary(path: Path) -> str:
    report = read_json(path)
    return f"clean {_percent(report, 'clean')}  robust {_percent(report, 'robust')}  {report['seconds']:.0f} s"


def _percent(report: dict[str, Any], kind: str) -> str:
    low, high = wilson_interval(round(report[kind]["accuracy"] * report["n"]), report["n"])
    return f"{100 * report[kind]['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _kept() -> dict[str, dict[str, Any]]:
    found = {name: read_json(RESULTS / f"{name}.json") for name in cells() if (RESULTS / f"{name}.json").exists()}
    for name, parts in MORE.items():
        reports = [read_json(RESULTS / f"{name}-{part}.json") for part in parts]
        standing = sum(round(report["robust"]["accuracy"] * report["n"]) for report in reports)
        if name in found and sum(report["n"] for report in reports) == found[name]["n"]:  # the lower number counts
            found[name]["robust"]["accuracy"] = min(found[name]["robust"]["accuracy"], standing / found[name]["n"])
    return found


def tables() -> str:
    """Markdown: protocols by threats, then accuracy by the number of images."""
    kept = _kept()
    lines = ["| protocol | clean | " + " | ".join(words for _, _, words in THREATS.values()) + " |"]
    lines.append("|" + "---|" * (2 + len(THREATS)))
    for row, words in WORDS.items():
        mine = [kept.get(f"{row}-{threat}") for threat in THREATS]
        if any(mine):
            clean = _percent(next(report for report in mine if report), "clean")
            lines.append(
                f"| {words} | {clean} | " + " | ".join(_percent(r, "robust") if r else "-" for r in mine) + " |"
            )
    lines += ["", "| images | optimal, clean | l_inf 8/255 | l_inf 0.1 | nearest, clean | l_inf 8/255 | l_inf 0.1 |"]
    lines.append("|" + "---|" * 7)
    for count in COUNTS:
        optimal = "train-test" if count == COUNTS[-1] else f"images-{count}"
        mine = [
            kept.get(f"{row}-{threat}") for row in (optimal, f"nearest-{count}") for threat in ("linf-8", "linf-25")
        ]
        if any(mine):
            numbers = [_percent(r, "robust") if r else "-" for r in mine]
            clean = [_percent(r, "clean") if r else "-" for r in (mine[0], mine[2])]
            lines.append(
                f"| {count:,} | {clean[0]} | {' | '.join(numbers[:2])} | {clean[1]} | {' | '.join(numbers[2:])} |"
            )
    lines += ["", "| CIFAR-10, 128 images | clean | l_inf 8/255 | l_2 0.5 |", "|---|---|---|---|"]
    for row, (_, words) in CIFAR10.items():
        mine = [kept.get(f"{row}-{threat}") for threat in CIFAR10_THREATS]
        clean = next((_percent(report, "clean") for report in mine if report), "-")
        lines.append(f"| {words} | {clean} | " + " | ".join(_percent(r, "robust") if r else "-" for r in mine) + " |")
    return "\n".join(lines) + "\n"


def draw() -> None:
    """Accuracy against the number of images, and where the shipped classifiers stand."""
    kept = _kept()
    shipped = {name: read_json(RESULTS.parent / "table" / f"dc-{name}.json") for name in ("linf-8", "linf-25")}
    with drawing():
        figure = new_figure(9, 3.6)
        axes = figure.subplots(1, 3, sharey=True)
        for axis, (title, kind, threat) in zip(
            axes,
            (("clean", "clean", "linf-8"), ("l_inf 8/255", "robust", "linf-8"), ("l_inf 0.1", "robust", "linf-25")),
            strict=True,
        ):
            for row, colour in (("images", "C0"), ("nearest", "C1")):
                points = []
                for count in COUNTS:
                    name = "train-test" if (row, count) == ("images", COUNTS[-1]) else f"{row}-{count}"
                    if report := kept.get(f"{name}-{threat}"):
                        points.append((count, report[kind]["accuracy"], report["n"]))
                bounds = [wilson_interval(round(share * n), n) for _, share, n in points]
                axis.errorbar(
                    [count for count, _, _ in points],
                    [100 * share for _, share, _ in points],
                    [
                        [100 * (share - low) for (_, share, _), (low, _) in zip(points, bounds, strict=True)],
                        [100 * (high - share) for (_, share, _), (_, high) in zip(points, bounds, strict=True)],
                    ],
                    color=colour,
                    marker="o",
                    markersize=4,
                    capsize=2,
                    label={"images": "optimal denoiser", "nearest": "nearest neighbour"}[row],
                )
            report = shipped[threat]
            axis.plot([60000], [100 * report[kind]["accuracy"]], "k*", markersize=10, label="DC, the shipped network")
            axis.set_xscale("log")
            axis.set_title(title)
            axis.set_xlabel("training images")
            axis.set_ylim(0, 100)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("accuracy, %")
        axes[0].legend(loc="lower right", fontsize=8)
        figure.tight_layout()
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(FIGURE) as file:
            figure.savefig(file, format="png", dpi=130)


if __name__ == "__main__":
    start(main)
