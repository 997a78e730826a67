"""The CPU's group norm with conditioning and SiLU against float64: values, gradients, second derivatives, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.dlpack import to_dlpack

from rdc.networks import fused
from rdc.networks.fused import norm_act, norm_act_reference
from rdc.ops import _native
from tests.tolerances import BFLOAT16_OP, FLOAT32_NETWORK, FLOAT32_SUM, FLOAT64_ORDER, close

needs_extension = pytest.mark.skipif(bool(_native.why_not("cpu")), reason=f"native kernels: {_native.why_not('cpu')}")

#: images, channels, groups, height, width: one value; groups that cut vectors; channels that fill none; more vectors than sums in registers
CASES = [(1, 2, 1, 1, 1), (2, 12, 3, 3, 5), (3, 40, 8, 2, 3), (2, 156, 26, 4, 4), (2, 6, 6, 7, 7)]
EPS = 1e-5


def isas():
    if _native.why_not("cpu"):
        return []
    return _native.ISAS[: _native.ISAS.index(_native.extension().cpu_isa()) + 1]


def operands(case, pre=2, adaptive=True, seed=0, offset=3.0):
    """float32: x in channels_last, weight, bias, pre, scale, shift, and an upstream gradient."""
    B, C, _, H, W = case
    make = torch.Generator().manual_seed(seed + sum(case))

    def drawn(*shape):
        return torch.randn(shape, generator=make)

    x, upstream = (drawn(B, C, H, W).contiguous(memory_format=torch.channels_last) for _ in range(2))
    before = None if not pre else drawn(B, C) if pre == 2 else drawn(C)
    scale, shift = (drawn(B, C), drawn(B, C)) if adaptive else (None, None)
    return (x * 2 + offset, drawn(C), drawn(C), before, scale, shift), upstream


def by_loops(x, weight, bias, pre, scale, shift, groups, silu):
    x = x.double().numpy()
    B, C = x.shape[:2]
    y = np.empty_like(x)
    for b, g in itertools.product(range(B), range(groups)):
        part = slice(g * C // groups, (g + 1) * C // groups)
        values = x[b, part] + (0 if pre is None else pre.double().expand(B, C)[b, part, None, None].numpy())
        y[b, part] = (values - values.mean()) / np.sqrt(values.var() + EPS)
    rows = [t.double().numpy()[..., None, None] for t in (weight, bias)]
    y = y * rows[0] + rows[1]
    if scale is not None:
        y = y * (1 + scale.double().numpy()[..., None, None]) + shift.double().numpy()[..., None, None]
    return torch.from_numpy(y / (1 + np.exp(-y)) if silu else y)


def settings(case):
    return case[2], EPS


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("pre", "adaptive", "silu"), [(0, False, True), (1, False, True), (2, True, True), (2, True, False)]
)
def test_reference_is_the_formula(case, pre, adaptive, silu):
    given, _ = operands(case, pre, adaptive)
    x, weight, bias, *conditions = (None if t is None else t.double() for t in given)
    close(
        norm_act_reference(x, weight, bias, *settings(case), *conditions, silu),
        by_loops(*given, case[2], silu),
        FLOAT64_ORDER,
    )


def called(run, given, case, silu):
    x, weight, bias, *conditions = given
    return run(x, weight, bias, *settings(case), *conditions, silu)


@needs_extension
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("pre", "adaptive", "silu"), [(0, False, True), (1, False, True), (2, True, True), (2, True, False)]
)
def test_kernel_and_its_gradients(case, pre, adaptive, silu, isa, monkeypatch):
    """At most twice PyTorch's own float32 error, both against float64."""
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    given, upstream = operands(case, pre, adaptive)
    results = []
    for kind, run in (
        (torch.float64, norm_act_reference),
        (torch.float32, norm_act_reference),
        (torch.float32, norm_act),
    ):
        leaves = [None if t is None else t.to(kind).requires_grad_() for t in given]
        there = [leaf for leaf in leaves if leaf is not None]
        y = called(run, leaves, case, silu)
        results.append([t.double() for t in (y.detach(), *torch.autograd.grad(y, there, upstream.to(kind)))])
    for truth, naive, made in zip(*results, strict=True):
        most = max(truth.abs().max(), 1)  # where each channel is a group, the gradient of pre is 0
        assert (made - truth).abs().max() <= 2 * (naive - truth).abs().max() + FLOAT32_SUM * most


@needs_extension
def test_a_large_mean_costs_no_digits():
    """x - mean is taken before anything is multiplied."""
    case = (2, 16, 4, 6, 6)
    given, _ = operands(case, 0, False, offset=1000.0)
    close(called(norm_act, given, case, True).double(), by_loops(*given, case[2], True), FLOAT32_NETWORK)


@needs_extension
@pytest.mark.parametrize("case", CASES[1:])
def test_bfloat16_is_rounded_once(case):
    given, upstream = operands(case)
    x = given[0].bfloat16().requires_grad_()
    y = called(norm_act, (x, *given[1:]), case, True)
    truth = by_loops(x.detach().float(), *given[1:], case[2], True)
    close(y.double(), truth, BFLOAT16_OP)
    leaf = x.detach().double().requires_grad_()
    true = torch.autograd.grad(
        called(norm_act_reference, (leaf, *(t.double() for t in given[1:])), case, True), leaf, upstream.double()
    )
    close(torch.autograd.grad(y, x, upstream.bfloat16())[0].double(), true[0], BFLOAT16_OP)


def second(run, kind, given, upstream, along, case, silu):
    """Gradients of sum(along * gradient of x), in the upstream gradient and in every input."""
    leaves = [None if t is None else t.to(kind).requires_grad_() for t in given]
    up = upstream.to(kind).requires_grad_()
    y = called(run, leaves, case, silu)
    (first,) = torch.autograd.grad(y, leaves[0], up, create_graph=True)
    there = [up, *(leaf for leaf in leaves if leaf is not None)]
    found = torch.autograd.grad(first, there, along.to(kind), allow_unused=True)
    return [torch.zeros_like(t).double() if g is None else g.double() for g, t in zip(found, there, strict=True)]


@needs_extension
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("pre", "adaptive", "silu"), [(0, False, True), (1, False, True), (2, True, True), (2, True, False)]
)
def test_gradient_of_the_gradient(case, pre, adaptive, silu, isa, monkeypatch):
    """By the kernel; at most twice PyTorch's own float32 error, both against float64."""
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    calls, native = [], _native.extension()
    real = native.norm_act_cpu_backward_twice
    monkeypatch.setattr(native, "norm_act_cpu_backward_twice", lambda *given: (calls.append(1), real(*given))[1])
    given, upstream = operands(case, pre, adaptive)
    along = operands(case, pre, adaptive, seed=1)[1]
    runs = ((torch.float64, norm_act_reference), (torch.float32, norm_act_reference), (torch.float32, norm_act))
    results = [second(run, kind, given, upstream, along, case, silu) for kind, run in runs]
    for truth, naive, made in zip(*results, strict=True):
        most = max(truth.abs().max(), 1)
        assert (made - truth).abs().max() <= 2 * (naive - truth).abs().max() + FLOAT32_SUM * most
    assert calls == [1]


@needs_extension
@pytest.mark.parametrize("case", CASES[1:])
def test_gradient_of_the_gradient_in_bfloat16(case):
    """Images, upstream gradient and what they give are rounded; nothing between."""
    given, upstream = operands(case)
    x, upstream, along = (t.bfloat16() for t in (given[0], upstream, operands(case, seed=1)[1]))
    truth = second(norm_act_reference, torch.float64, (x, *given[1:]), upstream, along, case, True)
    leaves = [t.clone().requires_grad_() for t in (x, *given[1:])]
    up = upstream.requires_grad_()
    (first,) = torch.autograd.grad(called(norm_act, leaves, case, True), leaves[0], up, create_graph=True)
    assert first.dtype == torch.bfloat16
    for made, true in zip(torch.autograd.grad(first, [up, *leaves], along), truth, strict=True):
        if true.abs().max() > FLOAT64_ORDER:  # where each channel is a group, that of pre is 0
            close(made.double(), true, BFLOAT16_OP)


@needs_extension
def test_third_derivatives():
    case = (2, 12, 3, 4, 3)
    given, _ = operands(case)
    results = []
    for kind, run in ((torch.float32, norm_act), (torch.float64, norm_act_reference)):
        leaves = [t.to(kind).requires_grad_() for t in given]
        total = called(run, leaves, case, True).pow(3).mean()
        for _ in range(2):
            (first,) = torch.autograd.grad(total, leaves[0], create_graph=True)
            total = first.square().sum()
        results.append([g.double() for g in torch.autograd.grad(total, leaves)])
    for made, true in zip(*results, strict=True):
        close(made, true, FLOAT32_NETWORK)


@needs_extension
def test_second_derivatives():
    case = (2, 12, 3, 4, 3)
    given, _ = operands(case)
    results = []
    for kind, run in ((torch.float32, norm_act), (torch.float64, norm_act_reference)):
        leaves = [t.to(kind).requires_grad_() for t in given]
        first = torch.autograd.grad(called(run, leaves, case, True).pow(3).sum(), leaves, create_graph=True)
        results.append([g.double() for g in torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    for made, true in zip(*results, strict=True):
        close(made, true, FLOAT32_NETWORK)


@needs_extension
def test_rows_are_independent():
    case = (11, 40, 8, 5, 4)
    given, upstream = operands(case)

    def run(part, threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            x, weight, bias, *conditions = given
            leaf = x[part].requires_grad_()
            y = norm_act(leaf, weight, bias, *settings(case), *(t[part] for t in conditions))
            (first,) = torch.autograd.grad(y, leaf, upstream[part], create_graph=True)
            return y.detach(), first.detach(), torch.autograd.grad(first.square().sum(), leaf)[0]
        finally:
            torch.set_num_threads(before)

    whole = run(slice(0, 11), 1)
    for threads in (1, 2, 3):
        parts = [run(slice(0, 1), threads), run(slice(1, 8), threads), run(slice(8, 11), threads)]
        for made, one in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(made, torch.cat(one))


@needs_extension
def test_far_from_zero_the_activation_is_0_or_itself():
    x = torch.tensor([-300.0, -90.0, 90.0, 300.0]).view(1, 1, 2, 2).contiguous(memory_format=torch.channels_last)
    one, zero = torch.ones(1), torch.zeros(1)
    y = norm_act(x, one * 1e4, zero, 1, EPS)
    normed = norm_act(x, one * 1e4, zero, 1, EPS, silu=False)
    assert torch.equal(y.clamp(min=0), normed.clamp(min=0)) and y.min() > -(torch.finfo(torch.float32).eps ** 4)


@needs_extension
def test_not_a_number_stays_in_its_group():
    case = (2, 8, 4, 3, 3)
    given, _ = operands(case)
    given[0][0, 0, 0, 0] = torch.nan
    y = called(norm_act, given, case, True)
    assert y[0, :2].isnan().all() and not y[0, 2:].isnan().any() and not y[1].isnan().any()


@needs_extension
def test_where_it_runs(monkeypatch):
    x = operands(CASES[1])[0][0]
    assert fused.usable(x) and fused.fits(x, 3)
    assert (
        not fused.usable(x.contiguous())
        and not fused.usable(x.double())
        and not fused.usable(x.half())
        and not fused.usable(x[:0])
    )
    monkeypatch.setenv("RDC_DISABLE_NATIVE", "1")
    assert not fused.usable(x)


@needs_extension
def test_the_binding_refuses_what_does_not_fit():
    x, rows = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last), torch.ones(2, 8)

    def call(x=x, weight=rows[0], scale=None, groups=4, y=x):
        given = [to_dlpack(t) for t in (x, weight, rows[0])]
        scaled = None if scale is None else to_dlpack(scale)
        out = [to_dlpack(t) for t in (torch.empty_like(y), rows.clone(), rows.clone())]
        return _native.extension().norm_act_cpu_forward(
            *given, None, scaled, None, groups, EPS, True, *out, 1, _native.cpu_isa()
        )

    call()
    for wrong in (
        {"groups": 3},
        {"groups": 0},
        {"weight": rows[0][:7]},
        {"x": x.double()},
        {"x": x.contiguous()},
        {"x": x.flatten(2)},
        {"y": x[:, :, :2].contiguous(memory_format=torch.channels_last)},
        {"scale": rows},
    ):
        with pytest.raises(ValueError, match="norm_act: "):
            call(**wrong)
