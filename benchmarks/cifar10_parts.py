"""The parts of cifar10.py: each takes the run and returns JSON values; "line" is its row of the table."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cifar10_pack import pack as write_pack
from cifar10_pack import unpack as read_pack
from cifar10_run import Run, last_row

import rdc
from rdc.checkpoints import load_model, save_model
from rdc.data import Dataset, load_dataset, save_npz, train_holdout
from rdc.data.cifar10 import CLASS_NAMES, load_cifar10
from rdc.errors import CheckpointError, ConfigError
from rdc.files import write_json
from rdc.level_weights import fit_weights, level_margins, worst_margins
from rdc.timesteps import NoiseLevels, parse_levels

__all__ = ["BOXES", "PARTS", "RECIPES"]

HOLDOUT = 2000
_LABELS = "--classes-per-image 0 --posterior-weight 1 --posterior-scale 0.03 --shift 3 --wide-channels 256"
#: options of rdc train and rdc distill on a GPU; the student's labels are its own posterior, without passes of the teacher
RECIPES = {
    "teacher": "--batch-size 1024 --lr 2e-3 --warmup-images 100000 --ema-images 300000 --noise-mean -0.6 --noise-std 1.1",
    "student": f"--batch-size 1024 --lr 1e-3 --warmup-images 60000 --ema-images 200000 {_LABELS} --noise-mean -0.5 "
    "--noise-std 0.9",
    "robust": f"--batch-size 512 --lr 1.2e-3 --warmup-images 60000 --ema-images 150000 {_LABELS} --secant-eps 8/255 "
    "--noise-mean -1.2 --noise-std 0.7",
}
#: not compiled: on an H200 torch.compile of the teacher had made no step after 75 seconds. Without it contiguous is 1.29 times as fast
#: as channels_last
_SHARED = "--precision bfloat16 --flip --checkpoint-seconds 60 --memory-format contiguous"
_DRY = "--batch-size 4 --images 16 --warmup-images 8 --ema-images 16"
_SETTINGS = ("log:4:0.08:0.7:eps", "log:4:0.1:1:eps", "log:8:0.08:0.7:eps", "log:4:0.08:0.7:flat", "log:8:0.25:2:flat")
_EPS = 8 / 255

#: minutes of each part where --box says nothing else; those of a usual call add up to 8.6
BOXES = {"pack": 5.0, "unpack": 0.5, "speed": 2.5}
BOXES |= {"teacher": 1.3, "student": 1.5, "robust": 4.5, "levels": 0.4, "evaluate": 0.4, "attack": 2.0}


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
    init = ["--init", begin] if (begin / "model.json").exists() else []
    return _train(run, "teacher", ["train", "--network", run.args.network, *init])


def student(run: Run) -> dict[str, Any]:
    """Multi-head student: rdc distill, from the teacher or on from --resume."""
    begin = run.work / "resumed" / "student"
    init = ["--init", begin] if (begin / "model.json").exists() else []
    return _train(run, "student", ["distill", "--teacher", _needed(run, "teacher"), *init])


def robust(run: Run) -> dict[str, Any]:
    """The student with --secant-eps, from the student if there is one."""
    begin, teacher = run.model("student"), run.model("teacher")
    words = ["--init", begin] if begin else ["--teacher", _needed(run, "teacher")]
    return _train(run, "robust", ["distill", *words, *(["--teacher", teacher] if begin and teacher else [])])


def _needed(run: Run, name: str) -> Path:
    path = run.model(name)
    if path is None:
        raise ConfigError(
            f"expected a {name} in {run.work} or among the files of --resume; got none. Add {name} to --only, or --resume the "
            "--out folder of a run that has one"
        )
    return path


def _train(run: Run, part: str, words: list[Any]) -> dict[str, Any]:
    folder, kept = run.work / part, "teacher" if part == "teacher" else "student"
    seconds, seen = run.seconds(part), [_stamp(folder)]
    recipe = [*RECIPES[part].split(), *_SHARED.split()]
    recipe += ["--device", run.device.type, "--out", str(folder), "--quiet", *_data_words(run)]
    if run.dry:
        recipe = [word for word in recipe if word != "--compile"] + _DRY.split() + ["--holdout", "20", "--threads", "1"]
    else:
        recipe += ["--holdout", str(HOLDOUT), "--minutes", f"{seconds / 60:.3f}"]

    def watch() -> None:
        if (stamp := _stamp(folder)) != seen[0]:
            try:
                run.keep(kept, folder)
                seen[0] = stamp
            except CheckpointError:
                pass  # read between its two files; once more in a moment

    try:
        done = run.command(part, [*words, *recipe, *run.words.get(part, [])], seconds, watch)
    finally:
        run.keep(kept, folder)
    row = last_row(folder) or {}
    good = done["status"] == 0
    if row and (folder / "model.json").exists():
        run.result.setdefault("trained", {}).setdefault(kept, []).append({"part": part, **row})
    last = done["last_lines"][-1] if done["last_lines"] else "no output"
    figures = f"{row.get('images', 0):,} images, {row.get('images_per_s', 0):,.0f}/s, loss {row.get('loss', 0):.4f}"
    named = {key: row[key] for key in ("hits", "robust_first_order") if key in row}
    figures += "".join(f", {key} {value:.3f}" for key, value in named.items())
    line = figures if good else f"status {done['status']}; {figures}" if row else f"FAILED: {last}"
    return {"line": line, **done, "last_row": row}


def _stamp(folder: Path) -> int:
    model = folder / "model.json"
    return model.stat().st_mtime_ns if model.exists() else 0


# --- levels and evaluation ------------------------------------------------------------------------------------------
def levels(run: Run) -> dict[str, Any]:
    """Noise levels and weights by first order on held-out training images; half fits, the other half chooses."""
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
            rows[name] = {**_judge(choose_on, weight), "weight": [round(value, 5) for value in weight.tolist()]}
            if best is None or rows[name]["robust_first_order"] > rows[best]["robust_first_order"]:
                best, sigma = name, plain.sigma
    if best is None:
        return {"line": "left out: no time left"}
    chosen = NoiseLevels(tuple(sigma), tuple(rows[best]["weight"]), "custom", "custom").to_json()
    write_json(run.work / "levels.json", chosen)
    network, config, info = load_model(model)
    save_model(run.work / "final" / "model", network, config, info | {"classifier": {"levels": chosen}})
    if run.out is not None:
        from cifar10_shards import write_shards

        history = [*run.result.get("resumed", {}).get("student", []), *run.result.get("trained", {}).get("student", [])]
        write_shards(run.work / "final" / "model", run.out, "student", history=history or info.get("history", []))
    words = (
        f"{best}: clean {100 * rows[best]['clean']:.1f} %, first order {100 * rows[best]['robust_first_order']:.1f} %"
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


# --- speed ----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of training step, and what is switched on for it."""

    step: str
    layout: str = "channels_last"
    kernels: bool = True
    graph: bool = False
    compile: bool | str = False
    batch: int | None = None

    def __str__(self) -> str:
        how = ["kernels"] * self.kernels + ["graph"] * self.graph + [f"compile {self.compile}"] * bool(self.compile)
        return " ".join([self.step, self.layout, *how, *([] if self.batch is None else [f"batch {self.batch}"])])


def speed(run: Run) -> dict[str, Any]:
    """Training images a second of every kind of step, in bfloat16, what matters most first; the whole compiled comes last.

    "margin" is --margin-eps in place of --secant-eps: a step differentiates twice, which cannot be compiled or recorded.
    """
    rows: list[dict[str, Any]] = []
    for case in _cases(run):
        if run.left() < 10 or sum(row.get("seconds", 0) for row in rows) > run.seconds("speed"):
            break
        begun, row = time.monotonic(), {"case": str(case), **dataclasses.asdict(case)}
        with _environment(RDC_DISABLE_TRITON="0" if case.kernels else "1"):
            try:
                row |= _one_speed(run, case)
            except (torch.OutOfMemoryError, ConfigError, RuntimeError) as error:
                row["error"] = str(error).splitlines()[0][:300]
        rows.append({**row, "seconds": round(time.monotonic() - begun, 1)})
        print(f"  {case}: {row.get('images_per_second', row.get('error'))}", flush=True)
        run.result["parts"]["speed"] = {"line": "stopped", "seconds_of_part": 0.0, "rows": rows}
        run.save()
    words = [f"{row['case']} {row['images_per_second']:.0f}" for row in rows if "images_per_second" in row]
    return {"line": f"images/s: {'; '.join(words)}" if words else "nothing ran", "rows": rows}


def _cases(run: Run) -> list[Case]:
    if run.dry:
        return [Case("teacher", kernels=False), Case("robust", "contiguous", kernels=False)]
    return [
        Case("robust", "contiguous", kernels=False),
        Case("robust"),
        Case("robust", graph=True),
        Case("robust", graph=True, batch=1024),
        Case("robust", "contiguous", kernels=False, graph=True),
        Case("teacher", graph=True),
        Case("student", graph=True),
        Case("robust", kernels=False, compile="norms"),
        Case("teacher", "contiguous", kernels=False),
        Case("margin"),
        Case("robust", kernels=False, compile=True),
    ]


def _one_speed(run: Run, case: Case) -> dict[str, Any]:
    from rdc.time_box import images_per_second
    from rdc.training import TrainConfig, Trainer

    network, objective = _step_of(run, case.step)
    words = RECIPES["robust" if case.step == "margin" else case.step].split()
    size = 4 if run.dry else case.batch or int(words[words.index("--batch-size") + 1])
    settings = TrainConfig(
        images=10**9, batch_size=size, precision="bfloat16", flip=True, compile=case.compile, memory_format=case.layout,
        cuda_graph=case.graph,
    )  # fmt: skip
    data = Dataset(
        torch.randint(0, 256, (max(64, 2 * size), 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.arange(max(64, 2 * size)) % 10, CLASS_NAMES, "noise", "train",
    )  # fmt: skip
    on_gpu, found = run.device.type == "cuda", {}
    with tempfile.TemporaryDirectory() as folder:
        made = Trainer(network.to(run.device), objective, data, settings, Path(folder), {}, progress=False)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        value = images_per_second(made, 0.0 if run.dry else 2.0)
        if on_gpu and not case.graph:
            found["device_ms"], found["kernels_ms"] = _profile(made)
    peak = round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else None
    return {"images_per_second": float(f"{value:.4g}"), "batch_size": size, "peak_mib": peak, **found}


def _profile(trainer: Any, steps: int = 2) -> tuple[float, dict[str, float]]:
    """Milliseconds on the device of one step, and of its dearest kernels."""
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as seen:
        for _ in range(steps):
            trainer.train_step()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_device_time_total)
    times = {
        f"{event.key[:90]} x{event.count // steps}": event.self_device_time_total / steps / 1000 for event in events
    }
    return round(sum(times.values()), 2), {name: round(value, 3) for name, value in list(times.items())[:16]}


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _step_of(run: Run, kind: str) -> tuple[Any, Any]:
    """A network with drawn weights and the objective of that recipe (weights do not matter for time)."""
    from rdc.denoiser import make_denoiser
    from rdc.distillation import DistillationObjective, Secant, student_from_teacher
    from rdc.networks.presets import build_network, network_preset
    from rdc.objective import ConditionalObjective, NoiseDistribution

    config = network_preset(run.args.network, 10)
    network = build_network(config)
    if kind == "teacher":
        return network, ConditionalObjective(10, NoiseDistribution())
    made, _ = student_from_teacher(network, config, 256)
    threat = {"margin": {"margin_eps": _EPS}, "robust": {"secant": Secant(_EPS)}}.get(kind, {})
    settings = {"classes_per_image": 0, "posterior_weight": 1.0, "posterior_scale": 0.03, **threat}
    return made, DistillationObjective(make_denoiser(network.to(run.device), config), NoiseDistribution(), **settings)


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    function.__name__: function
    for function in (pack, unpack, speed, teacher, student, robust, levels, evaluate, attack)
}
