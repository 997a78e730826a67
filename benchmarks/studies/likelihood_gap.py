"""Is the ELBO gap of a diffusion classifier the same for every class, and what does it say of an image?

    rdc likelihood --model fashion-mnist-teacher --data fashion-mnist-sample --n 200 --steps 6 --elbo-levels 12 --out runs/gap
    rdc evaluate --model fashion-mnist --data fashion-mnist-sample --n 200 --attacks apgd-ce --steps 20 --sanity 0 --out runs/attacked
    python -m benchmarks.studies.likelihood_gap tolerance --out benchmarks/results/likelihood-tolerance.json
    python -m benchmarks.studies.likelihood_gap gap --runs runs/gap --attacked student=runs/attacked \\
        --out benchmarks/results/likelihood-gap.json --pictures docs/images
    rdc likelihood --model cifar10 --data cifar10 --n 16 --steps 6 --elbo-levels 12 --out runs/gap-cifar10
    python -m benchmarks.studies.likelihood_gap gap --model cifar10 --runs runs/gap-cifar10 \\
        --out benchmarks/results/likelihood-gap-cifar10.json

`tolerance` solves the ODE by both solvers and several numbers of steps, signs and ends, and by Heun's method in x on sampling's grid. A
finished row is kept: the same command goes on. `gap` computes nothing but statistics; --runs may name several folders (of other images).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rdc
from benchmarks.starting import start
from rdc.data import load_dataset
from rdc.decisions.calibration import auroc
from rdc.method.denoiser import Denoiser
from rdc.method.likelihood import PROBE_STREAM, dequantised, flow_log_density
from rdc.method.noise import NoisePlan
from rdc.method.probability_flow import FlowSettings, rademacher
from rdc.method.sampling import sampling_levels
from rdc.plots.drawing import drawing, new_figure
from rdc.provenance.run import commit
from rdc.statistics import bootstrap_interval, wilson_interval
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

PIXELS = 28 * 28  # of the study of tolerances
RUNS: list[dict[str, Any]] = [
    *({"solver": "rk4", "steps": n} for n in (10, 3, 4, 5, 6)),
    *({"solver": "heun", "steps": n} for n in (6, 10, 20)),
    *({"solver": "heun in x, sampling's grid", "steps": n} for n in (10, 20)),
    *({"solver": "rk4", "steps": 5, "seed": seed} for seed in (1, 2, 3)),
    *({"solver": "rk4", "steps": 5, "sigma_min": low} for low in (0.002, 0.05)),
    {"solver": "rk4", "steps": 5, "sigma_max": 20.0},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("tolerance", "gap"))
    parser.add_argument("--model", default="fashion-mnist-teacher")
    parser.add_argument("--images", type=int, default=4, help="tolerance: images, two classes of each (default: 4)")
    parser.add_argument("--runs", nargs="+", type=Path, default=[], help="gap: folders of rdc likelihood")
    parser.add_argument(
        "--attacked", nargs="*", default=[], metavar="NAME=DIR", help="gap: folders of rdc evaluate, same images"
    )
    parser.add_argument("--tolerance", type=Path, default=Path("benchmarks/results/likelihood-tolerance.json"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, help="gap: where pictures go")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part == "tolerance":
        tolerance(args)
        return
    found = gap(args)
    write_json(args.out, found)
    if args.pictures:
        draw(found, read_json(args.tolerance), args.pictures)


# --- how finely -----------------------------------------------------------------------------------------------------


def tolerance(args: argparse.Namespace) -> None:
    denoiser = rdc.load(args.model).denoiser
    data = load_dataset("fashion-mnist-sample", "test")
    images, labels = data.images[: args.images], data.labels[: args.images]
    x = dequantised(images, 0, range(args.images)).repeat_interleave(2, 0)
    classes = torch.stack([labels, (labels + 2) % 10], 1).flatten()
    report = read_json(args.out) if args.out.exists() else {"rows": []}
    report |= {"model": args.model, "images": args.images, "classes": classes.view(-1, 2).tolist(), "commit": commit()}
    done = [row["run"] for row in report["rows"]]
    for run in bar([run for run in RUNS if run not in done], unit=" runs"):
        with torch.no_grad():
            nats = _solved(denoiser, x, classes, dict(run)).view(-1, 2)
        report["rows"].append({"run": run, "nats": nats.tolist(), "evaluations": _evaluations(run)})
        write_json(args.out, report)


def _evaluations(run: dict[str, Any]) -> int:
    return run["steps"] * (4 if run["solver"] == "rk4" else 2)


def _solved(denoiser: Denoiser, x: torch.Tensor, labels: torch.Tensor, run: dict[str, Any]) -> torch.Tensor:
    plan = NoisePlan(run.pop("seed", 0), stream=PROBE_STREAM)
    signs = torch.stack(
        [rademacher(plan, image, 1, denoiser.image_shape) for image in range(len(x) // 2)]
    ).repeat_interleave(2, 0)
    if run["solver"] in ("rk4", "heun"):
        return flow_log_density(denoiser, x, labels, FlowSettings(**run), signs)
    return _plain(denoiser, x, labels, run["steps"], signs[:, 0])


def _plain(denoiser: Denoiser, x: torch.Tensor, labels: torch.Tensor, steps: int, signs: torch.Tensor) -> torch.Tensor:
    """Heun's method for dx/ds = (x - D) / s on the grid of arXiv 2206.00364, equation 5 (rho 7), shared with nothing in rdc."""
    grid, data = sampling_levels(steps + 1, 0.01, 80.0)[:-1].flip(0).tolist(), denoiser.precondition.sigma_data

    def slope(x: torch.Tensor, s: float) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            moved = (leaf - denoiser.denoise(leaf, leaf.new_full((len(leaf),), s), labels)) / s
            (pulled,) = torch.autograd.grad(moved, leaf, signs)
        return moved.detach(), (pulled * signs).flatten(1).sum(1)

    size, total = x[0].numel(), x.new_zeros(len(x))
    for here, there in zip(grid[:-1], grid[1:], strict=True):
        first, one = slope(x, here)
        second, two = slope(x + (there - here) * first, there)
        x, total = x + (there - here) / 2 * (first + second), total + (there - here) / 2 * (one + two)
    variance = grid[-1] ** 2 + data**2
    return total - x.square().flatten(1).sum(1) / (2 * variance) - size / 2 * math.log(2 * math.pi * variance)


# --- the gap ----------------------------------------------------------------------------------------------------------


def gap(args: argparse.Namespace) -> dict[str, Any]:
    records, run = {}, {}
    for folder in args.runs:
        run = read_json(folder / "run.json")
        lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        records |= {line["image"]: line for line in lines}
    rows = [records[image] for image in sorted(records)]
    label = np.array([row["label"] for row in rows])
    ode, elbo, own = (np.array([row[key] for row in rows]) for key in ("log_likelihood", "elbo", "logits"))
    model = rdc.load(args.model)
    names, dimensions = model.class_names, math.prod(model.image_shape)
    bits = dimensions * math.log(2)  # nats in a bit per dimension
    distance = (ode - elbo) / bits
    at, count = np.arange(len(label)), len(label)
    decided = {"ODE": ode.argmax(1), "ELBO": elbo.argmax(1), "DC": own.argmax(1)}
    report: dict[str, Any] = {
        "model": args.model, "n": count, "dimensions": dimensions, "settings": run["identity"]["settings"], "commit": commit(),
        "commands": [read_json(folder / "run.json")["command"] for folder in args.runs],
        "bits_per_dimension": {"ODE": _mean(7 - ode[at, label] / bits), "ELBO": _mean(7 - elbo[at, label] / bits)},
        "gap": _mean(distance[at, label]), "gap_nats": _mean(distance[at, label] * bits),
        "of_class": _of_classes(distance, label, names), "variance": _variance(distance * bits),
        "accuracy": {name: _share(found == label) for name, found in decided.items()},
        "differ": {f"{a}, {b}": _share(decided[a] != decided[b]) for a, b in (("ODE", "ELBO"), ("ODE", "DC"), ("ELBO", "DC"))},
    }  # fmt: skip
    report["accuracy"]["ELBO + mean gap of the class"] = _share(_corrected(ode, elbo) == label)
    top = np.sort(elbo, 1)
    difference = np.abs((distance - distance[at, decided["ELBO"]][:, None]) * bits)
    rival = np.argsort(elbo, 1)[:, -2]
    report["two_best"] = {
        "margin_nats": _median(top[:, -1] - top[:, -2]),
        "difference_of_gaps_nats": _median(difference[at, rival]),
        "difference_exceeds_margin": _share(difference[at, rival] > top[:, -1] - top[:, -2]),
    }
    scores = {
        "gap of the decided class": distance[at, decided["ELBO"]],
        "bits per dimension, ODE": 7 - ode.max(1) / bits,
        "spread of gaps over classes": distance.std(1),
        "small margin, ODE": -(np.sort(ode, 1)[:, -1] - np.sort(ode, 1)[:, -2]),
        "small margin, DC": -(np.sort(own, 1)[:, -1] - np.sort(own, 1)[:, -2]),
    }
    targets = {f"error of {name}": (found != label, np.ones(count, bool)) for name, found in decided.items()}
    for text in args.attacked:
        name, _, folder = text.partition("=")
        targets[f"attack on {name} succeeds"] = _broken(Path(folder), sorted(records))
    report["auroc"] = {target: _aurocs(scores, hit[use], use) for target, (hit, use) in targets.items()}
    report["per_image"] = {
        "gap": distance[at, label].round(5).tolist(),
        "right_by_elbo": (decided["ELBO"] == label).tolist(),
    }
    return report


def _of_classes(distance: np.ndarray, label: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """Of every class as a hypothesis for all images, against the image's mean over classes, and for its own images."""
    centred = distance - distance.mean(1, keepdims=True)
    return {
        name: {
            "all_images": _mean(distance[:, k]), "against_other_classes": _mean(centred[:, k]),
            "own_images": _mean(distance[label == k, k]), "own_n": int((label == k).sum()),
        }
        for k, name in enumerate(names)
    }  # fmt: skip


def _variance(nats: np.ndarray) -> dict[str, float]:
    """Standard deviations in nats: of images, of classes (the same for all images), and of what is left."""
    image, kind = nats.mean(1, keepdims=True), nats.mean(0, keepdims=True)
    rest = nats - image - kind + nats.mean()
    freedom = (nats.shape[0] - 1) * (nats.shape[1] - 1)
    return {
        "images": float(image.std(ddof=1)),
        "classes": float(kind.std(ddof=1)),
        "rest": math.sqrt((rest**2).sum() / freedom),
    }


def _corrected(ode: np.ndarray, elbo: np.ndarray) -> np.ndarray:
    """ELBO with the mean gap of each class added, the mean taken over the other images."""
    difference = ode - elbo
    others = (difference.sum(0) - difference) / (len(ode) - 1)
    return (elbo + others).argmax(1)


def _broken(folder: Path, images: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Whether the attack broke the image, and whether it was attacked: there, and right before."""
    lines = (json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines())
    found = {line["image"]: line for line in lines if "image" in line}
    clean = np.array([image in found and found[image]["clean"]["right"] == 1 for image in images])
    robust = np.array([image in found and bool(found[image]["robust"]) for image in images])
    return clean & ~robust, clean


def _aurocs(scores: dict[str, np.ndarray], hit: np.ndarray, use: np.ndarray) -> dict[str, Any]:
    """AUROC of every score for the images hit against the others, with a bootstrap interval over images."""
    found: dict[str, Any] = {"hit": int(hit.sum()), "n": len(hit)}
    generator = np.random.default_rng(0)
    for name, score in scores.items():
        values, resampled = score[use], []
        if not 0 < hit.sum() < len(hit):
            continue
        for _ in range(2000):
            pick = generator.integers(0, len(hit), len(hit))
            if 0 < hit[pick].sum() < len(hit):
                resampled.append(auroc(values[pick][hit[pick]], values[pick][~hit[pick]]))
        low, high = np.quantile(resampled, [0.025, 0.975])
        found[name] = {"auroc": float(auroc(values[hit], values[~hit])), "ci95": [float(low), float(high)]}
    return found


def _mean(values: np.ndarray) -> dict[str, Any]:
    if len(values) < 2:
        return {"mean": float(values.mean()) if len(values) else None, "ci95": None, "sd": None}
    found = bootstrap_interval(values)
    return {
        "mean": float(found.mean[0]),
        "ci95": [float(found.low[0]), float(found.high[0])],
        "sd": float(values.std(ddof=1)),
    }


def _median(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {"q05": float(low), "median": float(middle), "q95": float(high)}


def _share(hit: np.ndarray) -> dict[str, Any]:
    return {
        "share": float(hit.mean()),
        "count": int(hit.sum()),
        "ci95": list(wilson_interval(int(hit.sum()), len(hit))),
    }


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw(report: dict[str, Any], fineness: dict[str, Any], folder: Path) -> None:
    with drawing():
        _draw_classes(report, folder / "likelihood-gap-classes.png")
        _draw_images(report, folder / "likelihood-gap-images.png")
        _draw_tolerance(fineness, folder / "likelihood-tolerance.png")


def _draw_classes(report: dict[str, Any], path: Path) -> None:
    names = list(report["of_class"])
    found = [report["of_class"][name]["against_other_classes"] for name in names]
    bits = report["dimensions"] * math.log(2)
    figure = new_figure(7, 3.6, layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(found):
        axes.plot([bits * end for end in row["ci95"]], [place, place], color="#2f5d9b", linewidth=2)
        axes.plot(bits * row["mean"], place, "o", color="#2f5d9b", markersize=5)
    axes.axvline(0, color="#8895a3", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("gap of the class minus the image's mean over classes, nats")
    axes.set_title(f"{report['model']}: mean over {report['n']} images, 95 % interval", fontsize=10)
    figure.savefig(path, dpi=130)


def _draw_images(report: dict[str, Any], path: Path) -> None:
    values, right = np.array(report["per_image"]["gap"]), np.array(report["per_image"]["right_by_elbo"])
    figure = new_figure(7, 3.2, layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(values.min(), values.max(), 25)
    axes.hist([values[right], values[~right]], bins, stacked=True, color=["#2f5d9b", "#c05a2b"])
    axes.legend([f"right by ELBO ({right.sum()})", f"wrong by ELBO ({(~right).sum()})"], frameon=False)
    axes.set_xlabel("gap of the right class, bits per dimension")
    axes.set_ylabel("images")
    figure.savefig(path, dpi=130)


def _draw_tolerance(found: dict[str, Any], path: Path) -> None:
    rows = [row for row in found["rows"] if set(row["run"]) == {"solver", "steps"}]
    best = np.array(rows[0]["nats"])  # rk4, ten steps
    figure = new_figure(7, 3.6, layout="constrained")
    axes = figure.subplots()
    for solver, colour in (("rk4", "#2f5d9b"), ("heun", "#c05a2b"), ("heun in x, sampling's grid", "#8895a3")):
        mine = sorted((row for row in rows[1:] if row["run"]["solver"] == solver), key=lambda row: row["evaluations"])
        error = [np.abs(np.array(row["nats"]) - best).mean() / (PIXELS * math.log(2)) for row in mine]
        axes.plot([row["evaluations"] for row in mine], error, "o-", color=colour, label=solver)
    axes.set_yscale("log")
    axes.set_xlabel("network passes for one class of one image")
    axes.set_ylabel("mean error, bits per dimension")
    axes.set_title("Against rk4 with 10 steps (40 passes), same signs", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    start(main)
