"""The exported file in onnxruntime against PyTorch eager, one thread: latency of one image, throughput at a batch, cold start.

pytest benchmarks/test_onnx.py --benchmark-only --benchmark-json=out/onnx.json

The candidates of a group are timed one after the other; on a busy machine compare medians of several runs, or use
``python -m benchmarks.studies.onnx_latency``, which alternates them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rdc
from rdc.export import export_onnx
from rdc.runtime import OnnxClassifier


@pytest.fixture(scope="module")
def classifier():
    return rdc.load("fashion-mnist", lm="paper-v2")


@pytest.fixture(scope="module")
def path(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(classifier, path)
    return path


@pytest.fixture(scope="module")
def images():
    return rdc.load_dataset("fashion-mnist-sample").pixels(range(16))


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("method", ["dc", "rdc"])
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_classification(benchmark, classifier, path, images, backend, method, batch):
    pixels = images[:batch]
    eager = classifier if method == "rdc" else classifier.with_(lm=None)
    model, steps = OnnxClassifier(path, threads=1), 5 if method == "rdc" else 0
    array = pixels.numpy()
    with torch.no_grad():
        expected = eager(pixels)
        assert (model(array, lm_steps=steps).labels == expected.argmax(1).numpy()).all()
        benchmark.group = f"{method} {batch}"
        benchmark.extra_info |= {"images": batch, "bytes": path.stat().st_size}
        if backend == "torch":
            benchmark(eager, pixels)
        else:
            benchmark(model, array, lm_steps=steps)


def test_cold_start(benchmark, path):
    """From a path to the first answer, with the file's digest compared."""
    image = np.zeros((1, 1, 28, 28), np.float32)
    benchmark.pedantic(lambda: OnnxClassifier(path, threads=1)(image, lm_steps=0), rounds=5)
