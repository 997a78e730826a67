"""How the kernels of ``multihead_loss`` are differentiated: once by kernels, a second time through the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rdc.execution.opaque import opaque, refuse_batches, transformed
from rdc.ops.multihead_reference import multihead_loss_reference

__all__ = ["double_backward", "gradients", "save_backward_inputs"]


def gradients(op: Callable[..., list[Tensor]], needs: tuple[bool, ...], *tensors: Tensor) -> list[Tensor | None]:
    """What ``op(*tensors, wanted)`` gives, None where nothing is wanted."""
    refuse_batches(tensors[0])
    wanted = list(needs)
    if transformed():  # a batch of upstream gradients, or forward mode through this backward pass
        some = iter(opaque(lambda *plain: [g for g, w in zip(op(*plain, wanted), wanted, strict=True) if w], *tensors))
        return [next(some) if want else None for want in wanted]
    return [g if want else None for g, want in zip(op(*tensors, wanted), wanted, strict=True)]


def save_backward_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.wanted = inputs
    ctx.save_for_backward(*tensors[:6])  # what the forward pass kept is a function of the others
    ctx.rest = len(tensors) - 5


def double_backward(ctx: Any, grad_grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Derivative of the gradients: the reference's gradients, differentiated by torch."""
    again = torch.is_grad_enabled()  # create_graph=True
    needs = ctx.needs_input_grad[:6]
    with torch.enable_grad():
        # New names for every tensor: the upstream gradient may itself depend on h, and only partial derivatives are wanted here.
        tensors = [
            t.view_as(t) if again and t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors
        ]
        grad_loss, *inputs = tensors
        loss = multihead_loss_reference(*inputs)
        wanted = [t for t, want in zip(inputs, ctx.wanted, strict=True) if want]
        first = torch.autograd.grad(loss, wanted, grad_loss.to(loss.dtype), create_graph=True)
        upstream = [g for g, want in zip(grad_grads, ctx.wanted, strict=True) if want]
        pairs = [(f, g) for f, g in zip(first, upstream, strict=True) if g is not None and f.requires_grad]
        asked = [t for t, need in zip(tensors, needs, strict=True) if need]
        second: Sequence[Tensor | None] = (
            torch.autograd.grad(
                [f for f, _ in pairs], asked, [g for _, g in pairs], create_graph=again, allow_unused=True
            )
            if pairs
            else [None] * len(asked)
        )
    some = iter(second)
    return *(next(some) if need else None for need in needs), *(None,) * ctx.rest
