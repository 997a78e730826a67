"""Steps to a hyperplane inside the box: shortest in each norm (oracles by linear programming and bisection), or the corner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from rdc.attacks.hyperplanes import dual_norm, step_to_hyperplane
from rdc.errors import ConfigError
from tests.tolerances import FLOAT64_FORMULA, FLOAT64_ORDER, SOLVER

NORMS = ("linf", "l2", "l1")
NUMBER = st.floats(-3, 3, allow_subnormal=False).map(lambda v: round(v, 3))
PIXEL = st.floats(0, 1).map(lambda v: round(v, 3)) | st.sampled_from([0.0, 1.0])


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    size = draw(st.integers(1, 8))
    z = np.array(draw(st.lists(PIXEL, min_size=size, max_size=size)))
    w = np.array(draw(st.lists(NUMBER, min_size=size, max_size=size)))
    return z, w, draw(NUMBER)


def step(z: np.ndarray, w: np.ndarray, gain: float, norm: str) -> np.ndarray:
    rows = (torch.from_numpy(v)[None].double() for v in (z, w))
    return step_to_hyperplane(*rows, torch.tensor([gain], dtype=torch.float64), norm)[0].numpy()


def reach(z: np.ndarray, w: np.ndarray, gain: float) -> np.ndarray:
    """The corner of the box that goes furthest in the wanted direction, as a step."""
    up = np.sign(w) * (1 if gain >= 0 else -1)
    return np.where(up > 0, 1 - z, np.where(up < 0, -z, 0.0))


def length(v: np.ndarray, norm: str) -> float:
    return {"linf": lambda: np.abs(v).max(), "l2": lambda: np.linalg.norm(v), "l1": lambda: np.abs(v).sum()}[norm]()


def least(z: np.ndarray, w: np.ndarray, gain: float, norm: str) -> float:
    """Smallest length: linear programs for l_inf and l_1, bisection on the multiplier for l_2."""
    count = len(z)
    if norm == "l2":
        sign, low, high = np.sign(gain), 0.0, 1e7

        def moved(t: float) -> np.ndarray:
            return np.clip(z + t * sign * w, 0, 1) - z

        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if abs(w @ moved(middle)) < abs(gain) else (low, middle)
        return np.linalg.norm(moved(high))
    if norm == "l1":  # s = p - q, p and q >= 0
        result = linprog(
            np.ones(2 * count), A_eq=[np.concatenate([w, -w])], b_eq=[gain], bounds=[(0, most) for most in (*(1 - z), *z)]
        )  # fmt: skip
        return result.fun
    eye, one = np.eye(count), -np.ones((count, 1))
    result = linprog(
        np.r_[np.zeros(count), 1], A_ub=np.block([[eye, one], [-eye, one]]), b_ub=np.zeros(2 * count),
        A_eq=[np.r_[w, 0]], b_eq=[gain], bounds=[*((-v, 1 - v) for v in z), (0, None)],
    )  # fmt: skip
    return result.fun


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=120, deadline=None)
@given(problems())
def test_shortest_step(norm: str, problem) -> None:
    z, w, gain = problem
    furthest = reach(z, w, gain)
    assume(abs(w @ furthest) > abs(gain) + 1e-6)
    s = step(z, w, gain, norm)
    assert (z + s >= -FLOAT64_ORDER).all() and (z + s <= 1 + FLOAT64_ORDER).all()
    assert w @ s == pytest.approx(gain, abs=FLOAT64_FORMULA)
    assert length(s, norm) == pytest.approx(least(z, w, gain, norm), abs=SOLVER)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(1.001, 10))
def test_plane_beyond_the_box_gives_the_corner(norm: str, problem, beyond: float) -> None:
    z, w, gain = problem
    assume(gain != 0)
    furthest = reach(z, w, gain)
    np.testing.assert_allclose(
        step(z, w, beyond * (w @ furthest) + np.sign(gain) * 1e-3, norm), furthest, atol=FLOAT64_ORDER
    )


@pytest.mark.parametrize("norm", NORMS)
def test_any_scale_and_no_gradient(norm: str) -> None:
    z, w = np.array([0.5, 0.2, 0.9]), np.array([1.0, -0.3, 2.0])
    plain = step(z, w, 0.1, norm)
    for factor in (1e-200, 1e200):
        np.testing.assert_allclose(step(z, w * factor, 0.1 * factor, norm), plain, rtol=FLOAT64_ORDER)
    assert not step(z, np.zeros(3), 1.0, norm).any() and not step(z, w, 0.0, norm).any()
    inner = np.full(3, 0.5)  # where no box binds the length is |gain| over the dual norm
    dual = float(dual_norm(torch.from_numpy(w)[None], norm)[0])
    assert length(step(inner, w, 0.1, norm), norm) == pytest.approx(0.1 / dual)


@pytest.mark.parametrize("norm", NORMS)
def test_rows_do_not_know_their_batch(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z, w = torch.rand(7, 33, generator=generator).double(), torch.randn(7, 33, generator=generator).double()
    gain = torch.randn(7, generator=generator).double() * 3
    whole = step_to_hyperplane(z, w, gain, norm)
    for row in range(7):
        assert torch.equal(step_to_hyperplane(z[[row]], w[[row]], gain[[row]], norm)[0], whole[row])


def test_unknown_norm() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(ConfigError, match="linf, l2, l1"):
        step_to_hyperplane(one, one, one[0], "l3")
