"""One exported file for all tests of the runtime: writing it takes longer than reading it."""

from __future__ import annotations

import pytest

from rdc.export import export_onnx
from rdc.models.zoo import load
from tests.evaluation_models import save_tiny

THRESHOLD = 0.65


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The classifier: eight by eight pixels, grey, four classes; LM of one step."""
    folder = tmp_path_factory.mktemp("tiny")
    return load(save_tiny(folder)[0], lm="paper-v2,steps=1", logit_scale=0.02)


@pytest.fixture(scope="session")
def path(tiny, tmp_path_factory):
    """Its file, for at most two steps of LM."""
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    export_onnx(tiny, path, check=False, max_lm_steps=2, confidence_threshold=THRESHOLD)
    return path
