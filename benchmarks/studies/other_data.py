"""Shipped models on images that they were not trained for: corruptions at five severities, and Tiny-ImageNet for the CIFAR-10 model.

    python -m benchmarks.studies.other_data --list
    python -m benchmarks.studies.other_data --cifar10 DIR --tiny FOLDER --threads 1
    python -m benchmarks.studies.other_data --write docs/other_data.md

Nothing is trained. Beside accuracy: calibration error with the logit scale as shipped, what is decided where the model abstains below the
confidence that holds the error rate of held-out images to 5 %, and AUROC of the changed images against the clean ones by two scores:

    softmax   minus the largest probability
    own       of a diffusion classifier: losses of every level given the image's complexity (rdc.decisions)

Corruptions are made here (rdc/data/corruptions.py) of the first images of the Fashion-MNIST sample and of CIFAR-10's test set.
Tiny-ImageNet: validation images whose synset is a kind of a CIFAR-10 class (SYNSETS), 64 x 64 brought to 32 x 32 by PIL's lanczos
(antialiased), with box beside it; and images of all other synsets, which a classifier should not decide. FOLDER has the sheet
tinyimagenet_val_2000.webp and its labels, or is tiny-imagenet-200.

A cell that is in benchmarks/results/other-data.json is not measured again. --write runs nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rdc
from benchmarks.starting import start
from benchmarks.studies.levels import holdout
from rdc.data import Dataset
from rdc.data.corruptions import KINDS, SEVERITIES, corrupted
from rdc.decisions.calibration import (
    LikelihoodScore,
    auroc,
    expected_calibration_error,
    fit_likelihood_score,
    log_softmax,
    threshold_for_risk,
)
from rdc.models.choice import ModelChoice
from rdc.provenance.run import commit
from rdc.statistics import bootstrap_interval, wilson_interval
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

RESULTS = Path(__file__).resolve().parents[1] / "results" / "other-data.json"
BEGIN, END = "<!-- tables: written by benchmarks/studies/other_data.py -->", "<!-- end of tables -->"
BINS, BATCH, RISK, HELD_OUT = 15, 32, 0.05, 500

#: name in the table -> model
FASHION = {
    "DC": "fashion-mnist",
    "teacher": "fashion-mnist-teacher",
    "PGD-AT": "fashion-mnist-pgd-at",
    "TRADES": "fashion-mnist-trades",
    "MART": "fashion-mnist-mart",
    "standard": "fashion-mnist-standard",
    "JEM": "fashion-mnist-jem",
    "HybViT": "fashion-mnist-hybvit",
}
CIFAR = {"DC, CIFAR-10": "cifar10"}
N = dict.fromkeys(FASHION, 128) | {
    "teacher": 32,
    "DC, CIFAR-10": 100,
}  # images; the teacher is dear: ten passes a level, twelve levels
TEACHER_SEVERITIES, TEACHER_HELD_OUT = (3, 5), 200

#: CIFAR-10 class -> Tiny-ImageNet's synsets that are kinds of it. Left out, since one may argue: cougar and lion (no "cat"), gazelle (no
#: "deer"), police van, school bus, trolleybus and tractor (CIFAR-10's "truck" has big trucks only, "automobile" no vans), gondola. Of
#: airplanes, deer and horses Tiny-ImageNet has none.
SYNSETS = {
    "automobile": {
        "n02814533": "beach wagon",
        "n03100240": "convertible",
        "n03670208": "limousine",
        "n04285008": "sports car",
    },
    "bird": {"n01855672": "goose", "n02002724": "black stork", "n02056570": "king penguin", "n02058221": "albatross"},
    "cat": {"n02123045": "tabby", "n02123394": "Persian cat", "n02124075": "Egyptian cat"},
    "dog": {
        "n02085620": "Chihuahua",
        "n02094433": "Yorkshire terrier",
        "n02099601": "golden retriever",
        "n02099712": "Labrador retriever",
        "n02106662": "German shepherd",
        "n02113799": "standard poodle",
    },
    "frog": {"n01641577": "bullfrog", "n01644900": "tailed frog"},
    "ship": {"n03662601": "lifeboat"},
    "truck": {"n03796401": "moving van"},
}
#: positions of these synsets in Tiny-ImageNet's wnids.txt: the labels of the sheet (looked at, picture by picture)
POSITIONS = {
    "n02124075": 0, "n01641577": 5, "n02106662": 11, "n02058221": 35, "n02099712": 39, "n02056570": 41, "n03796401": 64,
    "n02123045": 66, "n01855672": 67, "n02099601": 78, "n03670208": 114, "n02002724": 115, "n04285008": 117, "n02123394": 131,
    "n02094433": 135, "n02814533": 147, "n03100240": 157, "n02085620": 182, "n01644900": 183, "n02113799": 194, "n03662601": 196,
}  # fmt: skip
OTHERS = 200  # images of other synsets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join([*FASHION, *CIFAR]).replace("DC, CIFAR-10", "cifar10"))
    parser.add_argument("--data-root", help="folder of Fashion-MNIST's files")
    parser.add_argument("--cifar10", help="folder of CIFAR-10's files")
    parser.add_argument("--tiny", type=Path, help="folder of Tiny-ImageNet's images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="what is there and what is missing")
    parser.add_argument("--write", type=Path, help="markdown file whose tables are written; runs nothing")
    args = parser.parse_args()
    if args.write:
        before, _, rest = args.write.read_text().partition(BEGIN)
        args.write.write_text(f"{before}{BEGIN}\n\n{tables()}\n{END}{rest.partition(END)[2]}")
        return
    torch.set_num_threads(args.threads)
    asked = ["DC, CIFAR-10" if name == "cifar10" else name for name in args.models.split(",")]
    for name in asked:
        missing = [cell for cell in cells(name) if cell not in _kept().get(name, {}).get("cells", {})]
        print(f"{name}: {len(missing)} of {len(cells(name))} cells missing", flush=True)
        if missing and not args.list:
            _measure(name, missing, args)


def cells(name: str) -> list[str]:
    """Names of a model's cells."""
    severities = TEACHER_SEVERITIES if name == "teacher" else SEVERITIES
    found = ["clean", *(f"{kind}:{severity}" for severity in severities for kind in KINDS)]
    return found + (["tiny:lanczos", "tiny:box", "tiny:others", "same-classes"] if name in CIFAR else [])


def _kept() -> dict[str, Any]:
    found: dict[str, Any] = read_json(RESULTS) if RESULTS.exists() else {}
    return found


def _measure(name: str, missing: list[str], args: argparse.Namespace) -> None:
    cifar = name in CIFAR
    data, root = ("cifar10", args.cifar10) if cifar else ("fashion-mnist", args.data_root)
    test = rdc.load_dataset("cifar10", "test", root) if cifar else rdc.load_dataset("fashion-mnist-sample")
    classifier = ModelChoice((FASHION | CIFAR)[name]).load(test)
    row = _kept().get(name) or _fitted(
        classifier, holdout(TEACHER_HELD_OUT if name == "teacher" else HELD_OUT, root, data), name
    )
    for cell in bar(missing, desc=name):
        begun = time.time()
        part = _images(cell, test, N[name], args)
        confidence, predicted, own = _answers(classifier, part, row.get("score"))
        row["cells"][cell] = {
            "n": len(part),
            "right": _text((predicted == part.labels.numpy()).astype(int)),
            "confidence": _text(confidence),
            **({} if own is None else {"own": _text(own)}),
            "seconds": round(time.time() - begun, 1),
        }
        write_json(RESULTS, {**_kept(), name: row})


def _text(values: np.ndarray) -> str:
    """One line of the file: four decimals are enough for every figure made of them."""
    return " ".join(f"{value:.4f}".rstrip("0").rstrip(".") for value in values)


def _values(text: str) -> np.ndarray:
    return np.array(text.split(), np.float64)


def _images(cell: str, test: Dataset, count: int, args: argparse.Namespace) -> Dataset:
    """The images of a cell with the model's labels."""
    kind, _, what = cell.partition(":")
    if kind == "tiny":
        return tiny_imagenet(args.tiny, "lanczos" if what == "others" else what, others=what == "others")
    if cell == "same-classes":
        labels = torch.tensor([test.class_names.index(name) for name in SYNSETS])
        return test.subset(torch.isin(test.labels, labels).nonzero().flatten()[:210])
    part = test.subset(range(count))
    if kind == "clean":
        return part
    images = corrupted(part.images.numpy(), kind, int(what), part.indices.numpy())
    return Dataset(torch.from_numpy(images), part.labels, part.class_names, part.name, cell, part.indices)


def tiny_imagenet(folder: Path, resample: str, others: bool = False) -> Dataset:
    """Images of SYNSETS with CIFAR-10's labels, or the first of the other synsets with label 0; 32 x 32.

    Args:
        folder: see above.
        resample: filter, as of ``rdc.load_dataset``.
        others: images of other synsets.
    """
    from rdc.data.cifar10 import CLASS_NAMES
    from rdc.data.pictures import Form
    from rdc.data.resizing import reshaped

    places = POSITIONS
    if (folder / "wnids.txt").is_file():
        data = rdc.load_dataset("tiny-imagenet", root=folder, progress=False)
        places = {wnid: place for place, wnid in enumerate(sorted((folder / "wnids.txt").read_text().split()))}
    else:
        data = _sheet(folder)
    labels = {places[wnid]: CLASS_NAMES.index(name) for name, synsets in SYNSETS.items() for wnid in synsets}
    known = torch.tensor([int(label) in labels for label in data.labels])
    chosen = (~known if others else known).nonzero().flatten()
    part = reshaped(data.subset(chosen[:OTHERS] if others else chosen), Form((32, 32), 3, resample))
    wanted = [labels.get(int(label), 0) for label in part.labels]
    return Dataset(part.images, torch.tensor(wanted), CLASS_NAMES, "tiny-imagenet", resample, part.indices)


def _sheet(folder: Path) -> Dataset:
    """2,000 validation images, ten of each synset: 40 rows of 50, 64 x 64."""
    from PIL import Image

    with Image.open(folder / "tinyimagenet_val_2000.webp") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(40, 64, 50, 64, 3)
    images = pixels.transpose(0, 2, 4, 1, 3).reshape(2000, 3, 64, 64)
    labels = np.fromfile(folder / "tinyimagenet_val_2000_labels.u8", np.uint8).astype(np.int64)
    names = tuple(str(place) for place in range(200))
    return Dataset(torch.from_numpy(images.copy()), torch.from_numpy(labels), names, "tiny-imagenet", "val")


def _fitted(classifier: Any, held: Dataset, name: str) -> dict[str, Any]:
    """What is chosen on held-out training images: the confidence to abstain below, and the score of unlikeness."""
    row: dict[str, Any] = {"model": (FASHION | CIFAR)[name], "fitted_on": len(held), "commit": commit(), "cells": {}}
    confidence, right = [], []
    features = []
    for part in bar(range(0, len(held), BATCH), desc=f"{name}, held out"):
        images = held.subset(range(part, min(part + BATCH, len(held))))
        logits, losses = _logits(classifier, images.pixels())
        p = np.exp(log_softmax(logits))
        confidence.append(p.max(1))
        right.append(p.argmax(1) == images.labels.numpy())
        features.append(None if losses is None else losses.min(2))
    threshold, share = threshold_for_risk(np.concatenate(confidence), np.concatenate(right), RISK)
    row["threshold"], row["decided"] = (threshold if share else None), share
    if features[0] is not None:
        score = fit_likelihood_score(
            np.concatenate([one for one in features if one is not None]), held.pixels().numpy()
        )
        row["score"] = score.to_json()
    return row


def _logits(classifier: Any, pixels: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits [N, K] on the model's own scale; of a diffusion classifier also its losses [N, T, K]."""
    with torch.no_grad():
        if not isinstance(classifier, rdc.DiffusionClassifier):
            return classifier(pixels).double().numpy(), None
        losses = classifier.losses_per_level(pixels).double().numpy()
    return -classifier.scale * np.einsum("ntk,t->nk", losses, np.array(classifier.levels.weight)), losses


def _answers(
    classifier: Any, data: Dataset, fitted: dict[str, Any] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Largest probability, decision, and the model's own score of unlikeness [N]."""
    parts = [_logits(classifier, part) for part in data.pixels().split(BATCH)]
    p = np.exp(log_softmax(np.concatenate([logits for logits, _ in parts])))
    own = None
    if fitted is not None:
        losses = np.concatenate([one for _, one in parts if one is not None])
        score = LikelihoodScore(**fitted)
        own = score(losses.min(2), data.pixels().numpy())
    return p.max(1), p.argmax(1), own


# --- tables -----------------------------------------------------------------------------------------------------------


def summary(row: dict[str, Any], names: list[str], clean: str = "clean") -> dict[str, Any]:
    """Figures of several cells of the same images, taken together; the interval is over images where cells share them.

    Args:
        row: a model's.
        names: of its cells.
        clean: the cell of unchanged images, for AUROC.
    """
    found = [row["cells"][name] for name in names]
    right, confidence = (np.array([_values(cell[key]) for cell in found]) for key in ("right", "confidence"))
    share = right.mean(0)
    if len(found) == 1:
        ends = wilson_interval(int(right.sum()), right.size)
    else:
        interval = bootstrap_interval(share)
        ends = float(interval.low[0]), float(interval.high[0])
    p = np.stack(
        [confidence.ravel(), np.zeros(confidence.size)], 1
    )  # the decision is column 0, and right if the label is
    accepted = confidence.ravel() >= (row["threshold"] if row["threshold"] is not None else np.inf)
    unchanged = row["cells"][clean]
    made = {
        "n": right.shape[1],
        "accuracy": float(share.mean()),
        "ci95": [float(end) for end in ends],
        "ece": expected_calibration_error(p, 1 - right.ravel().astype(int), BINS),
        "confidence": float(confidence.mean()),
        "coverage": float(accepted.mean()),
        "wrong": float((right.ravel()[accepted] == 0).mean()) if accepted.any() else None,
        "softmax": auroc(-confidence.ravel(), -_values(unchanged["confidence"])),
    }
    if "own" in unchanged:
        own, usual = np.concatenate([_values(cell["own"]) for cell in found]), _values(unchanged["own"])
        made["own"], made["flagged"] = auroc(own, usual), float((own > np.quantile(usual, 0.95)).mean())
    return made


def tables() -> str:
    """Markdown: severities, kinds, Tiny-ImageNet."""
    kept = _kept()
    found = {name: kept[name] for name in (*FASHION, *CIFAR) if name in kept}
    lines = [
        "| model | severity | accuracy, six kinds | ECE | decided | of these wrong | AUROC softmax | AUROC own |\n"
    ]
    lines.append("|---" * 8 + "|\n")
    for name, row in found.items():
        for severity in (0, 1, 3, 5):
            names = ["clean"] if severity == 0 else [f"{kind}:{severity}" for kind in KINDS]
            if all(cell in row["cells"] for cell in names):
                figures = summary(row, names)
                lines.append(
                    f"| {name}, n = {figures['n']} | {severity or 'clean'} | {_columns(figures, severity > 0)} |\n"
                )
    text = "".join(lines) + "\n| severity 5 | " + " | ".join(kind.replace("_", " ") for kind in KINDS) + " |\n"
    text += "|---" * (1 + len(KINDS)) + "|\n"
    for name, row in found.items():
        of_kinds = [_share(summary(row, [f"{kind}:5"])) if f"{kind}:5" in row["cells"] else "-" for kind in KINDS]
        text += f"| {name} | {' | '.join(of_kinds)} |\n"
    text += "\n| severity 5 | kind | accuracy | decided | of these wrong | AUROC own | flagged |\n" + "|---" * 7 + "|\n"
    for name, row in found.items():
        for kind in KINDS if "score" in row else ():
            if f"{kind}:5" in row["cells"]:
                one = summary(row, [f"{kind}:5"])
                columns = [
                    _share(one),
                    _percent(one["coverage"]),
                    _percent(one["wrong"]),
                    f"{one['own']:.3f}",
                    _percent(one["flagged"]),
                ]
                text += f"| {name} | {kind.replace('_', ' ')} | {' | '.join(columns)} |\n"
    row = found.get("DC, CIFAR-10", {"cells": {}})
    words = {
        "same-classes": "CIFAR-10's test images of these classes",
        "tiny:lanczos": "Tiny-ImageNet, lanczos",
        "tiny:box": "Tiny-ImageNet, box",
        "tiny:others": "Tiny-ImageNet, other synsets",
    }
    text += (
        "\n| images | n | accuracy | ECE | decided | of these wrong | AUROC softmax | AUROC own |\n"
        + "|---" * 8
        + "|\n"
    )
    for cell, name in words.items():
        if cell in row["cells"]:
            figures = summary(row, [cell])
            columns = _columns(figures, cell != "same-classes").split(" | ")
            if cell == "tiny:others":
                columns[:2], columns[3] = ["-", "-"], "all"
            text += f"| {name} | {figures['n']} | {' | '.join(columns)} |\n"
    return text


def _share(figures: dict[str, Any]) -> str:
    low, high = figures["ci95"]
    return f"{100 * figures['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _columns(figures: dict[str, Any], changed: bool) -> str:
    shares = [_percent(figures[key]) for key in ("ece", "coverage", "wrong")]
    scores = [f"{figures[key]:.3f}" if changed and key in figures else "-" for key in ("softmax", "own")]
    return " | ".join([_share(figures), *shares, *scores])


if __name__ == "__main__":
    start(main)
