"""Noise of its own for every class."""

from __future__ import annotations

import copy

import pytest
import torch

from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.noise import NoisePlan
from rdc.method.per_class_noise import PerClassNoise
from tests.tiny_models import CLASSES, LEVELS, SHAPE, pixels, tiny_classifier, tiny_denoiser
from tests.tolerances import FLOAT64_ORDER, FLOAT64_STEPS

KINDS = ("conditional", "multihead")


def per_class(kind, **settings):
    return DiffusionClassifier(PerClassNoise(tiny_denoiser(kind, torch.float64)), LEVELS, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_is_judged_under_its_own_noise(kind):
    """Column k: the losses of class k of a classifier whose shared noise is rows kC to (k+1)C of a draw of K*C channels."""
    model, x = per_class(kind, noise_seed=4), pixels(3, dtype=torch.float64)
    channels, height, width = SHAPE
    noise = NoisePlan(4).normal(0, 5, (CLASSES * channels, height, width)).double()
    found = model.class_losses(x)
    plain = tiny_classifier(kind, torch.float64)
    draw = plain.drawn(0, x)
    for label in range(CLASSES):
        own = copy.copy(draw)
        object.__setattr__(own, "noise", noise[:, label * channels : (label + 1) * channels])
        expected = plain.denoiser.class_losses(2 * x - 1, own)[:, label]
        torch.testing.assert_close(found[:, label], expected, rtol=FLOAT64_ORDER, atol=0)
    assert not torch.allclose(found, plain.class_losses(x))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_and_gradients_are_those_of_the_whole(kind):
    x = pixels(4, dtype=torch.float64)
    found = []
    for budget in (2048, 0.05):
        leaf = x.clone().requires_grad_()
        with pytest.warns(UserWarning, match="memory") if budget < 1 else _no_warning():
            losses = per_class(kind, memory_budget_mb=budget).class_losses(leaf)
        found.append((losses.detach(), torch.autograd.grad(losses[:, 1].sum() - losses[:, 0].sum(), leaf)[0]))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=FLOAT64_STEPS, atol=FLOAT64_STEPS)


class _no_warning:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_looked_up(kind):
    denoiser, x = PerClassNoise(tiny_denoiser(kind, torch.float64)), 2 * pixels(4, dtype=torch.float64) - 1
    draw = per_class(kind).drawn(0, x)
    labels = torch.tensor([2, 0, 2, 1])
    expected = denoiser.class_losses(x, draw).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(denoiser.losses_of_labels(x, draw, labels), expected, rtol=FLOAT64_ORDER, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_costs_a_pass_and_likelihood_maximisation_is_as_before(kind):
    model = per_class(kind, lm="paper-v2")
    x = pixels(2, dtype=torch.float64)
    model(x)
    assert model.network_evaluations == 2 * (5 * CLASSES + 5) and model.evaluations_per_image == 5 * CLASSES + 5
    assert torch.equal(model.purify(x), tiny_classifier(kind, torch.float64, lm="paper-v2").purify(x))
    assert model.describe()["noise_per_class"] is True and model.head == tiny_denoiser(kind).head


def test_what_it_refuses():
    denoiser = PerClassNoise(tiny_denoiser())
    with pytest.raises(ConfigError, match="has it already"):
        PerClassNoise(denoiser)
    with pytest.raises(ConfigError, match="export: noise per class"):
        denoiser.recordable()
    assert denoiser.in_precision("float32") is denoiser and denoiser.in_precision("bfloat16").precision == "bfloat16"
