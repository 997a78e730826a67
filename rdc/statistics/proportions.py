"""Intervals and bounds for proportions."""

from __future__ import annotations

import math

from rdc.errors import InputError

__all__ = ["binomial_tail", "clopper_pearson_lower", "wilson_interval"]

_Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson_interval(successes: float, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion: the p with |p_hat - p| <= z sqrt(p (1 - p) / n).

    Unlike p_hat +- z sqrt(p_hat (1 - p_hat) / n) it stays inside [0, 1] and does not shrink to a point at 0 or n.

    Args:
        successes: 0..trials; may be fractional (an average over redraws of each trial).
        trials: independent trials, >= 1.
        z: half-width in standard deviations; the default gives 95 %.

    Returns:
        (low, high), both in [0, 1], around successes / trials.

    Raises:
        InputError: the numbers are no proportion.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(f"expected 0 <= successes <= trials and trials >= 1; got {successes} of {trials}")
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == trials else min(1.0, (centre + half) / scale)
    return low, high


def clopper_pearson_lower(successes: int, trials: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: the largest p that ``successes`` of ``trials`` still reject at level ``alpha``.

    The true proportion lies below it with probability at most ``alpha``, whatever it is: the bound is the p with
    P(Binomial(trials, p) >= successes) = alpha.

    Args:
        successes: integer, 0..trials.
        trials: independent trials, >= 1.
        alpha: in (0, 1), the probability of being wrong.

    Returns:
        In [0, 1); 0 if nothing succeeded. Found by bisection in float64, and on the safe side of its last step.

    Raises:
        InputError: the numbers are no proportion, or alpha is out of range.

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 26.
    """
    _check_counts(successes, trials)
    if not 0 < alpha < 1:
        raise InputError(f"alpha: expected a number between 0 and 1, both excluded; got {alpha!r}")
    if successes == 0:
        return 0.0
    low, high = 0.0, successes / trials
    if (
        binomial_tail(successes, trials, high) <= alpha
    ):  # alpha above about a half: the bound is beyond the share itself
        low, high = high, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if binomial_tail(successes, trials, middle) <= alpha else (low, middle)
    return low


def binomial_tail(successes: int, trials: int, p: float) -> float:
    """P(Binomial(trials, p) >= successes), to about 1e-10 relative.

    It is the regularised incomplete beta function I_p(successes, trials - successes + 1), by its continued fraction.

    Args:
        successes: integer, 0..trials.
        trials: integer, >= 1.
        p: in [0, 1].

    Raises:
        InputError: out of range.
    """
    _check_counts(successes, trials)
    if not 0 <= p <= 1:
        raise InputError(f"expected a probability in [0, 1]; got {p!r}")
    if successes == 0 or p == 1:
        return 1.0
    if p == 0:
        return 0.0
    a, b = float(successes), float(trials - successes + 1)
    power = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(p) + b * math.log1p(-p)
    if p < (a + 1) / (a + b + 2):  # the fraction converges quickly on this side
        return min(1.0, math.exp(power) * _beta_fraction(a, b, p) / a)
    return max(0.0, 1.0 - math.exp(power) * _beta_fraction(b, a, 1 - p) / b)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """1 / (1 + d_1 / (1 + d_2 / (1 + ...))) of the incomplete beta function, by Lentz's method.

    d_{2m} = m (b - m) x / ((a + 2m - 1)(a + 2m)),  d_{2m+1} = -(a + m)(a + b + m) x / ((a + 2m)(a + 2m + 1)).
    Source: Abramowitz and Stegun 1964, 26.5.8.
    """
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, 100_000):
        m = step // 2
        if step % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / _away(1 + term * d, tiny)
        c = _away(1 + term / c, tiny)
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return 1 / value


def _away(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def _check_counts(successes: int, trials: int) -> None:
    whole = isinstance(successes, int) and isinstance(trials, int)
    if not whole or isinstance(successes, bool) or trials < 1 or not 0 <= successes <= trials:
        raise InputError(f"expected integers 0 <= successes <= trials and trials >= 1; got {successes!r} of {trials!r}")
