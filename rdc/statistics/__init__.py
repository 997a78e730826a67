"""Intervals of proportions; bootstrap, paired permutation tests, worst-of-N tables, sequential tests (numba where it is installed).

Every number depends on the arguments and the seed alone: numpy and numba give the same to the last bit (``resampling.kernels``).
"""

from __future__ import annotations

from rdc.statistics.bootstrap import BootstrapInterval, bootstrap_interval, worst_of
from rdc.statistics.kernels import why_not_numba
from rdc.statistics.permutation import PermutationTest, paired_permutation_test
from rdc.statistics.proportions import clopper_pearson_lower, wilson_interval
from rdc.statistics.sequential import sequential_stops, simulate_boundary

__all__ = [
    "BootstrapInterval",
    "PermutationTest",
    "bootstrap_interval",
    "clopper_pearson_lower",
    "paired_permutation_test",
    "sequential_stops",
    "simulate_boundary",
    "why_not_numba",
    "wilson_interval",
    "worst_of",
]
