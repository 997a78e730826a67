"""Record in the shipped diffusion classifiers which pictures they know, for `rdc classify`: a likelihood score and its threshold.

    python -m benchmarks.studies.known_kinds fashion-mnist
    python -m benchmarks.studies.known_kinds cifar10 --data-root ~/cifar10
    python -m benchmarks.studies.known_kinds fashion-mnist cifar10 --evaluations       # how robust they are, for cards
    python -m benchmarks.studies.known_kinds fashion-mnist --check mnist_test.npz     # how many it names: known-kinds.json

Held-out images: of the 2,000 training images that the shipped networks were not trained on, --n evenly spread. The weights, the levels
and the logit scale in use stay as they are, so that no answer changes by a bit; the record says under ``refitted`` what scale these
images would have given. Only ``info.calibration`` of their JSON files is written; with --evaluations ``info.evaluation`` and
``info.origin``, from the result files below.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rdc
from benchmarks.starting import start
from rdc.data import train_holdout
from rdc.decisions.calibration import log_softmax, negative_log_likelihood
from rdc.decisions.held_out import known_kind, level_losses, record_of_losses
from rdc.evaluation.card import evaluation_card
from rdc.evaluation.report import Report
from rdc.models.assets import ASSETS
from rdc.models.descriptions import read_description, update_info
from rdc.statistics.proportions import wilson_interval
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

_HOLDOUT = 2000
_RESULTS = Path(__file__).resolve().parents[1] / "results"
#: model -> file, where in it the report is, and what is to be said of the measurement
_EVALUATIONS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "fashion-mnist": ("robust-linf-8-2048.json", (), ""),
    "cifar10": (
        "h200/cifar10-second.json",
        ("parts", "attack", "runs", "linf", "report"),
        ", on a GPU, before the weights were rounded to float16",
    ),
}


def record_of(name: str, root: str | None, count: int, batch: int) -> dict[str, Any]:
    """What held-out images say of a shipped model; its own logit scale in the place of the fitted one."""
    classifier = rdc.load(name)
    data = str(read_description(ASSETS / f"{name}.json")["info"]["dataset"])
    held = train_holdout(rdc.load_dataset(data, "train", root=root), _HOLDOUT)[1]
    held = held.subset(np.linspace(0, len(held) - 1, count).astype(int).tolist())
    losses = level_losses(classifier, held.pixels(), batch, name)
    record = record_of_losses(classifier, losses, held)
    weighted = np.einsum("ntk,t->nk", losses, np.array(classifier.levels.weight))
    cost = negative_log_likelihood(log_softmax(-classifier.scale * weighted), held.labels.numpy())
    known = record["negative_log_likelihood"]
    refitted = {"logit_scale": record["logit_scale"], "negative_log_likelihood": known["after"]}
    used = {"logit_scale": classifier.scale, "negative_log_likelihood": {**known, "after": cost}}
    return {**record, **used, "refitted": refitted}


def evaluation_of(name: str) -> dict[str, Any]:
    """``info.evaluation`` and ``info.origin`` of a shipped model."""
    file, inside, more = _EVALUATIONS[name]
    found: Any = read_json(_RESULTS / file)
    for key in inside:
        found = found[key]
    card = evaluation_card(Report.from_json(found, file), f"benchmarks/results/{file}{more}")
    return {
        "evaluation": card,
        "origin": f"shipped with rdc as {name}; docs/robustness.md and docs/models have all attacks",
    }


def check(name: str, root: str | None, other: str, batch: int) -> dict[str, Any]:
    """How many of the first 1,000 test images, and of 500 others, the recorded score names."""
    classifier = rdc.load(name)
    info = read_description(ASSETS / f"{name}.json")["info"]
    kind = known_kind(info["calibration"], classifier)
    assert kind is not None
    sets = {"test": rdc.load_dataset(info["dataset"], "test", root=root)[:1000], "other": rdc.load_dataset(other)[:500]}
    found: dict[str, Any] = {"model": name, "threshold": kind.threshold}
    for what, data in sets.items():
        scores = np.concatenate([kind.scores(classifier, part) for part in bar(data.pixels().split(batch), desc=what)])
        named = int((scores > kind.threshold).sum())
        found[what] = {
            "file": data.name,
            "n": len(data),
            "named": named,
            "ci95": list(wilson_interval(named, len(data))),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="shipped diffusion classifiers")
    parser.add_argument("--data-root", help="where the images are")
    parser.add_argument("--evaluations", action="store_true", help="record the accuracy under attack instead")
    parser.add_argument(
        "--check", metavar="FILE", help="count instead how many test images, and how many of this file, are named"
    )
    parser.add_argument("--n", type=int, default=1000, help="held-out images (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.check is not None:
        made = [check(name, args.data_root, args.check, args.batch) for name in args.models]
        write_json(_RESULTS / "known-kinds.json", made)
        print(made)
        return
    for name in args.models:
        if args.evaluations:
            update_info(ASSETS / f"{name}.json", evaluation_of(name))
            continue
        record = record_of(name, args.data_root, args.n, args.batch)
        update_info(ASSETS / f"{name}.json", {"calibration": record})
        score = record["likelihood_score"]
        print(
            f"{name}: logit scale {record['logit_scale']:g} stays ({record['refitted']['logit_scale']:.4g} fits these {record['images']} "
            f"images), accuracy {record['accuracy']:.3f}; score above {score['threshold']:.3f} for {100 * score['exceeded_by']:g} %"
        )


if __name__ == "__main__":
    start(main)
