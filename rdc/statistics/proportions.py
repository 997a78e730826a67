"""Intervals for proportions."""

from __future__ import annotations

import math

from rdc.errors import InputError

__all__ = ["wilson_interval"]

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
