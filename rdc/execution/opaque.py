"""Code that PyTorch's function transforms cannot look into, with every derivative that they ask for.

Native kernels, rebuilt graphs, measurements of memory and checks of values cannot run on the wrapped tensors of ``torch.func``, and
forward-mode derivatives pass them by without a word. :func:`opaque` runs such a function on plain tensors, outside of all
transforms, and gives its rules: the backward pass differentiates the function as it is, once more for every further derivative; a
tangent is the derivative of the backward pass in its upstream gradient, in which it is linear; ``vmap`` calls it once for each element.

Nothing is saved but the inputs: a derivative computes the function again. Where no transform is at work (:func:`transformed`) callers
take their ordinary way instead.

Source: forward mode from reverse mode, J v = d/du [(J^T u) . v] (J. Townsend, "A new trick for calculating Jacobian vector
products", 2017).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from rdc.errors import RdcError

__all__ = [
    "Opaque",
    "asked",
    "checkpointed",
    "kept_for_later",
    "new_names",
    "opaque",
    "opaque_with",
    "plain_values",
    "refuse_batches",
    "transformed",
    "wanted",
]

#: of tensors, to a tensor or a tuple of tensors; differentiable where autograd is on, and in what requires a gradient
Function = Callable[..., Any]
Result = TypeVar("Result")


def transformed() -> bool:
    """Whether ``torch.func`` transforms (grad, vjp, jacrev, jvp, vmap, ...) or forward-mode derivatives are at work here."""
    if torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()


def plain_values(tensor: Tensor) -> Tensor:
    """All values behind a tensor that ``torch.func`` has wrapped, for checks: under ``vmap`` with the elements as a dimension more."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def opaque(function: Callable[..., Result], *tensors: Tensor) -> Result:
    """``function(*tensors)``, computed on plain tensors; the result has derivatives of any order and kind in all of them.

    Args:
        function: what it computes depends on the tensors given here alone; derivatives in others are not seen. It returns a tensor or
            a tuple of tensors. Where autograd is on it is differentiated by ``torch.autograd.grad``.
        tensors: its arguments.

    Raises:
        RdcError: by a derivative, where the function has none.
    """
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break()  # a compiler is kept out as well
    single: list[bool] = []

    def whole(*given: Tensor) -> tuple[Tensor, ...]:
        out: Any = function(*given)
        single.append(isinstance(out, Tensor))
        return (out,) if single[-1] else tuple(out)

    run = _uncompiled(whole) if transformed() else whole
    found = Opaque.apply(run, *tensors)  # type: ignore[no-untyped-call]
    out: Result = found[0] if single[-1] else found
    return out


def opaque_with(module: nn.Module, function: Callable[..., Result], *tensors: Tensor) -> Result:
    """:func:`opaque` for a function that also computes with the parameters and buffers of ``module``: derivatives in these, too."""
    names, held = _held(module)
    holder, count = _Holder(module, function), len(tensors)

    def with_these(*given: Tensor) -> Result:
        out: Result = torch.func.functional_call(holder, dict(zip(names, given[count:], strict=True)), given[:count])
        return out

    return opaque(with_these, *tensors, *held)


def kept_for_later(module: nn.Module, function: Function) -> Function:
    """``function`` as it computes with ``module`` now, to be called in a backward pass: ``torch.func.functional_call`` may have put
    other parameters and buffers into the module that are gone by then."""
    tables = [table for part in module.modules() for table in (part._parameters, part._buffers)]
    places = [(table, name, tensor) for table in tables for name, tensor in table.items()]
    names, held = _held(module)
    holder = _Holder(module, function)

    def later(*args: Any) -> Any:
        if all(table.get(name) is tensor for table, name, tensor in places):
            return function(*args)
        return torch.func.functional_call(holder, dict(zip(names, held, strict=True)), args)

    return later


def _held(module: nn.Module) -> tuple[list[str], list[Tensor]]:
    """Names in a :class:`_Holder`, and what the module has under them: its parameters and buffers."""
    both = [*module.named_parameters(), *module.named_buffers()]
    return [f"module.{name}" for name, _ in both], [tensor for _, tensor in both]


def wanted(*tensors: Tensor, module: nn.Module | None = None) -> bool:
    """Whether autograd is on and a derivative in one of the tensors, or in a parameter of ``module``, can be asked for."""
    if not torch.is_grad_enabled():
        return False
    return any(t.requires_grad for t in tensors) or (
        module is not None and any(p.requires_grad for p in module.parameters())
    )


def checkpointed(function: Callable[..., Result], *args: Any) -> Result:
    """``function(*args)``, whose graph is built in the backward pass; for where nothing is :func:`transformed`.

    A tangent can still come with the upstream gradient: what is computed again is computed as it was, without.
    """

    def plain(*args: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(False):
            return function(*args)

    out: Result = checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=False)
    return out


def new_names(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as the arguments of a backward pass that is itself differentiated, for partial derivatives: they may depend on each
    other, and a gradient in one of them would take the others along. Those of a constant are constants."""
    return [t.view_as(t) if t.requires_grad else t for t in tensors]


def asked(ctx: Any, present: Sequence[bool]) -> list[bool]:
    """In the backward pass of an ``autograd.Function``: of which inputs the engine wants a gradient now.

    ``ctx.needs_input_grad`` says of which one could be wanted: of weights too where ``torch.autograd.grad`` was asked for an image's
    alone. PyTorch's own operators look as here.

    Args:
        ctx: of the function.
        present: for each input that may be a tensor, in order, whether it is one.
    """
    nodes = iter(ctx.next_functions)
    following = [next(nodes)[0] if there else None for there in present]
    return [bool(need) and _goes_on(node) for need, node in zip(ctx.needs_input_grad, following, strict=False)]


def _goes_on(node: Any) -> bool:
    """Whether the engine will run a node in this backward pass."""
    if node is None:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (AttributeError, RuntimeError):  # it is a leaf whose gradient is the answer
        return True


def refuse_batches(*upstream: Tensor | None) -> None:
    """For a backward pass that computes outside of PyTorch's operators.

    Raises:
        RdcError: the upstream gradients come in a batch of autograd's older kind, which hides what is in it.
    """
    if any(t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in upstream):
        raise RdcError(
            "expected one upstream gradient at a time; got a batch of them (is_grads_batched=True, or vectorize=True of "
            "torch.autograd.functional). Use torch.func.jacrev, torch.func.jacfwd or torch.func.vmap, or leave the option out"
        )


class _Holder(nn.Module):
    """Calls a function while ``torch.func.functional_call`` has put other tensors into a module."""

    def __init__(self, module: nn.Module, function: Function) -> None:
        super().__init__()
        self.module = module
        self.called = (function,)  # in a tuple: it may be the module itself, which must not be registered twice

    def forward(self, *tensors: Tensor) -> Any:
        return self.called[0](*tensors)


class Opaque(torch.autograd.Function):
    """``Opaque.apply(function, *tensors)``; the function returns a tuple."""

    @staticmethod
    def forward(function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
        with _hooks_allowed():
            return tuple(out.detach() for out in function(*tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_batches(*upstream)
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        pull = _Pull(ctx.function, len(tensors), needs, [grad is not None for grad in upstream])
        operands = (*tensors, *(grad for grad in upstream if grad is not None))
        if transformed():
            found = iter(Opaque.apply(_uncompiled(pull), *operands))  # type: ignore[no-untyped-call]
        else:
            found = iter(pull(*operands))
        return None, *(next(found) if need else None for need in needs)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        with forward_ad._set_fwd_grad_enabled(True):  # for derivatives of this derivative
            tensors = [_primal(tensor) for tensor in ctx.saved_tensors]
            given = [None if tangent is None else _primal(tangent) for tangent in tangents]
            moved = [tangent is not None for tangent in given]
            push = _Push(ctx.function, len(tensors), moved)
            there = (tangent for tangent in given if tangent is not None)
            out: tuple[Tensor, ...] = Opaque.apply(_uncompiled(push), *tensors, *there)  # type: ignore[no-untyped-call]
            return out

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], function: Function, *tensors: Tensor) -> tuple[Any, Any]:
        if not info.batch_size:
            raise RdcError("torch.func.vmap: expected at least one element to map over; got none. Leave the call out")
        rows = []
        for i in range(info.batch_size):
            one = [t if dim is None else t.select(dim, i) for t, dim in zip(tensors, in_dims[1:], strict=True)]
            rows.append(Opaque.apply(function, *one))  # type: ignore[no-untyped-call]
        out = tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return out, (0,) * len(out)


@contextlib.contextmanager
def _hooks_allowed() -> Iterator[None]:
    """``torch.func`` forbids hooks on saved tensors, which ``checkpoint`` needs, on its own graphs; here is none of these."""
    refusal = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    if refusal is None:
        yield
        return
    torch._C._autograd._saved_tensors_hooks_enable()
    try:
        yield
    finally:
        torch._C._autograd._saved_tensors_hooks_disable(refusal)


def _uncompiled(function: Function) -> Function:
    """Inside ``torch.compile``, too, with all of its parts: what is compiled has no second derivative."""
    if "torch._dynamo" not in sys.modules:
        return function

    def plain(*tensors: Tensor) -> Any:
        return function(*tensors)

    disabled: Function = torch.compiler.disable(plain)
    return disabled


def _primal(tensor: Tensor) -> Tensor:
    """Without its tangent at this level, if it has one."""
    primal: Tensor = forward_ad.unpack_dual(tensor).primal
    return primal


class _Derivative:
    """A derivative of a function of ``count`` tensors, itself a function that can be differentiated where autograd is on."""

    def __init__(self, function: Function, count: int, asked: Sequence[bool]) -> None:
        self.function, self.count, self.asked = function, count, list(asked)

    def outputs(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], bool]:
        """The function's outputs on a graph of its own, the tensors asked for, and whether that is differentiated in turn."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            given = tensors[: self.count]
            leaves = new_names(given) if again else [t.detach() for t in given]
            for i, asked in enumerate(self.asked):
                if asked and not leaves[i].requires_grad:
                    leaves[i] = leaves[i].detach().requires_grad_()
            out = list(self.function(*leaves))
        if not any(o.requires_grad for o in out):
            raise RdcError(
                "expected a derivative of code that has none: its result was cut from its inputs (detach(), no_grad() or an "
                "integer type). Differentiate in other inputs, or leave this call out with torch.no_grad()"
            )
        return out, [leaf for leaf, asked in zip(leaves, self.asked, strict=True) if asked], again


class _Pull(_Derivative):
    """The backward pass: of tensors and the upstream gradients that there are, to a gradient for every tensor asked for."""

    def __init__(self, function: Function, count: int, asked: Sequence[bool], carried: Sequence[bool]) -> None:
        super().__init__(function, count, asked)
        self.carried = list(carried)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        out, leaves, again = self.outputs(tensors)
        out = [o for o, carried in zip(out, self.carried, strict=True) if carried]
        found = _grad(out, leaves, tensors[self.count :], again)
        return tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))


class _Push(_Derivative):
    """The forward-mode derivative: of tensors and a tangent for every tensor that moves, to the outputs' tangents."""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        out, leaves, again = self.outputs(tensors)
        upstream = [torch.zeros_like(o).requires_grad_() for o in out]
        with torch.enable_grad():
            back = _grad(out, leaves, upstream, True)
        pairs = [(b, t) for b, t in zip(back, tensors[self.count :], strict=True) if b is not None]
        found = _grad([b for b, _ in pairs], upstream, [t for _, t in pairs], again)
        return tuple(torch.zeros_like(o) if g is None else g for o, g in zip(out, found, strict=True))


def _grad(outputs: list[Tensor], inputs: list[Tensor], upstream: Sequence[Tensor], again: bool) -> list[Tensor | None]:
    """``torch.autograd.grad`` of those outputs that depend on anything."""
    pairs = [(o, g) for o, g in zip(outputs, upstream, strict=True) if o.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    with torch.set_grad_enabled(again):
        given = [o for o, _ in pairs], inputs, [g.to(o.dtype) for o, g in pairs]
        return list(torch.autograd.grad(*given, create_graph=again, allow_unused=True))
