"""Paired permutation test: is one classifier better than another on the same images?"""

from __future__ import annotations

import dataclasses

import numpy as np

from rdc.errors import InputError
from rdc.statistics.kernels import signed_sums, to_fixed

__all__ = ["PermutationTest", "paired_permutation_test"]

_EXACT_BITS = 16  # up to this many images that differ, all sign patterns are counted


@dataclasses.dataclass(frozen=True)
class PermutationTest:
    """Result.

    Args:
        difference: mean of a - b.
        p_value: two-sided.
        differing: images on which the two differ.
        exact: all sign patterns were counted; otherwise ``draws`` random ones.
        draws: sign patterns.
    """

    difference: float
    p_value: float
    differing: int
    exact: bool
    draws: int


def paired_permutation_test(
    a: np.ndarray, b: np.ndarray, *, draws: int = 100_000, seed: int = 0, backend: str = "auto"
) -> PermutationTest:
    """Two-sided test of "a and b are exchangeable on every image" by the mean difference.

    Under that hypothesis each difference a_i - b_i is as likely with the other sign. With few images that differ all 2^m patterns are
    counted; else random ones, and p = (1 + those at least as far from 0) / (1 + draws), which is never 0.
    For 0 and 1 this is McNemar's exact test, up to the random patterns.

    Args:
        a, b: [n], per-image results (0 and 1, or shares of right answers), same images in the same order.
        draws: random sign patterns, >= 100.
        seed: of them; every backend gives the same.
        backend: "auto", "numpy" or "numba".

    Raises:
        InputError: shapes differ, or draws out of range.

    Source: Good 2005, "Permutation, parametric and bootstrap tests of hypotheses"; Phipson & Smyth 2010 (p-values are never zero).
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise InputError(
            f"paired test: expected two lists of the same images' results; got shapes {list(a.shape)} and {list(b.shape)}"
        )
    if draws < 100:
        raise InputError(f"paired test: expected draws >= 100; got {draws}")
    fixed, unit = to_fixed((a - b)[:, None])
    moved = fixed[fixed[:, 0] != 0, 0]
    difference = float(fixed.sum()) * unit / len(a)
    observed = abs(int(moved.sum()))
    if len(moved) <= _EXACT_BITS:
        sums = np.zeros(1, dtype=np.int64)
        for value in moved:
            sums = np.concatenate([sums + value, sums - value])
        extreme = int((np.abs(sums) >= observed).sum())
        return PermutationTest(difference, extreme / len(sums), len(moved), True, len(sums))
    sums = signed_sums(moved, draws, seed, backend)
    extreme = int((np.abs(sums) >= observed).sum())
    return PermutationTest(difference, (1 + extreme) / (1 + draws), len(moved), False, draws)
