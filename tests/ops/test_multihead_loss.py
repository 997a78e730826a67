"""multihead_loss: float64 oracle <- torch reference <- native kernels (each instruction set; CUDA by emulation and, marked, on a GPU)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.errors import InputError
from rdc.ops import _native, multihead_native, multihead_reference
from rdc.ops import multihead_loss as module
from rdc.ops.multihead_loss import multihead_loss
from rdc.ops.multihead_reference import multihead_loss_reference
from tests.tolerances import (
    BFLOAT16_ORDER,
    FLOAT32_GRADIENT,
    FLOAT32_NETWORK,
    FLOAT32_ROUNDING,
    FLOAT32_SUM,
    FLOAT64_NETWORK,
    FLOAT64_OP,
    FLOAT64_ORDER,
)

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("loss", "h", "weight", "bias", "target", "level_weight")
NOTHING_KEPT = (torch.empty(0), torch.empty(0, dtype=torch.float64))  # by the forward pass

#: native error / naive torch error in the same dtype, both against float64 (docs/kernels.md) ...
TIMES_NAIVE = 2.0
#: ... plus one rounding of the result: where both are that good, their ratio says nothing (relative, in the 2-norm).
ONE_ROUNDING = {torch.float32: 1.2e-7, torch.bfloat16: 4e-3}
#: gradients may not be systematically too long or short: |<g, oracle> / <oracle, oracle> - 1|. Roundings average out only over
#: many elements: below a thousand, one rounding is allowed.
BIAS = {torch.float32: 1e-6, torch.bfloat16: 1e-3}

#: N, T, c, H, W, K, C
SHAPES = {
    "fashion": (2, 2, 64, 28, 28, 10, 1),
    "colour": (1, 2, 32, 16, 16, 10, 3),
    "hundred": (1, 2, 24, 8, 8, 100, 1),
    "two blocks, colour": (1, 3, 16, 7, 5, 33, 3),
    "odd sizes, kept": (1, 2, 40, 7, 5, 9, 4),
    "odd sizes, predicted again": (2, 2, 40, 9, 7, 23, 3),
    "many heads": (2, 2, 40, 9, 7, 33, 3),
    "many heads, two wide blocks": (1, 2, 32, 6, 5, 70, 3),
    "many heads, kept": (1, 2, 64, 8, 8, 20, 3),
    "shipped head": (1, 2, 160, 14, 14, 10, 4),
    "long sums": (1, 2, 160, 14, 14, 1, 4),
    "one line": (2, 2, 3, 1, 5, 1, 1),
    "one column": (1, 2, 17, 9, 1, 13, 2),
    "one pixel": (3, 1, 1, 1, 1, 4, 1),
}
SLOW_TO_EMULATE = ("fashion", "shipped head", "long sums")
ISAS = [] if _native.why_not("cpu") else _native.ISAS[: _native.ISAS.index(_native.extension().cpu_isa()) + 1]
native_isa = pytest.mark.parametrize(
    "isa",
    ISAS or [pytest.param("none", marks=pytest.mark.skip(reason=f"native kernels: {_native.why_not('cpu')}"))],
)
needs_native = pytest.mark.skipif(not ISAS, reason=f"native kernels: {_native.why_not('cpu')}")
WHY_NO_GPU = "torch finds no GPU" if not torch.cuda.is_available() else _native.why_not("cuda")
needs_gpu = pytest.mark.skipif(bool(WHY_NO_GPU), reason=f"CUDA kernels: {WHY_NO_GPU}")


def make(shape, dtype=torch.float32, channels_last=False, seed=0, device="cpu"):
    """Inputs (h, weight, bias, target, level_weight) and an upstream gradient [N, K]."""
    n, t, c, height, width, k, channels = shape
    g = torch.Generator().manual_seed(seed)
    x = [
        torch.randn(n * t, c, height, width, generator=g),
        torch.randn(k * channels, c, 3, 3, generator=g) * 0.1,
        torch.randn(k * channels, generator=g),
        torch.randn(n * t, channels, height, width, generator=g),
    ]
    if channels_last:
        x[0] = x[0].contiguous(memory_format=torch.channels_last)
    x = [v.to(device, dtype) for v in x]
    return [*x, (torch.rand(t, generator=g) + 0.1).to(device)], torch.randn(n, k, generator=g).to(device)


def oracle(x, upstream):
    """Loss and the five gradients, in numpy float64, from the equations of the module's docstring, written out."""
    h, weight, bias, target, level = (v.detach().cpu().double().numpy() for v in x)
    up = upstream.cpu().double().numpy()
    (rows, _, height, width), levels, channels = h.shape, len(level), target.shape[1]
    padded = np.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)))
    prediction = np.tile(bias[None, :, None, None], (rows, 1, height, width))
    for u in range(3):
        for v in range(3):
            prediction += np.einsum("oc,bcyx->boyx", weight[:, :, u, v], padded[:, :, u : u + height, v : v + width])
    loss, grad_level = np.zeros_like(up), np.zeros_like(level)
    r = np.zeros_like(prediction)
    grad_target = np.zeros_like(target)
    for b in range(rows):
        n, t = divmod(b, levels)
        for o in range(len(bias)):
            k, j = divmod(o, channels)
            d = prediction[b, o] - target[b, j]
            loss[n, k] += level[t] * (d**2).sum()
            grad_level[t] += up[n, k] * (d**2).sum()
            r[b, o] = 2 * level[t] * up[n, k] * d
            grad_target[b, j] -= r[b, o]
    grad_weight, grad_padded = np.zeros_like(weight), np.zeros_like(padded)
    for u in range(3):
        for v in range(3):
            grad_weight[:, :, u, v] = np.einsum("boyx,bcyx->oc", r, padded[:, :, u : u + height, v : v + width])
            grad_padded[:, :, u : u + height, v : v + width] += np.einsum("oc,boyx->bcyx", weight[:, :, u, v], r)
    return loss, grad_padded[:, :, 1:-1, 1:-1], grad_weight, r.sum((0, 2, 3)), grad_target, grad_level


def naive(h, weight, bias, target, level_weight):
    """What one writes in torch, in the dtype of the inputs."""
    prediction = F.conv2d(h, weight, bias, padding=1).unflatten(1, (-1, target.shape[1]))
    error = (prediction - target[:, None]).square().sum((2, 3, 4))
    return torch.einsum("ntk,t->nk", error.unflatten(0, (-1, len(level_weight))), level_weight.to(error.dtype))


def evaluate(function, x, upstream):
    """Loss and the five gradients."""
    x = [v.detach().clone(memory_format=torch.preserve_format).requires_grad_() for v in x]
    loss = function(*x)
    return [loss.detach(), *torch.autograd.grad(loss, x, upstream.to(loss.dtype))]


def native(*x):
    return multihead_loss(*x, backend="native")


def error(value, truth):
    value = value.detach().cpu().double().numpy()
    return np.linalg.norm(value - truth) / max(np.linalg.norm(truth), 1e-30)


def assert_as_good_as_naive(got, x, upstream, names=NAMES):
    truth, plain, dtype = oracle(x, upstream), evaluate(naive, x, upstream), x[0].dtype
    for name, value, best, other in zip(NAMES, got, truth, plain, strict=True):
        if name not in names:
            continue
        assert value.shape == best.shape
        rounding = ONE_ROUNDING[dtype if name not in ("loss", "level_weight") else torch.float32]
        allowed = TIMES_NAIVE * error(other, best) + rounding
        assert error(value, best) <= allowed, name
        v, b = value.detach().cpu().double().numpy().ravel(), best.ravel()
        assert abs(v @ b / (b @ b) - 1) <= max(BIAS[dtype], ONE_ROUNDING[dtype] * (v.size < 1000)), f"{name}: bias"
        turned = 10 * ONE_ROUNDING[dtype] ** 2 + 1e-12 + TIMES_NAIVE * max(0.0, 1 - cosine(other, b))
        assert cosine(value, b) >= 1 - turned, f"{name}: cosine"


def cosine(value, truth):
    value = value.detach().cpu().double().numpy().ravel()
    return value @ truth.ravel() / np.linalg.norm(value) / np.linalg.norm(truth)


# --- Truth --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_reference_equals_oracle(shape):
    x, upstream = make(shape, torch.float64)
    x[4] = x[4].double()
    for name, value, best in zip(
        NAMES, evaluate(multihead_loss_reference, x, upstream), oracle(x, upstream), strict=True
    ):
        assert error(value, best) < FLOAT64_OP, name


def test_reference_in_chunks_of_classes(monkeypatch):
    x, upstream = make(SHAPES["two blocks, colour"], torch.float64)
    whole = evaluate(multihead_loss_reference, x, upstream)
    monkeypatch.setattr(multihead_reference, "REFERENCE_CHUNK", 2000)
    for a, b in zip(evaluate(multihead_loss_reference, x, upstream), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT64_ORDER, atol=FLOAT64_NETWORK)


def test_reference_derivatives_in_float64():
    x, _ = make((1, 2, 2, 3, 2, 2, 1), torch.float64)
    x = [v.double().requires_grad_() for v in x]
    assert torch.autograd.gradcheck(multihead_loss, x)
    assert torch.autograd.gradgradcheck(multihead_loss, x)


@native_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_native_is_as_good_as_naive_torch(monkeypatch, shape, channels_last, dtype, isa):
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    x, upstream = make(shape, dtype, channels_last)
    assert_as_good_as_naive(evaluate(native, x, upstream), x, upstream)


@native_isa
@pytest.mark.parametrize("upstream_of", ["signs", "softmax"])
@pytest.mark.parametrize("residual", [1.0, 0.1, 0.02])
@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01])
def test_heads_alike_and_small_residuals_in_bfloat16(monkeypatch, spread, residual, upstream_of, isa):
    """What a trained classifier looks like: heads differ little, and predict the target well."""
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    shape = (1, 2, 64, 12, 12, 40, 2)
    x, upstream = make(shape)
    _, t, _, height, width, k, channels = shape
    common = x[1][:channels].repeat(k, 1, 1, 1)
    x[1] = common + spread * (x[1] - common)
    x[2] = x[2][:channels].repeat(k) + spread * x[2]
    clean = F.conv2d(x[0], x[1][:channels], x[2][:channels], padding=1)
    x[3] = clean + residual * clean.std() * x[3]
    if upstream_of == "softmax":
        upstream = (upstream * 3).softmax(1) - F.one_hot(torch.tensor([3]), k)
    x = [v.to(torch.bfloat16) for v in x[:4]] + x[4:]
    assert_as_good_as_naive(evaluate(native, x, upstream), x, upstream)


@native_isa
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (3, 3, 40, 6, 19, 30, 4))),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_native_equals_oracle_at_any_shape(isa, shape, channels_last, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDC_CPU_ISA", isa)
        x, upstream = make(shape, channels_last=channels_last, seed=seed)
        got = evaluate(native, x, upstream)
    # Sums may cancel, so their roundings are measured by the same sums of absolute values (1e-6: some 16 roundings of float32).
    absolute = [x[0].abs(), x[1].abs(), x[2].abs(), -x[3].abs(), x[4]]
    for name, value, best, size in zip(NAMES, got, oracle(x, upstream), oracle(absolute, upstream.abs()), strict=True):
        assert (abs(value.double().numpy() - best) <= FLOAT32_ROUNDING * abs(size)).all(), name


# --- Layouts, strides, sizes --------------------------------------------------------------------------------------------------------


@needs_native
def test_any_strides_of_h():
    shape = (2, 2, 20, 6, 9, 5, 2)
    x, upstream = make(shape)
    h = x[0]
    layouts = {
        "sliced": torch.stack([h, h + 1], 2)[:, :, 0],
        "rows swapped": h.transpose(2, 3).contiguous().transpose(2, 3),
        "wider": F.pad(h, (2, 3, 1, 1))[:, :, 1:-1, 2:-3],
        "every other channel": torch.stack([h, h + 1], 2).flatten(1, 2)[:, ::2],
        "wider, channels last": F.pad(h, (2, 3, 1, 1)).contiguous(memory_format=torch.channels_last)[:, :, 1:-1, 2:-3],
    }
    expected = evaluate(native, x, upstream)
    for name, layout in layouts.items():
        assert torch.equal(layout, h) and not (layout.is_contiguous() and name != "rows swapped"), name
        leaf = layout.requires_grad_()
        loss = native(leaf, *x[1:])
        (grad,) = torch.autograd.grad(loss, leaf, upstream)
        assert torch.equal(loss, expected[0]), name
        assert torch.equal(grad, expected[1]), name


@needs_native
def test_expanded_and_transposed_inputs():
    x, upstream = make((2, 3, 6, 5, 4, 7, 1))
    one = x[0][:1]
    leaf = one.expand(6, -1, -1, -1).requires_grad_()
    weight = x[1].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    target = x[3][:1, :, :1].expand(6, 1, 5, 4)
    level = x[4][:1].expand(3)
    got = evaluate(native, [leaf, weight, x[2], target, level], upstream)
    dense = evaluate(native, [v.contiguous() for v in (leaf, x[1], x[2], target, level)], upstream)
    for a, b in zip(got, dense, strict=True):
        assert torch.equal(a, b)


@needs_native
def test_gradient_keeps_channels_last():
    x, _ = make(SHAPES["colour"], channels_last=True)
    x[0].requires_grad_()
    (grad,) = torch.autograd.grad(native(*x).sum(), x[0])
    assert grad.is_contiguous(memory_format=torch.channels_last)


@needs_native
@pytest.mark.parametrize(
    "reduce",
    [torch.Tensor.sum, torch.Tensor.mean, lambda loss: loss[:, 3].sum(), lambda loss: loss.T.flatten()[::2].sum()],
)
def test_upstream_gradients_with_stride_zero(reduce):
    x, _ = make((3, 2, 8, 5, 5, 6, 1))

    def run(function):
        leaves = [v.detach().requires_grad_() for v in x]
        return torch.autograd.grad(reduce(function(*leaves)), leaves)

    for a, b in zip(run(native), run(multihead_loss_reference), strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT32_NETWORK, atol=FLOAT32_NETWORK)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
def test_no_images_no_losses(backend):
    x, upstream = make((0, 3, 8, 5, 5, 6, 1))
    got = evaluate(lambda *z: multihead_loss(*z, backend=backend), x, upstream)
    assert got[0].shape == (0, 6)
    for grad, v in zip(got[1:], x, strict=True):
        assert grad.shape == v.shape
        assert not grad.any()


# --- Determinism ----------------------------------------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 3, 20, 6, 6, 90, 1),
        (1, 1, 20, 6, 6, 150, 1),
        (1, 1, 32, 6, 6, 70, 3),
        (9, 2, 48, 6, 7, 10, 4),
        (40, 4, 24, 4, 4, 6, 1),
    ],
    ids=["many rows", "one row", "one row, colour", "kept", "many small images"],
)
def test_thread_count_changes_no_bit(shape, dtype):
    x, upstream = make(shape, dtype)
    upstream[0, 1:-1] = 0
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7, 40):
            torch.set_num_threads(threads)
            results.append(evaluate(native, x, upstream))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, a, b in zip(NAMES, results[0], other, strict=True):
            assert torch.equal(a, b), name


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [(5, 3, 24, 6, 7, 30, 1), (5, 3, 48, 6, 7, 10, 4), (5, 3, 40, 6, 7, 40, 2)],
    ids=["predicted again", "kept", "many heads"],
)
def test_batch_composition_changes_no_bit(shape, dtype):
    x, upstream = make(shape, dtype)
    upstream[1, 3] = 0
    upstream[2, ::2] = 0
    whole = evaluate(native, x, upstream)
    for n in range(5):
        rows = slice(3 * n, 3 * n + 3)
        alone = evaluate(native, [x[0][rows], x[1], x[2], x[3][rows], x[4]], upstream[n : n + 1])
        assert torch.equal(alone[0][0], whole[0][n])
        assert torch.equal(alone[1], whole[1][rows])
        assert torch.equal(alone[4], whole[4][rows])


@needs_native
def test_gradients_not_asked_for_cost_nothing():
    x, upstream = make(SHAPES["colour"])
    full = evaluate(native, x, upstream)
    for asked in range(5):
        wanted = [i == asked for i in range(5)]
        grads = multihead_native.backward_op(upstream, *x, *NOTHING_KEPT, wanted)
        assert [g.numel() > 0 for g in grads] == wanted
        assert torch.equal(grads[asked], full[1 + asked])


@native_isa
@pytest.mark.parametrize("shape", ["colour", "odd sizes, kept"])
def test_kept_residuals_change_no_bit(monkeypatch, isa, shape):
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    x, upstream = make(SHAPES[shape])
    loss, *kept = multihead_native.forward_op(*x, True, True)
    alone, *nothing = multihead_native.forward_op(*x, False, False)
    assert kept[0].shape[:2] == (len(x[0]), x[0][0, 0].numel()) and kept[1].shape == (len(x[0]), upstream.shape[1])
    assert nothing[0].numel() == nothing[1].numel() == 0
    assert torch.equal(loss, alone)
    pair = [multihead_native.backward_op(upstream, *x, *k, [True] * 5) for k in (kept, nothing)]
    for name, a, b in zip(NAMES[1:], *pair, strict=True):
        assert torch.equal(a, b), name


@native_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_of_rows_are_kept_for_the_gradient_of_the_level_weights(monkeypatch, isa, dtype):
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    x, upstream = make((2, 3, 40, 6, 6, 20, 3), dtype)
    loss, _, rows = multihead_native.forward_op(*x, False, True)
    assert rows.dtype == torch.float64
    truth, flat = oracle(x, upstream), (2, 3, 20)
    again = (rows.view(flat) * x[4].double()[:, None]).sum(1)
    np.testing.assert_allclose(again, truth[0], rtol=FLOAT32_ROUNDING)
    assert torch.equal(again.float(), loss)
    upstream -= upstream.mean(1, keepdim=True)  # as a softmax gives it: what is left is small beside the losses
    x[4].requires_grad_()
    (grad,) = torch.autograd.grad(native(*x), x[4], upstream)
    assert error(grad, oracle([v.detach() for v in x], upstream)[5]) < FLOAT32_SUM
    assert multihead_native.keeps_row_loss(*x) and not multihead_native.keeps_row_loss(*x[:4], x[4].detach())
    with torch.no_grad():
        assert not multihead_native.keeps_row_loss(*x)


@needs_native
def test_residuals_are_kept_where_they_are_smaller_than_h_and_a_gradient_is_asked_for():
    def kept(shape, grad=True):
        x, _ = make(shape)
        return multihead_native.keeps_residuals(x[0].requires_grad_(grad), *x[1:])

    assert kept((1, 2, 40, 4, 4, 10, 4))
    assert not kept((1, 2, 39, 4, 4, 10, 4))
    assert not kept((1, 2, 40, 4, 4, 10, 4), grad=False)
    with torch.no_grad():
        assert not kept((1, 2, 40, 4, 4, 10, 4))


@native_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape", [(3, 2, 40, 8, 7, 12, 3), (3, 2, 40, 8, 7, 70, 3)], ids=["kept", "predicted again, many classes"]
)
def test_few_active_classes(monkeypatch, isa, shape, dtype):
    """Two classes an image carry gradient, other ones for each image, and one image has none."""
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    x, upstream = make(shape, dtype)
    active = torch.zeros_like(upstream, dtype=torch.bool)
    active[0, [1, 7]] = active[2, [0, 11]] = True
    upstream = torch.where(active, upstream, 0.0)
    got = evaluate(native, x, upstream)
    assert_as_good_as_naive(got, x, upstream)
    h = x[0].clone().requires_grad_()  # without sums over images, many of them are worked on at once
    assert torch.equal(torch.autograd.grad(native(h, *x[1:]), h, upstream)[0], got[1])


@native_isa
def test_classes_without_gradient_are_left_out(monkeypatch, isa):
    """Their weights are not even read: what is not a number there reaches no gradient."""
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    x, upstream = make((2, 2, 24, 6, 6, 30, 1))
    upstream[:, 2:] = 0
    expected = evaluate(native, x, upstream)[1:]
    x[1][2:], x[2][2:] = float("nan"), float("inf")
    for name, a, b in zip(NAMES[1:], evaluate(native, x, upstream)[1:], expected, strict=True):
        assert torch.equal(a, b), name


@needs_native
def test_prediction_of_all_classes_never_exists():
    """K = 1000, C = 3: the prediction would take 295 MB; forward and backward stay below 100 MB."""
    script = """
import resource, torch
from rdc.ops.multihead_loss import multihead_loss
torch.set_num_threads(1)
def run(n):
    h = torch.randn(n, 16, 32, 32, requires_grad=True)
    x = torch.randn(3000, 16, 3, 3), torch.zeros(3000), torch.randn(n, 3, 32, 32), torch.ones(1)
    multihead_loss(h, *x, backend="native").sum().backward()
run(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(24)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


# --- torch.library, autograd, compile -------------------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize(
    ("dtype", "channels_last", "wanted", "keep"),
    [(torch.float32, False, [True] * 5, False), (torch.bfloat16, True, [True, False, False, True, True], True)],
    ids=["float32", "bfloat16, channels last, kept"],
)
def test_opcheck(dtype, channels_last, wanted, keep):
    x, upstream = make((2, 2, 8, 3, 5, 3, 2), dtype, channels_last)
    tolerance = {"rtol": BFLOAT16_ORDER, "atol": BFLOAT16_ORDER} if dtype == torch.bfloat16 else {}
    leaves = [v.requires_grad_() for v in x]
    torch.library.opcheck(multihead_native.forward_op, (*leaves, keep, keep), **tolerance)
    kept = [k.detach() for k in multihead_native.forward_op(*x, keep, keep)[1:]]
    torch.library.opcheck(
        multihead_native.backward_op, (upstream.requires_grad_(), *leaves, *kept, wanted), **tolerance
    )


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
def test_compiles_whole_with_dynamic_batch(backend):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *z: 2 * multihead_loss(*z, backend=backend), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for n in (2, 3, 5):
        x, upstream = make((n, 2, 8, 5, 4, 6, 1), seed=n)
        for a, b in zip(
            evaluate(compiled, x, upstream), evaluate(multihead_loss_reference, x, 2 * upstream), strict=True
        ):
            torch.testing.assert_close(
                a if a.shape != upstream.shape else a / 2, b, rtol=FLOAT32_NETWORK, atol=FLOAT32_NETWORK
            )


@needs_native
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_compiles_with_inductor():
    torch._dynamo.reset()
    compiled = torch.compile(lambda *z: native(*z), fullgraph=True)
    x, upstream = make((2, 2, 8, 5, 4, 6, 1), channels_last=True)
    for a, b in zip(evaluate(compiled, x, upstream), evaluate(native, x, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING)


def assert_second_derivatives_are_the_references(function):
    """Derivatives of a function of all first derivatives, against float64."""
    x, upstream = make((2, 2, 6, 4, 5, 3, 1))

    def second(function, inputs):
        leaves = [v.detach().clone().requires_grad_() for v in inputs]
        up = upstream.to(leaves[0].dtype, copy=True).requires_grad_()
        first = torch.autograd.grad(function(*leaves), leaves, up, create_graph=True)
        penalty = sum((g.sin() * (i + 1)).sum() for i, g in enumerate(first))
        return torch.autograd.grad(penalty, [*leaves, up])

    truth = second(multihead_loss_reference, [v.double() for v in x])
    for a, b in zip(second(function, x), truth, strict=True):
        assert error(a, b.numpy()) < FLOAT32_GRADIENT  # sin() of values in the hundreds: float32 arguments carry 1e-5


@needs_native
def test_second_derivatives_go_through_the_reference():
    assert_second_derivatives_are_the_references(native)


@needs_native
def test_second_derivative_of_one_input_and_third_derivatives():
    x, _ = make((1, 2, 3, 3, 3, 2, 1))

    def derivatives(function, inputs):
        h, *rest = inputs
        h = h.detach().requires_grad_()
        (first,) = torch.autograd.grad(function(h, *rest).square().sum(), h, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), h, create_graph=True)
        (third,) = torch.autograd.grad(second.sum(), h)
        return first, second, third

    truth = derivatives(multihead_loss_reference, [v.double() for v in x])
    for a, b in zip(derivatives(native, x), truth, strict=True):
        assert error(a, b.detach().numpy()) < FLOAT32_NETWORK


@needs_native
def test_half_and_mixed_types_are_promoted():
    x, _ = make((2, 2, 8, 5, 5, 4, 1))
    half = [x[0].half(), x[1].half(), *x[2:]]
    expected = native(*(v.float() for v in half))
    assert torch.equal(multihead_loss(*half), expected)
    mixed = [x[0].bfloat16(), *x[1:]]
    assert torch.equal(multihead_loss(*mixed), native(mixed[0].float(), *x[1:]))
    assert multihead_loss(*(v.double() for v in x)).dtype == torch.float64


# --- Refusals ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda v: v[0], "expected h with 4 dimensions"),
        (0, lambda v: v[:, :3], r"expected weight \[K\*C, 3, 3, 3\]"),
        (0, lambda v: v.to(torch.uint8), r"floating type; got torch.uint8. Convert it with .float\(\)"),
        (0, lambda v: v[:, :, :0], "c, H, W >= 1"),
        (1, lambda v: v[:, :, :2], "expected weight"),
        (1, lambda v: v[:5], "expected bias"),
        (1, lambda v: v[:0], "expected bias"),
        (2, lambda v: v[None], "expected bias with 1 dimension"),
        (3, lambda v: v[:3], r"expected target \[4, C, 5, 5\]"),
        (3, lambda v: v[:, :, :4], r"expected target \[4, C, 5, 5\]"),
        (3, lambda v: v.expand(-1, 4, -1, -1), "a multiple of target's 4 channels; got 6 rows"),
        (3, lambda v: v.to("meta"), "Move them to one device"),
        (4, lambda v: v[:0], "not a multiple of the 0 level weights"),
        (4, lambda v: torch.ones(3), "not a multiple of the 3 level weights"),
    ],
)
def test_refusals_say_what_came(index, change, message):
    x, _ = make((2, 2, 4, 5, 5, 6, 1))
    x[index] = change(x[index])
    with pytest.raises(InputError, match=message):
        multihead_loss(*x)


@needs_native
def test_native_refuses_float64():
    x, _ = make((1, 1, 2, 3, 3, 2, 1), torch.float64)
    with pytest.raises(InputError, match="float32 and bfloat16"):
        native(*x)


# --- CUDA -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """csrc/cuda/multihead_loss.cu compiled for the CPU: its indexing and sums, run by fibers."""
    compiler = shutil.which("g++")
    if not compiler or not sys.platform.startswith("linux"):
        pytest.skip("the emulation of the CUDA kernels needs g++ on Linux")
    library = tmp_path_factory.mktemp("cuda") / "emulated.so"
    folder = ROOT / "tests/ops/cuda_emulation"
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        f"-I{ROOT / 'csrc'}",
        f"-I{folder}",
        "-o",
        str(library),
    ]
    subprocess.run([*command, str(folder / "multihead_loss.cpp")], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.scratch_floats.restype = ctypes.c_int64
    return loaded


def emulate(library, x, upstream):
    """Loss and the five gradients by the emulated CUDA kernels."""

    def integers(values):
        return (ctypes.c_int64 * len(values))(*values)

    def pointers(tensors):
        return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))

    h, weight, _, target, level = x
    channels = target.shape[1]
    shape = integers([len(h) // len(level), len(level), *h.shape[1:], len(weight) // channels, channels])
    half, loss, rows = int(h.dtype == torch.bfloat16), torch.empty_like(upstream), torch.empty(len(h))
    scratch = [torch.full((library.scratch_floats(shape, i),), float("nan")) for i in (0, 1)]
    library.forward(
        shape,
        half,
        integers(h.stride()),
        pointers(x),
        ctypes.c_void_p(loss.data_ptr()),
        ctypes.c_void_p(scratch[0].data_ptr()),
    )
    grads = [torch.empty_like(v) for v in x[:4]]
    library.backward(
        shape,
        half,
        integers(h.stride()),
        pointers(x),
        integers(grads[0].stride()),
        pointers([upstream, *grads, rows]),
        ctypes.c_void_p(scratch[1].data_ptr()),
    )
    return [loss, *grads, rows.view(-1, len(level)).sum(0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    "shape",
    [SHAPES[n] for n in SHAPES if n not in SLOW_TO_EMULATE],
    ids=[n for n in SHAPES if n not in SLOW_TO_EMULATE],
)
def test_cuda_kernels_emulated(emulated, shape, channels_last, dtype):
    x, upstream = make(shape, dtype, channels_last)
    assert_as_good_as_naive(emulate(emulated, x, upstream), x, upstream)


def test_auto_takes_torch_on_a_gpu(monkeypatch):
    """The CUDA kernels are there to be asked for; they are slower (docs/kernels.md)."""
    monkeypatch.setattr(module, "_why_not", lambda device: "")
    assert module._use_native("cpu", torch.float32, "auto") and module._use_native("cuda", torch.float32, "native")
    assert not module._use_native("cuda", torch.float32, "auto") and not module._use_native(
        "cuda", torch.bfloat16, "auto"
    )


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_cuda(monkeypatch, shape, channels_last, dtype):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x, upstream = make(shape, dtype, channels_last, device="cuda")
    got = evaluate(native, x, upstream)
    assert_as_good_as_naive(got, x, upstream)
    for a, b in zip(got, evaluate(native, x, upstream), strict=True):
        assert torch.equal(a, b)  # no atomics: the same bits again


@pytest.mark.gpu
@needs_gpu
def test_cuda_runs_on_the_current_stream():
    x, _ = make(SHAPES["fashion"], device="cuda")
    expected = native(*x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        h = x[0].clone()
        for _ in range(50):
            h = h * 1.0 + 0.0  # work that the kernel must wait for
        loss = native(h, *x[1:])
    stream.synchronize()
    assert torch.equal(loss, expected)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.xfail(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 12),
    reason="torch 2.11 on an H200: a convolution's second derivative refuses symbolic sizes, inside torch",
    strict=False,
)
def test_opcheck_cuda():
    x, upstream = make((2, 2, 4, 3, 5, 3, 2), device="cuda")
    torch.library.opcheck(multihead_native.forward_op, (*(v.requires_grad_() for v in x), False, False))
    nothing = (x[0].new_empty(0), x[0].new_empty(0, dtype=torch.float64))
    torch.library.opcheck(multihead_native.backward_op, (upstream, *x, *nothing, [True] * 5))
