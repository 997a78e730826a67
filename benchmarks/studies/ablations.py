"""The paper's ablations: every cell alone under its attacks, with known noise; tables and pictures of what is there.

    python -m benchmarks.studies.ablations --list
    python -m benchmarks.studies.ablations --experiment budget --cells eta-8,dc --attacks exact
    python -m benchmarks.studies.ablations --experiment variance
    python -m benchmarks.studies.ablations --tune                               # step sizes of the optimisers, on held-out images
    python -m benchmarks.studies.ablations --write docs/ablations.md            # runs nothing

A cell is one defence (a row of an experiment) under one attack: one `rdc evaluate` on the first 128 test images, the attack from the clean
images and not after others, so that "together" is what stands under each of them. It is resumable; a finished one is kept in
benchmarks/results/ablations/ as ROW--ATTACK.json and not run again:

    {"schema": "rdc.ablation/1", "row", "attack", "n", "clean": {"accuracy", "ci95"}, "robust": {...}, "right", "standing": "1101...",
     "settings", "classifier", "seconds", "network_evaluations", "about"}

`right` and `standing` have a character for each image: right when clean, right when clean and attacked. The attack "redraws" has no
robust accuracy; its "draws" are the clean accuracies under ten seeds of the noise, "changed" the share of images whose class two draws
disagree on, "margin_noise" the standard deviation of a margin over draws, mean over images, over the mean size of a margin.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path
from typing import Any

import torch

import rdc
from benchmarks.measuring import about
from benchmarks.starting import start
from benchmarks.studies import ablation_page
from benchmarks.studies.ablation_cells import (
    ATTACKS,
    EXPERIMENTS,
    GRIDS,
    RESULTS,
    STEPS,
    Defence,
    N,
    defences,
    minutes,
    optimizer_lm,
    path_of,
)
from benchmarks.studies.levels import holdout
from rdc.attacks import ThreatModel, apgd
from rdc.cli import main as rdc_main
from rdc.evaluation.comparison import read_run
from rdc.statistics import wilson_interval
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

SCHEMA = "rdc.ablation/1"
DATA = "fashion-mnist-sample"
SEEDS = 10  # of "redraws"
HELD_OUT, TUNING_STEPS = 32, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=EXPERIMENTS, help="default: all")
    parser.add_argument("--cells", help="rows, separated by commas (default: all of the experiment)")
    parser.add_argument("--attacks", help=f"of {', '.join(ATTACKS)}, redraws (default: those of the experiment)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--work", type=Path, default=Path("out/ablations"), help="folders of the runs")
    parser.add_argument("--list", action="store_true", help="show what is there and what the rest would cost")
    parser.add_argument("--tune", action="store_true", help="choose the optimisers' step sizes")
    parser.add_argument("--write", type=Path, help="page whose end is written, with the pictures; runs nothing")
    args = parser.parse_args()
    if args.write:
        ablation_page.write(args.write)
        return
    if args.tune:
        tune(args.threads)
        return
    for row, attack in _cells(parser, args):
        kept, defence = path_of(row, attack), defences()[row]
        if not (kept.exists() or args.list):
            run_redraws(row, defence, args) if attack == "redraws" else run_attack(row, defence, attack, args)
        missing = f"missing ({minutes(defence, attack):.1f} min)"
        words = ablation_page.summary(read_json(kept)) if kept.exists() else missing
        print(f"{row:14s} {attack:9s} {words}", flush=True)


def _cells(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[tuple[str, str]]:
    """(row, attack) as asked for, each once; the cheapest first."""
    found: dict[tuple[str, str], None] = {}
    known = defences()
    for name in [args.experiment] if args.experiment else EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        rows = args.cells.split(",") if args.cells else experiment.rows
        aliases = {"eta-8": "rdc", "n-5": "rdc", "eta-0": "dc", "n-0": "dc", "ours-4": "dc"}
        rows = [aliases.get(row, row) for row in rows]
        attacks = args.attacks.split(",") if args.attacks else [*experiment.attacks, *["redraws"] * experiment.redraws]
        if unknown := [row for row in rows if row not in experiment.rows and (args.experiment or row not in known)]:
            parser.error(f"--cells: expected rows of {', '.join(experiment.rows)}; got {unknown[0]!r}")
        if unknown := [attack for attack in attacks if attack not in (*ATTACKS, "redraws")]:
            parser.error(f"--attacks: expected some of {', '.join(ATTACKS)}, redraws; got {unknown[0]!r}")
        for row, attack in itertools.product(rows, attacks):
            if attack == "exact" or attack == "redraws" or known[row].lm:  # DC has one gradient and no surrogate
                found[row, attack] = None
    return sorted(found, key=lambda cell: minutes(known[cell[0]], cell[1]))


def run_attack(row: str, defence: Defence, attack: str, args: argparse.Namespace) -> None:
    """One cell: rdc evaluate in a folder of its own; what matters of it is kept."""
    out, begun = args.work / f"{row}--{attack}", time.process_time()
    command = ["evaluate", *defence.options, "--data", DATA, "--n", str(N)]
    command += ["--attacks", ATTACKS[attack], "--steps", str(STEPS), "--norm", "linf", "--eps", "8/255"]
    command += [
        "--noise",
        "known",
        "--resubmissions",
        "1",
        "--sanity",
        "0",
        "--batch",
        str(args.batch),
        "--threads",
        str(args.threads),
    ]
    if status := rdc_main([*command, "--quiet", "--out", str(out)]):
        raise SystemExit(status)
    run = read_run(out)
    report, images = run.report.to_json(), [run.images[image] for image in sorted(run.images)]
    found = {
        "clean": report["clean"],
        "robust": report["robust"],
        "right": _bits([image.clean.always_right for image in images]),
        "standing": _bits([image.standing for image in images]),
        "settings": run.identity.settings.to_json(),
        "classifier": report["classifier"],
        "network_evaluations": report["network_evaluations"],
        "seconds": report["seconds"],
        "cpu_seconds_of_this_call": round(time.process_time() - begun, 1),
    }
    _keep(row, attack, found)


def run_redraws(row: str, defence: Defence, args: argparse.Namespace) -> None:
    """Clean accuracy under ten seeds of the noise: how much is chance."""
    torch.set_num_threads(args.threads)
    begun = time.process_time()
    settings = {name: value for name in ("levels", "lm") if (value := getattr(defence, name)) is not None}
    model = rdc.load(defence.model, **settings)
    data = rdc.load_dataset(DATA).subset(slice(0, N))
    classes, margins, evaluations = [], [], 0
    for seed in bar(range(SEEDS), desc=row):
        drawn = model.with_(noise_seed=seed)
        with torch.no_grad():
            logits = torch.cat([drawn(part) for part in data.pixels().split(args.batch)])
        own = logits.gather(1, data.labels[:, None])[:, 0]
        margins.append(own - logits.scatter(1, data.labels[:, None], -torch.inf).amax(1))
        classes.append(logits.argmax(1))
        evaluations += drawn.network_evaluations
    table, right = torch.stack(classes), torch.stack(classes) == data.labels
    margin = torch.stack(margins)
    pairs = list(itertools.combinations(range(SEEDS), 2))
    changed = sum(float((table[a] != table[b]).float().mean()) for a, b in pairs) / len(pairs)
    hits, low_high = int(right.sum()), right.float().mean(1)
    found = {
        "clean": _rate(int(right[0].sum()), N),
        "draws": [round(share, 6) for share in low_high.tolist()],
        "mean": round(hits / right.numel(), 6),
        "changed": round(changed, 6),
        "margin_noise": round(float(margin.std(0).mean() / margin.mean(0).abs().mean()), 6),
        "right": _bits(right[0].tolist()),
        "settings": {"model": defence.model, **settings, "seeds": SEEDS},
        "classifier": model.describe(),
        "network_evaluations": evaluations,
        "seconds": round(time.process_time() - begun, 1),
    }
    _keep(row, "redraws", found)


def _keep(row: str, attack: str, found: dict[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(
        path_of(row, attack), {"schema": SCHEMA, "row": row, "attack": attack, "n": N, **found, "about": about()}
    )


def _bits(flags: list[bool]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def _rate(hits: int, n: int) -> dict[str, Any]:
    return {"accuracy": round(hits / n, 6), "ci95": [round(end, 6) for end in wilson_interval(hits, n)]}


def tune(threads: int) -> None:
    """For every optimiser the step size that keeps most of 32 held-out images under five BPDA steps; finished ones are kept.

    Of sizes that keep equally many, the one that leaves the attack the least cross-entropy (mean of the images that were right).
    """
    torch.set_num_threads(threads)
    path = RESULTS / "tuned.json"
    found = read_json(path)["grid"] if path.exists() else {}
    data, threat = holdout(HELD_OUT, None), ThreatModel("linf", 8 / 255)
    wanted = [(name, size) for name, (_, _, grid) in GRIDS.items() for size in grid]
    for name, size in bar(wanted, desc="step sizes"):
        if f"{size:g}" in found.get(name, {}):
            continue
        model = rdc.load("fashion-mnist", lm=optimizer_lm(GRIDS[name][0], size), gradient="bpda")
        pixels, options = data.pixels(), {"steps": TUNING_STEPS, "seed": 0, "image_ids": data.indices}
        result = apgd(model, pixels, data.labels, threat, **options)
        found.setdefault(name, {})[f"{size:g}"] = {
            "clean": int(result.clean_correct.sum()),
            "standing": int(result.correct.sum()),
            "loss": float(result.best_loss[result.clean_correct].mean()),
        }
        best = {name: max(sizes, key=lambda size: _merit(sizes[size])) for name, sizes in found.items()}
        RESULTS.mkdir(parents=True, exist_ok=True)
        chosen = {name: float(size) for name, size in best.items()}
        write_json(
            path,
            {"schema": SCHEMA, "n": HELD_OUT, "attack": f"apgd-ce:gradient=bpda:steps={TUNING_STEPS}", "grid": found}
            | {"chosen": chosen, "about": about()},
        )
        print(name, size, found[name][f"{size:g}"], flush=True)


def _merit(found: dict[str, float]) -> tuple[float, float, float]:
    return found["standing"], -found["loss"], found["clean"]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start(main)
