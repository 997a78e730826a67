"""Calibration, and images of another kind, for every row of the robustness table.

    python -m benchmarks.studies.calibration_ood --data-root DIR --ood mnist_test.npz --threads 1
    python -m benchmarks.studies.calibration_ood --rows JEM,HybViT --data-root DIR --ood mnist_test.npz
    python -m benchmarks.studies.calibration_ood --write docs/calibration.md

A temperature is fitted on held-out training images (of the 2,000 that no shipped model was trained on), ECE (15 bins) is taken on
the first test images. AUROC: MNIST's test images against Fashion-MNIST's, by three scores of unlikeness:

    softmax     minus the largest probability, after the temperature
    logsumexp   minus log sum_y exp f_y, what JEM calls log p(x); for networks that have logits f
    own         of a diffusion classifier: losses of every level given the image's complexity (rdc.decisions)

A row that is in benchmarks/results/calibration-ood.json is not run again; how many images is part of a row. --write runs nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rdc
from benchmarks.starting import start
from benchmarks.studies.levels import holdout
from benchmarks.studies.robustness_table import OPEN
from benchmarks.studies.robustness_table import ROWS as OTHERS
from rdc.decisions.calibration import (
    auroc,
    expected_calibration_error,
    fit_likelihood_score,
    fit_logit_scale,
    log_softmax,
    negative_log_likelihood,
)
from rdc.models.choice import ModelChoice
from rdc.provenance.run import commit
from rdc.statistics import wilson_interval
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

RESULTS = Path(__file__).resolve().parents[1] / "results" / "calibration-ood.json"
BEGIN = "<!-- calibration: written by benchmarks/studies/calibration_ood.py -->"
END = "<!-- end of calibration -->"
BINS, BATCH = 15, 50
HELD_OUT, QUICK, DEAR = 1000, 2000, 500  # images: to fit on; test and MNIST images of a quick row, and of a dear one
DEAR_ROWS = ("RDC", "LM+ResNet", "DiffPure")  # what moves images before it looks at them
FEW = {"SBGC": 200}  # images of each kind where a prediction takes half a second
ROWS = OTHERS | OPEN
_MODEL_OPTIONS = {
    field.name for field in dataclasses.fields(ModelChoice)
}  # of a row's; the others are the evaluation's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="defences (default: all)")
    parser.add_argument("--data-root", help="folder of Fashion-MNIST's files")
    parser.add_argument("--ood", default="mnist_test.npz", help="MNIST's test images (.npz)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="markdown file whose table is written; runs nothing")
    args = parser.parse_args()
    names = args.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--rows: expected names of {', '.join(ROWS)}; got {unknown[0]!r}")
    if args.write:
        before, _, rest = args.write.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        args.write.write_text(f"{before}{BEGIN}\n\n{table()}\n{END}{after}")
        return
    torch.set_num_threads(args.threads)
    for name in names:
        found = read_json(RESULTS) if RESULTS.exists() else {}
        if name not in found:
            row = measure(name, args)
            write_json(RESULTS, {**(read_json(RESULTS) if RESULTS.exists() else {}), name: row})
            print(name, {key: row[key] for key in ("accuracy", "ece", "auroc")}, flush=True)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row: calibration on test images, AUROC of MNIST's."""
    begun = time.time()
    count = images_of(name)
    words = ROWS[name].options
    given = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    options = {key: value for key, value in given.items() if key in _MODEL_OPTIONS}
    held = holdout(min(HELD_OUT, count), args.data_root)
    test = rdc.load_dataset("fashion-mnist", "test", args.data_root).subset(range(count))
    other = rdc.load_dataset(args.ood).subset(range(count))
    classifier = ModelChoice(ROWS[name].model, **options).load(test)
    images = {"held-out": held, "test": test, "mnist": other}
    own = (
        isinstance(classifier, rdc.DiffusionClassifier) and not options
    )  # its losses give both logits and its own score
    answer = classifier.losses_per_level if own else classifier
    found = {kind: _answers(answer, data.pixels(), f"{name}, {kind}") for kind, data in images.items()}
    logits = found
    if own:
        weight = classifier.scale * np.array(classifier.levels.weight)
        logits = {kind: -np.einsum("ntk,t->nk", losses, weight) for kind, losses in found.items()}
    fitted = fit_logit_scale(-log_softmax(logits["held-out"]), held.labels.numpy())
    labels = test.labels.numpy()
    before, log_p = log_softmax(logits["test"]), log_softmax(fitted * log_softmax(logits["test"]))
    right = int((log_p.argmax(1) == labels).sum())
    unlike = {"softmax": {kind: -log_softmax(fitted * log_softmax(f)).max(1) for kind, f in logits.items()}}
    if not isinstance(classifier, rdc.DiffusionClassifier):
        unlike["logsumexp"] = {kind: -_logsumexp(f) for kind, f in logits.items()}
    elif own:
        unlike["own"] = _typicality(found, images)
    return {
        "model": ROWS[name].model,
        "options": options,
        "fitted_on": len(held),
        "n": count,
        "accuracy": {"right": right, "share": right / count, "ci95": list(wilson_interval(right, count))},
        "logit_scale": fitted,
        "ece": {
            "before": expected_calibration_error(np.exp(before), labels, BINS),
            "fitted": expected_calibration_error(np.exp(log_p), labels, BINS),
        },
        "cross_entropy": {
            "before": negative_log_likelihood(before, labels),
            "fitted": negative_log_likelihood(log_p, labels),
        },
        "auroc": {score: auroc(values["mnist"], values["test"]) for score, values in unlike.items()},
        "seconds": round(time.time() - begun, 1),
        "commit": commit(),
    }


def images_of(name: str) -> int:
    """Test and MNIST images of a row; as many, at most HELD_OUT, are there to fit on."""
    return FEW.get(name, DEAR if name in DEAR_ROWS else QUICK)


def _answers(answer: Callable[[Tensor], Tensor], pixels: Tensor, what: str) -> np.ndarray:
    with torch.no_grad():
        parts = [answer(part) for part in bar(pixels.split(BATCH), desc=what)]
    return torch.cat(parts).double().numpy()


def _typicality(losses: dict[str, np.ndarray], images: dict[str, Any]) -> dict[str, np.ndarray]:
    """rdc.decisions' score of each image, by the least class loss of every level; losses [N, T, K]."""
    score = fit_likelihood_score(losses["held-out"].min(2), images["held-out"].pixels().numpy())
    return {kind: score(losses[kind].min(2), data.pixels().numpy()) for kind, data in images.items()}


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(1)
    return largest + np.log(np.exp(logits - largest[:, None]).sum(1))


def table() -> str:
    """Markdown: a line for each row that was measured."""
    found = read_json(RESULTS)
    lines = [
        "| defence | n | clean | ECE as it is | ECE, temperature fitted | AUROC softmax | AUROC logsumexp | AUROC own |",
        "|" + "---|" * 8,
    ]
    for name in ROWS:
        if (row := found.get(name)) is None:
            continue
        low, high = row["accuracy"]["ci95"]
        scores = [
            f"{row['auroc'][score]:.3f}" if score in row["auroc"] else "-" for score in ("softmax", "logsumexp", "own")
        ]
        lines.append(
            f"| {name} | {row['n']:,} | {100 * row['accuracy']['share']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | "
            f"{100 * row['ece']['before']:.1f} % | {100 * row['ece']['fitted']:.1f} % | {' | '.join(scores)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    start(main)
