"""The same model, images and budgets through rdc's attacks, torchattacks, foolbox and ART: what each leaves standing.

    pip install --no-deps torchattacks==3.5.1 foolbox==3.3.4 eagerpy adversarial-robustness-toolbox==1.20.1   # and what these import
    python -m benchmarks.studies.conformance --n 128 --out benchmarks/results/conformance.json
    python -m benchmarks.studies.conformance --write docs/conformance.md

Each library attacks by its own code with the same steps, restarts, targets and queries. What it returns is checked by rdc: within
the budget (up to 1e-6: others keep it to float32's rounding), in [0, 1], and classified by the model anew. Resumable: a cell that is in
the file is not run again. A library that is not installed is left out, which the table says.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rdc
from benchmarks.measuring import about
from benchmarks.starting import start
from rdc.attacks import ThreatModel, parse_attack
from rdc.data import load_dataset
from rdc.norm_balls import distance
from rdc.statistics import wilson_interval
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

SCHEMA = "rdc.conformance/1"
MARKER = "<!-- below: written by benchmarks/studies/conformance.py -->"
LIBRARIES = {"rdc": "rdc", "torchattacks": "torchattacks", "foolbox": "foolbox", "ART": "art"}
MODELS = ("fashion-mnist-trades", "fashion-mnist-standard")
THREATS = {
    "fashion-mnist-trades": (("linf", 0.1), ("l2", 1.5)),
    "fashion-mnist-standard": (("linf", 2 / 255), ("l2", 0.3)),
}
STEPS, QUERIES, TARGETS, DECISIONS = 50, 1000, 9, 3000
ATTACKS = {
    "PGD": f"pgd-ce:steps={STEPS}",
    "APGD-CE": f"apgd-ce:steps={STEPS}",
    "APGD-DLR": f"apgd-dlr:steps={STEPS}",
    "APGD-T": f"apgd-t:steps={STEPS}:targets={TARGETS}",
    "FAB-T": f"fab-t:steps={STEPS}:targets={TARGETS}",
    "Square": f"square:queries={QUERIES}",
    "HopSkipJump": f"hop-skip-jump:queries={DECISIONS}",
}
_ROUNDING = 1e-6

Attack = Callable[[Any, Tensor, Tensor, str, float], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=128, help="first images of the test set")
    parser.add_argument("--models", default=",".join(MODELS), help="default: all")
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="default: all")
    parser.add_argument("--libraries", default=",".join(LIBRARIES), help="default: all that are installed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/conformance.json"))
    parser.add_argument("--write", type=Path, help="page whose end is written, of --out; runs nothing")
    args = parser.parse_args()
    if args.write:
        before, _, _ = args.write.read_text().partition(MARKER)
        args.write.write_text(f"{before.rstrip()}\n\n{MARKER}\n\n{table(read_json(args.out))}")
        return
    torch.set_num_threads(args.threads)
    found = read_json(args.out) if args.out.exists() else {"schema": SCHEMA, "n": args.n, "cells": {}}
    wanted = [
        (model, threat, attack, library)
        for model in args.models.split(",")
        for threat in THREATS[model]
        for attack in args.attacks.split(",")
        for library in args.libraries.split(",")
        if attack in BY_LIBRARY[library] and importlib.util.find_spec(LIBRARIES[library]) is not None
    ]
    data = load_dataset("fashion-mnist-sample", "test")
    images, labels = data.pixels(slice(0, args.n)), data.labels[: args.n]
    for model, (norm, eps), attack, library in bar(wanted, desc="cells"):
        key = "|".join([model, f"{norm} {eps:.6g}", attack, library])
        if key not in found["cells"]:
            found["cells"][key] = run(rdc.load(model), images, labels, norm, eps, BY_LIBRARY[library][attack])
            write_json(args.out, {**found, "about": about(), "versions": versions()})
            print(key, found["cells"][key], flush=True)


def run(model: Any, x: Tensor, y: Tensor, norm: str, eps: float, attack: Attack) -> dict[str, Any]:
    """One cell: what stands of the images that are right when clean."""
    right = model(x).argmax(1) == y
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        adversarial = attack(model, x[right], y[right], norm, eps)
    seconds = time.process_time() - started
    far = distance(adversarial, x[right], norm)
    inside = (far <= eps + _ROUNDING) & (adversarial >= 0).flatten(1).all(1) & (adversarial <= 1).flatten(1).all(1)
    broken = (model(adversarial.float()).argmax(1) != y[right]) & inside
    standing = int(right.sum()) - int(broken.sum())
    return {
        "clean": int(right.sum()),
        "standing": standing,
        "robust": [round(standing / len(x), 6), *(round(end, 6) for end in wilson_interval(standing, len(x)))],
        "over_budget": int((far > eps).sum()),
        "farthest": float(far.max() / eps),
        "cpu_seconds": round(seconds, 2),
    }


def versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    found = {}
    for name, module in LIBRARIES.items():
        if importlib.util.find_spec(module) is not None:
            found[name] = str(getattr(importlib.import_module(module), "__version__", "unknown"))
    return found


# --- ours ---------------------------------------------------------------------------------------------------------------
def _ours(attack: str) -> Attack:
    def run_ours(model: Any, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        spec = parse_attack(ATTACKS[attack])
        options = {"logit_scale": 1.0} if attack in ("PGD", "APGD-CE") else {}  # the others' cross-entropy
        made = spec.kind.attack.fixing(**dict(spec.options), **options)
        return made(model, x, y, ThreatModel(norm, eps), seed=0, image_ids=range(len(x))).x_adv

    return run_ours


# --- torchattacks -------------------------------------------------------------------------------------------------------
def _torchattacks(make: Callable[[Any, Any, str, float], Any]) -> Attack:
    def run_theirs(model: Any, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        import torchattacks

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = make(torchattacks, model, norm, eps)
            return torch.cat([made(*part) for part in zip(x.split(64), y.split(64), strict=True)]).detach()

    return run_theirs


def _pgd_of_torchattacks(library: Any, model: Any, norm: str, eps: float) -> Any:
    kind = library.PGD if norm == "linf" else library.PGDL2
    return kind(model, eps=eps, alpha=2.5 * eps / STEPS, steps=STEPS)


def _name(norm: str) -> str:
    return {"linf": "Linf", "l2": "L2"}[norm]


# --- foolbox ------------------------------------------------------------------------------------------------------------
def _foolbox(make: Callable[[Any, str, float], Any]) -> Attack:
    def run_theirs(model: Any, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        import foolbox

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            np.random.seed(0)
            theirs = foolbox.PyTorchModel(model, bounds=(0, 1))
            return make(foolbox, norm, eps)(theirs, x, y, epsilons=eps)[1].detach()

    return run_theirs


def _pgd_of_foolbox(library: Any, norm: str, eps: float) -> Any:
    kind = library.attacks.LinfPGD if norm == "linf" else library.attacks.L2PGD
    return kind(rel_stepsize=2.5 / STEPS, steps=STEPS, random_start=True)


def _hop_of_foolbox(library: Any, norm: str, eps: float) -> Any:
    return library.attacks.HopSkipJumpAttack(steps=12, constraint=norm, initial_gradient_eval_steps=100)


class _InFloat32(torch.nn.Module):
    """The model on float32 pixels: HopSkipJump of ART hands in float64."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels.float())


# --- ART ----------------------------------------------------------------------------------------------------------------
def _art(make: Callable[[Any, Any, float, float], Any]) -> Attack:
    def run_theirs(model: Any, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        np.random.seed(0)
        classes = int(model(x[:1]).shape[1])
        theirs = PyTorchClassifier(
            _InFloat32(model), torch.nn.CrossEntropyLoss(), x.shape[1:], classes, clip_values=(0, 1), device_type="cpu"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = make(evasion, theirs, np.inf if norm == "linf" else 2, eps)
            return torch.from_numpy(made.generate(x.numpy(), y.numpy()))

    return run_theirs


def _apgd_of_art(loss: str) -> Attack:
    return _art(
        lambda library, model, norm, eps: library.AutoProjectedGradientDescent(
            model, norm=norm, eps=eps, eps_step=2 * eps, max_iter=STEPS, nb_random_init=1, loss_type=loss, verbose=False
        )
    )


BY_LIBRARY: dict[str, dict[str, Attack]] = {
    "rdc": {name: _ours(name) for name in ATTACKS},
    "torchattacks": {
        "PGD": _torchattacks(_pgd_of_torchattacks),
        "APGD-CE": _torchattacks(lambda lib, m, n, e: lib.APGD(m, _name(n), e, STEPS, 1, loss="ce")),
        "APGD-DLR": _torchattacks(lambda lib, m, n, e: lib.APGD(m, _name(n), e, STEPS, 1, loss="dlr")),
        "APGD-T": _torchattacks(lambda lib, m, n, e: lib.APGDT(m, _name(n), e, STEPS, 1, n_classes=10)),
        "FAB-T": _torchattacks(
            lambda lib, m, n, e: lib.FAB(m, _name(n), e, STEPS, 1, n_classes=10, multi_targeted=True)
        ),
        "Square": _torchattacks(lambda lib, m, n, e: lib.Square(m, _name(n), e, QUERIES, 1)),
    },
    "foolbox": {"PGD": _foolbox(_pgd_of_foolbox), "HopSkipJump": _foolbox(_hop_of_foolbox)},
    "ART": {
        "PGD": _art(
            lambda library, model, norm, eps: library.ProjectedGradientDescentPyTorch(
                model, norm=norm, eps=eps, eps_step=2.5 * eps / STEPS, max_iter=STEPS, num_random_init=1, verbose=False
            )
        ),
        "APGD-CE": _apgd_of_art("cross_entropy"),
        "APGD-DLR": _apgd_of_art("difference_logits_ratio"),
        "Square": _art(
            lambda library, model, norm, eps: library.SquareAttack(
                model, norm=norm, eps=eps, max_iter=QUERIES, nb_restarts=1, verbose=False
            )
        ),
        "HopSkipJump": _art(
            lambda library, model, norm, eps: library.HopSkipJump(
                model, norm=norm, max_iter=12, max_eval=10_000, init_eval=100, verbose=False
            )
        ),
    },
}


# --- the page -----------------------------------------------------------------------------------------------------------
def table(found: dict[str, Any]) -> str:
    """Markdown: a row for each model, threat and attack."""
    names = [name for name in LIBRARIES if name in found["versions"]]
    heads = [f"{name} {found['versions'][name]}" for name in names]
    lines = [f"| model, threat, attack | {' | '.join(heads)} |", "|---|" + "---|" * len(names)]
    rows: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for key, cell in found["cells"].items():
        *place, library = key.split("|")
        rows.setdefault((place[0], place[1], place[2]), {})[library] = cell
    for (model, threat, attack), cells in rows.items():
        clean = next(iter(cells.values()))["clean"]
        said = [_said(cells.get(name)) for name in names]
        lines.append(
            f"| {model.removeprefix('fashion-mnist-')} ({clean} right), {threat}, {attack} | {' | '.join(said)} |"
        )
    limited = {
        key: cell for key, cell in found["cells"].items() if "|HopSkipJump|" not in key
    }  # that one has no radius
    over = sum(cell["over_budget"] for key, cell in limited.items() if not key.endswith("|rdc"))
    ours = sum(cell["over_budget"] for key, cell in limited.items() if key.endswith("|rdc"))
    most = max(cell["farthest"] for cell in limited.values())
    lines += [
        "",
        f"Images beyond the radius in float64, without HopSkipJump, which has none: {ours} of rdc's, {over} of the others' (the farthest "
        f"{most:.7f} of it: float32's rounding).",
    ]
    return "\n".join(lines) + "\n"


def _said(cell: dict[str, Any] | None) -> str:
    return "-" if cell is None else f"{cell['standing']} ({cell['cpu_seconds']:.0f} s)"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start(main)
