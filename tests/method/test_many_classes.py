"""A thousand classes, each a pass: the gradient of a margin takes two of them, and memory does not grow with their number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import rdc
from rdc.attacks.pgd import pgd
from rdc.attacks.threat_model import ThreatModel
from rdc.execution.memory import peak_bytes
from tests.tolerances import BYTES_OF_A_CLASS, FLOAT64_ORDER, MANY_CLASSES_PEAK, close

SIDE, WIDTH = 8, 16


class Counting(torch.nn.Module):
    """A small network that knows how many rows it was asked for, with a graph and without."""

    def __init__(self, classes, dtype=torch.float32):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.label = torch.nn.Embedding(classes, WIDTH, _weight=torch.randn(classes, WIDTH, generator=g))
        self.first = torch.nn.Conv2d(1, WIDTH, 3, padding=1)
        self.last = torch.nn.Conv2d(WIDTH, 1, 3, padding=1)
        with torch.no_grad():
            for layer in (self.first, self.last):
                layer.weight.copy_(0.2 * torch.randn(layer.weight.shape, generator=g))
                layer.bias.zero_()
        self.to(dtype)
        self.rows = {False: [], True: []}

    def forward(self, z, time, labels):
        self.rows[torch.is_grad_enabled() and z.requires_grad].append(len(z))
        return self.last(F.silu(self.first(z) + self.label(labels)[:, :, None, None]))

    def asked(self):
        counts = sum(self.rows[False]), sum(self.rows[True])
        self.rows[False].clear(), self.rows[True].clear()
        return counts


def classifier_of(classes, megabytes, dtype=torch.float32, levels="log:2:0.5:1:flat", **settings):
    net = Counting(classes, dtype)
    made = rdc.from_denoiser(
        net, num_classes=classes, image_shape=(1, SIDE, SIDE), predicts="x0", schedule="edm", levels=levels,
        memory_budget_mb=megabytes, **settings,
    )  # fmt: skip
    made.rows_that_fit(pixels(1, dtype))  # measured by now
    net.asked()
    return net, made


def pixels(n, dtype=torch.float32):
    return torch.rand(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).to(dtype)


def margin(log_p):
    """Log-probability of each image's best class over its second."""
    best = log_p.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]).sum()


@pytest.mark.parametrize("megabytes", [64, 4096])
@pytest.mark.parametrize("loss", ["margin", "targeted"])
def test_a_margin_takes_all_classes_for_its_value_and_two_for_its_gradient(loss, megabytes):
    """Whether or not all passes would fit the budget together."""
    net, classifier = classifier_of(1000, megabytes)
    x = pixels(3).requires_grad_()
    log_p = classifier(x)
    assert net.asked() == (3 * 2 * 1000, 0)
    number = margin(log_p) if loss == "margin" else (log_p[:, 7] - log_p[:, 3]).sum()
    (grad,) = torch.autograd.grad(number, x)
    assert net.asked() == (0, 3 * 2 * 2) and grad.flatten(1).abs().amax(1).min() > 0


def test_a_step_of_an_attack_costs_no_more():
    """PGD on a margin by the attack itself: whole decisions without a graph, and two classes with one."""
    net, classifier = classifier_of(200, 64)
    x, steps, each = pixels(2), 3, 2 * 2
    labels = classifier(x).argmax(1)
    net.asked()
    pgd(classifier, x, labels, ThreatModel("linf", 1e-4), steps=steps, loss="margin", random_start=False)
    values, gradients = net.asked()
    assert values >= steps * each * 200 and values % (2 * 200) == 0  # no decision by part of the classes
    assert gradients == steps * each * 2


@pytest.mark.parametrize("what", ["value", "margin"])
def test_memory_is_flat_in_the_number_of_classes(what):
    """Under a budget that holds a few passes; 1,000 passes together would be a hundred times ten."""
    peaks = []
    for classes in (10, 1000):
        net, classifier = classifier_of(classes, 0.05)
        assert classifier.rows_that_fit(pixels(1)) < 10

        def work(classifier=classifier):
            x = pixels(1).requires_grad_(what != "value")
            log_p = classifier(x)
            if what == "value":
                return log_p
            return torch.autograd.grad(margin(log_p), x)[0]

        peaks.append(peak_bytes(work))
    assert peaks[1] < MANY_CLASSES_PEAK * peaks[0] + 1000 * BYTES_OF_A_CLASS


@pytest.mark.parametrize("megabytes", [0.01, 0.05])
def test_pieces_of_classes_change_no_number(megabytes):
    """Values, gradients and second derivatives, in float64."""
    x = pixels(2, torch.float64).requires_grad_()
    way = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)

    def numbers(classifier):
        log_p = classifier(x)
        (grad,) = torch.autograd.grad(log_p[:, 1].square().sum() + log_p.exp().square().sum(), x, create_graph=True)
        return log_p.detach(), grad.detach(), torch.autograd.grad((grad * way).sum(), x)[0]

    net, small = classifier_of(30, megabytes, torch.float64)
    assert small.rows_that_fit(x) < 30
    expected = numbers(classifier_of(30, 512, torch.float64)[1])
    for found, right in zip(numbers(small), expected, strict=True):
        close(found, right, FLOAT64_ORDER * right.abs().max().item())
    assert max(net.rows[False] + net.rows[True]) <= small.rows_that_fit(x)


def test_pieces_of_classes_under_torch_func():
    x = pixels(1, torch.float64)
    _, small = classifier_of(30, 0.05, torch.float64)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(margin(classifier_of(30, 512, torch.float64)[1](leaf)), leaf)
    close(torch.func.grad(lambda x: margin(small(x)))(x), expected, FLOAT64_ORDER * expected.abs().max().item())
