"""multihead_loss against eager torch: one thread, medians, each timed only after its result was checked.

pytest --benchmark-only benchmarks/test_multihead_loss.py --benchmark-json=out.json
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rdc.ops import _native
from rdc.ops.multihead_loss import multihead_loss

#: K, C, c, H = W
CASES = {
    "K10 C1 c64 28x28": (10, 1, 64, 28),
    "K10 C3 c128 32x32": (10, 3, 128, 32),
    "K100 C1 c64 28x28": (100, 1, 64, 28),
    "K100 C3 c128 32x32": (100, 3, 128, 32),
}
IMAGES, LEVELS = 4, 8


def eager(h, weight, bias, target, level_weight):
    """The usual way: the prediction of all classes exists, and autograd keeps it."""
    prediction = F.conv2d(h, weight, bias, padding=1).unflatten(1, (-1, target.shape[1]))
    error = (prediction - target[:, None]).square().sum((2, 3, 4))
    return torch.einsum("ntk,t->nk", error.unflatten(0, (-1, len(level_weight))), level_weight)


def native(*x):
    return multihead_loss(*x, backend="native")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("function", [native, eager])
@pytest.mark.parametrize("work", ["forward", "forward and grad of h", "forward and all gradients"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_multihead_loss(benchmark, case, layout, work, function):
    if function is native and _native.why_not("cpu"):
        pytest.skip(f"native kernels: {_native.why_not('cpu')}")
    classes, channels, width, side = case
    make, rows = torch.Generator().manual_seed(0), IMAGES * LEVELS
    x = [
        torch.randn(rows, width, side, side, generator=make).contiguous(memory_format=layout),
        torch.randn(classes * channels, width, 3, 3, generator=make) * 0.05,
        torch.randn(classes * channels, generator=make),
        torch.randn(rows, channels, side, side, generator=make),
        torch.rand(LEVELS, generator=make),
    ]
    wanted = {"forward": [], "forward and grad of h": x[:1], "forward and all gradients": x}[work]
    for v in wanted:
        v.requires_grad_()

    def run(call):
        loss = call(*x)
        return [loss, *(torch.autograd.grad(loss.sum(), wanted) if wanted else ())]

    for a, b in zip(run(function), run(eager), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    benchmark.group = f"{work}, {case}, {layout}"
    benchmark.extra_info.update(rows=rows, isa=_native.cpu_isa() if function is native else "", torch=torch.__version__)
    benchmark.pedantic(run, args=(function,), rounds=7, warmup_rounds=1)
