import math

import numpy as np
import pytest

from rdc.errors import ConfigError, InputError
from rdc.statistics import (
    bootstrap_interval,
    kernels,
    paired_permutation_test,
    sequential_stops,
    simulate_boundary,
    why_not_numba,
    worst_of,
)
from tests.tolerances import BOOTSTRAP, FLOAT64_ORDER

RANDOM = np.random.Generator(np.random.Philox(key=7))
HITS = (RANDOM.random((211, 3)) < [0.7, 0.5, 0.95]).astype(float)
SHARES = RANDOM.integers(0, 11, (150, 1)) / 10


def plain_loops():
    """The numba loops run as plain Python (unsigned arithmetic wraps around, as compiled)."""

    class NoNumba:
        @staticmethod
        def njit(**options):
            return lambda function: function

    return kernels._numba_sources(NoNumba)


@pytest.fixture(params=["python", "numba"])
def loops(request):
    if request.param == "numba":
        if why_not_numba():
            pytest.skip(why_not_numba())
        return {name: kernels._compiled(name) for name in ("sums", "signs", "stops")}
    return plain_loops()


# --- both backends give the same -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [HITS, HITS[:, :1], SHARES, HITS[:65] - HITS[65:130]], ids=["3", "1", "shares", "diff"]
)
def test_sums_are_the_same_to_the_last_bit(loops, values):
    fixed, _ = kernels.to_fixed(values)
    word = kernels.seed_word(5, 0)
    with np.errstate(over="ignore"):
        found = loops["sums"](fixed, 17, np.uint64(word))
    assert np.array_equal(found, kernels._sums_numpy(fixed, 17, word))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_signs_are_the_same_to_the_last_bit(loops, count):
    fixed = kernels.to_fixed(HITS[:, :1] - HITS[:, 1:2] + 0.25)[0][:count, 0]
    word = kernels.seed_word(5, 1)
    with np.errstate(over="ignore"):
        found = loops["signs"](fixed, 21, np.uint64(word))
    assert np.array_equal(found, kernels._signs_numpy(fixed, 21, word))


def test_stops_are_the_same(loops):
    margin = RANDOM.random((40, 6))
    margin[3] = np.nan
    lines = np.stack([np.full(6, c) for c in (0.0, 0.4, 0.8, np.inf)])
    assert np.array_equal(loops["stops"](margin, lines), kernels.stops(margin, lines, "numpy"))


def test_numpy_chunks_change_nothing(monkeypatch):
    fixed, _ = kernels.to_fixed(HITS)
    whole = kernels._sums_numpy(fixed, 30, 9), kernels._signs_numpy(fixed[:, 0], 30, 9)
    monkeypatch.setattr(kernels, "_CHUNK", 1000)
    assert np.array_equal(kernels._sums_numpy(fixed, 30, 9), whole[0])
    assert np.array_equal(kernels._signs_numpy(fixed[:, 0], 30, 9), whole[1])


def test_backend_is_chosen_by_work(monkeypatch):
    monkeypatch.setattr(kernels, "why_not_numba", lambda: "")
    assert kernels.choose_backend("auto", 10) == "numpy"
    assert kernels.choose_backend("auto", kernels.WORTH_NUMBA) == "numba"
    monkeypatch.setattr(kernels, "why_not_numba", lambda: "it is not here")
    assert kernels.choose_backend("auto", 10**12) == "numpy"
    with pytest.raises(ConfigError, match="it is not here"):
        kernels.choose_backend("numba", 1)
    with pytest.raises(ConfigError, match="'cupy'"):
        kernels.choose_backend("cupy", 1)


def test_numba_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("RDC_DISABLE_NUMBA", "1")
    assert "RDC_DISABLE_NUMBA" in why_not_numba()


# --- the numbers are right -----------------------------------------------------------------------------------------


def test_random_words_are_those_of_splitmix64():
    """The first outputs of SplitMix64 from state 1234567, as published with the generator's reference program."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert kernels._words(1234567, 0, 4).tolist() == expected
    assert kernels._words(1234567, 2, 2).tolist() == expected[2:]


def test_fixed_point_is_exact_for_counts_and_close_for_the_rest():
    fixed, unit = kernels.to_fixed(np.array([[0.0, 1.0], [1.0, 1.0]]))
    assert (fixed * unit).tolist() == [[0, 1], [1, 1]]
    values = RANDOM.normal(0, 300, (50, 2))
    fixed, unit = kernels.to_fixed(values)
    assert np.abs(fixed * unit - values).max() <= 2**-40 * np.abs(values).max()
    assert kernels.to_fixed(np.zeros((3, 1)))[0].tolist() == [[0], [0], [0]]


def test_bootstrap_agrees_with_theory():
    """For a proportion the resampled mean is binomial / n: standard error sqrt(p (1 - p) / n), quantiles of the binomial."""
    from scipy.stats import binom

    n, draws = len(HITS), 40_000
    found = bootstrap_interval(HITS, draws=draws, seed=3)
    p = HITS.mean(0)
    assert np.allclose(found.mean, p, rtol=0, atol=FLOAT64_ORDER)
    assert np.allclose(found.standard_error, np.sqrt(p * (1 - p) / n), rtol=BOOTSTRAP)
    for column in range(3):
        assert abs(found.low[column] * n - binom.ppf(0.025, n, p[column])) <= 1
        assert abs(found.high[column] * n - binom.ppf(0.975, n, p[column])) <= 1


def test_bootstrap_columns_share_their_images():
    """Two equal columns have equal intervals, and their difference has none."""
    twice = np.repeat(HITS[:, :1], 2, axis=1)
    found = bootstrap_interval(np.column_stack([twice, twice[:, 0] - twice[:, 1]]), draws=500)
    assert found.low[0] == found.low[1] < found.mean[0] and found.low[2] == found.high[2] == 0


def test_seeds_matter_and_repeat():
    first, again, other = (bootstrap_interval(SHARES, draws=300, seed=seed) for seed in (1, 1, 2))
    assert first.low == again.low and first.standard_error == again.standard_error
    assert first.standard_error != other.standard_error


def test_permutation_test_is_mcnemars_exact_test_where_few_differ():
    a, b = np.ones(30), np.ones(30)
    a[:9] = 0
    b[9:11] = 0
    found = paired_permutation_test(a, b)
    below = sum(math.comb(11, k) for k in range(3)) / 2**11
    assert found.exact and found.differing == 11 and found.p_value == pytest.approx(2 * below, rel=FLOAT64_ORDER)
    assert found.difference == pytest.approx(-7 / 30)


def test_permutation_test_by_draws():
    from scipy.stats import binomtest

    a, b = np.zeros(200), np.zeros(200)
    a[:32], b[32:50] = 1, 1
    found = paired_permutation_test(a, b, draws=200_000, seed=1)
    exact = binomtest(32, 50).pvalue
    assert not found.exact and abs(found.p_value - exact) < 5 * math.sqrt(exact / 200_000)
    assert paired_permutation_test(b, a, draws=200_000, seed=1).p_value == found.p_value


def test_permutation_p_values_are_uniform_under_the_null():
    p = []
    for trial in range(200):
        random = np.random.Generator(np.random.Philox(key=trial))
        a, b = random.integers(0, 11, (2, 60)) / 10
        p.append(paired_permutation_test(a, b, draws=500, seed=trial).p_value)
    p = np.array(p)
    assert 0.4 < p.mean() < 0.6 and (p <= 0.05).mean() < 0.1 and p.min() > 0


def test_no_difference():
    found = paired_permutation_test(SHARES[:, 0], SHARES[:, 0])
    assert found.p_value == 1 and found.difference == 0 and found.differing == 0


def test_worst_of():
    right = (RANDOM.random((30, 6)) < 0.8).astype(int)
    table = worst_of(right)
    assert table.shape == (30, 6)
    assert np.allclose(table[:, 0], right.mean(1)) and np.array_equal(table[:, 5], right.min(1))
    from itertools import combinations

    for size in (2, 4):
        by_hand = np.mean([right[:, list(pick)].min(1) for pick in combinations(range(6), size)], axis=0)
        assert np.allclose(table[:, size - 1], by_hand)
    assert np.array_equal(worst_of(right, [2, 4]), table[:, [1, 3]])


def test_worst_of_several_attacks():
    right = (RANDOM.random((20, 3, 5)) < 0.8).astype(int)
    assert np.allclose(worst_of(right), worst_of(right.min(1)))


def test_sequential_stops():
    margin = np.array([[0.1, 0.5, 0.2], [0.9, 0.0, 0.0], [0.0, 0.1, 0.0]])
    assert sequential_stops(margin, np.array([0.8, 0.4, 0.0])).tolist() == [1, 0, 2]
    assert sequential_stops(margin, np.full((2, 3), [[np.inf], [0.0]]).reshape(2, 3)).tolist() == [[2, 2, 2], [0, 0, 0]]


def test_simulated_boundary():
    strict, taken = simulate_boundary(np.ones(20), 20.0, 0.002)
    loose, less = simulate_boundary(np.ones(20), 20.0, 0.05)
    assert 0.3 < loose < strict < 4 and less < taken < 1
    assert simulate_boundary(np.zeros(5), 1.0, 0.01)[1] == pytest.approx(
        0.2
    )  # nothing is random: the first step decides


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap_interval(np.array([])), "shape"),
        (lambda: bootstrap_interval(np.array([1.0, np.nan])), "NaN"),
        (lambda: bootstrap_interval(HITS, draws=10), "draws >= 100"),
        (lambda: bootstrap_interval(HITS, confidence=1.0), "confidence"),
        (lambda: paired_permutation_test(HITS[:, 0], HITS[:5, 0]), "same images"),
        (lambda: paired_permutation_test(HITS[:, 0], HITS[:, 1], draws=5), "draws >= 100"),
        (lambda: worst_of(HITS[:, 0]), "shape"),
        (lambda: worst_of(SHARES), "0 and 1"),
        (lambda: worst_of(HITS, [4]), "between 1 and the 3"),
        (lambda: sequential_stops(HITS, np.zeros(4)), r"\[4\]"),
        (lambda: simulate_boundary(np.ones(1), 1, 0.1), "step_std"),
        (lambda: simulate_boundary(np.ones(4), 1, 1.5), "error_rate"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
