"""Bootstrap intervals over images, and worst-of-N tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rdc.errors import InputError
from rdc.statistics.kernels import resampled_sums, to_fixed

__all__ = ["BootstrapInterval", "bootstrap_interval", "worst_of"]


@dataclasses.dataclass(frozen=True, eq=False)
class BootstrapInterval:
    """Column means and their intervals.

    Args:
        mean: [m].
        low, high: [m], percentiles of the resampled means.
        standard_error: [m], standard deviation of the resampled means.
        confidence: of each interval by itself.
        draws: resamples.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    standard_error: np.ndarray
    confidence: float
    draws: int


def bootstrap_interval(
    values: np.ndarray, *, draws: int = 10_000, seed: int = 0, confidence: float = 0.95, backend: str = "auto"
) -> BootstrapInterval:
    """Percentile bootstrap of column means: images are drawn with replacement, all columns by the same images.

    For accuracies, shares over redraws, and differences of two classifiers on the same images (one column of differences). For one
    plain proportion ``rdc.statistics.proportions.wilson_interval`` is better: near 0 and 1 the bootstrap's interval is too narrow.

    Args:
        values: [n] or [n images, m columns], finite; e.g. one column per attack (1: still right) and one for the worst of them.
        draws: resamples, >= 100.
        seed: any integer; the same seed gives the same numbers under every backend.
        confidence: in (0, 1).
        backend: "auto", "numpy" or "numba".

    Raises:
        InputError: no such table, or draws or confidence out of range.

    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    fixed, unit = to_fixed(values)
    if draws < 100 or not 0 < confidence < 1:
        raise InputError(
            f"bootstrap: expected draws >= 100 and 0 < confidence < 1; got {draws} draws, confidence {confidence}"
        )
    count = len(fixed)
    means = np.sort(resampled_sums(fixed, draws, seed, backend), axis=0).astype(np.float64) * (unit / count)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    mean = fixed.sum(0).astype(np.float64) * (unit / count)
    return BootstrapInterval(mean, low, high, means.std(0, ddof=1), confidence, draws)


def worst_of(right: np.ndarray, sizes: Sequence[int] | None = None) -> np.ndarray:
    """Each image's chance to be right in all of N submissions, from R recorded ones: the columns of a worst-of-N table.

    With r of R right answers, N of the R drawn without replacement are all right with probability C(r, N) / C(R, N): the unbiased
    estimate from these R. Feed the table to :func:`bootstrap_interval` for accuracies with intervals.

    Args:
        right: [n images, R submissions] of 0 and 1; or [n, A attacks, R]: an image's answer counts as right in a submission of all
            attacks together if it is right under each.
        sizes: values of N in 1..R; default 1..R.

    Returns:
        [n, len(sizes)] float64 in [0, 1].

    Raises:
        InputError: not such a table, or an N out of range.
    """
    right = np.asarray(right)
    if right.ndim not in (2, 3) or 0 in right.shape or not np.isin(right, (0, 1)).all():
        raise InputError(
            f"worst_of: expected 0 and 1 in shape [n, R] or [n, attacks, R]; got shape {list(right.shape)}, values such as "
            f"{np.asarray(right).ravel()[:3].tolist()}"
        )
    if right.ndim == 3:
        right = right.min(1)
    total = right.shape[1]
    sizes = list(range(1, total + 1)) if sizes is None else [int(size) for size in sizes]
    if not sizes or min(sizes) < 1 or max(sizes) > total:
        raise InputError(f"worst_of: expected N between 1 and the {total} recorded submissions; got {sizes}")
    hits = right.sum(1).astype(np.float64)
    chance = np.ones((len(right), max(sizes)))
    running = np.ones(len(right))
    for drawn in range(max(sizes)):
        running = running * np.clip(hits - drawn, 0, None) / (total - drawn)
        chance[:, drawn] = running
    return chance[:, [size - 1 for size in sizes]]
