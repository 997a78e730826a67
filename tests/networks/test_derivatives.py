"""The networks are differentiable twice (exact gradients through likelihood maximisation need it)."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from rdc.networks.diffusers_unet import DiffusersUNet
from rdc.networks.unet import DhariwalUNet, SongUNet
from tests.networks.cases import DIFFUSERS_UNET
from tests.networks.formula import fill, noise_like
from tests.tolerances import CENTRAL_DIFFERENCE

_SMALL = {"model_channels": 4, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [2], "channel_mult_emb": 1}
_NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}


def _function(kind: str):
    """A network as a function of x [1, 1, 4, 4] alone, float64."""
    with torch.random.fork_rng():
        if kind == "adm":  # attention heads are 64 channels wide
            net = DhariwalUNet(4, 1, 1, 2, **_SMALL | {"model_channels": 64})
        elif kind == "diffusers":
            net = DiffusersUNet(4, 1, 1, **{**DIFFUSERS_UNET, "block_out_channels": [4, 4], "num_class_embeds": 2})
        else:
            net = SongUNet(4, 1, 1, 2, **_SMALL, **(_NCSNPP if kind == "ncsnpp" else {}))
    fill(net).double().eval().requires_grad_(False)
    when = torch.tensor([3]) if kind == "diffusers" else torch.tensor([0.1], dtype=torch.float64)
    label = torch.eye(2, dtype=torch.float64)[:1]
    attentions = [name for name, _ in net.named_parameters() if name.endswith(("qkv.weight", "to_q.weight"))]
    assert attentions, "the case must contain attention"
    return lambda x: net(x, when, label)


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp", "adm", "diffusers"])
def test_twice_differentiable(kind):
    function, x = _function(kind), noise_like("x", (1, 1, 4, 4)).requires_grad_()
    assert gradcheck(function, x, fast_mode=True)
    assert gradgradcheck(function, x, fast_mode=True)
    first = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), x)[0]
    assert second.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["ddpmpp", "diffusers"])
def test_every_entry_of_the_hessian(kind):
    """Against central differences of the gradient, entry by entry (``fast_mode`` looks along random directions)."""
    function, x = _function(kind), noise_like("x", (1, 1, 4, 4))
    loss = lambda flat: function(flat.reshape(1, 1, 4, 4)).square().sum()  # noqa: E731
    hessian = torch.autograd.functional.hessian(loss, x.flatten())
    gradient = torch.func.grad(loss)
    step = 1e-5
    rows = [
        (gradient(x.flatten() + step * e) - gradient(x.flatten() - step * e)) / (2 * step)
        for e in torch.eye(16).double()
    ]
    assert ((hessian - torch.stack(rows)).abs().max() / hessian.abs().max()).item() < CENTRAL_DIFFERENCE
