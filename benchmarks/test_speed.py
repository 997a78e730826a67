"""One prediction and one attack step: the paper's procedure, plain torch and rdc.

``benchmarks/studies/speed.py`` forms the ratios, and adds torch.compile.

pytest benchmarks/test_speed.py --benchmark-only --benchmark-json=out/speed.json
"""

from __future__ import annotations

import pytest
import torch

import rdc
from benchmarks.contenders import conditional, multihead, paper, shipped
from benchmarks.studies.speed import validate

NAMES = ("paper", "eager", "multi-head", "rdc")
SAME = [("paper", "eager"), ("rdc", "multi-head")]


@pytest.fixture(scope="module")
def pixels():
    return rdc.load_dataset("fashion-mnist-sample").pixels(range(8))


@pytest.fixture(scope="module")
def contenders(pixels):
    """Validated once: the first two compute the same function, and so do the last two."""
    teacher, student = rdc.load("fashion-mnist-teacher", levels="edm"), rdc.load("fashion-mnist")
    parts = [paper(teacher), conditional(teacher, "eager", levels_at_once=25), multihead(student, "multi-head")]
    found = {part.name: part for part in (*parts, shipped(student, "rdc"))}
    validate(found, SAME, pixels)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("work", ["losses", "gradient"])
def test_speed(benchmark, contenders, pixels, name, work):
    part = contenders[name]
    x = pixels[: part.images]
    benchmark.group = {"losses": "prediction", "gradient": "attack step, exact, DC"}[work]
    benchmark.extra_info |= {"images": part.images, "network_passes_per_image": part.passes, "what": part.what}
    rounds = 2 if name in ("paper", "eager") else 7
    found = benchmark.pedantic(getattr(part, work), args=(x,), rounds=rounds, warmup_rounds=1 if rounds > 2 else 0)
    assert torch.isfinite(found).all()
