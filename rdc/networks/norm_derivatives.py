"""The derivatives of a group norm with its conditioning and SiLU (:mod:`rdc.networks.fused`): in PyTorch, and the second ones on a CPU.

Exact gradients through likelihood maximisation, and ``--margin-eps``, differentiate a gradient. On a CPU that gradient is the kernel's,
and so is its derivative (:func:`rdc.ops.norm_act_native.backward_twice`); third derivatives, and those of the gradients of weights and
conditions, are the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.execution.opaque import new_names, opaque, refuse_batches, transformed
from rdc.ops import norm_act_native

__all__ = ["gradients_by_reference", "input_gradient", "norm_act_reference", "of_conditions", "opaquely"]


def norm_act_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    pre: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """What :func:`rdc.networks.fused.norm_act` computes, in PyTorch; differentiable any number of times."""
    if transformed():  # PyTorch has no rules for the tangents of these operators in channels_last
        return opaquely(norm_act_reference, x, weight, bias, groups, eps, pre, scale, shift, silu)
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = x.to(dtype) if pre is None else x.to(dtype) + pre.to(dtype)[..., None, None]
    y = F.group_norm(y, groups, weight.to(dtype), bias.to(dtype), eps)
    if scale is not None and shift is not None:
        y = y * (scale.to(dtype) + 1)[:, :, None, None] + shift.to(dtype)[:, :, None, None]
    return (F.silu(y) if silu else y).to(x.dtype)


def opaquely(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The function on plain tensors, which lie in channels_last again."""
    places = [i for i, value in enumerate(arguments) if isinstance(value, Tensor)]

    def plain(*tensors: Tensor) -> Tensor:
        given = list(arguments)
        for i, tensor in zip(places, tensors, strict=True):
            given[i] = tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        return function(*given)

    return opaque(plain, *(arguments[i] for i in places))


def gradients_by_reference(
    needs: Sequence[bool], settings: tuple[int, float, bool], grad: Tensor, inputs: Sequence[Any]
) -> list[Tensor | None]:
    """Of x, weight, bias, pre, scale and shift, where needed, as functions that can be differentiated again: those of the reference."""
    groups, eps, silu = settings
    there = [i for i, tensor in enumerate(inputs) if tensor is not None]
    named: list[Any] = [None] * len(inputs)
    for i, tensor in zip(there, new_names([inputs[i] for i in there]), strict=True):
        named[i] = tensor if tensor.requires_grad or not needs[i] else tensor.detach().requires_grad_()
    x, weight, bias, pre, scale, shift = named
    y = norm_act_reference(x, weight, bias, groups, eps, pre, scale, shift, silu)
    asked = [i for i in there if needs[i]]
    found = torch.autograd.grad(y, [named[i] for i in asked], grad, create_graph=True)
    grads: list[Tensor | None] = [None] * len(inputs)
    for i, value in zip(asked, found, strict=True):
        grads[i] = value
    return grads


def of_conditions(
    needs: Sequence[bool],
    kept: Tensor,
    weight: Tensor,
    bias: Tensor,
    pre: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> list[Tensor | None]:
    """The gradients of weight, bias, pre, scale and shift, where needed.

    Args:
        needs: of the five, in this order.
        kept: [2 or 3, B, C], a kernel's sums over positions: of the gradient in front of the activation, of that times the normalised x,
            and, with pre, of the gradient of x.
    """
    sums, normed_sums, grad_sums = kept[0], kept[1], kept[-1]
    grads: list[Tensor | None] = [None] * 5
    if not any(needs):
        return grads
    if scale is None:  # one sum over images for all
        over_images = kept.sum(1)
    else:
        factor = 1 + scale.float()
        over_images = torch.cat([kept[:2] * factor, kept[2:]]).sum(1)
    if needs[0]:
        grads[0] = over_images[1].to(weight.dtype)
    if needs[1]:
        grads[1] = over_images[0].to(bias.dtype)
    if needs[2] and pre is not None:
        grads[2] = (over_images[2] if pre.ndim == 1 else grad_sums).to(pre.dtype)
    if needs[3] and scale is not None:
        grads[3] = torch.addcmul(normed_sums * weight.float(), sums, bias.float()).to(scale.dtype)
    if needs[4] and shift is not None:
        grads[4] = sums.to(shift.dtype)
    return grads


def input_gradient(grad: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    """The gradient of x and the sums of :func:`of_conditions`, by the CPU's kernel; both can be differentiated again, any number of times.

    Args:
        grad: [B, C, H, W], the upstream gradient, in the type of x.
        given: x, weight, bias, pre, scale, shift as of the norm; mean and 1 / deviation [B, C]; groups, eps, silu.
    """
    found: tuple[Tensor, Tensor] = _InputGradient.apply(grad, *given)  # type: ignore[no-untyped-call]
    return found


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(grad: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        x, weight, bias, pre, scale, shift, mean, rstd, *settings = given
        return norm_act_native.backward(grad, x, weight, bias, (pre, scale, shift), (mean, rstd), *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, groups, eps, silu = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.settings = groups, eps, silu

    @staticmethod
    def backward(ctx: Any, along: Tensor | None, of_kept: Tensor | None) -> tuple[Tensor | None, ...]:
        """Mean and deviation are functions of x, and their part is in its gradient."""
        refuse_batches(along, of_kept)
        grad, *inputs, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad[:7]
        nothing = (None,) * 5
        if along is None and of_kept is None:
            return (None,) * 7 + nothing
        if of_kept is not None or torch.is_grad_enabled():
            return (*_by_reference(needs, ctx.settings, grad, inputs, along, of_kept), *nothing)
        x, weight, bias, pre, scale, shift = inputs
        assert along is not None
        of_grad, of_x, kept = norm_act_native.backward_twice(
            along.to(x.dtype), grad, x, weight, bias, (pre, scale, shift), (mean, rstd), *ctx.settings
        )
        of_rows = of_conditions(needs[2:], kept, weight, bias, pre, scale, shift)
        return (of_grad if needs[0] else None, of_x if needs[1] else None, *of_rows, *nothing)


def _by_reference(
    needs: Sequence[bool],
    settings: tuple[int, float, bool],
    grad: Tensor,
    inputs: Sequence[Any],
    along: Tensor | None,
    of_kept: Tensor | None,
) -> list[Tensor | None]:
    """The gradients of ``grad`` and the inputs from those of what :func:`input_gradient` gives; differentiable where autograd is on."""
    again = torch.is_grad_enabled()
    groups, eps, silu = settings
    all_ = [grad, *inputs]
    there = [i for i, tensor in enumerate(all_) if tensor is not None]
    named: list[Any] = [None] * len(all_)
    for i, tensor in zip(
        there, new_names([all_[i] for i in there]) if again else [all_[i] for i in there], strict=True
    ):
        named[i] = tensor if again and tensor.requires_grad else tensor.detach().requires_grad_(needs[i])
    upstream, x, weight, bias, pre, scale, shift = named
    with torch.enable_grad():
        ones = torch.ones(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))
        rate = ones if scale is None else ones * (1 + scale)
        slope, offset = rate * weight, rate * bias if shift is None else rate * bias + shift
        before = torch.zeros_like(ones) if pre is None else ones * pre
        leaves = [t if t.requires_grad else t.requires_grad_() for t in (x, slope, offset, before)]
        y = norm_act_reference(
            leaves[0],
            torch.ones_like(weight),
            torch.zeros_like(bias),
            groups,
            eps,
            leaves[3],
            leaves[1] - 1,
            leaves[2],
            silu,
        )
        of_x, of_slope, of_offset, of_before = torch.autograd.grad(y, leaves, upstream, create_graph=True)
        kept = torch.stack([of_offset, of_slope] + ([] if pre is None else [of_before]))
        outputs = [(of_x, along), (kept, of_kept)]
        pairs = [(out, up.to(out.dtype)) for out, up in outputs if up is not None]
        asked = [i for i in there if needs[i]]
        found = torch.autograd.grad(
            [out for out, _ in pairs],
            [named[i] for i in asked],
            [up for _, up in pairs],
            create_graph=again,
            allow_unused=True,
        )
    grads: list[Tensor | None] = [None] * len(all_)
    for i, value in zip(asked, found, strict=True):
        grads[i] = value
    return grads
