"""Classifiers of ART as models: answers and gradients are theirs, whatever they are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdc.attacks import ThreatModel, apgd
from rdc.defences.art_estimators import ArtModel
from rdc.errors import InputError
from tests.tolerances import FLOAT32_SUM

WEIGHT = np.random.default_rng(0).normal(size=(36, 3)).astype(np.float32)


class Estimator:
    """What is asked of ART: predict [n, K] and class_gradient [n, K, C, H, W] of NumPy arrays; here tanh of a linear map."""

    clip_values = (0.0, 1.0)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x.reshape(len(x), -1) @ WEIGHT)

    def class_gradient(self, x: np.ndarray) -> np.ndarray:
        slope = 1 - self.predict(x) ** 2
        return (slope[:, :, None] * WEIGHT.T[None]).reshape(len(x), 3, 1, 6, 6)


def ours(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x.flatten(1) @ torch.from_numpy(WEIGHT))


X = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)) / 6


def test_answers_gradients_and_an_attack() -> None:
    model, upstream = ArtModel(Estimator()), torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(X), ours(X), rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    gradients = []
    for function in (model, ours):
        leaf = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad((function(leaf) * upstream).sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    y, kept = ours(X).argmax(1), {"steps": 8, "seed": 0, "image_ids": range(4)}
    mine, theirs = (apgd(function, X, y, ThreatModel("linf", 0.03), **kept) for function in (ours, model))
    assert torch.equal(mine.correct, theirs.correct)


def test_what_is_none() -> None:
    with pytest.raises(InputError, match="expected one of ART with predict and class_gradient; object has no predict"):
        ArtModel(object())
    scaled = Estimator()
    scaled.clip_values = (-1.0, 1.0)
    with pytest.raises(InputError, match=r"expected clip_values \(0, 1\)"):
        ArtModel(scaled)


def test_arts_own() -> None:
    """A PyTorchClassifier of ART itself, where it is installed."""
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    from art.estimators.classification import PyTorchClassifier

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3), torch.nn.Tanh()).eval()
    made = PyTorchClassifier(network, torch.nn.CrossEntropyLoss(), (1, 6, 6), 3, clip_values=(0, 1), device_type="cpu")
    gradients = []
    for function in (ArtModel(made), network):
        leaf = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(leaf)[:, 1].sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
