"""What keeps the runtime within its memory budget; benchmarks/studies/onnx_memory.py measures it."""

from __future__ import annotations

import numpy as np
import onnxruntime

from rdc.runtime import OnnxClassifier
from rdc.runtime.inputs import as_array, as_pixels
from tests.evaluation_models import grey


def test_no_plan_is_kept_for_each_batch_size(path, monkeypatch):
    """And the answers are those of a session that keeps one, bit for bit."""
    real, patterns = onnxruntime.InferenceSession, []

    def opened(content, options, **more):
        patterns.append(options.enable_mem_pattern)
        options.enable_mem_pattern = len(patterns) > 1
        return real(content, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    without, plans = (OnnxClassifier(path, threads=1) for _ in range(2))
    assert patterns == [False, False]
    for count in (1, 3, 8):
        pixels = grey((count, 1, 8, 8), count)
        assert np.array_equal(without(pixels).class_losses, plans(pixels).class_losses)


def test_arrays_are_converted_piece_by_piece():
    pixels = grey((5, 1, 8, 8))
    assert np.shares_memory(as_array(pixels, (1, 8, 8)), pixels)
    floats = np.where(pixels > 200, 1 + 5e-7, pixels / 255)
    whole = as_pixels(as_array(floats, (1, 8, 8)))
    assert np.shares_memory(as_array(floats, (1, 8, 8)), floats) and whole.max() == 1 and whole.dtype == np.float32
    parts = [as_pixels(as_array(floats, (1, 8, 8))[begin : begin + 2]) for begin in (0, 2, 4)]
    assert np.array_equal(np.concatenate(parts), whole)
