"""Import and command-line start-up, each in a process of its own.

pytest benchmarks/test_startup.py --benchmark-only --benchmark-json=out/startup.json
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STARTS = {
    "import rdc": ["-c", "import rdc"],
    "rdc --help": ["-m", "rdc", "--help"],
    "rdc evaluate --help": ["-m", "rdc", "evaluate", "--help"],
    "python (for comparison)": ["-c", ""],
}


@pytest.mark.parametrize("name", STARTS)
def test_startup(benchmark, name):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    benchmark.group = "start-up"

    def start():
        return subprocess.run([sys.executable, *STARTS[name]], env=environment, capture_output=True, text=True)

    done = benchmark.pedantic(start, rounds=5, warmup_rounds=1)
    assert done.returncode == 0, done.stderr
