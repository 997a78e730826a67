"""FAB: exact minimal distances on linear models, the budget to the last bit, batches, restarts, random and odd models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.attacks import ThreatModel, apgd
from rdc.attacks.fab import fab
from rdc.attacks.hyperplanes import step_to_hyperplane
from rdc.errors import InputError
from rdc.norm_balls import distance
from tests.tolerances import FAB_DISTANCE, FLOAT32_ROUNDING, FLOAT32_ROUNDINGS, FLOAT32_SUM

NORMS = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
MODES = pytest.mark.parametrize("targets", [9, None], ids=["targeted", "untargeted"])


def exact_distances(model, x: torch.Tensor, y: torch.Tensor, norm: str) -> torch.Tensor:
    """Distance to the nearest other class of a linear model, box included; inf where the box holds none."""
    best = torch.full((len(x),), math.inf, dtype=torch.float64)
    flat, classes = x.double().flatten(1), len(model.weight)
    for k in range(classes):
        w = model.weight[k].double() - model.weight[y].double()
        gain = -((w * (flat - 0.5)).sum(1) + model.bias[k].double() - model.bias[y].double())
        step = step_to_hyperplane(flat, w, gain, norm)  # checked on its own in test_hyperplanes.py
        far = distance(step[:, :, None, None], torch.zeros_like(step)[:, :, None, None], norm)
        far[(w * step).sum(1) < gain - 1e-9] = math.inf
        best = torch.where(y == k, best, torch.minimum(best, far))
    return best


@MODES
@NORMS
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_minimal_distance_of_a_linear_model(models, norm: str, classes: int, targets: int | None) -> None:
    """Half of the images lie at the edge of the box, so that it binds."""
    x = torch.cat([models.random_images(4), models.random_images(4, low=0.0, high=0.15)])
    model = models.random_linear(classes, 36)
    y = model(x).argmax(1)
    exact = exact_distances(model, x, y, norm)
    result = fab(
        model, x, y, ThreatModel(norm, 0.5), seed=0, image_ids=range(8), steps=30, targets=targets, minimize=True
    )
    ratio = result.minimal_distance / exact
    assert (ratio > 1 - FLOAT32_SUM).all() and (ratio < 1 + FAB_DISTANCE).all()
    assert torch.equal(result.correct, result.minimal_distance > 0.5) and result.loss == "margin"
    assert result.name == ("fab" if targets is None else "fab-t") and result.verify_mismatches == 0


@NORMS
@pytest.mark.parametrize("minimize", [True, False])
def test_breaks_exactly_what_can_be_broken(models, norm: str, minimize: bool) -> None:
    x, model = models.random_images(10), models.random_linear(4, 36)
    y = model(x).argmax(1)
    exact = exact_distances(model, x, y, norm)
    for row in range(5):
        for factor, survives in ((0.9999, True), (1.001, False)):
            threat = ThreatModel(norm, float(exact[row]) * factor)
            one = fab(model, x[[row]], y[[row]], threat, seed=1, image_ids=[row], steps=30, minimize=minimize)
            assert bool(one.correct) is survives
            assert bool(one.minimal_distance <= threat.eps) is not survives


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["linf", "l2", "l1"]), st.floats(0.001, 1.0), st.booleans())
def test_budget_holds_to_the_last_bit(seed: int, norm: str, eps: float, edge: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 1, 4, 4, generator=generator)
    x = x.round() if edge else x
    weight = torch.randn(3, 16, generator=generator) * 3

    def model(pixels: torch.Tensor) -> torch.Tensor:
        flat = pixels.flatten(1)[:, None, :]
        return (weight * torch.sin(3 * flat)).sum(-1)

    y = model(x).argmax(1)
    result = fab(model, x, y, ThreatModel(norm, eps), seed=0, image_ids=range(5), steps=6, restarts=2)
    moved = (result.x_adv.numpy().astype(np.float64) - x.numpy().astype(np.float64)).reshape(5, -1)
    size = {"linf": np.abs(moved).max(1), "l2": np.linalg.norm(moved, axis=1), "l1": np.abs(moved).sum(1)}[norm]
    assert (size <= eps).all() and result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert torch.equal(model(result.x_adv).argmax(1) == y, result.correct)
    assert (result.minimal_distance[~result.correct] <= eps).all()


@NORMS
@MODES
def test_cnn_against_apgd(cnn, norm: str, targets: int | None) -> None:
    """Beside APGD: the distances that FAB finds are radii at which APGD breaks the image, but for little."""
    net, x, y = cnn
    kept = {"seed": 0, "image_ids": range(24)}
    result = fab(net, x, y, ThreatModel(norm, 1e-3), steps=40, targets=targets, minimize=True, **kept)
    assert result.correct.all() and (result.minimal_distance > 1e-3).all() and result.minimal_distance.isfinite().all()
    radius = float(result.minimal_distance.median()) * 1.0001
    half = fab(net, x, y, ThreatModel(norm, radius), steps=40, targets=targets, **kept)
    assert 0 < half.accuracy < 1
    other = apgd(net, x, y, ThreatModel(norm, radius), steps=60, loss="dlr", **kept)
    assert int(half.correct.sum()) <= int(other.correct.sum()) + 1


@NORMS
def test_an_image_does_not_know_its_batch(models, norm: str) -> None:
    x, model = models.random_images(6), models.random_linear(4, 36)
    y = model(x).argmax(1)
    y[2] = (y[2] + 1) % 4
    kept = {"seed": 3, "steps": 5, "restarts": 2}
    threat = ThreatModel(norm, float(exact_distances(model, x, y, norm).median()))
    state = torch.get_rng_state()
    whole = fab(model, x, y, threat, image_ids=range(20, 26), **kept)
    assert 0 < whole.accuracy < 1 and torch.equal(torch.get_rng_state(), state)
    for row in range(6):
        alone = fab(model, x[row : row + 1], y[row : row + 1], threat, image_ids=[20 + row], **kept)
        for name in ("x_adv", "minimal_distance", "broken_at", "broken_restart", "broken_target", "correct"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[row])


class Wavy:
    """Three classes with a wavy boundary, image by image; remembers what it was asked."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(3, 16, generator=generator)
        self.fast = torch.randn(3, 16, generator=generator) * 12
        self.x = 0.2 + 0.6 * torch.rand(12, 1, 4, 4, generator=generator)
        self.y = self(self.x).argmax(1)
        self.seen: list[torch.Tensor] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.__dict__.setdefault("seen", []).append(pixels.detach().clone())
        flat = pixels.flatten(1)[:, None, :]
        return (self.weight * flat).sum(-1) + 0.6 * torch.sin((self.fast * flat).sum(-1))


def paper_run(model: Wavy, x: torch.Tensor, y: int, target: int, norm: str, steps: int) -> list[torch.Tensor]:
    """Algorithm 1 of the paper for one image and target: every point at which the model is asked, until the last search."""
    asked, best, best_far, best_f = [], None, math.inf, 0.0

    def size(v: torch.Tensor) -> float:
        v = v.flatten().abs()
        return float({"linf": v.max, "l2": v.norm, "l1": v.sum}[norm]())

    def margin(point: torch.Tensor) -> float:
        z = model(point)[0].double()
        return max(float(z[k]) for k in range(3) if k != y) - float(z[y])

    def step_from(v: torch.Tensor, w: torch.Tensor, gain: float) -> torch.Tensor:
        return step_to_hyperplane(v.double().flatten(1), w[None], torch.tensor([gain]).double(), norm).view_as(x)

    def remember(point: torch.Tensor, value: float, wrong: bool) -> None:
        nonlocal best, best_far, best_f
        far = size(point.double() - x.double())
        if wrong and far < best_far:
            best, best_far, best_f = point, far, value

    point = x
    for _ in range(steps):
        leaf = point.clone().requires_grad_()
        z = model(leaf)[0].double()
        f = z[target] - z[y]
        w, f = torch.autograd.grad(f, leaf)[0].double().flatten(), f.detach()
        asked.append(point)
        remember(point, float(f), int(z.argmax()) != y)
        s_i = step_from(point, w, -float(f))
        s_o = step_from(x, w, -float(f) - float(w @ (x.double() - point.double()).flatten()))
        alpha = min(size(s_i) / (size(s_i) + size(s_o)), 0.1)
        point = ((1 - alpha) * (point.double() + 1.05 * s_i) + alpha * (x.double() + 1.05 * s_o)).clamp(0, 1).float()
        asked.append(point)
        value = margin(point)
        remember(point, value, value > 0)
        if value > 0:
            point = (0.1 * x.double() + 0.9 * point.double()).float()
    asked.append(x)
    low, high, f_low, f_high, way = 0.0, 1.0, margin(x), best_f, best.double() - x.double()
    for _ in range(3):
        share = f_low / (f_low - f_high) if f_high > 0 else 0.5
        at = low + (share + 0.1 * (1 - share)) * (high - low)
        asked.append((x.double() + at * way).float())
        value = margin(asked[-1])
        low, high, f_low, f_high = (low, at, f_low, value) if value > 0 else (at, high, value, f_high)
    return asked


@NORMS
@pytest.mark.parametrize("row", [0, 1, 7])
def test_every_point_is_that_of_the_paper(norm: str, row: int) -> None:
    model, oracle = Wavy(), Wavy()
    x, y = model.x[[row]], model.y[[row]]
    target = int(model(x)[0].argsort(descending=True)[1])
    expected = paper_run(oracle, x, int(y), target, norm, 7)
    model.seen.clear()
    fab(model, x, y, ThreatModel(norm, 1e-6), seed=0, image_ids=[0], steps=7, targets=1)
    assert len(expected) == 7 * 2 + 4
    for mine, other in zip(model.seen[1:], expected, strict=False):  # after these: P(x), the budget, the final check
        torch.testing.assert_close(mine, other, atol=FLOAT32_ROUNDINGS, rtol=0)
    assert len(model.seen) == 1 + 18 + 4


def test_seed_moves_later_restarts_only() -> None:
    """From other starting points other crossings are found; which, depends on (seed, image, run) only."""
    model = Wavy()
    x, y, threat = model.x, model.y, ThreatModel("l2", 0.3)
    kept = {"steps": 5, "minimize": True}
    one, other = (fab(model, x, y, threat, seed=s, image_ids=range(12), **kept).minimal_distance for s in (0, 1))
    assert torch.equal(one, other)
    kept["restarts"] = 3
    more = [fab(model, x, y, threat, seed=s, image_ids=range(12), **kept).minimal_distance for s in (0, 0, 1)]
    assert torch.equal(more[0], more[1]) and not torch.equal(more[0], more[2])
    assert (more[0] <= one).all() and (more[0] < one).any()
    for row in range(12):
        alone = fab(model, x[[row]], y[[row]], threat, seed=0, image_ids=[row], **kept)
        torch.testing.assert_close(alone.minimal_distance[0], more[0][row], rtol=FLOAT32_ROUNDING, atol=0)


def test_misclassified_and_broken_images_leave(models) -> None:
    x = models.random_images(4)
    model = models.random_linear(4, 36)
    y = model(x).argmax(1)
    y[1] = (y[1] + 1) % 4
    exact = exact_distances(model, x, y, "linf")
    model.batches.clear()
    result = fab(model, x, y, ThreatModel("linf", 2 * float(exact.max())), seed=0, image_ids=range(4), steps=50)
    assert result.clean_correct.tolist() == [True, False, True, True] and not result.correct.any()
    assert result.minimal_distance[1] == 0 and torch.equal(result.x_adv[1], x[1]) and result.broken_restart[1] == -1
    rows = [n for n, _ in model.batches]
    assert rows[:2] == [4, 3] and max(rows[1:-1]) == 3 and len(rows) < 20  # nobody stays for 50 steps
    assert result.gradient_evaluations == sum(n for n, with_gradient in model.batches if with_gradient)
    assert result.forward_evaluations == sum(n for n, with_gradient in model.batches if not with_gradient)
    assert result.accuracy_per_step[0] == 0.75 and result.accuracy_per_step[-1] == 0.0
    assert (result.broken_target[[0, 2, 3]] >= 0).all() and result.broken_target[1] == -1
    none_left = fab(model, x, (y + 1) % 4 * 0 + (model(x).argmax(1) + 1) % 4, ThreatModel("linf", 0.1), seed=0,
                    image_ids=range(4), steps=5)  # fmt: skip
    assert none_left.gradient_evaluations == 0 and torch.equal(none_left.x_adv, x)


def test_gradients_masked_nan_logits_and_random_models() -> None:
    def masked(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return torch.stack([flat[:, 0] * 0 + 1.0, (flat[:, 1] * 0.1).round()], dim=1)

    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    result = fab(masked, x, y, ThreatModel("linf", 0.1), seed=0, image_ids=range(3), steps=4)
    assert result.correct.all() and result.zero_gradient_steps.tolist() == [4, 4, 4]
    assert result.minimal_distance.isinf().all() and torch.equal(result.x_adv, x)

    def breaks(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        logits = torch.stack([flat[:, 0] + 5, flat[:, 1] * 3], dim=1)
        return torch.where((flat[:, 1] > 0.52)[:, None], float("nan"), logits)

    result = fab(breaks, x, y, ThreatModel("linf", 0.1), seed=0, image_ids=range(3), steps=6)
    assert not result.correct.any() and result.non_finite_logits.all()

    draws = []

    def noisy(x: torch.Tensor) -> torch.Tensor:
        noise = 30.0 if len(draws) % 2 else -30.0
        value = (x - 0.5).flatten(1).sum(1)
        return torch.stack([value, noise * torch.ones_like(value)], dim=1)

    x = torch.full((3, 1, 2, 2), 0.55)
    kept = {"seed": 0, "image_ids": range(3), "steps": 5, "eot": 4, "redraw": lambda: draws.append(0)}
    broken = fab(noisy, x, y, ThreatModel("linf", 0.06), **kept)
    assert not broken.correct.any() and broken.verify_mismatches is None and broken.gradient_evaluations == 3 * 4 * 6
    assert len(draws) * 3 == broken.gradient_evaluations + broken.forward_evaluations
    torch.testing.assert_close(broken.minimal_distance, torch.full((3,), 0.05).double(), atol=FLOAT32_SUM, rtol=0)
    assert fab(noisy, x, y, ThreatModel("linf", 0.04), **kept).correct.all()


def test_progress_and_bad_input(models) -> None:
    x, model, seen = models.random_images(3), models.random_linear(3, 36), []
    model.bias[0] = 1000.0
    y = torch.zeros(3, dtype=torch.int64)
    kept = {"seed": 0, "image_ids": range(3), "steps": 2}
    fab(model, x, y, ThreatModel("l2", 0.1), restarts=2, progress=seen.append, **kept)
    assert [(s["restart"], s["step"]) for s in seen] == [(run, k) for run in range(4) for k in (1, 2)]
    assert seen[0] == {
        "attack": "fab-t", "step": 1, "steps": 2, "restart": 0, "restarts": 4, "active": 3, "robust": 3, "total": 3,
    }  # fmt: skip
    for change in ({"targets": 0}, {"steps": 0}, {"restarts": 0}, {"seed": -1}, {"image_ids": [0]}, {"eot": 0}):
        with pytest.raises(InputError):
            fab(model, x, y, ThreatModel("l2", 0.1), **{**kept, **change})
