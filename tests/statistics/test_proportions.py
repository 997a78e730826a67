"""Clopper-Pearson's bound against SciPy, its definition, and its coverage by enumeration."""

import math

import pytest

from rdc.errors import InputError
from rdc.statistics import clopper_pearson_lower
from rdc.statistics.proportions import binomial_tail
from tests.tolerances import FLOAT64_FORMULA

CASES = [(1, 1), (5, 10), (10, 10), (99, 100), (51, 100), (700, 1000), (1000, 1000), (9_990, 10_000), (1, 100_000)]


def exact_tail(successes, trials, p):
    """P(Binomial >= successes) by summing its terms."""
    return math.fsum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1))


@pytest.mark.parametrize(("successes", "trials"), CASES)
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5, 0.9])
def test_it_is_scipys(successes, trials, alpha):
    from scipy.stats import beta

    expected = beta.ppf(alpha, successes, trials - successes + 1)
    assert clopper_pearson_lower(successes, trials, alpha) == pytest.approx(expected, rel=FLOAT64_FORMULA)


def test_the_tail_is_a_sum_of_terms():
    for successes, trials, p in [(3, 7, 0.2), (7, 7, 0.9), (1, 30, 0.01), (15, 30, 0.5), (29, 30, 0.5)]:
        assert binomial_tail(successes, trials, p) == pytest.approx(
            exact_tail(successes, trials, p), rel=FLOAT64_FORMULA
        )
    assert binomial_tail(0, 5, 0.3) == 1 and binomial_tail(2, 5, 0.0) == 0 and binomial_tail(2, 5, 1.0) == 1


def test_all_of_n_is_the_nth_root_and_none_is_zero():
    assert clopper_pearson_lower(1000, 1000, 0.001) == pytest.approx(0.001 ** (1 / 1000), rel=FLOAT64_FORMULA)
    assert clopper_pearson_lower(0, 1000, 0.001) == 0


@pytest.mark.parametrize("p", [0.05, 0.5, 0.8, 0.9])
def test_it_is_too_high_with_probability_alpha_at_most(p):
    trials, alpha = 60, 0.05
    wrong = math.fsum(
        math.comb(trials, k) * p**k * (1 - p) ** (trials - k)
        for k in range(trials + 1)
        if clopper_pearson_lower(k, trials, alpha) > p
    )
    assert 0 < wrong <= alpha


def test_bad_numbers():
    for successes, trials in [(1.0, 2), (3, 2), (-1, 2), (0, 0), (True, 2)]:
        with pytest.raises(InputError, match="successes"):
            clopper_pearson_lower(successes, trials, 0.1)
    for alpha in (0, 1, -0.1, 2, math.nan):
        with pytest.raises(InputError, match="alpha"):
            clopper_pearson_lower(1, 2, alpha)
    with pytest.raises(InputError, match="probability"):
        binomial_tail(1, 2, 1.5)
