"""Do anytime decisions keep their word? Disagreement with the full decision, levels and seconds, on images not used for calibration.

    python -m benchmarks.studies.anytime --out benchmarks/results/anytime.json                                  # multi-head student
    python -m benchmarks.studies.anytime --model fashion-mnist-teacher --calibrate 300 --check 200 --rates 0.02 0.05 --out ...

Calibrated on held-out training images (not trained on), checked on test images: the rule's losses are recorded once, so that every
rate is simulated on all images (as tests/decisions/test_anytime.py shows, what runs is what is simulated);
then the classifier itself runs, full and anytime taking turns, on the first ``--timed`` of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rdc
from benchmarks.measuring import about, alternate, clock, ratio, summary
from benchmarks.starting import start
from benchmarks.studies.levels import holdout
from rdc.decisions.anytime import AnytimeClassifier
from rdc.decisions.anytime.calibration import (
    _losses,
    calibrate_from_losses,
    fingerprint,
    images_needed,
    prior_scores,
    simulate_stopping,
)
from rdc.statistics import bootstrap_interval
from rdc.statistics.proportions import wilson_interval
from rdc.storage.json_files import write_json


def study(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, as the results file has it."""
    classifier = rdc.load(args.model)
    data = rdc.load_dataset("fashion-mnist", "test").subset(slice(0, args.check))
    calibration_losses = _losses(classifier, holdout(args.calibrate, None).pixels(), 32, True)
    losses = _losses(classifier, data.pixels(), 32, True)
    eliminate = classifier.denoiser.passes_per_level > 1
    weight, prior = np.array(classifier.levels.weight), prior_scores(classifier)
    labels = data.labels.numpy()
    rows, rules = [], {}
    for rate in args.rates:
        if args.calibrate < images_needed(rate):
            print(f"rate {rate:g}: needs {images_needed(rate)} calibration images, left out")
            continue
        made = calibrate_from_losses(
            calibration_losses, weight, prior, rate, 0.95, eliminate=eliminate, fingerprint=fingerprint(classifier)
        )
        scores = np.cumsum((losses * weight[:, None])[:, list(made.order)], 1)[:, [k - 1 for k in made.looks]] + prior
        stopping = simulate_stopping(scores, np.array(made.boundary), made.looks, eliminate=eliminate)
        rows.append(_row(made, stopping, scores[:, -1].argmin(1), labels))
        rules[rate] = made
        print(
            {
                key: rows[-1][key]
                for key in ("stated_rate", "disagreement", "ci95", "within", "mean_levels", "mean_passes")
            }
        )
    return {
        "model": args.model,
        "calibration_images": args.calibrate,
        "levels": len(weight),
        "passes": classifier.evaluations_per_image,
        "rows": rows,
        "seconds": _seconds(classifier, rules, data.pixels(range(args.timed)), args.rounds),
    }


def _row(made: Any, stopping: Any, full: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """One rate: disagreement and cost on the images that were not calibrated on."""
    differs = stopping.decision != full
    count = len(full)
    change = (stopping.decision == labels).astype(float) - (full == labels)
    spread = bootstrap_interval(np.column_stack([change, stopping.levels, stopping.passes]))
    return {
        "stated_rate": made.error_rate,
        "confidence": made.confidence,
        "z": made.z,
        "tested_on": made.images,
        "differing_when_tested": made.differing,
        "n": count,
        "disagreement": round(float(differs.mean()), 5),
        "ci95": [round(end, 5) for end in wilson_interval(int(differs.sum()), count)],
        "within": bool(differs.mean() <= made.error_rate),
        "accuracy_change": round(float(change.mean()), 5),
        "accuracy_change_ci95": [round(float(spread.low[0]), 5), round(float(spread.high[0]), 5)],
        "mean_levels": round(float(stopping.levels.mean()), 3),
        "mean_levels_ci95": [round(float(spread.low[1]), 3), round(float(spread.high[1]), 3)],
        "mean_passes": round(float(stopping.passes.mean()), 3),
        "levels_histogram": {
            int(k): int(v) for k, v in zip(*np.unique(stopping.levels, return_counts=True), strict=True)
        },
    }


def _seconds(classifier: Any, rules: dict[float, Any], pixels: torch.Tensor, rounds: int) -> dict[str, Any]:
    """The classifier itself, full and at every rate, in turns; decisions checked against the simulation's promise."""
    models = {f"anytime {rate:g}": AnytimeClassifier(classifier, rate, made) for rate, made in rules.items()}
    with torch.no_grad():
        full = classifier(pixels).argmax(1)
        agree = {name: float((model(pixels).argmax(1) == full).double().mean()) for name, model in models.items()}
        calls = {"full": lambda: classifier(pixels)} | {
            name: lambda model=model: model(pixels) for name, model in models.items()
        }
        seconds = alternate(calls, rounds, clock(torch.get_num_threads())[1])
    return {
        name: {**summary(values, len(pixels)), **ratio(seconds["full"], values), "agreement": agree.get(name, 1.0)}
        for name, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--calibrate", type=int, default=1500, help="held-out training images, at most 2000")
    parser.add_argument("--check", type=int, default=1500, help="test images")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.005, 0.01, 0.02, 0.05])
    parser.add_argument("--timed", type=int, default=64, help="images of a timed call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    head = about()
    found = {"about": head, "clock": clock(args.threads)[0], **study(args)}
    for name, row in found["seconds"].items():
        print(
            f"{name:16s} {row['seconds_per_image']:.4f} s/image  {row['ratio']:.2f}x  agreement {row['agreement']:.4f}"
        )
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    start(main)
