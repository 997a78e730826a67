"""The Gram form of multihead_loss: the oracle's numbers, edges included, and nothing that decides lost to cancellation."""

import pytest
import torch
import torch.nn.functional as F

from rdc.errors import ConfigError, InputError
from rdc.ops import multihead_loss as module
from rdc.ops.multihead_gram import costs_less, patch_gram
from rdc.ops.multihead_loss import multihead_loss
from rdc.ops.multihead_reference import multihead_loss_reference
from tests.ops.test_multihead_loss import NAMES, SHAPES, error, evaluate, make, naive, oracle
from tests.tolerances import FLOAT32_EPSILON, FLOAT32_ROUNDING, FLOAT32_SUM, FLOAT64_OP, GRAM_DIFFERENCE, GRAM_GRADIENT

#: two rows or columns, so that first and last are neighbours, and one where they are the same
EDGES = {"two lines": (2, 1, 3, 2, 5, 2, 2), "two columns": (1, 3, 2, 4, 2, 3, 1), "two by two": (1, 2, 2, 2, 2, 2, 1)}
ALL = SHAPES | EDGES
FEW = [name for name in ALL if name not in ("fashion", "shipped head", "long sums")]


def gram(*x):
    return multihead_loss(*x, backend="gram")


def values(function, x, upstream):
    """Loss and the gradients but for the level weights'."""
    x = [t.detach().clone().requires_grad_(place < 4) for place, t in enumerate(x)]
    loss = function(*x)
    return [loss.detach(), *torch.autograd.grad(loss, x[:4], upstream.to(loss.dtype))]


@pytest.mark.parametrize("name", FEW)
def test_float64_is_the_oracle(name):
    x, upstream = make(ALL[name], torch.float64)
    x[4] = x[4].double()
    for what, value, truth in zip(NAMES, values(gram, x, upstream.double()), oracle(x, upstream), strict=False):
        assert error(value, truth) < FLOAT64_OP, what


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["fashion", "colour", "hundred", "odd sizes, kept"])
def test_float32_is_as_good_as_torch(name, channels_last):
    """Twice the error of what one writes in torch, and one rounding."""
    x, upstream = make(ALL[name], channels_last=channels_last)
    truth, plain = oracle(x, upstream), evaluate(naive, x, upstream)
    for what, value, best, other in zip(NAMES, values(gram, x, upstream), truth, plain, strict=False):
        assert error(value, best) <= 2 * error(other, best) + FLOAT32_EPSILON, what


def test_bfloat16_inputs_give_float32_sums_and_their_own_gradients():
    x, upstream = make(ALL["colour"], torch.bfloat16)
    found = values(gram, x, upstream)
    assert found[0].dtype == torch.float32 and all(g.dtype == torch.bfloat16 for g in found[1:])
    truth = oracle(x, upstream)
    assert error(found[0], truth[0]) < FLOAT32_ROUNDING and all(
        error(g, t) < GRAM_GRADIENT for g, t in zip(found[1:], truth[1:5], strict=True)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 1), (2, 2), (6, 7)])
def test_gram_matrix_of_patches(size):
    g = torch.Generator().manual_seed(0)
    h, weight = (
        torch.randn(3, 4, *size, generator=g, dtype=torch.float64),
        torch.tensor([0.5, 2, 0.0], dtype=torch.float64),
    )
    patches = F.unfold(h, 3, padding=1).unflatten(1, (4, 9)).transpose(1, 2).flatten(1, 2)  # [T, 9c, HW], tap by tap
    patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
    torch.testing.assert_close(patch_gram(h, weight), torch.einsum("tip,tjp,t->ij", patches, patches, weight))


def test_differences_between_classes_survive():
    """Heads that differ by 1e-3 around a large common prediction: the plain Gram form would lose them in float32."""
    x, _ = make((2, 2, 16, 12, 12, 40, 1))
    h, weight, bias, target, level = x
    weight = weight[:1] + 1e-3 * weight
    bias = 20 + 1e-3 * bias
    truth = multihead_loss_reference(*(t.double() for t in (h, weight, bias, target, level)))
    spread = (truth - truth.mean(1, keepdim=True)).abs().max()
    close = multihead_loss(h, weight, bias, target, level, backend="gram").double()
    assert (
        (close - close.mean(1, keepdim=True)) - (truth - truth.mean(1, keepdim=True))
    ).abs().max() < GRAM_DIFFERENCE * spread


def test_classes_without_gradient_are_left_out_and_change_nothing():
    x, upstream = make(ALL["two blocks, colour"], torch.float64)
    x[4] = x[4].double()
    upstream = torch.zeros_like(upstream).index_fill_(1, torch.tensor([3, 17]), 1.5)
    for what, value, truth in zip(NAMES, values(gram, x, upstream.double()), oracle(x, upstream), strict=False):
        assert error(value, truth) < FLOAT64_OP, what
    none = values(gram, x, torch.zeros_like(upstream).double())
    assert all((g == 0).all() for g in none[1:])


def test_second_derivatives_are_the_definitions():
    x, upstream = make((1, 2, 3, 4, 3, 5, 2), torch.float64)
    h, rest = x[0].requires_grad_(), [*x[1:4], x[4].double()]

    def curvature(function):
        (grad,) = torch.autograd.grad(function(h, *rest), h, upstream.double(), create_graph=True)
        return torch.autograd.grad(grad.square().sum(), h)[0]

    torch.testing.assert_close(curvature(gram), curvature(multihead_loss_reference))


@pytest.mark.parametrize("create_graph", [False, True])
def test_operands_that_depend_on_each_other(create_graph):
    """With create_graph, what h gives to weight and target once was counted twice."""
    x, upstream = make((1, 2, 3, 4, 3, 5, 3), torch.float64)
    h = x[0].requires_grad_()

    def gradient(function):
        loss = function(h, x[1] * h.mean(), x[2], 2 * h, x[4].double())
        return torch.autograd.grad(loss, h, upstream.double(), create_graph=create_graph)[0]

    torch.testing.assert_close(gradient(gram), gradient(multihead_loss_reference))


def test_auto_takes_it_for_very_many_classes_on_the_cpu(monkeypatch):
    """By the shape of one image, and never where it has no gradient to give."""
    calls = []
    form = module.multihead_loss_gram
    monkeypatch.setattr(module, "multihead_loss_gram", lambda *x: (calls.append(len(x[1])), form(*x))[1])
    many, few = make((2, 8, 8, 16, 16, 600, 1))[0], make((2, 8, 8, 16, 16, 20, 1))[0]
    for x in (many, few):
        torch.testing.assert_close(multihead_loss(*x), multihead_loss_reference(*x), rtol=FLOAT32_SUM, atol=0)
    assert calls == [600]
    multihead_loss(*many[:4], many[4].clone().requires_grad_()).sum().backward()
    multihead_loss(*(t.double() for t in many))
    assert calls == [600]
    assert costs_less(many[0], many[1], many[4]) == costs_less(many[0][:8], many[1], many[4])


def test_refusals():
    x, _ = make(ALL["one line"])
    with pytest.raises(InputError, match="no gradient in level_weight; use backend='auto'"):
        multihead_loss(*x[:4], x[4].requires_grad_(), backend="gram")
    with pytest.raises(ConfigError, match="'auto', 'native', 'triton', 'gram' or 'reference'; got 'toeplitz'"):
        multihead_loss(*make(ALL["one line"])[0], backend="toeplitz")
