"""Budgets to the last bit, projections against independent oracles, random starts that depend on their key alone."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rdc.errors import ConfigError, RdcError
from rdc.norm_balls import (
    NORMS,
    check_budget,
    crossing,
    distance,
    linf_bounds,
    project,
    random_start,
    steepest_direction,
)
from tests.tolerances import BUDGET_USE, FLOAT32_PROJECTION, FLOAT32_ROUNDING, FLOAT64_ORDER

PIXEL = st.floats(0, 1, width=32) | st.sampled_from([0.0, 1.0, 0.5, 1e-45, 1e-38, 1e-9])
ANYWHERE = st.floats(-3, 4, width=32) | PIXEL
EPS = st.floats(0, 1) | st.sampled_from([0.0, 8 / 255, 2 / 255, 0.5, 1e-9, 1e-20, 1 / 3, 1.0])


@st.composite
def two_images(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    size = draw(st.integers(1, 9))
    centre = draw(st.lists(PIXEL, min_size=size, max_size=size))
    point = draw(st.lists(ANYWHERE, min_size=size, max_size=size))
    return torch.tensor(centre).view(1, 1, 1, -1), torch.tensor(point).view(1, 1, 1, -1)


def assert_inside(x_adv: torch.Tensor, x: torch.Tensor, eps: float, norm: str) -> None:
    """Independent of rdc: numpy, float64, no tolerance."""
    assert x_adv.dtype == torch.float32
    moved = x_adv.numpy().astype(np.float64) - x.numpy().astype(np.float64)
    for row, image in zip(moved.reshape(len(moved), -1), x_adv.numpy(), strict=True):
        assert image.min() >= 0 and image.max() <= 1
        if norm == "linf":
            assert np.abs(row).max() <= eps
        elif norm == "l1":
            assert np.abs(row).sum() <= eps and math.fsum(abs(v) for v in row.tolist()) <= eps
        else:
            assert np.linalg.norm(row) <= eps
            assert math.sqrt(math.fsum(v * v for v in row.tolist())) <= eps


@settings(max_examples=400, deadline=None)
@given(two_images(), EPS, st.sampled_from(NORMS), st.booleans())
@example((torch.full((1, 1, 1, 1), 0.1), torch.ones(1, 1, 1, 1)), 0.2, "linf", False)
def test_projection_holds_the_budget_to_the_last_bit(images, eps, norm, double) -> None:
    x, point = images
    projected = project(point.double() if double else point, x, eps, norm)
    assert_inside(projected, x, eps, norm)
    check_budget(projected, x, eps, norm)
    assert torch.equal(project(projected, x, eps, norm), projected)  # idempotent: points inside stay


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [8 / 255, 2 / 255, 0.5, 1.0, 1e-6, 0.1])
def test_budget_holds_on_many_pixels(norm: str, eps: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(16, 3, 32, 32, generator=generator)
    x[:4] = (x[:4] * 255).round() / 255
    far = project(x + 4 * torch.randn(x.shape, generator=generator), x, eps, norm)
    assert_inside(far, x, eps, norm)
    if 0.01 <= eps <= 0.5 or norm == "l1" and eps == 1.0:  # and the budget is used: the projection is not just timid
        assert float(distance(far, x, norm).min()) >= eps * (1 - BUDGET_USE)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [1e-15, 4e-10, 2e-9, 1e-7, 1e-3])
def test_tiny_budgets_at_the_edge_of_the_box(norm: str, eps: float) -> None:
    """Pixels at 0 keep every bit of a tiny step, and what is to be projected is 1e9 times as far away."""
    generator = torch.Generator().manual_seed(4)
    x = torch.where(torch.rand(50, 1, 1, 12, generator=generator) < 0.5, 0.0, 1e-7)
    projected = project(3 * torch.randn(x.shape, generator=generator).double(), x, eps, norm)
    assert_inside(projected, x, eps, norm)


def test_naive_float32_clamp_would_break_the_budget() -> None:
    """The reason for the module: x + eps in float32 leaves the ball for a good part of all pixels."""
    x = torch.rand(1, 1, 100, 100, generator=torch.Generator().manual_seed(0)) * 0.9
    naive = x + torch.tensor(8 / 255)
    assert int((naive.double() - x.double() > 8 / 255).sum()) > 1000
    with pytest.raises(RdcError, match="row 0 breaks its budget"):
        check_budget(naive, x, 8 / 255, "linf")


@settings(max_examples=300, deadline=None)
@given(PIXEL, EPS)
def test_linf_bounds_are_the_outermost_float32(pixel: float, eps: float) -> None:
    x = np.float32(pixel)
    lower, upper = (float(b) for b in linf_bounds(torch.full((1, 1, 1, 1), float(x)), eps))
    assert float(x) - lower <= eps and upper - float(x) <= eps
    exact, radius = Fraction(float(x)), Fraction(eps)
    assert upper == 1.0 or Fraction(float(np.nextafter(np.float32(upper), np.float32(2)))) - exact > radius
    assert lower == 0.0 or exact - Fraction(float(np.nextafter(np.float32(lower), np.float32(-1)))) > radius


@settings(max_examples=200, deadline=None)
@given(two_images(), st.floats(1e-3, 1.5))
def test_l2_projection_is_the_nearest_point_of_ball_and_box(images, eps: float) -> None:
    """Oracle: bisection in float64 for the s of clip(x + s (point - x)), which the KKT conditions single out."""
    x, point = images
    centre, target = x.double().flatten().numpy(), point.double().flatten().numpy()
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        inside = np.linalg.norm(np.clip(centre + middle * (target - centre), 0, 1) - centre) <= eps
        low, high = (middle, high) if inside else (low, middle)
    whole = np.clip(target, 0, 1)
    oracle = whole if np.linalg.norm(whole - centre) <= eps else np.clip(centre + low * (target - centre), 0, 1)
    np.testing.assert_allclose(project(point, x, eps, "l2").double().flatten().numpy(), oracle, atol=FLOAT32_PROJECTION)


@settings(max_examples=200, deadline=None)
@given(two_images(), st.floats(1e-3, 3))
def test_l1_projection_is_the_nearest_point_of_ball_and_box(images, eps: float) -> None:
    """Oracle: bisection in float64 for the shrinkage u of the KKT conditions."""
    x, point = images
    centre, target = x.double().flatten().numpy(), point.double().flatten().numpy()
    wanted = target - centre
    room = np.where(wanted > 0, 1 - centre, centre)

    def moved(u: float) -> np.ndarray:
        return np.minimum(np.maximum(np.abs(wanted) - u, 0), room)

    low, high = 0.0, float(np.abs(wanted).max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if moved(middle).sum() <= eps else (middle, high)
    shrunk = moved(0.0) if moved(0.0).sum() <= eps else moved(high)
    oracle = centre + np.sign(wanted) * shrunk
    np.testing.assert_allclose(project(point, x, eps, "l1").double().flatten().numpy(), oracle, atol=FLOAT32_PROJECTION)


def test_crossing_of_a_broken_line() -> None:
    breaks = torch.tensor([[0.0, 1.0, 1.0, 4.0]], dtype=torch.float64).expand(6, -1)

    def value(t: torch.Tensor) -> torch.Tensor:
        return torch.minimum(t, torch.ones_like(t)) + torch.clamp(t - 1, min=0) * 2  # 0 -> 0, 1 -> 1, 4 -> 7

    at = crossing(breaks, value, torch.tensor([-1.0, 0.0, 0.5, 1.0, 3.0, 99.0], dtype=torch.float64))
    assert at.tolist() == [0.0, 0.0, 0.5, 1.0, 2.0, 4.0]


def test_l1_direction_spreads_over_the_largest_entries() -> None:
    gradient = torch.tensor([[3.0, -5.0, 0.0, 5.0], [0.0, 2.0, 0.0, 0.0]]).view(2, 1, 1, 4)
    one = steepest_direction(gradient, "l1").view(2, 4).tolist()
    assert one == [[0.0, -1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]  # of equals, the first
    spread = steepest_direction(gradient, "l1", torch.tensor([2, 3])).view(2, 4).tolist()
    assert spread == [[0.0, -0.5, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0]]  # where the gradient is zero nothing moves


@settings(max_examples=100, deadline=None)
@given(two_images(), st.floats(0.01, 1), st.sampled_from(NORMS))
def test_no_feasible_point_is_nearer(images, eps: float, norm: str) -> None:
    x, point = images
    projected = project(point, x, eps, norm)
    others = random_start(x.expand(20, -1, -1, -1), eps, norm, seed=0, image_ids=range(20), restart=0)
    nearest = float(distance(projected, point, "l2"))
    assert nearest <= float(distance(others, point.expand_as(others), "l2").min()) + FLOAT32_ROUNDING


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_depends_on_its_key_alone(norm: str) -> None:
    x = torch.full((4, 1, 5, 5), 0.5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    whole = random_start(x, 0.1, norm, seed=7, image_ids=[10, 11, 12, 13], restart=0)
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()
    torch.manual_seed(1), np.random.seed(1)
    alone = random_start(x[:1], 0.1, norm, seed=7, image_ids=[12], restart=0)
    assert torch.equal(alone[0], whole[2])
    distinct = [whole[0], whole[1], whole[2]]
    distinct.append(random_start(x[:1], 0.1, norm, seed=8, image_ids=[12], restart=0)[0])
    distinct.append(random_start(x[:1], 0.1, norm, seed=7, image_ids=[12], restart=1)[0])
    assert all(not torch.equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])
    big = random_start(x[:1], 0.1, norm, seed=2**64 - 1, image_ids=[2**64 - 1], restart=3)
    assert_inside(big, x[:1], 0.1, norm)


def test_random_start_is_uniform() -> None:
    x = torch.full((4000, 1, 1, 2), 0.5)
    cube = (random_start(x, 0.2, "linf", seed=0, image_ids=range(4000), restart=0) - x).flatten(1) / 0.2
    assert cube.mean().abs() < 0.03 and abs(float(cube.square().mean()) - 1 / 3) < 0.02
    ball = distance(random_start(x, 0.2, "l2", seed=0, image_ids=range(4000), restart=0), x, "l2") / 0.2
    assert abs(float(ball.mean()) - 2 / 3) < 0.02  # E r = d / (d + 1) in d = 2 dimensions
    diamond = (random_start(x, 0.2, "l1", seed=0, image_ids=range(4000), restart=0) - x).flatten(1).double() / 0.2
    assert abs(float(diamond.abs().sum(1).mean()) - 2 / 3) < 0.02 and diamond.mean().abs() < 0.02
    turned = diamond @ torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)  # the diamond as a square
    assert abs(float(turned.square().mean()) - 1 / 3) < 0.02


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=9), st.integers(-120, 120))
def test_steepest_direction_ignores_the_gradients_size(values: list[float], power: int) -> None:
    gradient = torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)
    assume(float(gradient.abs().max()) > 1e-6)
    for norm in ("linf", "l1", "l2"):
        unit = steepest_direction(gradient, norm)
        torch.testing.assert_close(steepest_direction(gradient * 2.0**power, norm), unit, rtol=FLOAT64_ORDER, atol=0)
    assert abs(float(torch.linalg.vector_norm(unit)) - 1) < FLOAT64_ORDER
    tiny = steepest_direction(torch.full((1, 1, 1, 4), 1e-45), "l2")  # float32 would square this to zero
    torch.testing.assert_close(tiny, torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64))
    assert not steepest_direction(torch.zeros(1, 1, 2, 2), "l2").any()


@pytest.mark.parametrize("norm", NORMS)
def test_rows_do_not_know_their_batch(norm: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(9, 3, 13, 11, generator=generator)
    point = x + torch.randn(x.shape, generator=generator)
    whole = project(point, x, 0.3, norm)
    direction = steepest_direction(point, norm)
    for row in range(9):
        assert torch.equal(project(point[row : row + 1], x[row : row + 1], 0.3, norm)[0], whole[row])
        assert torch.equal(steepest_direction(point[row : row + 1], norm)[0], direction[row])


def test_check_budget_catches_every_breach() -> None:
    x = torch.full((3, 1, 2, 2), 0.5)
    check_budget(x, x, 0.0, "l2")
    for value in (float("nan"), float("inf"), 0.7, -0.1, 1.1):
        bad = x.clone()
        bad[1, 0, 0, 0] = value
        with pytest.raises(RdcError, match="row 1"):
            check_budget(bad, x, 0.1, "linf")
    outside_box = x.clone() * 0
    with pytest.raises(RdcError, match="row 0"):
        check_budget(outside_box - 0.01, outside_box, 0.1, "l2")
    with pytest.raises(RdcError, match="float32"):
        check_budget(x.double(), x, 0.1, "l2")


def test_unknown_norm() -> None:
    x = torch.zeros(1, 1, 1, 1)
    for call in (lambda: project(x, x, 0.1, "l3"), lambda: distance(x, x, "Linf"), lambda: steepest_direction(x, "")):
        with pytest.raises(ConfigError, match="linf, l2, l1"):
            call()


# --- l_0 ----------------------------------------------------------------------------------------------------------


def test_l0_projection_is_the_nearest_of_all_choices_of_pixels() -> None:
    """Enumeration: every set of two of six places, the point clipped there and the original elsewhere."""
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(5, 2, 2, 3, generator=generator)
    point = x + torch.randn(5, 2, 2, 3, generator=generator)
    found = project(point, x, 2, "l0")
    for row in range(5):
        gaps = []
        for places in itertools.combinations(range(6), 2):
            chosen = torch.zeros(6, dtype=torch.bool)
            chosen[list(places)] = True
            choice = torch.where(chosen.view(1, 2, 3), point[row].clamp(0, 1), x[row])
            gaps.append(float((choice.double() - point[row].double()).square().sum()))
        assert float((found[row].double() - point[row].double()).square().sum()) == pytest.approx(min(gaps))
    assert (distance(found, x, "l0") <= 2).all() and torch.equal(project(found, x, 2, "l0"), found)
    assert torch.equal(project(point, x, 0, "l0"), x) and torch.equal(project(point, x, 9, "l0"), point.clamp(0, 1))
    each = project(point, x, torch.tensor([0.0, 1, 2, 3, 9], dtype=torch.float64), "l0")
    assert distance(each, x, "l0").tolist() == [0, 1, 2, 3, 6]


def test_l0_counts_places_whatever_the_channels_and_however_small_the_change() -> None:
    x = torch.full((3, 3, 4, 4), 0.5)
    moved = x.clone()
    moved[0, 0, 1, 1] += 2.0**-24
    moved[1, :, 1, 1] = 0.0
    moved[2, 0, 0, 0] = moved[2, 1, 3, 3] = float("nan")
    assert distance(moved, x, "l0").tolist() == [1, 1, 2]
    check_budget(moved[:2], x[:2], 1, "l0")
    with pytest.raises(RdcError, match="l0 distance 1.0 for eps 0"):
        check_budget(moved[:1], x[:1], 0, "l0")
    with pytest.raises(RdcError, match="breaks its budget"):
        check_budget(moved[2:], x[2:], 3, "l0")


def test_l0_random_starts_change_so_many_pixels() -> None:
    x = torch.full((3, 2, 4, 4), 0.5)
    start = random_start(x, 5, "l0", seed=1, image_ids=[4, 5, 4], restart=0)
    assert distance(start, x, "l0").tolist() == [5, 5, 5] and torch.equal(start[0], start[2])
    assert not torch.equal(start[0], start[1])
    other, whole = (random_start(x, count, "l0", seed=1, image_ids=[4] * 3, restart=1) for count in (5, 99))
    assert not torch.equal(start[0], other[0]) and distance(whole, x, "l0").tolist() == [16] * 3
    with pytest.raises(ConfigError, match="unknown norm 'l0'"):
        steepest_direction(x, "l0")
