"""A pickle of the size of the public CIFAR-10 networks: what it takes to convert one, and to ask it for a gradient."""

import pytest

from benchmarks.studies import edm_dry_run
from tests.tolerances import EDM_CONVERT_MIB, EDM_CONVERT_SECONDS, EDM_OF_BUDGET


@pytest.mark.slow
def test_conversion_and_memory_at_the_true_size(tmp_path):
    assert edm_dry_run.write(tmp_path)["bytes"] > 55_700_000 * 4
    found = edm_dry_run.convert(tmp_path)
    assert found["cpu_seconds"] < EDM_CONVERT_SECONDS and found["resident_mib"] < EDM_CONVERT_MIB, found
    worst = edm_dry_run.worst(tmp_path)
    assert worst["resident_mib"] < EDM_OF_BUDGET * worst["memory_mb"], worst
