"""Opaque calls: a function that no transform can look into has the derivatives of the same function in the open."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from rdc.errors import RdcError
from rdc.execution.opaque import checkpointed, new_names, opaque, opaque_with, plain_values, transformed, wanted
from tests.tolerances import FLOAT64_OP, FLOAT64_ORDER

X = torch.tensor([[0.3, -1.2, 0.7], [0.9, 0.1, -0.4]], dtype=torch.float64)
Y = torch.tensor([0.5, -0.8, 1.1], dtype=torch.float64)


def open_one(x, y):
    return (x * y).sin().cumsum(1)


def closed_one(x, y):
    """The same by way of what ``torch.func`` forbids: a look at values, leaves of its own, hooks on saved tensors."""
    assert not transformed() and float(x.detach().abs().max()) < 100
    leaf = torch.ones(2, requires_grad=True)
    with torch.enable_grad():
        torch.autograd.grad(leaf.sum(), leaf)
    return checkpointed(open_one, x, y)


def hidden(x, y):
    return opaque(closed_one, x, y)


def square_sum(f):
    return lambda x, y: (f(x, y).square() * torch.arange(1.0, 4.0)).sum()


WAYS = {
    "value": lambda f: f(X, Y),
    "grad": lambda f: torch.func.grad(square_sum(f), argnums=(0, 1))(X, Y),
    "value_and_grad": lambda f: torch.func.grad_and_value(square_sum(f))(X, Y),
    "vjp": lambda f: torch.func.vjp(f, X, Y)[1](X.flip(0)),
    "jvp": lambda f: torch.func.jvp(f, (X, Y), (X.flip(1), Y.flip(0))),
    "jvp in one": lambda f: torch.func.jvp(lambda y: f(X, y), (Y,), (Y.flip(0),)),
    "jvp of jvp": lambda f: torch.func.jvp(
        lambda x: torch.func.jvp(lambda x: f(x, Y), (x,), (X.flip(1),))[1], (X,), (X + 1,)
    ),
    "jvp of jvp of jvp": lambda f: torch.func.jvp(
        lambda x: torch.func.jvp(lambda x: torch.func.jvp(lambda x: f(x, Y), (x,), (X.flip(1),))[1], (x,), (X + 1,))[1],
        (X,),
        (X - 1,),
    ),
    "grad of grad": lambda f: torch.func.grad(lambda y: (torch.func.grad(square_sum(f))(X, y) * X.flip(0)).sum())(Y),
    "grad of jvp": lambda f: torch.func.grad(
        lambda y: torch.func.jvp(lambda x: f(x, y), (X,), (X.flip(1),))[1].square().sum()
    )(Y),
    "hessian": lambda f: torch.func.hessian(square_sum(f), argnums=1)(X, Y),
    "jacrev of jacrev": lambda f: torch.func.jacrev(torch.func.jacrev(square_sum(f), 1), 1)(X, Y),
    "jacfwd": lambda f: torch.func.jacfwd(f, argnums=(0, 1))(X, Y),
    "vmap": lambda f: torch.func.vmap(lambda x, y: f(x[None], y)[0], in_dims=(0, None))(X, Y),
    "vmap in and out": lambda f: torch.func.vmap(lambda x, y: f(x[None], y)[0], in_dims=(1, 0), out_dims=1)(
        X.T.reshape(3, 2).contiguous(), torch.stack([Y, 2 * Y])
    ),
    "vmap of vmap": lambda f: torch.func.vmap(
        torch.func.vmap(lambda x, y: f(x[None], y)[0], in_dims=(0, None)), in_dims=(None, 0)
    )(X, torch.stack([Y, 2 * Y])),
    "grad of vmap": lambda f: torch.func.grad(lambda x: torch.func.vmap(lambda x: f(x[None], Y)[0])(x).square().sum())(
        X
    ),
    "vmap of vjp": lambda f: torch.func.vmap(torch.func.vjp(f, X, Y)[1])(torch.stack([X, X.flip(0)])),
    "nothing of the outer level": lambda f: torch.func.grad(lambda z: (z * f(X, Y).sum()).sum())(Y),
}


def flat(found):
    return [found] if isinstance(found, torch.Tensor) else [t for part in found for t in flat(part)]


@pytest.mark.parametrize("way", WAYS)
def test_what_torch_func_asks_for(way):
    found, expected = flat(WAYS[way](hidden)), flat(WAYS[way](open_one))
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT64_OP, atol=FLOAT64_OP)


def test_derivatives_of_every_order_without_transforms():
    leaves = [X.clone().requires_grad_(), Y.clone().requires_grad_()]
    assert torch.autograd.gradcheck(hidden, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(hidden, leaves)

    def third(f):
        grads = torch.autograd.grad(square_sum(f)(*leaves), leaves, create_graph=True)
        grads = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in grads), leaves)

    for a, b in zip(third(hidden), third(open_one), strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT64_ORDER, atol=FLOAT64_ORDER)


def test_arguments_that_depend_on_each_other_are_partial_derivatives():
    def gradient(f, create_graph):
        x = X.clone().requires_grad_()
        return torch.autograd.grad(square_sum(f)(x, x.mean(0)), x, create_graph=create_graph)[0].detach()

    for create_graph in (False, True):
        torch.testing.assert_close(gradient(hidden, create_graph), gradient(open_one, create_graph))


def test_several_results_of_which_some_are_used():
    def both(x, y):
        return open_one(x, y), y.square(), x

    def number(f):
        return lambda x, y: f(x, y)[0].sum() + f(x, y)[2].square().sum()

    closed = torch.func.grad(number(lambda *t: opaque(both, *t)), argnums=(0, 1))(X, Y)
    for a, b in zip(closed, torch.func.grad(number(both), argnums=(0, 1))(X, Y), strict=True):
        torch.testing.assert_close(a, b)


class Shift(nn.Module):
    """A buffer that matters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x):
        return x * self.shift


def test_a_module_and_what_it_holds():
    """Parameters and buffers, also those that functional_call puts in their place; the module is as it was afterwards."""
    net = nn.Sequential(nn.Linear(3, 3), Shift(), nn.Tanh(), nn.Linear(3, 2)).double().eval()
    held = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    before = {name: id(tensor) for name, tensor in held.items()}

    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return opaque_with(self.net, self.net, x)

    floats = {name: t.detach().clone() + 0.1 for name, t in held.items()}
    named = {f"net.{name}": t for name, t in floats.items()}
    closed = Closed()
    expected = torch.func.grad(lambda values: torch.func.functional_call(net, values, (X,)).square().sum())(floats)
    found = torch.func.grad(lambda values: torch.func.functional_call(closed, values, (X,)).square().sum())(named)
    assert expected.keys() == floats.keys() and "1.shift" in floats
    for name, value in expected.items():
        torch.testing.assert_close(found[f"net.{name}"], value)
    ways = tuple({name: torch.ones_like(t) for name, t in values.items()} for values in (floats, named))
    a = torch.func.jvp(lambda values: torch.func.functional_call(net, values, (X,)), (floats,), (ways[0],))[1]
    b = torch.func.jvp(lambda values: torch.func.functional_call(closed, values, (X,)), (named,), (ways[1],))[1]
    torch.testing.assert_close(a, b)
    weights = list(net.parameters())
    plain = torch.autograd.grad(net(X).sum(), weights)
    for a, b in zip(torch.autograd.grad(closed(X).sum(), weights), plain, strict=True):
        torch.testing.assert_close(a, b)
    assert {name: id(t) for name, t in {**dict(net.named_parameters()), **dict(net.named_buffers())}.items()} == before


def test_a_derivative_that_was_cut_is_an_error():
    def cut(x):
        return x.detach() * 2

    for way in (
        lambda: opaque(cut, X.clone().requires_grad_()).sum().backward(),
        lambda: torch.func.grad(lambda x: opaque(cut, x).sum())(X),
        lambda: torch.func.jvp(lambda x: opaque(cut, x), (X,), (X,)),
    ):
        with pytest.raises(RdcError, match=r"derivative of code that has none.*torch.no_grad\(\)"):
            way()


def test_autograds_own_batches_are_refused_in_words():
    x = X.clone().requires_grad_()
    out = hidden(x, Y)
    with pytest.raises(RdcError, match="Use torch.func.jacrev, torch.func.jacfwd or torch.func.vmap"):
        torch.autograd.grad(out, x, torch.stack([X, X]), is_grads_batched=True)
    with pytest.raises(RdcError, match="one upstream gradient at a time"):
        torch.autograd.functional.jacobian(lambda x: hidden(x, Y), X, vectorize=True)


def test_what_is_at_work_here():
    assert not transformed() and not wanted(X)
    seen = []
    torch.func.grad(lambda x: (seen.append(transformed()), x.sum())[1])(X)
    torch.func.vmap(lambda x: (seen.append(transformed()), x.sum())[1])(X)
    with forward_ad.dual_level():
        seen.append(transformed())
        with forward_ad._set_fwd_grad_enabled(False):
            assert not transformed()
    assert seen == [True, True, True] and not transformed()
    x, net = X.clone().requires_grad_(), nn.Linear(2, 2)
    assert wanted(X, x) and wanted(X, module=net) and not wanted(X, module=net.requires_grad_(False))
    with torch.no_grad():
        assert not wanted(x)
    assert new_names([X])[0] is X and new_names([x])[0] is not x


def test_hooks_are_forbidden_again_afterwards():
    """``torch.func`` forbids hooks on saved tensors; the call allows them inside alone, also when it fails."""

    def fail(x):
        raise ValueError("inside")

    def look(x):
        with pytest.raises(ValueError, match="inside"):
            opaque(fail, x)
        hidden(x, Y)
        assert not torch._C._autograd._saved_tensors_hooks_is_enabled()
        return x.sum()

    torch.func.grad(look)(X)
    assert torch._C._autograd._saved_tensors_hooks_is_enabled()


def test_values_behind_the_wrappers():
    def largest(x):
        assert plain_values(x).shape[-1] == 3
        return x.sum() * plain_values(x).max().item()

    torch.testing.assert_close(torch.func.vmap(largest)(X), X.sum(1) * X.max())
    torch.testing.assert_close(torch.func.grad(largest)(X), torch.full_like(X, X.max().item()))
    assert plain_values(X) is X
