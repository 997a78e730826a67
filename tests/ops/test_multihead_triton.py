"""multihead_loss in Triton: on a CPU by Triton's interpreter, compiled without a device, and, marked, on a GPU.

The interpreter must be chosen before the kernels are imported, so ``test_interpreted`` runs this file again in a process with
TRITON_INTERPRET=1. Without triton (CPU builds of torch, and CI) it is skipped; what follows from shapes alone is tested everywhere.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from rdc.errors import ConfigError, InputError
from rdc.ops import multihead_triton as module
from rdc.ops.multihead_loss import _triton_wins, multihead_loss
from rdc.ops.multihead_reference import multihead_loss_reference
from tests.tolerances import BFLOAT16_OP, BFLOAT16_ORDER, FLOAT32_NETWORK, FLOAT32_SUM, TF32

from .test_multihead_loss import (
    NAMES,
    ONE_ROUNDING,
    SHAPES,
    TIMES_NAIVE,
    assert_as_good_as_naive,
    assert_second_derivatives_are_the_references,
    error,
    evaluate,
    make,
    naive,
    oracle,
)

ROOT = Path(__file__).resolve().parents[2]
HAVE_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAVE_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(not HAVE_TRITON, reason="triton is not installed (CPU builds of torch lack it)")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_interpreted")
WHY_NO_GPU = "the interpreter is on" if INTERPRETED else module.why_not("cuda")
needs_gpu = pytest.mark.skipif(bool(WHY_NO_GPU), reason=f"Triton kernels: {WHY_NO_GPU}")
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
both_layouts = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])

#: N, T, c, H, W, K, C: small enough to interpret
SMALL = {
    "one class": (1, 2, 16, 5, 7, 1, 1),
    "three": (2, 1, 20, 6, 3, 3, 3),
    "ten, colour": (1, 3, 17, 7, 5, 10, 3),
    "twelve channels": (1, 2, 17, 3, 5, 3, 12),
    "hundred": (1, 2, 8, 3, 3, 100, 1),
    "hundred, colour": (1, 1, 16, 3, 4, 100, 3),
    "several tiles": (1, 2, 24, 13, 11, 23, 3),
    "one line": (2, 2, 3, 1, 5, 1, 1),
    "one column": (1, 2, 17, 9, 1, 13, 2),
    "one pixel": (3, 1, 1, 1, 1, 4, 1),
}


def triton(*x):
    return multihead_loss(*x, backend="triton")


def check(got, x, upstream):
    """As good as naive torch. Both round R to bfloat16; where few of them are added that need not average out, in either."""
    truth, plain, few = oracle(x, upstream), evaluate(naive, x, upstream), x[3][:, :1].numel() * len(x[2]) < 10_000
    through_r = ("h", "weight") if few and x[0].dtype == torch.bfloat16 else ()
    assert_as_good_as_naive(got, x, upstream, [name for name in NAMES if name not in through_r])
    for name, value, best, other in zip(NAMES, got, truth, plain, strict=True):
        if name in through_r:
            assert value.shape == best.shape
            assert error(value, best) <= TIMES_NAIVE * error(other, best) + ONE_ROUNDING[torch.bfloat16], name


# --- Everywhere -----------------------------------------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process inside")
def test_interpreted():
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-p", "no:cacheprovider", __file__]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]


def test_missing_triton_says_what_to_do(monkeypatch):
    def fail():
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(module, "_kernels", fail)
    x, _ = make((1, 1, 2, 3, 3, 2, 1))
    with pytest.raises(ConfigError, match="'triton' is not available: triton cannot be imported.*Use backend='auto'"):
        triton(*x)


def test_the_environment_switches_it_off(monkeypatch):
    monkeypatch.setenv("RDC_DISABLE_TRITON", "1")
    x, _ = make((1, 1, 2, 3, 3, 2, 1))
    with pytest.raises(ConfigError, match="'triton' is not available: RDC_DISABLE_TRITON=1 is set"):
        triton(*x)


def test_float64_is_refused():
    x, _ = make((1, 1, 2, 3, 3, 2, 1), torch.float64)
    with pytest.raises(InputError, match="take float32 and bfloat16; got torch.float64"):
        triton(*x)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_a_cpu_is_refused():
    x, _ = make((1, 1, 2, 3, 3, 2, 1))
    with pytest.raises(ConfigError, match="for CUDA devices; got 'cpu'"):
        triton(*x)


def test_auto_takes_them_where_they_were_measured_to_win(monkeypatch):
    wide, narrow = torch.empty(300, 128, 3, 3), torch.empty(120, 128, 3, 3)
    h = torch.empty(2, 128, 4, 4)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert module.preferred(h, wide) and module.preferred(h.bfloat16(), wide)
    assert not module.preferred(h, narrow) and not module.preferred(h.double(), wide)
    assert not module.preferred(torch.empty(2, 268, 4, 4), wide)  # channels that do not load in whole vectors
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not module.preferred(h, wide) and module.preferred(h.bfloat16(), wide)
    assert not _triton_wins(h.bfloat16(), wide)  # on a CPU


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "tf32", "ieee"])
@pytest.mark.parametrize("shape", [*SHAPES.values(), *SMALL.values(), (1, 1, 128, 32, 32, 1000, 3)])
def test_tiles_fit_the_kernel(shape, precision, backward):
    _, _, c, height, width, classes, channels = shape
    tile = module.default_tile(height * width, c, classes, channels, precision, backward)
    for size in tile[:3]:
        assert size >= 16 and size & (size - 1) == 0
    assert tile.channels <= 64 and tile.pixels * tile.outputs <= 128 * 128
    if c % 64 == 0:
        assert c % tile.channels == 0 and tile.channels * (2 if precision == "bfloat16" else 4) in (64, 128)
    stage = (tile.pixels + tile.outputs) * tile.channels * (2 if precision == "bfloat16" else 4)
    assert tile.stages * stage <= 99 * 1024


@pytest.mark.parametrize(
    ("outputs", "across", "expected"),
    [
        (300, 128, [(128, 2), (64, 1)]),
        (3000, 128, [(128, 23), (64, 1)]),
        (256, 128, [(128, 2)]),
        (200, 128, [(128, 2)]),
        (130, 128, [(128, 1), (16, 1)]),
        (30, 32, [(32, 1)]),
        (5, 16, [(16, 1)]),
    ],
)
def test_groups_cover_the_outputs(outputs, across, expected):
    assert module._groups(outputs, across) == expected
    assert sum(width * groups for width, groups in expected) >= (outputs + 7) // 8 * 8


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(("classes", "channels"), [(3, 1), (10, 3), (8, 2)])
def test_weights_are_arranged_and_restored(planes, classes, channels):
    weight = torch.randn(classes * channels, 5, 3, 3)
    plane = (classes + 7) // 8 * 8
    line = channels * plane if planes else (classes * channels + 7) // 8 * 8
    plan = module._Plan("ieee", module.Tile(16, 16, 16, 4, 1, planes), 1, [], 1, line, plane, 1)
    there = module._arranged(weight, plan, channels)
    assert len(there) == line and line % 8 == 0
    assert torch.equal(module._restored(there, plan, channels, len(weight)), weight)
    for k in range(classes):
        for j in range(channels):
            assert torch.equal(there[j * plane + k if planes else k * channels + j], weight[k * channels + j])


class Compiled:
    """Stands for a kernel: a launch compiles it for an architecture, specialised as Triton would, and runs nothing."""

    def __init__(self, kernel, architecture):
        self.kernel, self.architecture, self.found = kernel, architecture, []

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *arguments, num_warps, num_stages=3, maxnreg=None, **named):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        names = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
        given = {**dict(zip(self.kernel.arg_names, arguments, strict=False)), **named}
        fixed = {p.name for p in self.kernel.params if p.is_constexpr}
        types, constants, divisible = {}, {}, {}
        for i, name in enumerate(self.kernel.arg_names):
            value = given[name]
            if name in fixed or (isinstance(value, int) and value == 1):
                types[name], constants[(i,)] = "constexpr", value
                continue
            is_tensor = isinstance(value, torch.Tensor)
            types[name] = names[value.dtype] if is_tensor else "i32"
            if (value.data_ptr() if is_tensor else value) % 16 == 0:
                divisible[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, types, constants, divisible)
        options = {"num_warps": num_warps, "num_stages": num_stages, "maxnreg": maxnreg}
        self.found.append(compile(source, target=GPUTarget("cuda", self.architecture, 32), options=options))


def compile_for(monkeypatch, architecture, x, upstream):
    """What forward and backward launch."""
    real = module._kernels()
    kernels = SimpleNamespace(
        residuals=Compiled(real.residuals, architecture), transpose=Compiled(real.transpose, architecture)
    )
    monkeypatch.setattr(module, "_kernels", lambda: kernels)
    module.forward_op(*x)
    module.backward_op(upstream, *x, [True] * 5)
    return kernels


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("architecture", [80, 90])
@both_types
@pytest.mark.parametrize("classes", [10, 100])
def test_compiled_kernels_use_tensor_cores(monkeypatch, classes, dtype, architecture):
    x, upstream = make((1, 1, 64, 32, 32, classes, 3), dtype)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    kernels = compile_for(monkeypatch, architecture, x, upstream)
    word = {90: "wgmma.mma_async", 80: "mma.sync"}[architecture]
    for made in kernels.residuals.found:
        assert word in made.asm["ptx"] and "cp.async.cg.shared.global" in made.asm["ptx"]
        assert made.metadata.shared <= 99 * 1024
    assert len(kernels.residuals.found) == {10: 2, 100: 3}[classes]  # 300 outputs forward: 256 + 44, backward: 5 x 64
    assert len(kernels.transpose.found) == 3  # h twice, its gradient once


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("tf32", [False, True])
@both_types
@both_layouts
def test_every_shape_compiles(monkeypatch, channels_last, dtype, tf32):
    """Sizes of one become constants when a kernel is launched: what the interpreter does not show."""
    for shape in SHAPES.values():
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
            x, upstream = make(shape, dtype, channels_last)
            assert len(compile_for(patch, 90, x, upstream).residuals.found) >= 2


# --- Interpreted ----------------------------------------------------------------------------------------------------------------------


@interpreted
@both_types
@both_layouts
@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL.keys())
def test_as_good_as_naive_torch(shape, channels_last, dtype):
    x, upstream = make(shape, dtype, channels_last)
    check(evaluate(triton, x, upstream), x, upstream)


@interpreted
@pytest.mark.parametrize("planes", [False, True], ids=["packed", "planes"])
@pytest.mark.parametrize("block", [(16, 16, 16), (32, 64, 32), (64, 128, 64)])
@pytest.mark.parametrize("shape", ["three", "ten, colour", "twelve channels"])
def test_every_tile_gives_the_same(shape, block, planes):
    x, upstream = make(SMALL[shape])
    with module.tile_of(module.Tile(*block, 4, 1, planes)):
        got = evaluate(triton, x, upstream)
    check(got, x, upstream)


@interpreted
def test_rows_in_chunks(monkeypatch):
    x, upstream = make((3, 2, 20, 6, 5, 7, 3))
    whole = evaluate(triton, x, upstream)
    monkeypatch.setattr(module, "BYTES_AT_ONCE", 4 * 30 * 24 * 4)
    assert module._plan(x[0], x[1], x[3], True).rows_at_once == 4  # of six
    for name, a, b in zip(NAMES, evaluate(triton, x, upstream), whole, strict=True):
        if name == "weight":  # another order of its sum
            torch.testing.assert_close(a, b, rtol=FLOAT32_SUM, atol=FLOAT32_NETWORK)
        else:
            assert torch.equal(a, b), name


@interpreted
def test_layouts_of_every_input():
    x, upstream = make((2, 2, 20, 6, 9, 5, 2))
    h = x[0]
    expected = evaluate(triton, x, upstream)
    layouts = {
        "sliced": torch.stack([h, h + 1], 2)[:, :, 0],
        "rows swapped": h.transpose(2, 3).contiguous().transpose(2, 3),
        "every other channel": torch.stack([h, h + 1], 2).flatten(1, 2)[:, ::2],
        "wider, channels last": F.pad(h, (2, 3, 1, 1)).contiguous(memory_format=torch.channels_last)[:, :, 1:-1, 2:-3],
    }
    for name, layout in layouts.items():
        leaf = layout.requires_grad_()
        loss = triton(leaf, *x[1:])
        (grad,) = torch.autograd.grad(loss, leaf, upstream)
        assert torch.equal(loss, expected[0]) and torch.equal(grad, expected[1]), name
    others = [x[1].transpose(0, 1).contiguous().transpose(0, 1), x[3].transpose(2, 3).contiguous().transpose(2, 3)]
    got = evaluate(triton, [h, others[0], x[2], others[1], x[4]], upstream)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@interpreted
@both_layouts
def test_gradients_not_asked_for_cost_nothing(channels_last):
    x, upstream = make(SMALL["ten, colour"], channels_last=channels_last)
    full = evaluate(triton, x, upstream)
    assert full[1].stride() == x[0].stride()
    for asked in range(5):
        wanted = [i == asked for i in range(5)]
        grads = module.backward_op(upstream, *x, wanted)
        assert [g.numel() > 0 for g in grads] == wanted
        assert torch.equal(grads[asked], full[1 + asked])


@interpreted
def test_no_images_no_losses():
    x, upstream = make((0, 3, 8, 5, 5, 6, 1))
    got = evaluate(triton, x, upstream)
    assert got[0].shape == (0, 6)
    for grad, v in zip(got[1:], x, strict=True):
        assert grad.shape == v.shape and not grad.any()


@interpreted
@pytest.mark.parametrize("reduce", [torch.Tensor.sum, lambda loss: loss[:, 3].sum()])
def test_upstream_gradients_with_stride_zero(reduce):
    x, _ = make((3, 2, 8, 5, 5, 6, 1))

    def run(function):
        leaves = [v.detach().requires_grad_() for v in x]
        return torch.autograd.grad(reduce(function(*leaves)), leaves)

    for a, b in zip(run(triton), run(multihead_loss_reference), strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT32_NETWORK, atol=FLOAT32_NETWORK)


@interpreted
def test_second_derivatives_go_through_the_reference():
    assert_second_derivatives_are_the_references(triton)


@interpreted
def test_half_is_promoted():
    x, _ = make((2, 2, 8, 5, 5, 4, 1))
    half = [x[0].half(), x[1].half(), *x[2:]]
    assert torch.equal(triton(*half), triton(*(v.float() for v in half)))


@interpreted
@both_types
def test_opcheck(dtype):
    x, upstream = make((2, 2, 8, 3, 5, 3, 2), dtype, True)
    tolerance = {"rtol": BFLOAT16_ORDER, "atol": BFLOAT16_ORDER} if dtype == torch.bfloat16 else {}
    leaves = [v.requires_grad_() for v in x]
    torch.library.opcheck(module.forward_op, tuple(leaves), **tolerance)
    wanted = [True, False, True, True, True]
    torch.library.opcheck(module.backward_op, (upstream.requires_grad_(), *leaves, wanted), **tolerance)


@interpreted
def test_compiles_whole_with_dynamic_batch():
    torch._dynamo.reset()
    compiled = torch.compile(lambda *z: 2 * triton(*z), fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 3):
        x, upstream = make((n, 2, 8, 5, 4, 6, 1), seed=n)
        expected = evaluate(multihead_loss_reference, x, 2 * upstream)
        expected[0] = 2 * expected[0]
        for a, b in zip(evaluate(compiled, x, upstream), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=FLOAT32_NETWORK, atol=FLOAT32_NETWORK)


# --- GPU ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
@both_types
@both_layouts
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_gpu(monkeypatch, shape, channels_last, dtype):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    x, upstream = make(shape, dtype, channels_last, device="cuda")
    got = evaluate(triton, x, upstream)
    check(got, x, upstream)
    for a, b in zip(got, evaluate(triton, x, upstream), strict=True):
        assert torch.equal(a, b)  # the same bits again


@pytest.mark.gpu
@needs_gpu
@both_layouts
@pytest.mark.parametrize("shape", ["colour", "fashion", "odd sizes, predicted again", "shipped head"])
def test_gpu_in_tf32(monkeypatch, shape, channels_last):
    x, upstream = make(SHAPES[shape], channels_last=channels_last, device="cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for name, a, b in zip(NAMES, evaluate(triton, x, upstream), oracle(x, upstream), strict=True):
        assert error(a, b) < TF32, name


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("planes", [False, True], ids=["packed", "planes"])
@pytest.mark.parametrize(
    ("dtype", "block"),
    [
        (torch.bfloat16, (128, 128, 64, 8, 3)),
        (torch.bfloat16, (128, 32, 64, 4, 3)),
        (torch.float32, (128, 64, 32, 4, 3)),
    ],
    ids=["bfloat16, wide", "bfloat16, narrow", "tf32"],
)
def test_gpu_with_other_tiles(monkeypatch, dtype, block, planes):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    x, upstream = make((2, 2, 64, 16, 13, 30, 3), dtype, device="cuda")
    with module.tile_of(module.Tile(*block, planes)):
        got = evaluate(triton, x, upstream)
    for name, a, b in zip(NAMES, got, oracle(x, upstream), strict=True):
        assert error(a, b) < (TF32 if dtype == torch.float32 else BFLOAT16_OP), name


@pytest.mark.gpu
@needs_gpu
def test_gpu_rows_in_chunks_and_on_the_current_stream(monkeypatch):
    x, upstream = make((3, 2, 64, 16, 16, 10, 3), torch.bfloat16, device="cuda")
    whole = evaluate(triton, x, upstream)
    monkeypatch.setattr(module, "BYTES_AT_ONCE", 4 * 256 * 64 * 2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        h = x[0].clone()
        for _ in range(50):
            h = h * 1.0 + 0.0  # work that the kernel must wait for
        got = evaluate(triton, [h, *x[1:]], upstream)
    stream.synchronize()
    for name, a, b in zip(NAMES, got, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=BFLOAT16_ORDER, atol=BFLOAT16_ORDER * float(b.abs().max()), msg=name)
