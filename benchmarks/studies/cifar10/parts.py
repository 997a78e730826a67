"""The parts of cifar10.py: each takes the run and returns JSON values; "line" is its row of the table."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rdc
from benchmarks.studies.cifar10.pack import pack as write_pack
from benchmarks.studies.cifar10.pack import unpack as read_pack
from benchmarks.studies.cifar10.recipes import DRY, RECIPES, SHARED
from benchmarks.studies.cifar10.run import Run, last_row
from benchmarks.studies.cifar10.speed import speed
from rdc.attacks import ThreatModel, apgd
from rdc.data import Dataset, load_dataset, save_npz, train_holdout
from rdc.data.cifar10 import CLASS_NAMES, load_cifar10
from rdc.errors import CheckpointError, ConfigError
from rdc.method.levels import NoiseLevels, parse_levels
from rdc.models.checkpoints import load_model, save_model
from rdc.storage.json_files import write_json
from rdc.training.level_weights import fit_weights, level_margins, worst_margins
from rdc.training.recipe_settings import merged

__all__ = ["BOXES", "PARTS"]

HOLDOUT = 2000
EXTRA_SHARE = 0.7  # of drawn images, where there are any
_SETTINGS = ("log:4:0.08:0.7:eps", "log:4:0.1:1:eps", "log:8:0.08:0.7:eps", "log:4:0.08:0.7:flat", "log:8:0.25:2:flat")
_EPS = 8 / 255

#: minutes of each part where --box says nothing else; those of a usual call add up to 8.6
BOXES = {"pack": 5.0, "unpack": 0.5, "speed": 2.5}
BOXES |= {"teacher": 1.3, "draw": 2.0, "student": 1.5, "robust": 4.5, "levels": 0.4, "evaluate": 0.4, "attack": 2.0}


# --- data -----------------------------------------------------------------------------------------------------------
def _data_words(run: Run) -> list[str]:
    """Which data the commands take; a dry run reads whatever has the official format, or makes some."""
    if not run.dry:
        return ["--data", "cifar10", *(["--data-root", str(run.args.data_root)] if run.args.data_root else [])]
    folder = run.work / "data"
    for split, count in (("train", 60), ("test", 20)):
        if not (folder / f"{split}.npz").exists():
            save_npz(_any_cifar10(run, split, count), folder / f"{split}.npz")
    return ["--data", str(folder)]


def _any_cifar10(run: Run, split: str, count: int) -> Dataset:
    if run.args.data_root:
        return load_cifar10(split, run.args.data_root, verify=False)
    make = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=make, dtype=torch.uint8)
    return Dataset(pixels, torch.arange(count) % 10, CLASS_NAMES, "cifar10", split)


def _train_split(run: Run) -> Dataset:
    words = _data_words(run)
    return load_dataset(words[1], "train", words[3] if len(words) > 2 else None)


def pack(run: Run) -> dict[str, Any]:
    """CIFAR-10 as a few lossless files to send (--pack, --part-mib); here, not on the machine with the GPU."""
    folder = _pack_folder(run)
    files = write_pack(run.args.data_root, folder, run.args.part_mib, verify=not run.dry, workers=os.cpu_count() or 1)
    sizes = [round(path.stat().st_size / 2**20, 2) for path in files]
    return {
        "line": f"{len(files)} files of {max(sizes)} MiB at most in {folder}",
        "files": [str(path) for path in files],
        "mib": sizes,
    }


def unpack(run: Run) -> dict[str, Any]:
    """What has arrived of the pack (--pack: a file, or their folder) into --data-root; complete after the last one."""
    place, root = _pack_folder(run), run.args.data_root
    if root is None:
        raise ConfigError("--only unpack: expected --data-root FOLDER, where CIFAR-10 is to be; got none")
    files = sorted(place.glob("cifar10-part-*.zip")) if place.is_dir() else [place] if place.exists() else []
    if not files:
        raise ConfigError(f"--pack {place}: expected cifar10-part-*.zip, written by --only pack; got none")
    done = read_pack(files, root, workers=os.cpu_count() or 1)
    if done["complete"] and not run.dry:
        for split in ("train", "test"):
            load_cifar10(split, root)  # the official records, or an error
    words = "complete" if done["complete"] else f"{len(done['missing'])} chunks are still to come"
    return {"line": f"{done['images']:,} images from {len(files)} files; {words}", **done}


def _pack_folder(run: Run) -> Path:
    return run.args.pack or Path("runs/cifar10-pack")


# --- training -------------------------------------------------------------------------------------------------------
def teacher(run: Run) -> dict[str, Any]:
    """Class-conditional diffusion model: rdc train; goes on from --resume."""
    begin = run.work / "resumed" / "teacher"
    init = {"init": begin} if (begin / "model.json").exists() else {}
    return _train(run, "teacher", {"network": run.args.network, **init})


def draw(run: Run) -> dict[str, Any]:
    """Images from the teacher, of which the students see --extra-share beside the real ones: rdc sample --images."""
    folder, (count, batch, steps) = _drawn(run), (8, 4, 1) if run.dry else (1_000_000, 2000, 18)
    words = [
        "--images",
        count,
        "--batch",
        batch,
        "--steps",
        steps,
        "--out",
        folder,
        "--device",
        run.device.type,
        "--quiet",
    ]
    more = ["--threads", 1] if run.dry else ["--precision", "bfloat16"]
    done = run.command(
        "draw", ["sample", _needed(run, "teacher"), *words, *more, *run.words.get("draw", [])], run.seconds("draw")
    )
    images = 0
    for part in folder.glob("train-*.npz"):
        with np.load(part, allow_pickle=False) as arrays:
            images += len(arrays["labels"])
    last = done["last_lines"][-1] if done["last_lines"] else "no output"
    return {"line": f"{images:,} images" if images else f"FAILED: {last}", **done, "images": images}


def _drawn(run: Run) -> Path:
    return run.work / "drawn"


def student(run: Run) -> dict[str, Any]:
    """Multi-head student: rdc distill, from the teacher or on from --resume."""
    begin = run.work / "resumed" / "student"
    init = {"init": begin} if (begin / "model.json").exists() else {}
    return _train(run, "student", {"teacher": _needed(run, "teacher"), **init})


def robust(run: Run) -> dict[str, Any]:
    """The student with --secant-eps, from the student if there is one."""
    begin, teacher = run.model("student"), run.model("teacher")
    models = {"init": begin, "teacher": teacher} if begin else {"teacher": _needed(run, "teacher")}
    return _train(run, "robust", {name: path for name, path in models.items() if path})


def _needed(run: Run, name: str) -> Path:
    path = run.model(name)
    if path is None:
        raise ConfigError(
            f"expected a {name} in {run.work} or among the files of --resume; got none. Add {name} to --only, or --resume the "
            "--out folder of a run that has one"
        )
    return path


def _train(run: Run, part: str, models: dict[str, Any]) -> dict[str, Any]:
    """Train the recipe of a part with these models (or presets) for its box; what it makes is kept meanwhile."""
    folder, kept = run.work / part, "teacher" if part == "teacher" else "student"
    seconds, seen = run.seconds(part), [_stamp(folder)]
    _, data, *root = _data_words(run)
    more = {"holdout": 20, **DRY} if run.dry else {"holdout": HOLDOUT, "minutes": round(seconds / 60, 3)}
    named = {name: str(model) for name, model in models.items()}
    if part != "teacher" and any(_drawn(run).glob("train-*.npz")):
        more |= {"extra_data": str(_drawn(run)), "extra_share": EXTRA_SHARE}
    settings = merged(RECIPES[part], {**SHARED, **named, "data": data, **more})
    words = ["--device", run.device.type, "--out", folder, "--quiet", *root, *(["--threads", 1] if run.dry else [])]

    def watch() -> None:
        if (stamp := _stamp(folder)) != seen[0]:
            try:
                run.keep(kept, folder)
                seen[0] = stamp
            except CheckpointError:
                pass  # read between its two files; once more in a moment

    try:
        done = run.train(part, settings, [*words, *run.words.get(part, [])], seconds, watch)
    finally:
        run.keep(kept, folder)
    row = last_row(folder) or {}
    if row and (folder / "model.json").exists():
        run.result.setdefault("trained", {}).setdefault(kept, []).append({"part": part, **row})
    last = done["last_lines"][-1] if done["last_lines"] else "no output"
    figures = f"{row.get('images', 0):,} images, {row.get('images_per_s', 0):,.0f}/s, loss {row.get('loss', 0):.4f}"
    logged = {key: row[key] for key in ("hits", "robust_first_order") if key in row}
    figures += "".join(f", {key} {value:.3f}" for key, value in logged.items())
    line = _line(done["status"], figures if row or done["status"] == 0 else "", (folder / "model.json").exists(), last)
    return {"line": line, **done, "last_row": row}


def _line(status: int | str, figures: str, saved: bool, last: str) -> str:
    """What a training came to: its figures; of one that its box ended before the first row of its log, that it was saved."""
    if status == 0 or figures:
        return figures if status == 0 else f"status {status}; {figures}"
    if status == "out of time" and saved:
        return f"status {status}; saved before the first row of its log"
    return f"FAILED: {last}"


def _stamp(folder: Path) -> int:
    model = folder / "model.json"
    return model.stat().st_mtime_ns if model.exists() else 0


# --- levels and evaluation ------------------------------------------------------------------------------------------
def levels(run: Run) -> dict[str, Any]:
    """Noise levels and weights on held-out training images: half fits them by first order, APGD on the other half chooses.

    First order alone is further from APGD the longer a student was trained for it (docs/models/cifar10.md).
    """
    model = run.model("robust", "student")
    if model is None:
        model = _needed(run, "student")
    held = train_holdout(_train_split(run), 20 if run.dry else HOLDOUT)[1]
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))
    count = 4 if run.dry else 400
    parts = [held.subset(order[:count]), held.subset(order[count : 2 * count])]
    rows, best = {}, None
    for text in _SETTINGS[:2] if run.dry else _SETTINGS:
        if run.left() < 5:
            break
        plain = parse_levels(text)
        fit_on, choose_on = (_margins(run, model, text, part) for part in parts)
        start = torch.tensor(plain.weight, dtype=torch.float32, device=run.device)
        fitted = fit_weights(*fit_on[1:3], _EPS, fit_on[3], [start], steps=5 if run.dry else 100)
        for name, weight in ((text, start), (f"{text}, fitted", fitted)):
            tried = NoiseLevels(
                tuple(plain.sigma), tuple(round(value, 5) for value in weight.tolist()), "custom", "custom"
            )
            rows[name] = {
                **_judge(choose_on, weight),
                **_under_attack(run, model, tried, parts[1]),
                "weight": tried.weight,
            }
            if best is None or rows[name]["apgd"] > rows[best]["apgd"]:
                best, sigma = name, plain.sigma
    if best is None:
        return {"line": "left out: no time left"}
    chosen = NoiseLevels(tuple(sigma), tuple(rows[best]["weight"]), "custom", "custom").to_json()
    write_json(run.work / "levels.json", chosen)
    network, config, info = load_model(model)
    save_model(run.work / "final" / "model", network, config, info | {"classifier": {"levels": chosen}})
    if run.out is not None:
        from benchmarks.studies.cifar10.shards import write_shards

        history = [*run.result.get("resumed", {}).get("student", []), *run.result.get("trained", {}).get("student", [])]
        write_shards(run.work / "final" / "model", run.out, "student", history=history or info.get("history", []))
    words = (
        f"{best}: clean {100 * rows[best]['clean']:.1f} %, first order {100 * rows[best]['robust_first_order']:.1f} %, "
        f"APGD {100 * rows[best]['apgd']:.1f} %"
    )
    return {"line": f"{words} ({len(parts[1])} held-out images)", "chosen": best, "levels": chosen, "rows": rows}


def _margins(run: Run, model: Path, text: str, part: Dataset) -> tuple[torch.Tensor, ...]:
    """Losses, margins, gradients, pixels, labels."""
    classifier = rdc.load(model, device=run.device, levels=text, lm=None)
    pixels, labels = part.pixels().to(run.device), part.labels.to(run.device)
    size = 4 if run.dry else 50
    found = [level_margins(classifier, x, y, 2) for x, y in zip(pixels.split(size), labels.split(size), strict=True)]
    return (*(torch.cat(column) for column in zip(*found, strict=True)), pixels, labels)


def _judge(found: tuple[torch.Tensor, ...], weight: torch.Tensor) -> dict[str, float]:
    losses, margins, gradients, pixels, labels = found
    right = torch.einsum("ntk,t->nk", losses, weight).argmin(1) == labels
    robust = right & (worst_margins(weight, margins, gradients, _EPS, pixels) > 0)
    return {"clean": right.double().mean().item(), "robust_first_order": robust.double().mean().item()}


def _under_attack(run: Run, model: Path, tried: NoiseLevels, part: Dataset) -> dict[str, float]:
    """Share of the images that ten steps of APGD-DLR leave."""
    classifier = rdc.load(model, device=run.device, levels=tried, lm=None)
    pixels, labels = part.pixels().to(run.device), part.labels.to(run.device)
    threat, steps = ThreatModel("linf", _EPS), 1 if run.dry else 10
    found = apgd(classifier, pixels, labels, threat, seed=0, image_ids=range(len(part)), steps=steps, loss="dlr")
    return {"apgd": found.correct.double().mean().item()}


def evaluate(run: Run) -> dict[str, Any]:
    """rdc evaluate: clean accuracy on all test images."""
    every, batch = (4, 2) if run.dry else (10_000, 1000)
    return _evaluate(run, "evaluate", {"clean": ["--attacks", "none", "--n", every, "--batch", batch]})


def attack(run: Run) -> dict[str, Any]:
    """rdc evaluate on the first --n: l_inf 8/255, then l_2 0.5; APGD-CE and APGD-T of 100 steps, exact gradient, known noise."""
    full = [*_attacked(run), "--attacks", "apgd-ce,apgd-t", "--steps", 1 if run.dry else 100]
    jobs = {"linf": [*full, "--norm", "linf", "--eps", "8/255"], "l2": [*full, "--norm", "l2", "--eps", "0.5"]}
    return _evaluate(run, "attack", jobs)


def _attacked(run: Run) -> list[Any]:
    n, batch = (2, 2) if run.dry else (run.args.n, 256)
    return ["--gradient", "exact", "--noise", "known", "--n", n, "--batch", batch, "--sanity", 0]


def _evaluate(run: Run, part: str, jobs: dict[str, list[Any]]) -> dict[str, Any]:
    model = run.model("final", "robust", "student")
    if model is None:
        model = _needed(run, "student")
    end, found = time.monotonic() + run.seconds(part), {}
    for name, words in jobs.items():  # each may take all that is left
        folder, seconds = run.work / "evaluate" / name, end - time.monotonic()
        if seconds < 2 and not run.dry:
            found[name] = {"line": "left out"}
            continue
        more = ["--model", model, "--device", run.device.type, "--out", folder, "--quiet"]
        more += [*_data_words(run), *(["--threads", 1] if run.dry else []), *run.words.get(part, [])]
        done = run.command(f"{part}-{name}", ["evaluate", *more, *words], seconds, run.keep_small)
        found[name] = {**done, **_figures(folder)}
        if "line" not in found[name]:
            last = (done["last_lines"] or ["no output"])[-1]
            found[name]["line"] = "no batch finished" if done["status"] == "out of time" else f"FAILED: {last}"
    failed = "FAILED: " if any(row["line"].startswith("FAILED") for row in found.values()) else ""
    return {"line": failed + "; ".join(f"{name} {row['line']}" for name, row in found.items()), "runs": found}


def _figures(folder: Path) -> dict[str, Any]:
    """What the report says; of a run that was stopped, what its finished batches say."""
    report = folder / "report.json"
    if report.exists():
        full = json.loads(report.read_text())
        attacked = bool(full["attacks"])
        share = full["robust"]["accuracy"] if attacked else full["clean"]["accuracy"]
        return {"line": f"{100 * share:.1f} % of {full['n']}", "report": full}
    results, images, waiting = folder / "results.jsonl", [], []
    for line in results.read_text().splitlines() if results.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # cut short
            break
        if "end_of_batch" in row:
            images, waiting = images + waiting, []
        else:
            waiting.append(row)
    if not images:
        return {}
    right = [row["clean"]["right"] == 1 if row["robust"] is None else bool(row["robust"]) for row in images]
    return {
        "line": f"{100 * sum(right) / len(right):.1f} % of the first {len(right)} (stopped)",
        "finished": len(right),
    }


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    function.__name__: function
    for function in (pack, unpack, speed, teacher, draw, student, robust, levels, evaluate, attack)
}
