"""Training images a second: one step of rdc train, rdc distill, --margin-eps and --secant-eps on the shipped networks' architecture.

pytest benchmarks/test_training.py --benchmark-only --benchmark-json=out/training.json
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rdc
from rdc.method.denoiser import ConditionalDenoiser
from rdc.networks.presets import build_network, network_preset
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
