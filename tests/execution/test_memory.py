"""The meter counts what is alive, and budgets made from it hold."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from rdc.defences import DiffusionPurifier, LikelihoodPurifier
from rdc.errors import ConfigError
from rdc.execution.memory import bytes_per_item, items_that_fit, memory_budget, peak_bytes, tensor_bytes
from rdc.method.class_gradients import joined
from rdc.method.working_memory import gradient_bytes
from tests.tiny_models import pixels, tiny_classifier, tiny_denoiser

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
    used = (
        peak_bytes(lambda: gradient(small)) - 4 * images.nbytes
    )  # the batch, moved, its gradient, and the parts of that
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
    monkeypatch.setattr(
        "rdc.method.classifier.memory_budget", lambda mb, device: asked.append((mb, device)) or mb or 9000.0
    )
    classifier = tiny_classifier()
    assert asked == [(None, CPU)] and classifier.settings()["memory_budget_mb"] == 9000.0
    assert classifier.with_(gradient="bpda").memory_budget_mb == 9000.0 and asked[-1] == (9000.0, CPU)
    monkeypatch.setattr("rdc.defences.purifiers.memory_budget", lambda mb, device: mb or 7000.0)
    assert LikelihoodPurifier(tiny_denoiser("conditional")).memory_budget_mb == 7000.0
    assert tiny_classifier(memory_budget_mb=64).memory_budget_mb == 64


def test_tensors_get_what_resident_memory_leaves_them():
    """Of a budget on a CPU: the first call's part, and what the allocator holds for a byte of tensors, are taken off."""
    for budget in (64, 256, 1024, 2048):
        tensors = tensor_bytes(budget, CPU) / MIB
        assert 32 + 2.2 * tensors <= budget * 1.01 and tensors > budget / 6, (budget, tensors)
    sizes = [0.001, 1, 5, 8, 20, 40, 45, 46, 50, 64, 1000]
    given = [tensor_bytes(size, CPU) for size in sizes]
    assert (
        given == sorted(given)
        and given[0] == 0.001 * MIB
        and all(g <= s * MIB for g, s in zip(given, sizes, strict=True))
    )
    assert tensor_bytes(300, GPU) == 300 * MIB


def test_a_budget_that_holds_no_item_says_what_would():
    with pytest.warns(UserWarning, match="64 MiB do not hold one picture.*at least 132.3 would") as caught:
        assert items_that_fit(64, 40 * MIB, CPU, "one picture") == 1
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert items_that_fit(132.3, 40 * MIB, CPU, "one picture") == 1
        assert items_that_fit(98, 40 * MIB, GPU, "one picture") == 2
        assert items_that_fit(0.5, MIB // 4, CPU, "one picture") == 2
    with pytest.warns(UserWarning, match="0.5 MiB do not hold one picture.*at least 1 would"):
        items_that_fit(0.5, MIB, CPU, "one picture")


def test_the_budget_is_what_the_pieces_are_made_for(monkeypatch):
    classifier, images = tiny_classifier("multihead"), pixels(2)
    monkeypatch.setattr("rdc.execution.memory.TENSORS_ONLY_MB", 0)
    classifier._bytes[(images.dtype, images.device)] = 8 * MIB
    assert classifier.with_(memory_budget_mb=(32 + 2.3 * 41) * 16 / 15).pairs_that_fit(images) == 5
    with pytest.warns(UserWarning, match="one image at one level"):
        assert classifier.with_(memory_budget_mb=40).pairs_that_fit(images) == 1


def test_measuring_keeps_small():
    """What an image needs is measured on rows of one class where a class is a row; large items are not taken three at a time."""
    denoiser, images = tiny_denoiser("conditional"), pixels(1)
    assert peak_bytes(lambda: gradient_bytes(denoiser, images)) < 1.2 * gradient_bytes(denoiser, images)
    asked = []
    assert bytes_per_item(lambda n: (asked.append(n), torch.zeros(n, 3 * 2**20))) == 12 * MIB and asked == [1]
    assert bytes_per_item(lambda n: (asked.append(n), torch.zeros(n, 2**20))) == 4 * MIB and asked[1:] == [1, 3]


@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_a_graph_does_not_grow_with_the_pieces(kind):
    """Nodes of pieces that wait for the backward pass are no tensors, but take memory, and lie between what tensors give back."""

    def nodes(made, count):
        todo, seen = [made(pixels(count).requires_grad_()).grad_fn], set()
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [after for after, _ in node.next_functions]
        return len(seen)

    classifier = tiny_classifier(kind)
    each = gradient_bytes(classifier.denoiser, pixels(1)) / MIB
    small = classifier.with_(memory_budget_mb=2.5 * each)
    assert nodes(classifier, 1) > 50  # one piece: the whole graph is kept
    assert nodes(small, 2) == nodes(small, 9) < 20


def test_parts_are_written_to_their_place():
    parts = [torch.arange(6.0).view(2, 3), torch.ones(1, 3), torch.zeros(2, 3)]
    assert torch.equal(joined(iter(parts), 5), torch.cat(parts))
    assert joined(iter(parts[:1]), 2) is parts[0]
    used = peak_bytes(lambda: joined((torch.full((1, 250), float(k)) for k in range(20)), 20))
    assert used == 20 * 1000 + 1000 + 1000  # the whole, the part before, and the one that is made
    leaves = [part.requires_grad_() for part in parts]
    joined(iter(leaves), 5)[1:3].sum().backward()
    assert [leaf.grad.sum().item() for leaf in leaves] == [3, 3, 0]


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux, and leave to reset a peak")
@pytest.mark.parametrize(
    ("model", "work", "batch", "budget"),
    [
        ("fashion-mnist", "gradient", 64, 64),
        ("fashion-mnist", "gradient", 64, 256),
        ("fashion-mnist", "gradient", 256, 64),
        ("fashion-mnist", "lm", 16, 256),
        ("fashion-mnist-teacher", "gradient", 8, 256),
    ],
)
def test_resident_memory_keeps_the_budget(model, work, batch, budget):
    """Growth of a process over its first call, all that is done once included, to 10 %."""
    root = Path(__file__).resolve().parents[2]
    command = [
        sys.executable,
        "-m",
        "benchmarks.studies.resident_memory",
        "--models",
        model,
        "--work",
        work,
        "--calls",
    ]
    command += ["--batches", str(batch), "--budgets", str(budget), "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600)
    row = json.loads(done.stdout)
    assert 0.3 * budget < row["first"]["peak"] < 1.1 * budget, row
