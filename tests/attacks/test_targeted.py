"""Targeted losses against their definitions; targeted APGD: targets in order, few classes, what a result says."""

from __future__ import annotations

import math

import pytest
import torch

from rdc.attacks import ThreatModel
from rdc.attacks.apgd import apgd, apgd_targeted
from rdc.attacks.targeted import TargetedObjective, targeted_dlr, targeted_log_odds, targeted_margin
from rdc.errors import ConfigError, InputError

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(60, 6, generator=GENERATOR, dtype=torch.float64) * 3
LABELS = torch.randint(0, 6, (60,), generator=GENERATOR)
TARGETS = (LABELS + torch.randint(1, 6, (60,), generator=GENERATOR)) % 6


def test_losses_by_loops() -> None:
    values = [f(LOGITS, LABELS, TARGETS).tolist() for f in (targeted_margin, targeted_dlr)]
    odds = targeted_log_odds(LOGITS, TARGETS).tolist()
    for z, y, t, m, d, u in zip(LOGITS.tolist(), LABELS.tolist(), TARGETS.tolist(), *values, odds, strict=True):
        ranked = sorted(z, reverse=True)
        assert m == pytest.approx(z[t] - z[y])
        assert d == pytest.approx((z[t] - z[y]) / (ranked[0] - (ranked[2] + ranked[3]) / 2))
        assert u == pytest.approx(z[t] - math.log(sum(math.exp(v) for k, v in enumerate(z) if k != t)))
    expected = torch.nn.functional.cross_entropy(LOGITS, TARGETS, reduction="none")
    torch.testing.assert_close(torch.nn.functional.softplus(-targeted_log_odds(LOGITS, TARGETS)), expected)


def test_three_classes() -> None:
    z, y, t = LOGITS[:, :3], LABELS % 3, (LABELS + 1) % 3
    for row, label, target, value in zip(
        z.tolist(), y.tolist(), t.tolist(), targeted_dlr(z, y, t).tolist(), strict=True
    ):
        ranked = sorted(row, reverse=True)
        assert value == pytest.approx((row[target] - row[label]) / (ranked[0] - (ranked[1] + ranked[2]) / 2))
    with pytest.raises(ConfigError, match="at least 3"):
        targeted_dlr(LOGITS[:, :2], y * 0, t * 0)


def test_no_scale_and_no_shift_and_no_ties_matter() -> None:
    for factor, shift in ((1e-12, 0.0), (1e9, -4.0)):
        changed = targeted_dlr(LOGITS * factor + shift * factor, LABELS, TARGETS)
        torch.testing.assert_close(changed, targeted_dlr(LOGITS, LABELS, TARGETS))
    assert torch.isfinite(targeted_dlr(torch.ones(1, 5), LABELS[:1] * 0, LABELS[:1] * 0 + 1)).all()


def test_confident_logits_keep_their_gradient() -> None:
    logits = torch.tensor([[300.0, 0.0, -5.0]], requires_grad=True)
    targeted_log_odds(logits, torch.tensor([2])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0, 0.0, 1.0]]))


def logits_of(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)


def test_targets_are_the_highest_wrong_classes_of_the_clean_image() -> None:
    x = torch.tensor([[0.1, 0.9, 0.5, 0.3], [0.9, 0.1, 0.3, 0.9]]).view(2, 1, 2, 2)
    y = torch.tensor([1, 2])  # the second is misclassified, with a tie at the top
    for targets, expected in ((9, [[2, 3, 0], [0, 3, 1]]), (2, [[2, 3], [0, 3]])):
        objective = TargetedObjective(logits_of, "dlr", targets=targets)
        _, _, about = objective.start(x, y)
        found = []
        for objective.run in range(objective.runs):  # noqa: B020
            found.append(objective.aimed_at(about).tolist())
        assert torch.tensor(found).T.tolist() == expected


@pytest.mark.parametrize(("classes", "loss", "used", "name"), [
    (2, "dlr", "margin", "apgd-t"), (3, "dlr", "dlr3", "apgd-t"), (4, "dlr", "dlr", "apgd-t"),
    (2, "ce", "ce", "apgd-ce-t"), (5, "ce", "ce", "apgd-ce-t"), (5, "margin", "margin", "apgd-margin-t"),
])  # fmt: skip
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_few_classes(models, norm: str, classes: int, loss: str, used: str, name: str) -> None:
    x, model = models.random_images(12), models.random_linear(classes, 36)
    y = model(x).argmax(1)
    best = torch.full((12,), math.inf, dtype=torch.float64)  # distance to the nearest class, in closed form
    for k in range(classes):
        gap = model.weight[y].double() - model.weight[k].double()
        dual = {"linf": gap.abs().sum(1), "l2": gap.norm(dim=1), "l1": gap.abs().amax(1)}[norm]
        value = ((x.flatten(1).double() - 0.5) * gap).sum(1)
        best = torch.where((y != k) & (value / dual < best), value / dual, best)
    threat = ThreatModel(norm, float(best.median()))
    result = apgd_targeted(model, x, y, threat, seed=0, image_ids=range(12), steps=20, loss=loss)
    assert (result.loss, result.name) == (used, name)
    assert result.correct[best > threat.eps].all()
    assert not result.correct[best < threat.eps * (0.9 if norm == "l1" else 0.99)].any()
    predicted = model(result.x_adv).argmax(1)
    assert torch.equal(predicted == y, result.correct) and 0 < result.accuracy < 1
    assert torch.equal(result.broken_target >= 0, ~result.correct)
    assert (result.broken_target != y)[~result.correct].all()


def test_a_later_target_breaks_what_the_first_cannot() -> None:
    """Class 1 is second at the clean image but cannot grow; class 2 can."""

    def model(x: torch.Tensor) -> torch.Tensor:
        value = x.flatten(1).sum(1)
        return torch.stack(
            [value * 0, value * 1e-3 - 0.1, 5 * (value - 2.0) - 0.5, value * 0 - 9, value * 0 - 9], dim=1
        )

    x, y = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    kept = {"seed": 0, "image_ids": [0, 1], "steps": 10}
    one = apgd_targeted(model, x, y, ThreatModel("linf", 0.05), targets=1, **kept)
    assert one.correct.all() and (one.broken_target == -1).all()
    two = apgd_targeted(model, x, y, ThreatModel("linf", 0.05), targets=2, restarts=2, **kept)
    assert not two.correct.any() and two.broken_target.tolist() == [2, 2] and two.broken_restart.tolist() == [0, 0]
    nearest = apgd_targeted(model, x, y, ThreatModel("linf", 0.05), targets=1, order="distance", **kept)
    assert not nearest.correct.any() and nearest.broken_target.tolist() == [2, 2]
    assert (
        nearest.gradient_evaluations == 2 * 4 + two.gradient_evaluations - 2 * 10
    )  # a gradient a class; no run in vain


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nearest_boundaries_first(norm: str, models) -> None:
    """On linear logits the order is that of (z_y - z_t) / ||w_t - w_y||_dual, image by image; others are aimed at by logit."""
    x, model = models.random_images(8), models.random_linear(6, 36)
    y = model(x).argmax(1)
    y[3] = (y[3] + 1) % 6
    near = TargetedObjective(model, "margin", targets=5, order="distance", norm=norm)
    far = TargetedObjective(model, "margin", targets=5)
    found, plain = near.start(x, y)[2][:, 1:].long(), far.start(x, y)[2][:, 1:].long()
    logits, weight = model(x).double(), model.weight.double()
    moved = 0
    for row, label in enumerate(y.tolist()):
        away = {}
        for k in range(6):
            gap = weight[k] - weight[label]
            length = {"linf": gap.abs().sum(), "l2": gap.norm(), "l1": gap.abs().max()}[norm]
            away[k] = float((logits[row, label] - logits[row, k]) / length)
        wanted = sorted((k for k in range(6) if k != label), key=away.__getitem__)
        assert found[row].tolist() == (plain[row].tolist() if row == 3 else wanted)
        moved += found[row].tolist() != plain[row].tolist()
    assert moved and near.gradient_evaluations == 7 * 5 and near.runs == 5
    few = TargetedObjective(model, "margin", targets=2, order="distance", norm=norm)
    assert torch.equal(few.start(x, y)[2][:, 1:].long(), found[:, :2]) and few.runs == 2


def test_a_class_that_no_gradient_leads_to_is_last() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        value = x.flatten(1).sum(1)
        return torch.stack([value * 0 + 1, value * 0 + 0.9, value - 3, value * 0 - 9], dim=1)

    objective = TargetedObjective(model, "margin", targets=3, order="distance", norm="linf")
    fixed = objective.start(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64))[2]
    assert fixed[0, 1:].long().tolist() == [2, 1, 3]


def test_an_order_that_is_none() -> None:
    with pytest.raises(ConfigError, match="order: expected one of logit, distance; got 'size'"):
        TargetedObjective(lambda x: x, "margin", order="size")


def test_runs_counts_and_progress(models) -> None:
    x, model, seen = models.random_images(3), models.random_linear(5, 36), []
    model.bias[0] = 1000.0
    y = torch.zeros(3, dtype=torch.int64)
    result = apgd_targeted(model, x, y, ThreatModel("linf", 0.05), seed=0, image_ids=range(3), steps=4, restarts=2,
                           targets=3, progress=seen.append)  # fmt: skip
    assert result.gradient_evaluations == 3 * 4 * 6 and result.forward_evaluations == 3 * (6 + 2)
    assert [(s["restart"], s["step"]) for s in seen] == [(run, k) for run in range(6) for k in range(5)]
    assert {(s["restarts"], s["attack"]) for s in seen} == {(6, "apgd-t")}


def test_every_run_has_its_own_random_start(models) -> None:
    x, inner, seen = models.random_images(3), models.random_linear(4, 36), []
    inner.bias[0] = 1000.0

    def model(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.detach().clone())
        return inner(pixels)

    y, kept = torch.zeros(3, dtype=torch.int64), {"seed": 0, "image_ids": range(3), "steps": 2, "restarts": 2}
    apgd_targeted(model, x, y, ThreatModel("l2", 0.05), **kept)
    starts = seen[1:-1:3]  # clean, six runs of three iterates, the final check
    assert len(starts) == 6 and all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])
    seen.clear()
    apgd_targeted(model, x, y, ThreatModel("l2", 0.05), start=x, **kept)
    assert torch.equal(seen[1], x) and all(torch.equal(a, b) for a, b in zip(seen[4:-1:3], starts[1:], strict=True))


def test_an_image_does_not_know_its_batch(models) -> None:
    x, model = models.random_images(6), models.random_linear(5, 36)
    y, kept = model(x).argmax(1), {"seed": 3, "steps": 8, "restarts": 2}
    y[2] = (y[2] + 1) % 5
    threat = ThreatModel("linf", 0.02)
    whole = apgd_targeted(model, x, y, threat, image_ids=range(20, 26), **kept)
    assert 0 < whole.accuracy < whole.clean_correct.double().mean()
    for row in range(6):
        alone = apgd_targeted(model, x[row : row + 1], y[row : row + 1], threat, image_ids=[20 + row], **kept)
        assert torch.equal(alone.x_adv[0], whole.x_adv[row]) and alone.broken_target[0] == whole.broken_target[row]
        assert alone.best_loss[0] == whole.best_loss[row]


def test_random_model_keeps_every_image() -> None:
    draws = []

    def model(x: torch.Tensor) -> torch.Tensor:
        noise = 30.0 if len(draws) % 2 else -30.0
        value = (x - 0.5).flatten(1).sum(1)
        return torch.stack([value, noise * torch.ones_like(value), value * 0 - 50], dim=1)

    x, y = torch.full((3, 1, 2, 2), 0.55), torch.zeros(3, dtype=torch.int64)
    result = apgd_targeted(model, x, y, ThreatModel("linf", 0.06), seed=0, image_ids=range(3), steps=5, eot=4,
                           redraw=lambda: draws.append(0), loss="margin")  # fmt: skip
    assert not result.correct.any() and result.verify_mismatches is None
    assert result.gradient_evaluations == 3 * 4 * 5 * 2 and len(draws) == 4 * (1 + 2 * 6)


def test_at_least_as_strong_as_the_untargeted_attack(cnn) -> None:
    net, x, y = cnn
    kept = {"seed": 0, "image_ids": range(24), "steps": 40}
    for norm, eps in (("linf", 0.05), ("l2", 0.3)):
        plain = apgd(net, x, y, ThreatModel(norm, eps), loss="margin", **kept)
        assert apgd_targeted(net, x, y, ThreatModel(norm, eps), **kept).accuracy <= plain.accuracy


@pytest.mark.parametrize("targets", [0, -1, 1.5, True])
def test_targets_refused(targets: object) -> None:
    with pytest.raises(InputError, match="targets"):
        TargetedObjective(logits_of, "dlr", targets=targets)  # type: ignore[arg-type]
