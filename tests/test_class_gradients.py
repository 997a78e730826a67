"""The gradient of streamed class losses: the same as without pieces, and no pass for a class that carries none."""

import pytest
import torch

from rdc.class_gradients import by_class, streamed
from tests.models import CLASSES, pixels, tiny_classifier
from tests.tolerances import FLOAT64_ORDER, close


def parts(dtype=torch.float64, count=3):
    classifier = tiny_classifier("conditional", dtype)
    x0 = (2 * pixels(count, dtype=dtype) - 1).requires_grad_()
    sigma, weight = classifier.levels.tensors(dtype=dtype)
    noise = classifier.noise.normal(0, len(sigma), classifier.image_shape).to(dtype)
    return classifier.denoiser, x0, noise, sigma, weight


def counted(denoiser, monkeypatch):
    """A list that gets the number of rows of every network pass."""
    rows, network = [], denoiser.network.forward
    monkeypatch.setattr(denoiser.network, "forward", lambda x, *rest: (rows.append(len(x)), network(x, *rest))[1])
    return rows


@pytest.mark.parametrize("pairs", [1, 2, 4, 7, 40])
def test_gradient_is_that_of_the_whole_batch(pairs):
    denoiser, x0, *levels = parts()
    upstream = torch.tensor([[1.0, -1, 0], [0, 0, 0], [0.3, 2, -1]], dtype=torch.float64)
    whole = denoiser.class_losses(x0, *levels)
    (expected,) = torch.autograd.grad(whole, x0, upstream)
    losses = by_class(denoiser, x0, *levels, pairs)
    close(losses.detach(), whole.detach(), FLOAT64_ORDER * 100)
    close(torch.autograd.grad(losses, x0, upstream)[0], expected, FLOAT64_ORDER * 100)
    assert (expected[1] == 0).all()


def test_only_classes_that_carry_gradient_are_passed_again(monkeypatch):
    denoiser, x0, *levels = parts()
    losses = by_class(denoiser, x0, *levels, 2)
    rows, count = counted(denoiser, monkeypatch), len(levels[1])
    upstream = torch.zeros(3, CLASSES, dtype=torch.float64)
    upstream[0, 0], upstream[0, 2], upstream[2, 1] = 1, -1, 1e-3
    upstream[2, 0] = 1e-20  # nothing beside 1e-3 in float64
    torch.autograd.grad(losses, x0, upstream)
    assert sum(rows) == 3 * count, rows
    assert max(rows) <= 2 * CLASSES


def test_a_small_but_visible_share_is_kept():
    denoiser, x0, *levels = parts(count=1)
    small = torch.tensor([[1.0, 1e-12, 0]], dtype=torch.float64)
    large = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    losses = by_class(denoiser, x0, *levels, 1)
    (a,) = torch.autograd.grad(losses, x0, small, retain_graph=True)
    (b,) = torch.autograd.grad(losses, x0, large, retain_graph=True)
    assert (a != b).any()


def test_what_is_not_a_number_is_not_hidden():
    denoiser, x0, *levels = parts(count=2)
    upstream = torch.tensor([[1.0, torch.nan, 0], [1.0, -1.0, 0]], dtype=torch.float64)
    (grad,) = torch.autograd.grad(by_class(denoiser, x0, *levels, 2), x0, upstream)
    assert grad[0].isnan().all() and grad[1].isfinite().all() and (grad[1] != 0).any()


def test_saturated_cross_entropy_equals_float64():
    """Probabilities of 1e-30 and less are left out in float32; the gradient is that of float64 all the same."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        classifier = tiny_classifier("conditional", dtype, logit_scale=30.0, memory_budget_mb=0.1)
        x = pixels(3, dtype=torch.float32).to(dtype).requires_grad_()
        log_p = classifier(x)
        assert len(x) * len(classifier.levels) > classifier.pairs_that_fit(x)
        gradients.append(torch.autograd.grad(log_p.gather(1, log_p.argsort(1)[:, :1]).sum(), x)[0])
    close(gradients[0].double() / gradients[1].abs().max(), gradients[1] / gradients[1].abs().max(), 1e-5)


def test_second_derivatives_are_those_of_the_whole_batch():
    denoiser, x0, *levels = parts(count=2)
    direction = torch.linspace(-1, 1, x0.numel(), dtype=torch.float64).view_as(x0)

    def curvature(losses):
        (grad,) = torch.autograd.grad(losses[:, 0].square().sum(), x0, create_graph=True)
        return torch.autograd.grad((grad * direction).sum(), x0)[0]

    expected = curvature(denoiser.class_losses(x0, *levels))
    close(curvature(by_class(denoiser, x0, *levels, 2)), expected, 1e-9)
    close(curvature(streamed(denoiser, x0, *levels, 2)), expected, 1e-9)


def test_a_classifier_under_its_budget_takes_two_classes_for_a_margin(monkeypatch):
    """The margin's gradient through Bayes' rule: exact zeros for the other classes, and no passes for them."""
    classifier = tiny_classifier("conditional", memory_budget_mb=0.1)
    x = pixels(2).requires_grad_()
    log_p = classifier(x)
    rows = counted(classifier.denoiser, monkeypatch)
    torch.autograd.grad((log_p[:, 0] - log_p[:, 1]).sum(), x)
    assert sum(rows) == 2 * 2 * len(classifier.levels), rows
