"""rdc.statistics: numba against its numpy twin (same numbers), and against numpy as one would write it.

pytest benchmarks/test_resampling.py --benchmark-only --benchmark-json=out/resampling.json
"""

from __future__ import annotations

import numpy as np
import pytest

from rdc.statistics import bootstrap_interval, paired_permutation_test, sequential_stops, why_not_numba

IMAGES, ATTACKS, DRAWS = 1000, 6, 5_000
RANDOM = np.random.Generator(np.random.Philox(key=0))
HITS = (RANDOM.random((IMAGES, ATTACKS)) < 0.7).astype(float)
MARGIN = np.abs(np.cumsum(RANDOM.normal(0.3, 1, (2000, 125)), axis=1))
LINES = np.linspace(0, 30, 200)[:, None] * np.ones(125)


def usual_bootstrap(values, draws):
    """Fancy indexing, one resample at a time."""
    random = np.random.Generator(np.random.Philox(key=1))
    means = np.array([values[random.integers(0, len(values), len(values))].mean(0) for _ in range(draws)])
    return np.quantile(means, [0.025, 0.975], axis=0)


def usual_permutation(difference, draws):
    random = np.random.Generator(np.random.Philox(key=1))
    sums = np.array([(random.choice((-1.0, 1.0), len(difference)) * difference).sum() for _ in range(draws)])
    return (1 + (np.abs(sums) >= abs(difference.sum())).sum()) / (1 + draws)


WORK = {
    "bootstrap": lambda backend: bootstrap_interval(HITS, draws=DRAWS, backend=backend).low,
    "bootstrap, one column": lambda backend: bootstrap_interval(HITS[:, 0], draws=DRAWS, backend=backend).low,
    "permutation": lambda backend: (
        paired_permutation_test(HITS[:, 0], HITS[:, 1], draws=DRAWS, backend=backend).p_value
    ),
    "sequential stops": lambda backend: sequential_stops(MARGIN, LINES, backend=backend),
}
USUAL = {
    "bootstrap": lambda: usual_bootstrap(HITS, DRAWS),
    "bootstrap, one column": lambda: usual_bootstrap(HITS[:, :1], DRAWS),
    "permutation": lambda: usual_permutation(HITS[:, 0] - HITS[:, 1], DRAWS),
    "sequential stops": lambda: [(MARGIN >= line).argmax(1) for line in LINES],
}


@pytest.mark.parametrize("backend", ["numba", "numpy", "usual numpy"])
@pytest.mark.parametrize("work", WORK)
def test_resampling(benchmark, work, backend):
    if backend == "numba" and why_not_numba():
        pytest.skip(why_not_numba())
    benchmark.group = f"resampling: {work}"
    if backend == "usual numpy":
        benchmark.pedantic(USUAL[work], rounds=3)
        return
    if backend == "numba":
        assert np.array_equal(WORK[work]("numba"), WORK[work]("numpy"))
    benchmark.pedantic(WORK[work], args=(backend,), rounds=7, warmup_rounds=1)
