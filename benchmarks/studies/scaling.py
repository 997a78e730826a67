"""How cost grows: seconds against images, levels and classes; peak memory against images. One thread, multi-head.

    python -m benchmarks.studies.scaling --out benchmarks/results/scaling.json           # two minutes

Weights do not matter for time; images and levels use the shipped student, classes a network of the same trunk with a wider head.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import torch

import rdc
from benchmarks.measuring import about, alternate, clock, median
from benchmarks.starting import start
from rdc.execution.memory import peak_bytes
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import MultiHeadDenoiser
from rdc.networks.presets import build_network, network_preset
from rdc.storage.json_files import write_json
from rdc.training.distillation import student_from_teacher

IMAGES, LEVELS, CLASSES = (1, 2, 4, 8, 16, 32), (2, 4, 8, 16, 32), (10, 30, 100, 300)
MEMORY_IMAGES, BUDGET = (16, 64, 256), 256.0


def _levels(count: int) -> str:
    return f"log:{count}:0.5:4:flat"


def _of_classes(count: int) -> DiffusionClassifier:
    """A multi-head classifier of ``count`` classes, random weights."""
    config = network_preset("small-28", count)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        student, _ = student_from_teacher(build_network(config), config)
    denoiser = MultiHeadDenoiser(student, count, tuple(config["image_shape"])).to(memory_format=torch.channels_last)
    return DiffusionClassifier(denoiser, _levels(4))


def _gradient(classifier: Any, x: torch.Tensor) -> None:
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(classifier.class_losses(leaf).sum(), leaf)


def _forward(classifier: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        classifier.class_losses(x)


def _status(name: str) -> float:
    """A line of /proc/self/status (Linux), MiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(f"{name}:"))


def peak(images: int) -> float:
    """MiB by which one gradient of ``images`` images raises this process's resident memory (run in a process of its own; Linux)."""
    torch.set_num_threads(1)
    classifier = rdc.load("fashion-mnist", memory_budget_mb=BUDGET)
    x = rdc.load_dataset("fashion-mnist-sample").pixels(range(images))
    _gradient(classifier, x[:1])
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts anew from what is resident now
    before = _status("VmRSS")
    _gradient(classifier, x)
    return round(_status("VmHWM") - before, 1)


def live(images: int) -> float:
    """MiB of tensors alive at once in the same gradient: the budget leaves them what the process does not need for itself."""
    torch.set_num_threads(1)
    classifier = rdc.load("fashion-mnist", memory_budget_mb=BUDGET)
    x = rdc.load_dataset("fashion-mnist-sample").pixels(range(images))
    _gradient(classifier, x[:1])
    return round(peak_bytes(lambda: _gradient(classifier, x)) / 2**20, 1)


def memory() -> dict[str, dict[str, float]]:
    """Two views of the peak, by images, each measured in a process of its own (more: resident_memory.py)."""
    found: dict[str, dict[str, float]] = {}
    for what, function in (("tensors alive", live), ("resident", peak)):
        for images in MEMORY_IMAGES:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found.setdefault(what, {})[str(images)] = pool.apply(function, (images,))
    return found


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of a call, by what is varied."""
    student, x = (
        rdc.load("fashion-mnist", levels=_levels(4)),
        rdc.load_dataset("fashion-mnist-sample").pixels(range(32)),
    )
    by_levels = {count: student.with_(levels=_levels(count)) for count in LEVELS}
    by_classes = {count: _of_classes(count) for count in CLASSES}
    found: dict[str, Any] = {}
    for work, function in (("prediction", _forward), ("gradient", _gradient)):
        calls = {("images", n): lambda n=n, f=function: f(student, x[:n]) for n in IMAGES}
        calls |= {("levels", t): lambda t=t, f=function: f(by_levels[t], x[:4]) for t in LEVELS}
        calls |= {("classes", k): lambda k=k, f=function: f(by_classes[k], x[:4]) for k in CLASSES}
        for call in calls.values():
            call()
        seconds = alternate(calls, rounds, clock(1)[1])
        for what in ("images", "levels", "classes"):
            found.setdefault(what, {})[work] = {
                str(n): float(f"{median(values):.4g}") for (kind, n), values in seconds.items() if kind == what
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {"about": about(), "clock": clock(1)[0], "seconds": measure(args.rounds)}
    found["peak_mib"] = {"memory_budget_mib": BUDGET, "work": "gradient", "by_images": memory()}
    for what, rows in found["seconds"].items():
        print(what, {work: values for work, values in rows.items()})
    print("peak MiB", found["peak_mib"]["by_images"])
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    start(main)
