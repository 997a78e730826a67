"""The empirical denoiser by the compiled kernel of csrc/, as an operator of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # torch does not list it, its pages do

from rdc.execution.opaque import refuse_batches
from rdc.ops import _native
from rdc.ops.empirical_denoiser_reference import empirical_denoiser_reference

__all__ = ["CUT", "backward_op", "forward_op"]

#: Images whose score is this far below the largest of their row are left out: e^-26 = 5e-12 of its weight, and 60,000 such images
#: together weigh 3e-7 of it, which is the rounding of float32.
CUT = 26.0


def _capsules(*tensors: Tensor) -> list[Any]:
    return [to_dlpack(tensor.detach().contiguous()) for tensor in tensors]


@torch.library.custom_op("rdc::empirical_denoiser", mutates_args=(), device_types=("cpu",))
def forward_op(
    inner: Tensor, noise_inner: Tensor, images: Tensor, half_square: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """M [N*T, D], and for the backward pass [N*T, 2]: of every row the largest score, not multiplied by beta, and the sum of weights."""
    mean, kept = _empty(inner, noise_inner, images, half_square, beta)
    if mean.numel():
        given = _capsules(inner, noise_inner, images, half_square, beta)
        outputs = to_dlpack(mean), to_dlpack(kept)
        _native.extension().empirical_denoiser_cpu_forward(
            *given, *outputs, CUT, torch.get_num_threads(), _native.cpu_isa()
        )
    return mean, kept


@forward_op.register_fake
def _empty(
    inner: Tensor, noise_inner: Tensor, images: Tensor, half_square: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    return images.new_empty(beta.shape[0], images.shape[1]), images.new_empty(beta.shape[0], 2)


@torch.library.custom_op("rdc::empirical_denoiser_backward", mutates_args=(), device_types=("cpu",))
def backward_op(
    upstream: Tensor,
    inner: Tensor,
    noise_inner: Tensor,
    images: Tensor,
    half_square: Tensor,
    beta: Tensor,
    mean: Tensor,
    kept: Tensor,
) -> Tensor:
    """da [N, n] from dL/dM [N*T, D] and what the forward pass gave."""
    grad = torch.zeros_like(inner, memory_format=torch.contiguous_format)
    if upstream.numel():
        given = _capsules(inner, noise_inner, images, half_square, beta, upstream, mean, kept)
        _native.extension().empirical_denoiser_cpu_backward(
            *given, to_dlpack(grad), CUT, torch.get_num_threads(), _native.cpu_isa()
        )
    return grad


@backward_op.register_fake
def _(upstream: Tensor, inner: Tensor, *others: Tensor) -> Tensor:
    return torch.empty_like(inner)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_batches(upstream)
    grad = backward_op(upstream, *ctx.saved_tensors) if ctx.needs_input_grad[0] else None
    return grad, None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])  # mean and kept are functions of the others


def _double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    """Derivatives of da in the upstream gradient and in ``inner``: the reference's, by torch."""
    again = torch.is_grad_enabled()  # create_graph=True
    upstream, inner, *fixed = ctx.saved_tensors
    with torch.enable_grad():
        # New names: the upstream gradient may itself depend on inner, and only partial derivatives are wanted here.
        upstream, inner = (
            t.view_as(t) if again and t.requires_grad else t.detach().requires_grad_() for t in (upstream, inner)
        )
        mean = empirical_denoiser_reference(inner, *fixed)
        (first,) = torch.autograd.grad(mean, inner, upstream, create_graph=True)
        second = torch.autograd.grad(first, (upstream, inner), grad_grad, create_graph=again)
    return *second, *(None,) * 6


forward_op.register_autograd(_backward, setup_context=_save)
backward_op.register_autograd(_double_backward, setup_context=_save_backward)
