"""Group norm under autocast."""

import torch

from rdc.networks.blocks import GroupNorm, half_norms
from tests.tiny_models import tiny_denoiser
from tests.tolerances import BFLOAT16_NORM, BFLOAT16_OP


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
    assert (
        error <= 2**-8 * truth.abs() + BFLOAT16_NORM
    ).all() and error.mean() < BFLOAT16_OP  # sums in float32, one rounding
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
