"""Resampling: bootstrap intervals, paired permutation tests, worst-of-N tables, sequential tests. numba where it is installed.

Every number depends on the arguments and the seed alone: numpy and numba give the same to the last bit (``resampling.kernels``).
"""

from __future__ import annotations

from rdc.resampling.intervals import BootstrapInterval, bootstrap_interval, worst_of
from rdc.resampling.kernels import why_not_numba
from rdc.resampling.permutation import PermutationTest, paired_permutation_test
from rdc.resampling.sequential import sequential_stops, simulate_boundary

__all__ = [
    "BootstrapInterval",
    "PermutationTest",
    "bootstrap_interval",
    "paired_permutation_test",
    "sequential_stops",
    "simulate_boundary",
    "why_not_numba",
    "worst_of",
]
