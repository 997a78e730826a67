"""Adversarial weight perturbation: the gradient is the one at the worse weights, found images are kept, weights come back to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rdc.errors import ConfigError
from rdc.training.adversarial import ClassifierObjective, InnerAttack
from rdc.training.augmentation import Shifted
from rdc.training.distillation import DistillationObjective, Secant
from rdc.training.objective import NoiseDistribution
from rdc.training.recipe_settings import recipe_from, settings_of
from rdc.training.recipes import Recipe
from rdc.training.state import TrainingStopped
from rdc.training.trainer import TrainConfig, Trainer
from rdc.training.weight_perturbation import moved_weights, same_perturbations
from tests.tiny_models import pixels, tiny_denoiser
from tests.tolerances import FLOAT32_SUM
from tests.training.pictures import fresh_network, images

GAMMA = 0.3
CONFIG = TrainConfig(images=96, batch_size=12, warmup_images=0, seed=3, clip=1e9, awp=GAMMA)
NET = {"kind": "resnet", "image_shape": [1, 8, 8], "num_classes": 3, "patch_size": 2, "width": 8, "blocks": [1, 1]}
ATTACK = InnerAttack(8 / 255, steps=3)


def linear() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def trainer(out: Path, net: nn.Module, objective, config: TrainConfig = CONFIG) -> Trainer:
    return Trainer(net, objective, images(), config, out, {}, progress=False)


def by_hand(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gradient in the weight of the mean cross-entropy of softmax(W x + b), in float64."""
    logits = x @ weight.T + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True) - np.eye(3)[labels]).T @ x / len(x)


def test_the_gradient_is_that_of_the_worse_weights(tmp_path: Path) -> None:
    net = linear()
    run = trainer(tmp_path, net, ClassifierObjective("standard"))
    weight, bias = (p.detach().double().numpy().copy() for p in net.parameters())
    x0, labels = run.batches(0)
    x = ((x0 + 1) / 2).flatten(1).double().numpy()
    first = by_hand(weight, bias, x, labels.numpy())
    worse = weight + GAMMA * np.linalg.norm(weight) / np.linalg.norm(first) * first
    expected = by_hand(worse, bias, x, labels.numpy())
    row = run.train_step()
    found = net[1].weight.grad.double().numpy()
    assert np.abs(found - expected).max() < FLOAT32_SUM * np.abs(expected).max()
    assert np.abs(expected - first).max() > 0.05 * np.abs(first).max()  # the two are told apart
    assert row["loss"] == pytest.approx(
        _entropy(weight, bias, x, labels.numpy()), rel=FLOAT32_SUM
    )  # of the weights as they are


def _entropy(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, labels: np.ndarray) -> float:
    logits = x @ weight.T + bias
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), labels]))


def test_weights_come_back_to_the_bit_and_move_by_gamma() -> None:
    net = linear()
    net[1].weight.grad = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    net[1].bias.grad = torch.ones(3)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(KeyError), moved_weights(net, GAMMA):
        moved = net[1].weight.detach() - before[0]
        assert float(moved.norm() / before[0].norm()) == pytest.approx(GAMMA, rel=FLOAT32_SUM)
        assert torch.equal(net[1].bias, before[1]) and net[1].weight.grad is None is net[1].bias.grad
        raise KeyError  # an error in between leaves no moved weights
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    net[1].weight.grad = torch.zeros(3, 64)
    with moved_weights(net, GAMMA):  # no gradient, no direction, no nan
        assert torch.equal(net[1].weight, before[0])


@pytest.mark.parametrize("method", ["pgd-at", "trades"])
def test_attacks_are_made_once_for_the_weights_as_they_are(method: str, tmp_path: Path, monkeypatch) -> None:
    made, shown, real = [], [], InnerAttack.__call__
    monkeypatch.setattr(InnerAttack, "__call__", lambda *a: made.append(real(*a)) or made[-1])
    net = fresh_network(NET)
    net.register_forward_pre_hook(lambda module, given: shown.append(given[0].detach().clone()))
    run = trainer(tmp_path, net, ClassifierObjective(method, ATTACK, shift=2))
    run.train_step()
    assert torch.equal(shown[0], shown[-2])  # displaced alike both times
    assert (
        len(made) == 1 and sum(torch.equal(x, made[0]) for x in shown) == 2
    )  # trained on twice, by each of the two gradients
    run.train_step()
    assert len(made) == 2 and run.objective.found is None


def test_a_student_looks_for_its_perturbation_once(tmp_path: Path, monkeypatch) -> None:
    objective = DistillationObjective(
        tiny_denoiser(),
        NoiseDistribution(0.0, 0.5),
        classes_per_image=0,
        posterior_weight=1.0,
        secant=Secant(0.03, steps=2),
    )
    slopes, real, calls = [], DistillationObjective._slope, []
    monkeypatch.setattr(DistillationObjective, "_slope", lambda *a: slopes.append(1) or real(*a))
    net = tiny_denoiser("multihead").network.requires_grad_()
    net.register_forward_pre_hook(lambda module, given: calls.append(given[0].detach().clone()))
    x0 = 2 * pixels(4) - 1
    labels = torch.tensor([0, 2, 1, 1])

    def once() -> float:
        return float(Shifted(objective, 1)(net, x0, labels, torch.Generator().manual_seed(5))[0].detach())

    with same_perturbations(Shifted(objective, 1)):  # also where images are changed in front of it
        first, again = once(), once()
    assert first == again and len(slopes) == 1 and len(calls) == 5  # clean, slope, far; clean, far
    assert torch.equal(calls[0], calls[3]) and torch.equal(calls[2], calls[4]) and objective.found is None
    assert once() == first and len(slopes) == 2


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", fresh_network(NET), ClassifierObjective("pgd-at", ATTACK)).run()
    part = trainer(tmp_path / "part", fresh_network(NET), ClassifierObjective("pgd-at", ATTACK))
    step = part.train_step

    def stopping() -> dict[str, float]:
        part.stop.number = 2 if part.step == 3 else 0
        return step()

    part.train_step = stopping
    with pytest.raises(TrainingStopped):
        part.run()
    rest = trainer(tmp_path / "part", fresh_network(NET), ClassifierObjective("pgd-at", ATTACK)).run()
    assert whole.keys() == rest.keys() and all(torch.equal(whole[name], rest[name]) for name in whole)


def test_what_it_goes_with() -> None:
    assert "awp" not in dataclasses.replace(CONFIG, awp=0.0).describe() and CONFIG.describe()["awp"] == GAMMA
    for wrong, expected in (
        ({"awp": -1.0}, "awp: expected 0 or more"),
        ({"awp": 0.1, "cuda_graph": True}, "awp: expected no cuda_graph"),
    ):
        with pytest.raises(ConfigError, match=expected):
            dataclasses.replace(CONFIG, **wrong)
    made = recipe_from({"method": "trades", "train": {"awp": 0.005}})
    assert made.schedule.awp == 0.005 and recipe_from(settings_of(made)) == made
    for method in ("jem", "hybvit", "diffusion"):
        with pytest.raises(ConfigError, match="awp: has no meaning for"):
            Recipe(method, train=TrainConfig(awp=0.005))
        with pytest.raises(ConfigError, match="awp: has no meaning for"):
            recipe_from({"method": method, "train": {"awp": 0.005}})
