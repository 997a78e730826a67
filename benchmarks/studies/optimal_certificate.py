"""The certificate of the optimal diffusion classifier on Fashion-MNIST: how large are radii that need no noise and no votes?

    python -m benchmarks.studies.optimal_certificate --data-root DIR --n 512

Fits the empirical distribution of the training images and certifies the first test images, at the levels of the shipped student, at those
of the teacher, at higher ones, and by the exact likelihood at single levels; `rdc.certification.lipschitz` has the derivation. Writes
optimal-certificate.json into benchmarks/results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.starting import start
from rdc.certification.lipschitz import OptimalCertificate, farthest_pairs, likelihood_certificate, loss_certificate
from rdc.data import load_dataset
from rdc.method.noise import NoisePlan
from rdc.provenance.run import commit
from rdc.statistics import wilson_interval
from rdc.storage.json_files import write_json
from rdc.terminal.progress import bar

RESULT = Path(__file__).resolve().parents[1] / "results" / "optimal-certificate.json"
LEVELS = {"student": (4, 0.08, 0.7), "teacher": (12, 0.1, 1.5), "high": (6, 1.0, 4.0), "very high": (4, 8.0, 32.0)}
SINGLE = (0.25, 0.5, 1.0, 2.0)
RADII = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="folder of the Fashion-MNIST files")
    parser.add_argument("--fit", type=int, default=60_000, help="training images (default: all)")
    parser.add_argument("--n", type=int, default=512, help="test images (default: 512)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, test = (
        load_dataset("fashion-mnist", "train", args.data_root),
        load_dataset("fashion-mnist", "test", args.data_root),
    )
    images, labels = 2 * train.pixels(slice(0, args.fit)) - 1, train.labels[: args.fit]
    x0, y = 2 * test.pixels(slice(0, args.n)) - 1, test.labels[: args.n]
    rows: list[dict[str, Any]] = []
    with bar(total=1 + len(LEVELS) + len(SINGLE), desc="certificates") as line:
        farthest = farthest_pairs(images, labels, train.num_classes)
        line.update()
        for name, (count, low, high) in LEVELS.items():
            sigma = torch.logspace(0, 1, count, high / low, dtype=torch.float64) * low
            weight = sigma**-2 / (sigma**-2).sum()  # eps weights, as the shipped models have them
            noise = NoisePlan(0).normal(0, count, train.image_shape)
            parts = [
                loss_certificate(images, labels, part, sigma=sigma, weight=weight, noise=noise, farthest=farthest)
                for part in x0.split(64)
            ]
            rows.append({"certificate": "losses", "levels": name, "sigma": sigma.tolist(), **_summary(parts, y)})
            line.update()
        for s in SINGLE:
            parts = [likelihood_certificate(images, labels, part, sigma=s, farthest=farthest) for part in x0.split(64)]
            rows.append({"certificate": "likelihood", "levels": f"{s:g}", "sigma": [s], **_summary(parts, y)})
            line.update()
    report = {
        "commit": commit(),
        "fit": len(images),
        "n": len(x0),
        "diameter": {"within": farthest.diagonal().tolist(), "largest": float(farthest.max())},
        "rows": rows,
    }
    write_json(RESULT, report)
    for row in rows:
        print(
            row["certificate"], row["levels"], f"{100 * row['accuracy']:.1f} %", row["median_radius"], row["certified"]
        )


def _summary(parts: list[OptimalCertificate], labels: Tensor) -> dict[str, Any]:
    """Accuracy, radii of the images that are right, in [0, 1] pixels."""
    predicted, radius = torch.cat([part.predicted for part in parts]), torch.cat([part.radius for part in parts])
    right = predicted == labels
    count, n = int(right.sum()), len(labels)
    certified = [int((right & (radius > r)).sum()) for r in RADII]
    return {
        "accuracy": count / n,
        "ci95": list(wilson_interval(count, n)),
        "median_radius": float(radius[right].median()),
        "largest_radius": float(radius[right].max()),
        "certified": [
            {"radius": r, "images": k, "accuracy": k / n, "ci95": list(wilson_interval(k, n))}
            for r, k in zip(RADII, certified, strict=True)
        ],
    }


if __name__ == "__main__":
    start(main)
