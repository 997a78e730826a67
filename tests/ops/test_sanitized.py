"""The network's CPU kernels under AddressSanitizer, a few random shapes; all of them: python -m benchmarks.studies.sanitized."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from benchmarks.studies.sanitized import built, instruction_sets, run
from rdc.ops import _native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(_native.why_not("cpu")), reason=f"native kernels: {_native.why_not('cpu')}"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
]


@pytest.mark.parametrize("isa", [] if _native.why_not("cpu") else instruction_sets()[-1:])
def test_nothing_is_read_or_written_beyond_an_array(isa, tmp_path):
    try:
        program = built(isa, tmp_path)
    except subprocess.CalledProcessError as error:
        if "cannot find" in error.stderr:  # the compiler's sanitizer libraries are a package of their own
            pytest.skip(error.stderr.splitlines()[-1])
        raise
    assert run(program, 50, 1) == "50 shapes"
