"""The runtime's memory budget is kept by what the operating system counts."""

from __future__ import annotations

import sys

import pytest

from benchmarks.studies import onnx_memory


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("lm", "batch", "budget"), [(None, 256, 64), (None, 64, 16), ("paper-v2", 32, 64)])
def test_resident_memory_is_within_the_budget(tmp_path, lm, batch, budget):
    """The shipped model; 256 images at 64 MiB took 105 to 112 MiB with onnxruntime's memory patterns."""
    path = str(tmp_path / "a.onnx")
    onnx_memory.alone(onnx_memory.export, "fashion-mnist", lm, path)
    found = onnx_memory.alone(onnx_memory.measure, path, batch, budget, 1)
    assert found["peak"] < 1.1 * budget and found["images_at_once"] < batch
