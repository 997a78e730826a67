"""PGD, and what every attack promises: budgets, evaluation counts, independence from the batch, flags, final check."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from rdc.attacks import ThreatModel, apgd, attack_named, pgd
from rdc.errors import ConfigError, InputError, RdcError
from rdc.norm_balls import linf_bounds
from tests.tolerances import FLOAT32_ROUNDING, FLOAT32_SUM

BOTH = pytest.mark.parametrize("attack", [pgd, apgd], ids=["pgd", "apgd"])
NORMS = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.15)])
LINF = ThreatModel("linf", 0.05)


def budget_holds(result, x: torch.Tensor) -> None:
    """In numpy, float64, no tolerance."""
    assert result.x_adv.dtype == torch.float32 and float(result.x_adv.min()) >= 0 and float(result.x_adv.max()) <= 1
    moved = (result.x_adv.numpy().astype(np.float64) - x.numpy().astype(np.float64)).reshape(len(x), -1)
    size = np.abs(moved).max(axis=1) if result.threat.norm == "linf" else np.linalg.norm(moved, axis=1)
    assert (size <= result.threat.eps).all()


def long_steps(attack, eps: float) -> dict[str, float]:
    """PGD's default l_2 step turns a random start slowly (98.5 % of the optimum in 100 steps); APGD adapts."""
    return {"step_size": eps} if attack is pgd else {}


@BOTH
def test_linf_reaches_the_analytic_optimum(models, attack) -> None:
    """On w . x + b the best l_inf point is x - eps sign(w), to the last bit; its loss is known in closed form."""
    weight = torch.randn(36, generator=torch.Generator().manual_seed(2))
    model, x = (
        models.two_class(weight, bias=100.0),
        models.random_images(5),
    )  # too far to be broken: the best point is kept
    result = attack(
        model, x, torch.zeros(5, dtype=torch.int64), LINF, seed=0, image_ids=range(5), steps=20, loss="margin"
    )
    lower, upper = linf_bounds(x, 0.05)
    assert torch.equal(result.x_adv, torch.where(weight.view(1, 1, 6, 6) > 0, lower, upper))
    optimum = -(((x.double().flatten(1) - 0.5) @ weight.double()) + 100.0 - 0.05 * weight.double().abs().sum())
    torch.testing.assert_close(result.best_loss, optimum, rtol=FLOAT32_ROUNDING, atol=0)
    assert result.correct.all() and (result.broken_at == -1).all() and result.accuracy_per_step == [1.0] * 21
    budget_holds(result, x)


@BOTH
def test_l2_reaches_the_analytic_optimum(models, attack) -> None:
    weight = torch.randn(36, generator=torch.Generator().manual_seed(2))
    model, x = models.two_class(weight, bias=100.0), models.random_images(5)
    result = attack(
        model,
        x,
        torch.zeros(5, dtype=torch.int64),
        ThreatModel("l2", 0.25),
        seed=0,
        image_ids=range(5),
        steps=40,
        loss="margin",
        **long_steps(attack, 0.25),
    )
    clean = -((x.double().flatten(1) - 0.5) @ weight.double() + 100.0)
    gain = (result.best_loss - clean) / (0.25 * torch.linalg.vector_norm(weight.double()))
    assert (gain > 1 - FLOAT32_SUM).all() and (gain < 1 + FLOAT32_SUM).all()
    budget_holds(result, x)


@BOTH
def test_l2_optimum_at_the_edge_of_the_box(models, attack) -> None:
    """Where the box binds, the optimum is clip(x - s w) with ||.|| = eps (oracle: bisection on s)."""
    weight = torch.randn(36, generator=torch.Generator().manual_seed(4))
    model, x = models.two_class(weight, bias=100.0), models.random_images(4, low=0.0, high=0.3)
    result = attack(
        model,
        x,
        torch.zeros(4, dtype=torch.int64),
        ThreatModel("l2", 0.8),
        seed=0,
        image_ids=range(4),
        steps=100,
        loss="margin",
        **long_steps(attack, 0.8),
    )
    w = weight.double().numpy()
    for image, loss in zip(x.double().flatten(1).numpy(), result.best_loss.tolist(), strict=True):
        low, high = 0.0, 100.0
        for _ in range(200):
            s = (low + high) / 2
            low, high = (s, high) if np.linalg.norm(np.clip(image - s * w, 0, 1) - image) <= 0.8 else (low, s)
        best = np.clip(image - low * w, 0, 1)
        clean_loss, optimum = -(w @ (image - 0.5) + 100), -(w @ (best - 0.5) + 100)
        assert 0.998 < (loss - clean_loss) / (optimum - clean_loss) < 1.0001
    budget_holds(result, x)


@BOTH
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_breaks_exactly_what_can_be_broken(models, attack, norm: str) -> None:
    """An image at distance d from the plane survives eps = 0.999 d and falls at 1.001 d."""
    weight = torch.randn(36, generator=torch.Generator().manual_seed(3))
    model, x = models.two_class(weight, bias=0.5), models.random_images(12)
    value = (x.double().flatten(1) - 0.5) @ weight.double() + 0.5
    y = (value < 0).long()
    dual = float(weight.double().abs().sum() if norm == "linf" else torch.linalg.vector_norm(weight.double()))
    for row in range(12):
        d = abs(float(value[row])) / dual
        for factor, survives in ((0.999, True), (1.001, False)):
            one = attack(
                model,
                x[row : row + 1],
                y[row : row + 1],
                ThreatModel(norm, d * factor),
                seed=1,
                image_ids=[row],
                steps=30,
                **long_steps(attack, d),
            )
            assert bool(one.correct) is survives


@pytest.mark.parametrize("name", [f"{attack}-{loss}" for attack in ("pgd", "apgd") for loss in ("ce", "dlr", "margin")])
@pytest.mark.parametrize(("norm", "small", "large"), [("linf", 0.03, 0.08), ("l2", 0.2, 0.7)])
def test_cnn(cnn, name: str, norm: str, small: float, large: float) -> None:
    net, x, y = cnn
    weak = attack_named(name)(net, x, y, ThreatModel(norm, small), seed=0, image_ids=range(24), steps=15)
    strong = attack_named(name)(net, x, y, ThreatModel(norm, large), seed=0, image_ids=range(24), steps=15, restarts=2)
    assert weak.accuracy > 0.8 and strong.accuracy == 0.0
    for result in (weak, strong):
        budget_holds(result, x)
        assert torch.equal(net(result.x_adv).argmax(1) == y, result.correct) and result.verify_mismatches == 0
        assert (
            result.accuracy_per_step[-1] == result.accuracy
            and sorted(result.accuracy_per_step, reverse=True) == result.accuracy_per_step
        )
        assert result.name == name and result.zero_gradient_images == 0 and not result.non_finite_logits.any()


@pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
@BOTH
@NORMS
def test_scale_of_the_logits_does_not_matter(models, attack, norm: str, eps: float, loss: str) -> None:
    x, threat = models.random_images(16), ThreatModel(norm, eps / 2)
    results = {}
    for scale in (1.0, 2.0**-17, 2.0**17, 1e-5, 1e5):
        model = models.random_linear(10, 36, scale=scale)
        results[scale] = attack(model, x, model(x).argmax(1), threat, seed=0, image_ids=range(16), steps=10, loss=loss)
        assert results[scale].zero_gradient_images == 0
    plain = results.pop(1.0)
    assert 0 < plain.accuracy < 1
    for scale, result in results.items():
        assert torch.equal(result.correct, plain.correct)
        if scale in (2.0**-17, 2.0**17):  # exact in floating point: the very same images
            assert torch.equal(result.x_adv, plain.x_adv)


@BOTH
@NORMS
def test_an_image_does_not_know_its_batch(models, attack, norm: str, eps: float) -> None:
    x, model = models.random_images(7), models.random_linear(5, 36)
    y = model(x).argmax(1)
    kept = {"seed": 3, "steps": 12, "restarts": 2, "loss": "ce"}
    threat = ThreatModel(norm, eps * 0.4)
    torch.manual_seed(0), np.random.seed(0)
    whole = attack(model, x, y, threat, image_ids=range(20, 27), **kept)
    assert 0 < whole.accuracy < 1  # some leave the batch, some stay
    torch.manual_seed(1), np.random.seed(1)
    state = torch.get_rng_state()
    for row in range(7):
        alone = attack(model, x[row : row + 1], y[row : row + 1], threat, image_ids=[20 + row], **kept)
        assert torch.equal(alone.x_adv[0], whole.x_adv[row]) and alone.best_loss[0] == whole.best_loss[row]
        assert alone.broken_at[0] == whole.broken_at[row] and alone.broken_restart[0] == whole.broken_restart[row]
    assert torch.equal(torch.get_rng_state(), state)
    shuffled = attack(model, x.flip(0), y.flip(0), threat, image_ids=range(26, 19, -1), **kept)
    assert torch.equal(shuffled.x_adv.flip(0), whole.x_adv)
    other = attack(model, x, y, threat, image_ids=range(20, 27), **{**kept, "seed": 4})
    assert not torch.equal(other.x_adv, whole.x_adv)


@BOTH
def test_one_pass_for_each_iterate_and_broken_images_leave(models, attack) -> None:
    x = models.random_images(6)
    safe = models.two_class(torch.ones(36), bias=100.0)
    result = attack(safe, x, torch.zeros(6, dtype=torch.int64), LINF, seed=0, image_ids=range(6), steps=4, restarts=2)
    once = [(6, True)] * 4 + [(6, False)]  # gradients at iterates 0..3, the last only evaluated
    assert safe.batches == [(6, False)] + once + once + [(6, False)]  # clean, two restarts, final check
    assert result.gradient_evaluations == 48 and result.forward_evaluations == 24
    safe.batches.clear()
    assert (
        attack(
            safe, x, torch.zeros(6, dtype=torch.int64), LINF, seed=0, image_ids=range(6), steps=4, verify=False
        ).verify_mismatches
        is None
    )
    assert safe.batches == [(6, False)] + once

    mixed = models.two_class(torch.ones(36), bias=0.0)
    value = (x.flatten(1) - 0.5).sum(1)
    result = attack(
        mixed,
        x,
        (value < 0).long(),
        ThreatModel("linf", float(value.abs().median()) / 36),
        seed=0,
        image_ids=range(6),
        steps=10,
        restarts=2,
    )
    rows = [n for n, _ in mixed.batches]
    assert 0 < result.accuracy < 1 and rows[:2] == [6, 6] and rows[-1] == 6  # clean, step 0 ... final check
    assert rows[-2] == int(result.correct.sum()) and rows[1:-1] == sorted(rows[1:-1], reverse=True)
    assert result.gradient_evaluations == sum(n for n, with_gradient in mixed.batches if with_gradient)
    assert result.forward_evaluations == sum(n for n, with_gradient in mixed.batches if not with_gradient)


@BOTH
def test_misclassified_images_are_broken_and_left_alone(models, attack) -> None:
    x, model = models.random_images(4), models.random_linear(5, 36)
    y = model(x).argmax(1)
    y[1] = (y[1] + 1) % 5
    result = attack(model, x, y, ThreatModel("linf", 1e-4), seed=0, image_ids=range(4), steps=3)
    assert result.clean_correct.tolist() == result.correct.tolist() == [True, False, True, True]
    assert (
        torch.equal(result.x_adv[1], x[1])
        and result.broken_at.tolist() == [-1, 0, -1, -1]
        and result.broken_restart[1] == -1
    )
    assert result.accuracy_per_step == [0.75] * 4
    y = (model(x).argmax(1) + 1) % 5
    model.batches.clear()
    none_left = attack(model, x, y, LINF, seed=0, image_ids=range(4), steps=3)
    assert (
        none_left.accuracy == 0
        and torch.equal(none_left.x_adv, x)
        and none_left.gradient_evaluations == 0
        and len(model.batches) == 2
    )


@BOTH
def test_progress(models, attack) -> None:
    x, model, seen = models.random_images(4), models.two_class(torch.ones(36), bias=100.0), []
    attack(
        model,
        x,
        torch.zeros(4, dtype=torch.int64),
        LINF,
        seed=0,
        image_ids=range(4),
        steps=3,
        restarts=2,
        progress=seen.append,
    )
    assert [(s["restart"], s["step"]) for s in seen] == [(r, k) for r in range(2) for k in range(4)]
    assert seen[0] == {
        "attack": f"{attack.__name__}-ce",
        "steps": 3,
        "restarts": 2,
        "restart": 0,
        "step": 0,
        "active": 4,
        "robust": 4,
        "total": 4,
    }


@BOTH
def test_masked_gradients_are_flagged(attack) -> None:
    def masked(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return torch.stack([flat[:, 0] * 0 + 1.0, (flat[:, 1] * 50).round(), flat[:, 2] * 0], dim=1)

    def nan_slope(x: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [x.flatten(1).sum(1) * 0 + 1, (x - x.detach()).abs().flatten(1).sum(1).sqrt(), x.flatten(1)[:, 0] * 0],
            dim=1,
        )

    x, y = torch.full((3, 1, 2, 2), 0.0), torch.zeros(3, dtype=torch.int64)
    for model in (masked, nan_slope):
        result = attack(model, x, y, ThreatModel("linf", 0.005), seed=0, image_ids=range(3), steps=4, loss="margin")
        assert (
            result.zero_gradient_images == 3
            and result.zero_gradient_steps.tolist() == [4, 4, 4]
            and result.correct.all()
        )
        budget_holds(result, x)


@BOTH
def test_nan_logits_count_as_broken(attack) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        logits = torch.stack([flat[:, 0] + 5, flat[:, 1], flat[:, 2]], dim=1)
        return torch.where((flat[:, 0] > 0.52)[:, None], float("nan"), logits)

    x, y = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    x[1, 0, 0, 0] = 0.6
    result = attack(model, x, y, ThreatModel("linf", 0.1), seed=0, image_ids=[0, 1], steps=5, restarts=4)
    assert (
        result.clean_correct.tolist() == [True, False]
        and result.correct.tolist() == [False, False]
        and result.non_finite_logits.all()
    )
    budget_holds(result, x)


@BOTH
def test_final_check_exposes_a_model_that_changes_its_mind(models, attack) -> None:
    x, inner = models.random_images(4), models.two_class(torch.ones(36), bias=100.0)
    y = torch.zeros(4, dtype=torch.int64)
    calls = []

    def fickle(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return inner(pixels) * (-1 if len(calls) == 6 else 1)  # 1 clean + 4 iterates + the final check

    result = attack(fickle, x, y, LINF, seed=0, image_ids=range(4), steps=3)
    assert (
        len(calls) == 6
        and result.verify_mismatches == 4
        and not result.correct.any()
        and result.accuracy_per_step == [1.0, 1.0, 1.0, 0.0]
    )


@BOTH
def test_random_model_keeps_all_images_and_draws_before_each_call(attack) -> None:
    """Noise of either sign: one draw would mislead, the mean over four balanced draws is the linear model."""
    draws = []

    def model(x: torch.Tensor) -> torch.Tensor:
        noise = 30.0 if len(draws) % 2 else -30.0
        value = (x - 0.5).flatten(1).sum(1)
        return torch.stack([value, noise * torch.ones_like(value)], dim=1)

    x, y = torch.full((3, 1, 2, 2), 0.55), torch.zeros(3, dtype=torch.int64)
    kept = {"seed": 0, "image_ids": range(3), "steps": 5, "eot": 4, "redraw": lambda: draws.append(0), "loss": "margin"}
    safe = attack(model, x, y, ThreatModel("linf", 0.04), **kept)
    assert safe.correct.all() and safe.verify_mismatches is None and len(draws) == 4 * (1 + 6)
    assert safe.gradient_evaluations == 3 * 4 * 5 and safe.forward_evaluations == 3 * 4 * 2
    broken = attack(model, x, y, ThreatModel("linf", 0.06), **kept)
    assert not broken.correct.any() and broken.gradient_evaluations == 3 * 4 * 5  # nobody left
    torch.testing.assert_close(broken.x_adv, torch.full_like(x, 0.49))  # attacked past the first break, to the optimum


@BOTH
def test_a_broken_projection_cannot_slip_through(models, attack, monkeypatch) -> None:
    x, model = models.random_images(2), models.two_class(torch.ones(36), bias=100.0)
    for module in ("rdc.attacks.pgd", "rdc.attacks.apgd"):
        monkeypatch.setattr(
            sys.modules[module], "project", lambda x_adv, x, eps, norm: (x_adv.float() + 1e-3).clamp(0, 1)
        )
    with pytest.raises(RdcError, match="breaks its budget"):
        attack(model, x, torch.zeros(2, dtype=torch.int64), LINF, seed=0, image_ids=range(2), steps=5)


@BOTH
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.full((2, 1, 6, 6), float("nan"))}, "NaN"),
        ({"y": torch.tensor([0, 2])}, "label 2 is out of range"),
        ({"y": torch.tensor([-1, 0])}, "label -1 is out of range"),
        ({"image_ids": [0]}, "image_ids"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"seed": -1}, "seed"),
        ({"eot": 0}, "eot"),
        ({"model": lambda x: x.detach().flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0])}, "differentiably"),
    ],
)
def test_bad_input(models, attack, change: dict, says: str) -> None:
    good = {
        "model": models.two_class(torch.ones(36), 100.0),
        "x": models.random_images(2),
        "y": torch.zeros(2, dtype=torch.int64),
    }
    arguments = {**good, "threat": LINF, "seed": 0, "image_ids": [0, 1], "steps": 2, **change}
    before = arguments["x"].clone()
    with pytest.raises(InputError, match=says):
        attack(**arguments)
    assert torch.equal(before.nan_to_num(), arguments["x"].nan_to_num())


def test_pgd_options(models) -> None:
    x, model = models.random_images(2), models.two_class(torch.ones(36), bias=100.0)
    y, kept = torch.zeros(2, dtype=torch.int64), {"seed": 0, "image_ids": [0, 1]}
    one = pgd(model, x, y, LINF, steps=1, random_start=False, step_size=0.01, **kept)  # one step from the clean image
    torch.testing.assert_close(one.x_adv, x - 0.01)
    seen = []
    default = pgd(lambda p: (seen.append(p.detach()), model(p))[1], x, y, LINF, steps=10, random_start=False, **kept)
    torch.testing.assert_close(seen[2], x - 2.5 * 0.05 / 10)  # clean, start, first step
    short = pgd(model, x, y, LINF, steps=3, random_start=False, step_size=2.5 * 0.05 / 10, **kept)
    torch.testing.assert_close(default.x_adv, x - 0.05)
    torch.testing.assert_close(short.x_adv, x - 3 * 2.5 * 0.05 / 10)
    with pytest.raises(InputError, match="random start"):
        pgd(model, x, y, LINF, random_start=False, restarts=2, **kept)
    with pytest.raises(InputError, match="step_size"):
        pgd(model, x, y, LINF, step_size=0.0, **kept)
    with pytest.raises(ConfigError, match="unknown loss"):
        pgd(model, x, y, LINF, loss="l2", **kept)
    untouched = pgd(model, x, y, ThreatModel("linf", 0.0), steps=2, **kept)
    assert torch.equal(untouched.x_adv, x)
    assert x.grad is None and not x.requires_grad


def test_each_restart_begins_where_it_is_told(models) -> None:
    x, model = models.random_images(3), models.two_class(torch.ones(36), bias=100.0)
    kept = {"y": torch.zeros(3, dtype=torch.int64), "threat": LINF, "seed": 0, "image_ids": range(3), "steps": 1}
    seen, starts = [], [x + 0.02, x - 0.03]
    pgd(lambda p: (seen.append(p.detach().clone()), model(p))[1], x, restarts=3, start=starts, **kept)
    assert torch.equal(seen[1], starts[0])  # clean, then start and end of each restart
    assert torch.equal(seen[3], starts[1])
    assert not torch.equal(seen[5], starts[0]) and not torch.equal(seen[5], x)  # the third one is random
    with pytest.raises(InputError, match="start"):
        pgd(model, x, start=[x, x[:1]], **kept)
