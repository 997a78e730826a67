"""The meter counts what is alive, and budgets made from it hold."""

import pytest
import torch

from rdc.defences import DiffusionPurifier, LikelihoodPurifier
from rdc.errors import ConfigError
from rdc.memory import bytes_per_item, memory_budget, peak_bytes
from tests.models import pixels, tiny_classifier, tiny_denoiser

MIB = 2**20


def test_only_what_is_alive_together_counts():
    before = torch.zeros(500)

    def work():
        a = before + 1  # 2000 bytes
        b = a * 2  # 2000 more
        del a
        c = torch.cat([b, b])  # 4000 more: 6000 with b
        del b, c
        return torch.zeros(100)

    assert peak_bytes(work) == 6000


def test_views_and_what_was_there_before_do_not_count():
    before = torch.zeros(1000)
    assert peak_bytes(lambda: (before[10:].view(-1, 10).T, before.add_(1))) == 0
    assert peak_bytes(lambda: torch.zeros(10).view(2, 5)[0]) == 40


def test_backward_passes_count_what_they_keep():
    x = torch.zeros(1000, requires_grad=True)
    forward = peak_bytes(lambda: (x * 2).exp().sin())
    assert forward == 8000  # x * 2 dies when exp has run; exp's result, kept for both, stays
    assert peak_bytes(lambda: torch.autograd.grad((x * 2).exp().sin().sum(), x)) > forward


def test_bytes_per_item_is_the_slope():
    assert bytes_per_item(lambda n: (torch.zeros(50), torch.zeros(n, 25))) == 100
    assert bytes_per_item(lambda n: None) == 1


@pytest.mark.parametrize("lm", [None, "paper-v2,steps=2"])
@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_classifier_keeps_its_budget(kind, lm):
    """To 10 %, where the budget is a fraction of what one piece would need; and it makes use of it."""
    classifier, images = tiny_classifier(kind, lm=lm), pixels(12)

    def gradient(made):
        x = images.clone().requires_grad_()
        return torch.autograd.grad(made(x)[:, 0].sum(), x)

    gradient(classifier)  # budgets are measured once, outside of what is counted
    free = peak_bytes(lambda: gradient(classifier))
    budget = 0.4 * free
    used = peak_bytes(lambda: gradient(classifier.with_(memory_budget_mb=budget / MIB)))
    assert 0.5 * budget < used < 1.1 * budget, (used, budget, free)


@pytest.mark.parametrize(
    "make",
    [lambda d, **o: LikelihoodPurifier(d, "paper-v2,steps=2", **o), lambda d, **o: DiffusionPurifier(d, steps=3, **o)],
)
def test_purifier_keeps_its_budget(make):
    denoiser, images = tiny_denoiser("multihead"), pixels(12)

    def gradient(purifier):
        x = images.clone().requires_grad_()
        return torch.autograd.grad(purifier(x).sum(), x)

    free = make(denoiser)
    gradient(free)
    peak = peak_bytes(lambda: gradient(free))
    small = make(denoiser, memory_budget_mb=0.4 * peak / MIB)
    gradient(small)
    used = peak_bytes(lambda: gradient(small))
    assert 0.2 * peak < used < 0.45 * peak, (used, peak)


CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_budget_by_device(monkeypatch):
    free = {"bytes": 70 * 2**30}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["bytes"], 80 * 2**30))
    assert memory_budget(None, CPU) == 2048 and memory_budget(None, GPU) == 35 * 1024
    assert memory_budget(512, GPU) == 512 == memory_budget(512, CPU)
    free["bytes"] = 3 * 2**30
    assert memory_budget(None, GPU) == 2048  # at least that
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="expected a number > 0"):
            memory_budget(wrong, GPU)


def test_models_take_the_budget_of_their_device(monkeypatch):
    """The weights are on the CPU here; they are said to be elsewhere. A copy keeps the number that the first one found."""
    asked = []
    monkeypatch.setattr("rdc.classifier.memory_budget", lambda mb, device: asked.append((mb, device)) or mb or 9000.0)
    classifier = tiny_classifier()
    assert asked == [(None, CPU)] and classifier.settings()["memory_budget_mb"] == 9000.0
    assert classifier.with_(gradient="bpda").memory_budget_mb == 9000.0 and asked[-1] == (9000.0, CPU)
    monkeypatch.setattr("rdc.defences.purifiers.memory_budget", lambda mb, device: mb or 7000.0)
    assert LikelihoodPurifier(tiny_denoiser("conditional")).memory_budget_mb == 7000.0
    assert tiny_classifier(memory_budget_mb=64).memory_budget_mb == 64
