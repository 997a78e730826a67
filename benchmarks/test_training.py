"""Training images a second: one step of rdc train, rdc distill, --margin-eps and --secant-eps on the shipped networks' architecture.

    pytest benchmarks/test_training.py --benchmark-only --benchmark-json=out/training.json
    python -m benchmarks.test_training --out training-cpu.json

The second form sets rdc's kernels beside PyTorch's operators (RDC_DISABLE_NATIVE=1), in turn, on one thread of a CPU. Two minutes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rdc
from benchmarks.measuring import about, alternate, clock, median, ratio, summary
from benchmarks.starting import start
from rdc.method.denoiser import ConditionalDenoiser
from rdc.networks.presets import build_network, network_preset
from rdc.storage.json_files import write_json
from rdc.training.distillation import DistillationObjective, Secant, student_from_teacher
from rdc.training.objective import ConditionalObjective, NoiseDistribution
from rdc.training.trainer import TrainConfig, Trainer

BATCH = 8
STEPS = ("train", "train-posterior", "distill", "distill-margin", "distill-secant")


def trainer(kind: str, folder, precision: str = "float32", device: str = "cpu", batch: int = BATCH) -> Trainer:
    """A trainer whose ``train_step`` is one step of that command (weights do not matter for time)."""
    config = network_preset("small-28", 10)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = build_network(config)
        student, _ = student_from_teacher(network, config)
    noise, data = NoiseDistribution(), rdc.load_dataset("fashion-mnist-sample")
    if kind.startswith("train"):
        net, weight = network, 0.3 if kind == "train-posterior" else 0.0
        objective = ConditionalObjective(10, noise, posterior_weight=weight)
    else:
        threat = {"distill-margin": {"margin_eps": 8 / 255}, "distill-secant": {"secant": Secant(8 / 255)}}.get(kind)
        margin: dict[str, Any] = {"classes_per_image": 0, "posterior_weight": 1.0, **threat} if threat else {}
        teacher = ConditionalDenoiser(network.eval().requires_grad_(False).to(device), 10, tuple(config["image_shape"]))
        net, objective = student, DistillationObjective(teacher, noise, **margin)
    settings = TrainConfig(images=10**6, batch_size=batch, precision=precision)
    return Trainer(net.to(device), objective, data, settings, folder, {}, progress=False)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", STEPS)
def test_training_step(benchmark, tmp_path, kind, precision):
    step = trainer(kind, tmp_path, precision).train_step
    assert step()["grad_norm"] > 0
    benchmark.group = f"one training step of {BATCH} images"
    benchmark.extra_info |= {"images": BATCH}
    values = benchmark.pedantic(step, rounds=3)
    assert all(value == value for value in values.values())


def _step(kind: str, precision: str, batch: int, native: bool) -> Callable[[], Any]:
    made = trainer(kind, Path(tempfile.mkdtemp()), precision, batch=batch)

    def run() -> Any:
        os.environ["RDC_DISABLE_NATIVE"] = "" if native else "1"
        return made.train_step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images a step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    what, read = clock(1)
    rows = []
    for kind in STEPS:
        for precision in ("float32", "bfloat16"):
            contenders = {name: _step(kind, precision, args.batch, name == "rdc") for name in ("rdc", "torch")}
            seconds = alternate(contenders, args.rounds, read)
            rows.append({"step": kind, "precision": precision, "seconds": {n: summary(s) for n, s in seconds.items()}})
            rows[-1]["gain"] = ratio(seconds["torch"], seconds["rdc"])
            speeds = ", ".join(f"{name} {args.batch / median(s):.1f} images/s" for name, s in seconds.items())
            print(f"{kind} {precision}: {speeds}, {rows[-1]['gain']['ratio']} times as fast", flush=True)
    os.environ.pop("RDC_DISABLE_NATIVE")
    write_json(args.out, {**about(), "clock": what, "batch": args.batch, "rows": rows})


if __name__ == "__main__":
    start(main)
