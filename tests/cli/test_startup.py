"""Start-up stays quick: `import rdc` under 1.5 s, `rdc --help` under 0.5 s on a quiet machine; the limits here allow for a busy one."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAUSES = 3  # the fastest of three counts


def cpu_seconds(*arguments):
    """The smallest CPU time of a start: what a busy machine's other work does not lengthen."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = []
    for _ in range(PAUSES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.monotonic()
        subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append(min(used, time.monotonic() - begun))
    return min(found)


@pytest.mark.parametrize(
    ("limit", "arguments"),
    [(1.5, ("-c", "import rdc")), (0.5, ("-m", "rdc", "--help")), (0.5, ("-m", "rdc", "bench", "--help"))],
    ids=["import rdc", "rdc --help", "rdc bench --help"],
)
def test_start(limit, arguments):
    assert cpu_seconds(*arguments) < 2 * limit


def test_import_leaves_torch_alone():
    program = "import sys, rdc; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
