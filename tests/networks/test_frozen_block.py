"""Residual blocks as one step of autograd: the same values and derivatives of any order, and where the ordinary way is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rdc.networks import blocks, frozen_block
from rdc.networks.blocks import UNetBlock
from rdc.ops import _native
from tests.tiny_models import randomize
from tests.tolerances import BFLOAT16_NETWORK, FLOAT32_NETWORK, FLOAT32_SUM, close

needs_extension = pytest.mark.skipif(bool(_native.why_not("cpu")), reason="needs the native extension")

#: channels in and out, then what else a block is made with
CASES = {
    "same": (8, 8, {}),
    "shifted": (8, 8, {"adaptive_scale": False}),
    "wider": (8, 12, {"skip_scale": 0.7}),
    "up": (8, 8, {"up": True, "skip_scale": 0.7}),
    "up-wider": (8, 12, {"up": True, "adaptive_scale": False}),
    "up-resampled": (8, 8, {"up": True, "resample_proj": True}),
    "attention": (64, 64, {"num_heads": 1}),
}


def made(case: str) -> UNetBlock:
    inputs, outputs, more = CASES[case]
    block = randomize(UNetBlock(inputs, outputs, 6, **more))
    return block.eval().requires_grad_(False)


def operands(block: UNetBlock, rows: int = 3, side: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, block.in_channels, side, side + 1, generator=generator)
    return x.contiguous(memory_format=torch.channels_last), torch.randn(rows, 6, generator=generator)


def derivatives(block: UNetBlock, x: Tensor, emb: Tensor, orders: int = 3) -> list[Tensor]:
    """The block of x, and gradients of sums of it and of its gradients."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    found = [block(x, emb)]
    for order in range(orders):
        weight = torch.linspace(0.5, 1.5, found[-1].numel(), dtype=torch.float64).reshape(found[-1].shape)
        total = (found[-1].double().square() * weight).sum()
        found += torch.autograd.grad(total, x, create_graph=order + 1 < orders)
    return [value.detach() for value in found]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of a block was taken."""
    calls, real = [], frozen_block.takes

    def watched(*given):
        found = real(*given)
        calls.append(found is not None)
        return found

    monkeypatch.setattr(blocks, "takes", watched)
    return calls


@needs_extension
@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives_are_those_of_the_definition(case: str, taken: list[bool]) -> None:
    """Against PyTorch's operators in float64, up to the third derivative."""
    block = made(case)
    x, emb = operands(block)
    found = derivatives(block, x, emb)
    assert taken == [True]
    true = derivatives(block.double(), x.double(), emb.double())
    assert taken == [True, False]
    for value, right in zip(found, true, strict=True):
        assert right.abs().max() > 0
        close(value.double(), right, FLOAT32_NETWORK)


@needs_extension
@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_who_asks(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a gradient, and by the ordinary way of the same kernels."""
    block = made(case)
    x, emb = operands(block)
    with torch.no_grad():
        plain = block(x, emb)
    value, gradient = derivatives(block, x, emb, 1)
    assert torch.equal(plain, value)
    monkeypatch.setattr(blocks, "takes", lambda *_: None)
    ordinary, other = derivatives(block, x, emb, 1)
    assert torch.equal(value, ordinary)
    close(gradient, other, FLOAT32_SUM)


@needs_extension
@pytest.mark.parametrize("case", ["same", "up", "wider"])
def test_bfloat16(case: str, taken: list[bool]) -> None:
    block = made(case)
    x, emb = operands(block)
    true = derivatives(block.double(), x.bfloat16().double(), emb.double(), 2)
    block.float()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        found = derivatives(block, x.bfloat16(), emb, 2)
        assert taken == [False, True]
        assert found[0].dtype == torch.bfloat16
        for value, right in zip(found, true, strict=True):
            close(value.double(), right, BFLOAT16_NETWORK)
        block(x, emb)  # float32 images, which autocast would round
    assert taken[-1] is False


@needs_extension
def test_what_goes_the_ordinary_way(taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    block = made("same")
    x, emb = operands(block)

    def took(block: UNetBlock = block, x: Tensor = x, emb: Tensor = emb) -> bool:
        block(x, emb)
        return taken[-1]

    assert took() and took(x=x.clone().requires_grad_())
    assert not took(emb=emb.clone().requires_grad_())
    assert not took(x=x.contiguous()) and not took(x=x[:, :, :2].contiguous(memory_format=torch.channels_last))
    for name, weight in block.named_parameters():
        weight.requires_grad_()
        assert not took(), name
        with torch.no_grad():
            assert took(), name
        weight.requires_grad_(False)
    handle = block.conv1.register_forward_hook(lambda *_: None)
    assert not took()
    handle.remove()
    for more in ({"down": True}, {"up": True, "resample_filter": (1, 3, 3, 1)}):
        assert not took(UNetBlock(8, 8, 6, **more).requires_grad_(False))
    dropping = UNetBlock(8, 8, 6, dropout=0.5).requires_grad_(False)
    assert not took(dropping) and took(dropping.eval())
    monkeypatch.setenv("RDC_DISABLE_NATIVE", "1")
    assert not took()


@needs_extension
def test_transforms_of_functions_see_the_same(taken: list[bool]) -> None:
    block = made("wider")
    x, emb = operands(block)
    gradient = torch.func.grad(lambda x: block(x, emb).square().sum())(x)
    assert taken == [False]
    close(gradient, gradient_of(block, x, emb), FLOAT32_NETWORK)
    assert taken == [False, True]


def gradient_of(block: UNetBlock, x: Tensor, emb: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    return torch.autograd.grad(block(x, emb).square().sum(), x)[0]


@needs_extension
def test_weights_of_a_call_are_those_of_its_gradient(taken: list[bool]) -> None:
    """Lent by ``functional_call``, which is over by then; changed in place, which is refused."""
    block, other = made("same"), randomize(made("same"), seed=5)
    x, emb = operands(block)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = torch.func.functional_call(block, dict(other.named_parameters()), (leaf, emb))
    (found,) = torch.autograd.grad(y.square().sum(), leaf)
    assert torch.equal(found, gradient_of(other, x, emb)) and all(taken)
    y = block(leaf, emb)
    block.conv0.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), leaf)


@needs_extension
def test_batched_gradients_are_refused_and_not_wrong(taken: list[bool]) -> None:
    block = made("same")
    x, emb = operands(block)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = block(leaf, emb)
    with pytest.raises(Exception, match="batch"):
        torch.autograd.grad(y, leaf, torch.ones(2, *y.shape), is_grads_batched=True)
    assert taken == [True]
