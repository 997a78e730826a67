"""The kernels of rdc.networks.fused against PyTorch: in Triton's interpreter where Triton is installed, compiled on a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rdc.networks import fused, resampling
from rdc.networks.blocks import GroupNorm, UNetBlock, fastest_layout
from rdc.networks.fused import norm_act, norm_act_reference, residual_sum
from tests.tolerances import FLOAT32_NETWORK, FLOAT32_ROUNDINGS, FLOAT32_SUM, FLOAT32_ULP

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def needs_kernels(test):
    """Mark a test of the kernels."""
    there = INTERPRETED or (torch.cuda.is_available() and not fused.why_not())
    why = "needs Triton and a GPU; where only Triton is installed, test_kernels_in_the_interpreter runs this test"
    return pytest.mark.gpu(pytest.mark.skipif(not there, reason=why)(test))


SHAPES = [  # channels, groups, height, width
    (8, 2, 3, 5),
    (40, 8, 2, 3),
    (192, 32, 4, 4),  # six channels in a group
    (384, 32, 8, 8),
    (6, 1, 1, 1),
]


@pytest.fixture(autouse=True)
def on_any_device(monkeypatch):
    """In the interpreter the kernels take tensors of the CPU."""
    if INTERPRETED:
        monkeypatch.setattr(
            fused, "usable", lambda x: x.is_contiguous(memory_format=torch.channels_last) and x.numel() > 0
        )


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)
    return values.to(DEVICE, dtype)


def laid_out(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return ((found.double() - truth.double()).norm() / (truth.double().norm() + 1e-6)).item()


@needs_kernels
@pytest.mark.parametrize("dtype, most", [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("pre, adaptive, silu", [(0, 0, 1), (1, 0, 0), (1, 1, 1), (2, 1, 1), (2, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("channels, groups, height, width", SHAPES)
def test_norm_and_its_gradients(channels, groups, height, width, pre, adaptive, silu, dtype, most):
    """Values and every gradient against float64."""
    x = laid_out(2 + drawn(3, channels, height, width)).to(dtype)
    given = {"x": x, "weight": drawn(channels, seed=1), "bias": drawn(channels, seed=2)}
    if pre:
        given["pre"] = drawn(*[3] * (pre == 1), channels, seed=3)  # 2: the same for all images
    if adaptive:
        given["both"] = drawn(3, 2 * channels, seed=4, dtype=dtype)

    def run(function, values):
        values = {name: value.detach().requires_grad_() for name, value in values.items()}
        conditions = values["both"].chunk(2, 1) if adaptive else (None, None)
        y = function(
            values["x"], values["weight"], values["bias"], groups, 1e-5, values.get("pre"), *conditions, bool(silu)
        )
        upstream = drawn(*y.shape, seed=5).to(y.dtype)
        return y, torch.autograd.grad(y, list(values.values()), upstream)

    y, grads = run(norm_act, given)
    truth, true_grads = run(norm_act_reference, {name: value.double() for name, value in given.items()})
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert relative(y, truth) < most
    for name, mine, theirs in zip(given, grads, true_grads, strict=True):
        assert mine.dtype == given[name].dtype
        scale = theirs.abs().max() + 1e-3  # one position in a group: a gradient of zero but for rounding
        assert ((mine.double() - theirs).abs().max() / scale).item() < 8 * most, name


@needs_kernels
def test_large_groups_and_a_bias_for_all_images():
    x = laid_out(drawn(2, 8, 32, 32))
    pre = drawn(8)
    assert fused.fits(x, 2) and not fused.fits(laid_out(drawn(1, 64, 32, 32)), 2)
    found = norm_act(x, drawn(8, seed=1), drawn(8, seed=2), 2, 1e-5, pre)
    assert relative(found, norm_act_reference(x, drawn(8, seed=1), drawn(8, seed=2), 2, 1e-5, pre)) < FLOAT32_ROUNDINGS


@needs_kernels
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_residual_sum_and_its_gradients(dtype, most):
    x, skip = (laid_out(drawn(3, 20, 5, 7, seed=seed)).to(dtype).requires_grad_() for seed in (0, 1))
    bias = drawn(20, seed=2).requires_grad_()
    y = residual_sum(x, skip, bias, 0.7)
    truth = 0.7 * (x.double() + skip.double() + bias.double()[:, None, None])
    upstream = drawn(*y.shape, seed=3, dtype=dtype)
    assert y.dtype == dtype and relative(y, truth) < most
    grads = torch.autograd.grad(y, (x, skip, bias), upstream)
    for mine, theirs in zip(grads, torch.autograd.grad(truth, (x, skip, bias), upstream.double()), strict=True):
        assert relative(mine, theirs) < 2 * most
    assert relative(residual_sum(x, skip, None, 0.7), 0.7 * (x.double() + skip.double())) < most


@needs_kernels
@pytest.mark.parametrize("kind", [{}, {"num_heads": 1}, {"down": True}, {"up": True}])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_block_is_the_same_block(kind, adaptive, monkeypatch):
    """Values, gradients and second derivatives of a block with kernels are those without."""
    settings = {"adaptive_scale": adaptive, "zero_scale": 1.0, "skip_scale": 0.7, "resample_proj": True, **kind}
    block = UNetBlock(8, 12, 16, **settings).to(DEVICE, memory_format=torch.channels_last)
    with torch.no_grad():
        for i, p in enumerate(block.parameters()):
            p += 0.1 * drawn(*p.shape, seed=i)
    x, emb = laid_out(drawn(2, 8, 4, 4)).requires_grad_(), drawn(2, 16)
    given = [x, *block.parameters()]

    def everything():
        y = block(x, emb)
        upstream = drawn(*y.shape, seed=9)
        first = torch.autograd.grad(y, given, upstream, retain_graph=True)
        (slope,) = torch.autograd.grad(y, x, upstream, create_graph=True)
        second = torch.autograd.grad(slope.square().sum(), given, allow_unused=True)
        return y, *first, *(s for s in second if s is not None)

    calls = []
    plain_norm = fused.norm_act
    monkeypatch.setattr(fused, "norm_act", lambda *args, **more: calls.append(1) or plain_norm(*args, **more))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = everything()
        assert len(calls) == 2 + ("num_heads" in kind)
        monkeypatch.setattr(fused, "usable", lambda x: False)
        expected = everything()
    assert len(calls) == 2 + ("num_heads" in kind) and len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).abs().max() <= FLOAT32_SUM * theirs.abs().max() + FLOAT32_SUM


def test_a_block_whose_groups_are_too_large_computes_the_same(monkeypatch):
    """The fallbacks of the block with kernels need no kernel."""
    block = UNetBlock(8, 12, 16, adaptive_scale=True, zero_scale=1.0, resample_proj=True)
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    expected = block(x, emb)
    monkeypatch.setattr(GroupNorm, "takes", lambda self, x: False)
    monkeypatch.setattr(fused, "usable", lambda x: False)
    torch.testing.assert_close(block._forward_fused(x, emb), expected, rtol=FLOAT32_NETWORK, atol=FLOAT32_SUM)


def test_what_is_left_to_pytorch(monkeypatch):
    if not INTERPRETED:
        assert not fused.usable(torch.randn(2, 8, 4, 4)) and not fused.usable(
            laid_out(torch.randn(2, 8, 4, 4)).double()
        )
    monkeypatch.setenv("RDC_DISABLE_TRITON", "1")
    assert "RDC_DISABLE_TRITON=1" in fused.why_not()
    assert fastest_layout("cuda") is torch.contiguous_format and fastest_layout("cpu") is torch.channels_last
    monkeypatch.setenv("RDC_DISABLE_TRITON", "0")
    monkeypatch.setattr(fused, "_triton_found", lambda: False)
    assert fused.why_not() == "Triton is not installed" and fastest_layout("cuda") is torch.contiguous_format
    monkeypatch.setattr(fused, "_triton_found", lambda: True)
    monkeypatch.setattr(fused, "_too_old", lambda: "the GPU is older than compute capability 8.0")
    assert "older" in fused.why_not()
    monkeypatch.setattr(fused, "_too_old", lambda: "")
    assert fused.why_not() == "" and fastest_layout("cuda") is torch.channels_last


@pytest.mark.parametrize("groups, elements", [(32, 16384), (32, 8192), (5, 4096), (1, 8192)])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_programs_cover_every_group(groups, elements, size):
    x = torch.empty(3, groups * 6, size, size)
    sizes, (images, programs) = fused._tile(x, groups, elements)
    assert images == 3 and (programs - 1) * sizes["TILE"] < groups <= programs * sizes["TILE"]
    assert sizes["ROWS"] >= size * size and sizes["PADDED"] == 8 and sizes["GROUP"] == 6
    held = sizes["ROWS"] * sizes["PADDED"] * sizes["TILE"]
    assert held <= max(elements, sizes["ROWS"] * sizes["PADDED"]) and 1 <= sizes["num_warps"] <= 16


def test_resampling_in_any_layout():
    """On a GPU channels_last stays channels_last."""
    y, small = drawn(2, 6, 4, 8), torch.nn.functional.avg_pool2d(drawn(2, 6, 4, 8), 2)
    box = torch.ones(1, 1, 2, 2, device=DEVICE) / 4
    for given in (y, laid_out(y)):
        torch.testing.assert_close(resampling.filter_down(given, box, 0), small, rtol=FLOAT32_ULP, atol=FLOAT32_ULP)
    assert DEVICE == "cpu" or laid_out(resampling.filter_down(laid_out(y), box, 0)).stride()[1] == 1
    x = drawn(2, 6, 3, 5)
    expected = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    taps = torch.ones(1, 1, 2, 2, device=DEVICE) / 4
    for given in (x, laid_out(x)):
        assert torch.equal(resampling.filter_up(given, taps), expected)
    if DEVICE == "cuda":
        assert resampling.filter_up(laid_out(x), taps).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.skipif(
    INTERPRETED or torch.cuda.is_available(), reason="the tests above run compiled, or are the ones started here"
)
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which comes with CUDA builds of PyTorch"
)
def test_kernels_in_the_interpreter():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-3000:]
