"""The yardstick computes what rdc computes, and spends what the paper's procedure spends."""

import functools

import pytest
import torch

from benchmarks import contenders, paper_procedure
from tests.tiny_models import pixels, tiny_classifier
from tests.tolerances import FLOAT32_GRADIENT, FLOAT32_NETWORK, FLOAT32_SUM

LEVELS = "systematic:70:0.05:3:edm"  # more than one batch of 64


@pytest.fixture(scope="module")
def classifier():
    return tiny_classifier("conditional", levels=LEVELS)


@pytest.fixture(scope="module")
def yardstick(classifier):
    return contenders.paper(classifier, images=3)


def test_losses(classifier, yardstick):
    x = pixels(3)
    with torch.no_grad():
        expected = classifier.class_losses(x)
    torch.testing.assert_close(yardstick.losses(x), expected, rtol=FLOAT32_SUM, atol=0)


def test_gradient(classifier, yardstick):
    x = pixels(3).requires_grad_()
    (expected,) = torch.autograd.grad(contenders.objective(classifier.class_losses(x), classifier.scale), x)
    found = yardstick.gradient(x.detach())
    assert (found - expected).norm() <= FLOAT32_NETWORK * expected.norm() and expected.norm() > 0


def test_log_probabilities(classifier):
    x = pixels(2)
    with torch.no_grad():
        expected = classifier(x)
        losses = classifier.class_losses(x)
    torch.testing.assert_close(paper_procedure.log_probabilities(losses, classifier.scale), expected)


def test_one_image_one_class_and_at_most_64_levels_a_call(classifier):
    calls = []

    def network(x, noise_label, label):
        calls.append((len(x), label.argmax(1).unique().tolist(), x.is_contiguous(), x.dtype))
        return x * 0

    x = pixels(2)
    paper_procedure.class_losses(network, x, 3, *classifier.drawn(0, x).tensors)
    assert [call[:2] for call in calls] == 2 * [(n, [k]) for k in range(3) for n in (64, 6)]
    assert all(call[2:] == (True, torch.float32) for call in calls)
    assert sum(call[0] for call in calls) == 2 * classifier.evaluations_per_image


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_plain_torch_computes_the_same(kind, compiled, monkeypatch):
    """Compiled: captured as torch.compile captures it, and run without generating code, which would take a minute here."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    classifier = tiny_classifier(kind)
    make = {"conditional": contenders.conditional, "multihead": contenders.multihead}[kind]
    sizes = {"levels_at_once": 2} if kind == "conditional" else {"images_at_once": 2}
    plain, ours = make(classifier, "plain", images=4, compiled=compiled, **sizes), contenders.shipped(classifier, "rdc")
    x = pixels(4)
    torch.testing.assert_close(plain.losses(x), ours.losses(x), rtol=FLOAT32_NETWORK, atol=0)
    expected = ours.gradient(x)
    assert (plain.gradient(x) - expected).norm() <= FLOAT32_GRADIENT * expected.norm() and expected.norm() > 0


def test_validation_refuses_another_function(classifier):
    from benchmarks.studies.speed import validate

    parts = {
        "paper": contenders.paper(classifier, images=3),
        "rdc": contenders.shipped(classifier.with_(levels="log:6:0.3:3:flat"), "rdc", images=3),
    }
    with pytest.raises(SystemExit, match="rdc is not paper"):
        validate(parts, [("paper", "rdc")], pixels(3))
