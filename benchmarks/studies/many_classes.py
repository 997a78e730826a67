"""One image against 1,000 classes: passes and agreement of class elimination, by several schedules and by the sequential test.

    python -m benchmarks.studies.many_classes --out benchmarks/results/many-classes.json

The stand-ins are no trained networks: 50 groups of 20 Gaussian classes of 8 x 8 images, N(m_y, c^2 I), whose denoiser is known in closed
form, D = (c^2 x_t + s^2 m_y) / (c^2 + s^2), and whose posterior is exact. They run through the classifier like any network
(``rdc.from_denoiser``), a pass for every class, image and level. Classes of a group lie near each other, and levels are all below c, so
that losses are noisy: the rows "one level" show what a single draw is worth. "plain": a draw near the largest level is right about one
image in three. "noisy": about none in ten, and no group stands apart.
What is found is kept in ``--work``, image by hundred, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rdc
from benchmarks.measuring import about
from benchmarks.starting import start
from rdc.decisions.anytime import AnytimeClassifier
from rdc.decisions.anytime.calibration import calibrate_from_losses, fingerprint, prior_scores
from rdc.decisions.anytime.early import EarlyClassifier
from rdc.decisions.elimination import SCHEDULES, EliminatingClassifier
from rdc.statistics.proportions import wilson_interval
from rdc.storage.json_files import write_json
from rdc.terminal.progress import bar

GROUPS, EACH, SIDE = 50, 20, 8
SPREAD = 0.12  # standard deviation in [-1, 1] of images in a class
#: standard deviations of groups and of classes in a group, and the levels
STAND_INS = {
    "plain": (0.15, 0.055, "log:100:0.01:0.06:flat"),
    "noisy": (0.06, 0.06, "log:100:0.005:0.04:flat"),
}
TOGETHER = 100
#: further schedules, from cautious to bold
OWN = {
    "4 %": "2%:20%,5%:4%,20%:1%,100%:1",
    "3 %": "1%:20%,4%:3%,20%:1%,100%:1",
    "2 %": "1%:10%,4%:2%,20%:5,100%:1",
}


class GaussianClasses(nn.Module):
    """The denoiser of N(m_y, c^2 I): f(x_t, s, y)."""

    means: Tensor

    def __init__(self, between: float, within: float, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        groups = between * torch.randn(GROUPS, 1, 1, SIDE, SIDE, generator=generator)
        classes = within * torch.randn(GROUPS, EACH, 1, SIDE, SIDE, generator=generator)
        self.register_buffer("means", (groups + classes).flatten(0, 1))

    def forward(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        s2, c2 = sigma.square().reshape(-1, 1, 1, 1), SPREAD**2
        return (c2 * x_t + s2 * self.means[labels]) / (c2 + s2)

    def images(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Pixels [n, 1, 8, 8] in [0, 1] and labels [n]; one pixel in a million is cut."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(len(self.means), (count,), generator=generator)
        x0 = self.means[labels] + SPREAD * torch.randn(count, 1, SIDE, SIDE, generator=generator)
        return ((x0 + 1) / 2).clamp(0, 1), labels

    def most_probable(self, pixels: Tensor) -> np.ndarray:
        """Classes [n] by the exact posterior."""
        nearest: np.ndarray = torch.cdist((2 * pixels - 1).flatten(1), self.means.flatten(1)).argmin(1).numpy()
        return nearest


def stand_in(kind: str) -> tuple[GaussianClasses, rdc.DiffusionClassifier]:
    """The denoiser and its classifier."""
    between, within, levels = STAND_INS[kind]
    net = GaussianClasses(between, within)
    settings: dict[str, Any] = {"num_classes": len(net.means), "image_shape": (1, SIDE, SIDE), "sigma_data": 0.2}
    return net, rdc.from_denoiser(net, predicts="x0", schedule="edm", levels=levels, memory_budget_mb=64, **settings)


def kept(folder: Path, name: str, pixels: Tensor, work: Callable[[Tensor], np.ndarray]) -> np.ndarray:
    """``work`` of a hundred images at a time, each found once."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, part in enumerate(bar(pixels.split(TOGETHER), desc=name, unit="batch")):
        file = folder / f"{name.replace(' ', '-').replace('%', 'percent')}-{number}.npy"
        if not file.exists():
            with torch.no_grad():
                answer = work(part)
            np.save(file.with_suffix(".part.npy"), answer)
            file.with_suffix(".part.npy").rename(file)
        found.append(np.load(file))
    return np.concatenate(found)


def decided(model: EarlyClassifier) -> Callable[[Tensor], np.ndarray]:
    """pixels -> [n, 2]: decisions and passes."""

    def work(pixels: Tensor) -> np.ndarray:
        result = model.decide(pixels)
        return np.stack([result.log_probabilities.argmax(1).numpy(), result.passes.numpy()], axis=1)

    return work


def row(name: str, found: np.ndarray, full: np.ndarray, labels: np.ndarray, full_passes: int) -> dict[str, Any]:
    """Agreement, passes and accuracy of one way to decide."""
    same = found[:, 0] == full
    right = found[:, 0] == labels
    return {
        "name": name,
        "n": len(full),
        "agreeing": int(same.sum()),
        "agreement": float(same.mean()),
        "agreement_ci95": list(wilson_interval(int(same.sum()), len(full))),
        "mean_passes": float(found[:, 1].mean()),
        "share_of_passes": float(found[:, 1].mean()) / full_passes,
        "accuracy": float(right.mean()),
        "accuracy_ci95": list(wilson_interval(int(right.sum()), len(full))),
    }


def study(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """One stand-in, as the results file has it."""
    net, classifier = stand_in(kind)
    folder = args.work / kind
    pixels, truth = net.images(args.n, seed=1)
    labels, total = truth.numpy(), len(classifier.levels) * classifier.num_classes
    full = kept(folder, "full", pixels, lambda x: classifier(x).argmax(1).numpy())
    rows = [row("full decision", np.column_stack([full, np.full(len(full), total)]), full, labels, total)]
    for place in (49, 99):
        level = classifier.levels.sigma[place]
        one = classifier.with_(levels=f"log:1:{level}:{1.01 * level}:flat")
        single = kept(folder, f"level {place}", pixels, lambda x, one=one: one(x).argmax(1).numpy())  # type: ignore[misc]
        passes = np.full(len(full), classifier.num_classes)
        rows.append(row(f"one level, {level:.3g}", np.column_stack([single, passes]), full, labels, total))
    for name, stages in {**{name: name for name in SCHEDULES}, **OWN}.items():
        model = EliminatingClassifier(classifier, stages)
        rows.append(row(name, kept(folder, name, pixels, decided(model)), full, labels, total))
        rows[-1]["stages"] = [list(stage) for stage in model.stages]
    held_out = net.images(args.calibrate, seed=2)[0]
    losses = kept(folder, "held-out", held_out, lambda x: classifier.losses_per_level(x).numpy())
    for rate in args.rates:
        rule = calibrate_from_losses(
            losses, classifier.levels.weight, prior_scores(classifier), rate, 0.95, eliminate=True, fingerprint=fingerprint(classifier),
        )  # fmt: skip
        name = f"sequential test {100 * rate:g} %"
        found = kept(folder, name, pixels, decided(AnytimeClassifier(classifier, rate, rule)))
        rows.append({**row(name, found, full, labels, total), "stated_rate": rate, "calibrated_on": args.calibrate})
        if rate == args.rates[0]:
            model = EliminatingClassifier(classifier, "quick", order=rule.order)
            found = kept(folder, "quick, ordered", pixels, decided(model))
            rows.append(
                {
                    **row("quick, levels in the calibrated order", found, full, labels, total),
                    "calibrated_on": args.calibrate,
                }
            )
    exact = net.most_probable(pixels)
    return {
        "stand_in": "closed form, not trained: 50 groups of 20 Gaussian classes of 1 x 8 x 8 images",
        "classes": classifier.num_classes,
        "levels": STAND_INS[kind][2],
        "full_passes": total,
        "exact_posterior": {
            "accuracy": float((exact == labels).mean()),
            "accuracy_ci95": list(wilson_interval(int((exact == labels).sum()), len(labels))),
            "agreement_with_full": float((exact == full).mean()),
        },
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(STAND_INS), choices=list(STAND_INS))
    parser.add_argument("--n", type=int, default=1000, help="images")
    parser.add_argument("--calibrate", type=int, default=500, help="held-out images for the sequential test")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.02, 0.05])
    parser.add_argument("--work", type=Path, default=Path("runs/many-classes"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"about": about(), "stand_ins": {}}
    for kind in args.kinds:
        found["stand_ins"][kind] = study(args, kind)
        print(kind)
        for entry in found["stand_ins"][kind]["rows"]:
            low, high = entry["agreement_ci95"]
            print(
                f"  {entry['name']:40s} {100 * entry['share_of_passes']:6.2f} % of passes  agreement {100 * entry['agreement']:.2f} % "
                f"[{100 * low:.2f}, {100 * high:.2f}]  accuracy {100 * entry['accuracy']:.1f} %"
            )
        if args.out:
            write_json(args.out, found)


if __name__ == "__main__":
    start(main)
