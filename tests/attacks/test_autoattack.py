"""AutoAttack: the versions as data, order, who broke what, images leaving, few classes, l_1, random models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdc.attacks import ThreatModel
from rdc.attacks.apgd import apgd, apgd_targeted
from rdc.attacks.autoattack import AUTOATTACK, autoattack
from rdc.attacks.fab import fab
from rdc.attacks.square import square
from rdc.errors import ConfigError, InputError

RADII = {"linf": 0.05, "l2": 0.3, "l1": 0.9}


def test_versions_are_those_of_the_paper() -> None:
    told = {
        version: [(c.name, c.restarts, c.targets, c.queries, c.eot) for c in components]
        for version, components in AUTOATTACK.items()
    }
    assert told == {
        "standard": [("apgd-ce", 1, None, None, 1), ("apgd-t", 1, 9, None, 1), ("fab-t", 1, 9, None, 1),
                     ("square", 1, None, 5000, 1)],
        "plus": [("apgd-ce", 5, None, None, 1), ("apgd-dlr", 5, None, None, 1), ("fab", 5, None, None, 1),
                 ("square", 1, None, 5000, 1), ("apgd-t", 1, 9, None, 1), ("fab-t", 1, 9, None, 1)],
        "rand": [("apgd-ce", 1, None, None, 20), ("apgd-dlr", 1, None, None, 20)],
    }  # fmt: skip
    l1 = [component.under("l1") for component in AUTOATTACK["standard"]]
    assert [(c.restarts, c.targets) for c in l1] == [(5, None), (1, 5), (1, 9), (1, None)]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_components_one_after_another(cnn, version: str, norm: str) -> None:
    """The same as calling them by hand, each on what is left."""
    net, x, y = cnn
    y = y.clone()
    y[3] = (y[3] + 1) % 3
    threat = ThreatModel(norm, RADII[norm])
    result = autoattack(net, x, y, threat, seed=5, image_ids=range(50, 74), version=version, steps=8, queries=60)
    functions = {"apgd-ce": apgd, "apgd-dlr": apgd, "apgd-t": apgd_targeted, "fab": fab, "fab-t": fab, "square": square}
    rows = torch.arange(24)
    for place, part in enumerate(result.components):
        assert torch.equal(part.rows, rows)
        if len(rows) == 0:
            assert part.result is None
            continue
        component, own = part.component, part.result
        settings = {"apgd-ce": {"loss": "ce"}, "apgd-dlr": {"loss": "dlr"}, "fab": {"targets": None}}.get(
            component.name, {}
        )
        settings |= {"queries": 60} if component.name == "square" else {"steps": 8}
        if component.targets is not None:
            settings["targets"] = component.targets
        again = functions[component.name](
            net, x[rows], y[rows], threat, seed=part.seed, image_ids=(rows + 50).tolist(), restarts=component.restarts,
            **settings,
        )  # fmt: skip
        assert torch.equal(again.x_adv, own.x_adv) and torch.equal(again.correct, own.correct)
        fallen = rows[~own.correct & own.clean_correct]
        assert (result.broken_by[fallen] == place).all()
        assert torch.equal(result.x_adv[fallen], own.x_adv[~own.correct & own.clean_correct])
        rows = rows[own.correct]
    assert torch.equal(result.correct.nonzero()[:, 0], rows) and not result.correct[3] and result.broken_by[3] == -1
    assert len({part.seed for part in result.components}) == len(result.components) and result.components[0].seed == 5
    moved = (result.x_adv.numpy().astype(np.float64) - x.numpy().astype(np.float64)).reshape(24, -1)
    size = {"linf": np.abs(moved).max(1), "l2": np.linalg.norm(moved, axis=1), "l1": np.abs(moved).sum(1)}[norm]
    assert (size <= threat.eps).all() and result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert torch.equal(net(result.x_adv).argmax(1) == y, result.correct)


def test_reads_like_one_attack(cnn) -> None:
    net, x, y = cnn
    seen = []
    threat = ThreatModel("linf", 0.045)
    result = autoattack(net, x, y, threat, seed=0, image_ids=range(24), steps=10, queries=40, progress=seen.append)
    assert (result.name, result.version) == ("autoattack", "standard") and 0 < result.accuracy < 1
    assert result.steps == 10 + 10 + 10 + 40 and len(result.accuracy_per_step) == 71
    assert sorted(result.accuracy_per_step, reverse=True) == result.accuracy_per_step
    assert result.accuracy_per_step[-1] == result.accuracy == list(result.accuracy_after.values())[-1]
    assert list(result.accuracy_after) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert result.accuracy_per_step[10] == result.accuracy_after["apgd-ce"]
    assert torch.equal(result.broken_at >= 0, ~result.correct)
    parts = [part.result for part in result.components]
    assert result.forward_evaluations == sum(part.forward_evaluations for part in parts)
    assert result.gradient_evaluations == sum(part.gradient_evaluations for part in parts)
    assert result.verify_mismatches == 0 and result.loss == "ce+dlr3+margin"
    assert torch.equal(result.x_adv[result.correct], parts[0].x_adv[result.correct])
    assert {about["total"] for about in seen} == {24} and {about["components"] for about in seen} == {4}
    assert [k for k in dict.fromkeys(about["component"] for about in seen)] == [0, 1, 2, 3]


def test_square_breaks_what_hides_its_gradient() -> None:
    """Rounded logits: the white-box attacks see no slope, and the numbers say who succeeded and when."""

    def model(x: torch.Tensor) -> torch.Tensor:
        value = (x - 0.5).flatten(1).mean(1)
        return (torch.stack([value + 0.03, value * 0], dim=1) * 200).round()

    x, y = torch.full((3, 1, 6, 6), 0.5), torch.zeros(3, dtype=torch.int64)
    result = autoattack(model, x, y, ThreatModel("linf", 0.05), seed=0, image_ids=range(3), steps=4, queries=300)
    assert result.broken_by.tolist() == [3, 3, 3] and not result.correct.any()
    assert result.accuracy_after == {"apgd-ce": 1.0, "apgd-t": 1.0, "fab-t": 1.0, "square": 0.0}
    assert torch.equal(result.broken_at, 12 + result.components[3].result.queries)
    assert result.accuracy_per_step[12] == 1.0 and result.accuracy_per_step[-1] == 0.0
    assert result.zero_gradient_images == 3 and (result.zero_gradient_steps == 12).all()


def test_broken_images_leave_and_nothing_is_left_to_do(models) -> None:
    model, x = models.two_class(torch.ones(36), bias=0.0), models.random_images(6)
    y = ((x.flatten(1) - 0.5).sum(1) < 0).long()
    model.batches.clear()
    result = autoattack(model, x, y, ThreatModel("linf", 0.3), seed=0, image_ids=range(6), steps=5, queries=5)
    assert not result.correct.any() and (result.broken_by == 0).all()
    assert [part.result is None for part in result.components] == [False, True, True, True] and result.steps == 5
    assert sum(n for n, _ in model.batches) == result.forward_evaluations + result.gradient_evaluations
    wrong = autoattack(model, x, 1 - y, ThreatModel("linf", 0.3), seed=0, image_ids=range(6), steps=5, queries=5)
    assert wrong.accuracy == 0 and wrong.gradient_evaluations == 0 and torch.equal(wrong.x_adv, x)
    assert (wrong.broken_by == -1).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes_exactly_what_can_be_broken(models, classes: int, norm: str) -> None:
    """Linear: FAB knows the distances (test_fab.py); the whole must break what lies within eps, nothing else."""
    x, model = models.random_images(8), models.random_linear(classes, 36)
    y = model(x).argmax(1)
    kept = {"seed": 0, "image_ids": range(8)}
    far = fab(model, x, y, ThreatModel(norm, 0.01), steps=30, minimize=True, **kept).minimal_distance
    threat = ThreatModel(norm, float(far.median()) * 1.001)
    result = autoattack(model, x, y, threat, steps=20, queries=30, **kept)
    assert torch.equal(result.correct, far > threat.eps) and 0 < result.accuracy < 1


def test_an_image_does_not_know_its_batch(models) -> None:
    x, model = models.random_images(5), models.random_linear(4, 36)
    y, kept = model(x).argmax(1), {"seed": 2**64 - 1, "steps": 5, "queries": 20}
    threat = ThreatModel("l2", 0.08)
    state = torch.get_rng_state()
    whole = autoattack(model, x, y, threat, image_ids=range(20, 25), **kept)
    assert 0 < whole.accuracy < 1 and torch.equal(torch.get_rng_state(), state)
    for row in range(5):
        alone = autoattack(model, x[row : row + 1], y[row : row + 1], threat, image_ids=[20 + row], **kept)
        assert torch.equal(alone.x_adv[0], whole.x_adv[row]) and alone.broken_by[0] == whole.broken_by[row]
        if not alone.correct[0]:
            assert alone.broken_target[0] == whole.broken_target[row]


def test_random_version_averages_over_draws() -> None:
    draws = []

    def model(x: torch.Tensor) -> torch.Tensor:
        noise = 3.0 if len(draws) % 2 else -3.0
        value = (x - 0.5).flatten(1).sum(1)
        return torch.stack([value, noise * torch.ones_like(value), value * 0 - 9], dim=1)

    x, y = torch.full((3, 1, 2, 2), 0.55), torch.zeros(3, dtype=torch.int64)
    kept = {"seed": 0, "image_ids": range(3), "steps": 5, "version": "rand", "redraw": lambda: draws.append(0)}
    broken = autoattack(model, x, y, ThreatModel("linf", 0.06), **kept)
    assert not broken.correct.any() and broken.eot == 20 and broken.verify_mismatches is None
    assert broken.name == "autoattack-rand" and broken.gradient_evaluations == 3 * 20 * 5
    safe = autoattack(model, x, y, ThreatModel("linf", 0.04), eot=4, **kept)
    assert safe.correct.all() and safe.eot == 4 and safe.gradient_evaluations == 2 * 3 * 4 * 5


def test_bad_input(models) -> None:
    model, x = models.random_linear(3, 36), models.random_images(2)
    y, kept = model(x).argmax(1), {"seed": 0, "image_ids": [0, 1]}
    with pytest.raises(ConfigError, match="standard, plus, rand"):
        autoattack(model, x, y, ThreatModel("linf", 0.1), version="fast", **kept)
    for change in ({"seed": -1}, {"seed": 0.5}, {"steps": 0}, {"queries": 0}, {"image_ids": [0]}, {"eot": 0}):
        with pytest.raises(InputError):
            autoattack(model, x, y, ThreatModel("linf", 1e-9), **{**kept, **change})
