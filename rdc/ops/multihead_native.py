"""``multihead_loss`` by the compiled kernels of csrc/, as operators of torch: fake kernels, autograd.

On a GPU they are right and slower than torch; see docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, List  # noqa: UP035

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # torch does not list it, its pages do

from rdc.ops import _native
from rdc.ops._outputs import empty_gradients, empty_loss
from rdc.ops.multihead_autograd import double_backward, gradients, save_backward_inputs

__all__ = ["backward_op", "forward_op", "keeps_residuals", "keeps_row_loss"]


Capsules = list[Any]  #: of DLPack, for the binding, which checks what is in them


def _inputs(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Capsules:
    """What every kernel takes first; a capsule keeps its tensor alive. h is used as it lies in memory."""
    return [to_dlpack(h), *(to_dlpack(t.contiguous()) for t in (weight, bias, target, level_weight))]


def _given(tensor: Tensor, wanted: bool = True) -> Any:
    """A tensor for the binding; None if it is not wanted or has no elements."""
    return to_dlpack(tensor) if wanted and tensor.numel() else None


def keeps_residuals(h: Tensor, weight: Tensor, *others: Tensor) -> bool:
    """Whether the forward pass keeps residuals: by the shape of one row, so that a batch changes nothing."""
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (h, weight, *others)):
        return False
    return h.device.type == "cpu" and weight.shape[0] <= h.shape[1]


def keeps_row_loss(*tensors: Tensor) -> bool:
    """Whether the forward pass keeps the loss of every row, which the gradient of the level weights (the last tensor) needs."""
    return torch.is_grad_enabled() and tensors[-1].requires_grad and tensors[0].device.type == "cpu"


def _launch(
    name: str, inputs: Capsules, outputs: tuple[Any, ...], kept: list[Tensor], sizes: Sequence[int], h: Tensor
) -> None:
    """Run a kernel.

    Args:
        name: "forward" or "backward".
        inputs, outputs: for the binding, see csrc/bindings.cpp.
        kept: what the CPU's forward pass keeps for the backward pass, or empty tensors.
        sizes: N, T, c, H, W, K, C.
        h: for its device.
    """
    native = _native.extension()
    if h.device.type == "cpu":
        kernel = getattr(native, f"multihead_loss_cpu_{name}")
        kernel(*inputs, *outputs, *map(_given, kept), torch.get_num_threads(), _native.cpu_isa())
        return
    floats = native.multihead_loss_cuda_scratch(sizes, name == "backward")
    scratch = torch.empty(floats, dtype=torch.float32, device=h.device)  # freed in stream order by torch's allocator
    stream = torch.cuda.current_stream(h.device).cuda_stream
    getattr(native, f"multihead_loss_cuda_{name}")(*inputs, *outputs, to_dlpack(scratch), stream)


def _sizes(h: Tensor, weight: Tensor, target: Tensor, level_weight: Tensor) -> tuple[int, ...]:
    """N, T, c, H, W, K, C."""
    levels, channels = level_weight.shape[0], target.shape[1]
    return (h.shape[0] // levels, levels, *h.shape[1:], weight.shape[0] // channels, channels)


@torch.library.custom_op("rdc::multihead_loss", mutates_args=(), device_types=("cpu", "cuda"))
def forward_op(
    h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor, keep: bool, keep_rows: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [N, K], and for the backward pass on a CPU, without elements if not asked for:

    ``keep``: residuals [N*T, H*W, K*C rounded up to a multiple of 16]; ``keep_rows``: losses of rows [N*T, K], float64.
    """
    loss, residuals, row_loss = _empty_results(h, weight, target, level_weight, keep, keep_rows)
    if loss.numel() and h.numel():
        inputs, sizes = _inputs(h, weight, bias, target, level_weight), _sizes(h, weight, target, level_weight)
        _launch("forward", inputs, (to_dlpack(loss),), [residuals, row_loss], sizes, h)
    return loss, residuals, row_loss


def _empty_results(
    h: Tensor, weight: Tensor, target: Tensor, level_weight: Tensor, keep: bool, keep_rows: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kept = (h.shape[0], h.shape[2] * h.shape[3], (weight.shape[0] + 15) // 16 * 16) if keep else (0,)
    rows = (h.shape[0], weight.shape[0] // target.shape[1]) if keep_rows else (0,)
    loss = empty_loss(h, weight, target, level_weight)
    return loss, h.new_empty(kept), h.new_empty(rows, dtype=torch.float64)


@forward_op.register_fake
def _(
    h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor, keep: bool, keep_rows: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(h, weight, target, level_weight, keep, keep_rows)


@torch.library.custom_op("rdc::multihead_loss_backward", mutates_args=(), device_types=("cpu", "cuda"))
def backward_op(
    grad_loss: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    level_weight: Tensor,
    kept: Tensor,
    row_loss: Tensor,
    wanted: List[bool],  # noqa: UP006 - torch 2.6 reads no list[...] in an op's signature
) -> List[Tensor]:  # noqa: UP006
    """Gradients of (h, weight, bias, target, level_weight); those not wanted come back with no elements and cost nothing."""
    grads = empty_gradients(h, weight, bias, target, level_weight, wanted)
    if not grad_loss.numel() or not any(wanted):
        return [g.zero_() for g in grads]
    upstream = grad_loss.to(torch.float32).contiguous()  # may arrive with stride 0
    in_kernel = [*wanted[:4], wanted[4] and h.device.type != "cpu"]
    level_row = torch.empty(h.shape[0] if in_kernel[4] else 0, dtype=torch.float32, device=h.device)
    if any(in_kernel):
        inputs, sizes = _inputs(h, weight, bias, target, level_weight), _sizes(h, weight, target, level_weight)
        outputs = tuple(_given(t, want) for t, want in zip([*grads[:4], level_row], in_kernel, strict=True))
        _launch("backward", inputs, (to_dlpack(upstream), outputs), [kept], sizes, h)
    if in_kernel[4]:
        grads[4] = level_row.view(-1, level_weight.shape[0]).sum(0)
    elif wanted[4]:
        if not row_loss.numel():  # the op was called by itself
            row_loss = forward_op(h, weight, bias, target, level_weight, False, True)[2]
        grads[4] = _level_gradient(upstream, row_loss)
    return grads


def _level_gradient(upstream: Tensor, row_loss: Tensor) -> Tensor:
    """sum_nk upstream[n, k] row_loss[n*T + t, k] in float64 -> [T] float32. A class without gradient adds nothing, whatever its loss."""
    upstream = upstream[:, None].double()
    products = upstream * row_loss.view(upstream.shape[0], -1, row_loss.shape[1])
    return products.where(upstream != 0, 0).sum((0, 2)).float()


@backward_op.register_fake
def _(
    grad_loss: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    level_weight: Tensor,
    kept: Tensor,
    row_loss: Tensor,
    wanted: list[bool],
) -> list[Tensor]:
    return empty_gradients(h, weight, bias, target, level_weight, wanted)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, kept, row_loss = output
    ctx.mark_non_differentiable(kept, row_loss)
    ctx.save_for_backward(*inputs[:5], kept, row_loss)


def _backward(ctx: Any, grad_loss: Tensor, *grad_kept: Tensor | None) -> tuple[Tensor | None, ...]:
    return *gradients(backward_op, ctx.needs_input_grad[:5], grad_loss, *ctx.saved_tensors), None, None


forward_op.register_autograd(_backward, setup_context=_save_inputs)
backward_op.register_autograd(double_backward, setup_context=save_backward_inputs)
