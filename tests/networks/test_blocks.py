"""Group norm under autocast and fused with its SiLU, and the layouts that networks are given."""

import pytest
import torch
import torch.nn.functional as F

from rdc.networks import blocks
from rdc.networks.blocks import GroupNorm, fastest_layout, fuse_norms, half_norms, norm_silu
from tests.models import tiny_denoiser


def test_half_group_norm_rounds_once():
    norm = GroupNorm(32)
    with torch.no_grad():
        norm.weight += 0.3
        norm.bias -= 0.2
    x = (5 + 2 * torch.randn(3, 32, 6, 6, generator=torch.Generator().manual_seed(0))).bfloat16()
    truth = torch.nn.functional.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), norm.eps)
    with torch.autocast("cpu", torch.bfloat16):
        half_norms(torch.nn.Sequential(norm))
        answer = norm(x)
    assert answer.dtype == torch.bfloat16
    error = (answer.double() - truth).abs()
    assert (error <= 2**-8 * truth.abs() + 0.02).all() and error.mean() < 0.01  # sums in float32, one rounding
    assert norm(x.float()).dtype == torch.float32  # other types as before


def test_half_norms_reach_every_norm_of_a_network():
    network = tiny_denoiser("multihead").network
    norms = [module for module in network.modules() if isinstance(module, GroupNorm)]
    assert len(norms) > 5 and all(norm.float32 for norm in norms)
    half_norms(network)
    assert not any(norm.float32 for norm in norms)
    x, level = torch.randn(2, *tiny_denoiser().image_shape), torch.zeros(2)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x, level)
    full = network(x, level)
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()


def test_layouts():
    assert (
        fastest_layout("cpu") is torch.channels_last
        and fastest_layout(torch.device("cuda:1")) is torch.contiguous_format
    )


def operands(channels: int, adaptive: bool, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """x, weight, bias and perhaps scale and shift [B, C, 1, 1]."""
    shapes = [(3, channels, 5, 4), (channels,), (channels,)] + [(3, channels, 1, 1)] * 2 * adaptive
    make = torch.Generator().manual_seed(channels)
    made = [torch.randn(shape, generator=make, dtype=torch.float64).to(dtype) for shape in shapes]
    made[0] = (made[0] + 2).contiguous(memory_format=torch.channels_last)
    return [value.requires_grad_() for value in made]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("channels", [8, 12, 40])
def test_norm_silu_is_the_norm_then_silu(channels, adaptive):
    """Values and all gradients in float64, and the answer in channels_last."""
    norm = GroupNorm(channels).double()
    x, weight, bias, *conditions = operands(channels, adaptive)
    plain = F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
    plain = F.silu(plain * (conditions[0] + 1) + conditions[1] if adaptive else plain)
    fused = norm_silu(x, weight, bias, norm.num_groups, norm.eps, *(c.flatten(1) for c in conditions))
    assert fused.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fused, plain)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = [x, weight, bias, *conditions]
    for a, b in zip(
        torch.autograd.grad(fused, given, upstream), torch.autograd.grad(plain, given, upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_norm_silu_of_bfloat16_rounds_once():
    x, weight, bias, *conditions = operands(40, True, torch.bfloat16)
    flat = [c.flatten(1) for c in conditions]
    truth = norm_silu(x.double(), weight.double(), bias.double(), 8, 1e-5, *(c.double() for c in flat))
    answer = norm_silu(x, weight.float(), bias.float(), 8, 1e-5, *flat)
    assert answer.dtype == torch.bfloat16
    assert ((answer.double() - truth).abs() <= 2**-8 * truth.abs() + 1e-5).all()


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_network_with_fused_norms_computes_the_same(monkeypatch, adaptive):
    """The plumbing, with the function not compiled; compiled it is tested with the training commands."""
    calls = []

    def counted(*args):
        calls.append(args)
        return norm_silu(*args)

    monkeypatch.setattr(blocks, "_fused_norm_silu", lambda: counted)
    block = blocks.UNetBlock(8, 12, 16, adaptive_scale=adaptive, zero_scale=1.0).double()
    make = torch.Generator().manual_seed(0)
    x, emb = (torch.randn(shape, generator=make, dtype=torch.float64) for shape in ((2, 8, 4, 4), (2, 16)))
    expected = block(x, emb)
    assert not calls
    fuse_norms(block)
    torch.testing.assert_close(block(x, emb), expected)
    assert len(calls) == 2 and len(calls[1]) == (7 if adaptive else 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert block.norm0.silu(x.bfloat16()).dtype == torch.bfloat16
    fuse_norms(block, False)
    calls.clear()
    assert torch.equal(block(x, emb), expected) and not calls


@pytest.mark.slow
def test_norm_silu_compiles_once_for_all_sizes():
    blocks._fused_norm_silu.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for channels in (8, 12, 40):
        for adaptive in (False, True):
            x, weight, bias, *conditions = operands(channels, adaptive, torch.float32)
            flat, groups = [c.flatten(1) for c in conditions], GroupNorm(channels).num_groups
            fused = blocks._fused_norm_silu()(x, weight, bias, groups, 1e-5, *flat)
            given = [x, weight, bias, *conditions]
            plain = norm_silu(x, weight, bias, groups, 1e-5, *flat)
            torch.testing.assert_close(fused, plain)
            both = [torch.autograd.grad(out.square().sum(), given, retain_graph=True) for out in (fused, plain)]
            for a, b in zip(*both, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # not one for every size
