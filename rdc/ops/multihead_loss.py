r"""Multi-head diffusion loss: the head convolution, the squared error of every class and the sum over noise levels.

With features h [N*T, c, H, W] (row n*T + t), head weight V [K*C, c, 3, 3] and bias b [K*C] (row k*C + j), target F* [N*T, C, H, W]
and level weights w [T]:

.. math::
    P_{bo} = b_o + V_o * h_b \qquad
    L_{nk} = \sum_t w_t \sum_{j,y,x} \bigl(P_{nT+t,\,kC+j,\,yx} - F^*_{nT+t,\,j,\,yx}\bigr)^2

(3x3 convolution, zero padding). With g = dL_{nk} and R = 2 w_t g_{nk} (P - F*), the gradients are

.. math::
    dh = V^T * R \quad dV_{o,uv} = \sum_{b,y,x} R_{bo,yx}\, h_{b,y+u-1,x+v-1} \quad db = \sum_{b,y,x} R \quad dF^* = -\sum_k R \quad
    dw_t = \sum_{nk} g_{nk} \sum (P - F^*)^2

The native kernels never hold the prediction [N*T, K*C, H, W]. Where a gradient will be asked for and K*C <= c, the CPU forward pass keeps
the residuals P - F* in the type of h: they take no more memory than h, which autograd keeps as well. Otherwise the backward pass predicts
again, one block at a time. Classes whose upstream gradient is zero are left out of the CPU backward pass. The gradient of the level
weights needs the loss of every row before it is summed over levels: the CPU forward pass keeps these [N*T, K] float64 numbers for it.
On a GPU there are also kernels for tensor cores in Triton (:mod:`rdc.ops.multihead_triton`).
With very many classes the CPU takes the Gram form (:mod:`rdc.ops.multihead_gram`), whose cost hardly grows with them.
Sums are taken in float32 or wider, in an order that does not depend on the number of threads.

Source: method.md section 2 and 5 (Chen et al., arXiv 2305.15241; Karras et al. 2022, eq. 7-8 for F and F*).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.errors import ConfigError, InputError
from rdc.execution.opaque import opaque, refuse_batches, transformed
from rdc.ops import _native, multihead_triton
from rdc.ops._operands import check_operands
from rdc.ops._outputs import empty_gradients, empty_loss
from rdc.ops.multihead_gram import costs_less, multihead_loss_gram

__all__ = ["multihead_loss", "multihead_loss_reference"]

#: the reference predicts at most this many values at once
REFERENCE_CHUNK = 2**24


def multihead_loss(
    h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Loss of every class under a multi-head network, summed over noise levels, without the prediction of all classes in memory.

    Differentiable in every argument, and twice (the second time through the torch reference). float64 uses the reference; float16
    and mixed types are promoted to float32 (bfloat16 throughout stays bfloat16, with float32 sums).

    Args:
        h: features [N*T, c, H, W], row n*T + t; NCHW or channels_last, used without a copy.
        weight: head convolution [K*C, c, 3, 3], row k*C + j for class k and image channel j.
        bias: [K*C].
        target: F* [N*T, C, H, W].
        level_weight: [T].
        backend: "native", "reference" (torch), "gram" (:mod:`rdc.ops.multihead_gram`: torch, float32 inside, no gradient in
            ``level_weight``), "triton" (:mod:`rdc.ops.multihead_triton`: CUDA, tensor cores), or "auto": on a CPU native where it was
            built for the type, or gram where that is expected to win; on a GPU triton where it was measured to win
            (:func:`rdc.ops.multihead_triton.preferred`), else torch, which is 2 to 22 times as fast as native there (on an H200:
            docs/kernels.md).

    Returns:
        Loss [N, K] in float32 (float64 for float64 inputs).

    Raises:
        InputError: shapes, types or devices do not fit together, or are beyond the kernels asked for.
        ConfigError: unknown backend, or "native" or "triton" where it is not available.
    """
    check_operands(h, weight, bias, target, level_weight)
    if transformed():
        return _under_transforms(h, weight, bias, target, level_weight, backend)
    if backend == "gram" or (backend == "auto" and _gram_wins(h, weight, level_weight)):
        return multihead_loss_gram(h, weight, bias, target, level_weight)
    dtype = h.dtype
    for t in (weight, bias, target):
        dtype = torch.promote_types(dtype, t.dtype)
    if dtype == torch.float16:
        dtype = torch.float32
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    operands = (h.to(dtype), weight.to(dtype), bias.to(dtype), target.to(dtype), level_weight.to(accumulate))
    if backend == "triton" or (backend == "auto" and _triton_wins(*operands[:2])):
        _check_triton(h.device.type, dtype)
        return multihead_triton.forward_op(*operands)
    if _use_native(h.device.type, dtype, backend):
        return _forward_op(*operands, _keeps_residuals(*operands), _keeps_row_loss(*operands))[0]
    return multihead_loss_reference(*operands)


def multihead_loss_reference(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
    """The definition in torch: any device, any floating type (at least float32 inside), differentiable any number of times.

    Classes are taken in chunks, so that without gradients the prediction stays small; autograd keeps all chunks.

    Args, Returns: as :func:`multihead_loss`.
    """
    dtype = torch.promote_types(h.dtype, torch.float32)
    h, weight, bias, target, level_weight = (t.to(dtype) for t in (h, weight, bias, target, level_weight))
    rows, channels, levels = h.shape[0], target.shape[1], level_weight.shape[0]
    classes = weight.shape[0] // channels
    chunk = _classes_at_once(rows * target.shape[1] * target.shape[2] * target.shape[3], classes)
    losses = []
    for first in range(0, classes, chunk):
        part = slice(first * channels, min(first + chunk, classes) * channels)
        prediction = F.conv2d(h, weight[part], bias[part], padding=1).unflatten(1, (-1, channels))
        losses.append((prediction - target[:, None]).square().sum((2, 3, 4)))
    row_loss = torch.cat(losses, 1)  # [N*T, K]
    return torch.einsum("ntk,t->nk", row_loss.reshape(rows // levels, levels, classes), level_weight)


def _under_transforms(
    h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor, backend: str
) -> Tensor:
    """torch.func and forward mode: the same kernels on plain tensors. Compiled, they become operators of torch as the reference is."""
    if not torch.compiler.is_compiling():
        return opaque(functools.partial(multihead_loss, backend=backend), h, weight, bias, target, level_weight)
    for t in (weight, bias, target):
        h = h.to(torch.promote_types(h.dtype, t.dtype))
    return multihead_loss_reference(h, weight, bias, target, level_weight)


def _classes_at_once(values_per_class: int, classes: int) -> int:
    if torch.compiler.is_compiling():  # shapes may be symbolic: no loop that depends on them
        return max(classes, 1)
    return max(1, min(classes, REFERENCE_CHUNK // max(values_per_class, 1)))


# --- Checks ---------------------------------------------------------------------------------------------------------------------------


def _use_native(device_type: str, dtype: torch.dtype, backend: str) -> bool:
    if backend not in ("auto", "native", "reference"):
        raise ConfigError(
            f"multihead_loss: expected backend 'auto', 'native', 'triton', 'gram' or 'reference'; got {backend!r}."
        )
    if backend == "reference":
        return False
    supported = dtype in (torch.float32, torch.bfloat16)
    reason = _why_not(device_type)
    if backend == "auto":
        return supported and not reason and device_type not in _native.SLOWER_THAN_TORCH
    if not supported:
        raise InputError(
            f"multihead_loss: the native kernels take float32 and bfloat16; got {dtype}. Use backend='auto'."
        )
    if reason:
        raise ConfigError(f"multihead_loss: backend='native' is not available: {reason}. Use backend='auto'.")
    return True


def _check_triton(device_type: str, dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.bfloat16):
        raise InputError(
            f"multihead_loss: the Triton kernels take float32 and bfloat16; got {dtype}. Use backend='auto'."
        )
    if reason := _why_not_triton(device_type):
        raise ConfigError(f"multihead_loss: backend='triton' is not available: {reason}. Use backend='auto'.")


def _triton_wins(h: Tensor, weight: Tensor) -> bool:
    return h.device.type == "cuda" and multihead_triton.preferred(h, weight) and not _why_not_triton("cuda")


def _gram_wins(h: Tensor, weight: Tensor, level_weight: Tensor) -> bool:
    if h.device.type != "cpu" or h.dtype == torch.float64 or torch.compiler.is_compiling():
        return False
    return costs_less(h, weight, level_weight) and not (torch.is_grad_enabled() and level_weight.requires_grad)


@torch.compiler.assume_constant_result
def _why_not(device_type: str) -> str:
    return _native.why_not(device_type)


@torch.compiler.assume_constant_result
def _why_not_triton(device_type: str) -> str:
    return multihead_triton.why_not(device_type)


# --- Native ops -----------------------------------------------------------------------------------------------------------------------


def _arguments(
    h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor
) -> tuple[tuple, list[Tensor]]:
    """What every kernel takes first, and the tensors that must stay alive while it runs. h is used as it lies in memory."""
    rows, c, height, width = h.shape
    channels, levels = target.shape[1], level_weight.shape[0]
    alive = [h, weight.contiguous(), bias.contiguous(), target.contiguous(), level_weight.contiguous()]
    shape = (rows // levels, levels, c, height, width, weight.shape[0] // channels, channels)
    return (shape, h.dtype == torch.bfloat16, tuple(h.stride()), tuple(t.data_ptr() for t in alive)), alive


def _keeps_residuals(h: Tensor, weight: Tensor, *others: Tensor) -> bool:
    """Whether the forward pass keeps residuals: by the shape of one row, so that a batch changes nothing."""
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (h, weight, *others)):
        return False
    return h.device.type == "cpu" and weight.shape[0] <= h.shape[1]


def _keeps_row_loss(*tensors: Tensor) -> bool:
    """Whether the forward pass keeps the loss of every row, which the gradient of the level weights (the last tensor) needs."""
    return torch.is_grad_enabled() and tensors[-1].requires_grad and tensors[0].device.type == "cpu"


def _launch(name: str, arguments: tuple, kept: list[Tensor], device: torch.device) -> None:
    """kept: what the CPU's forward pass keeps for the backward pass, or empty tensors."""
    native = _native.extension()
    if device.type == "cpu":
        kernel = getattr(native, f"multihead_loss_cpu_{name}")
        pointers = (k.data_ptr() if k.numel() else 0 for k in kept)
        kernel(*arguments, *pointers, torch.get_num_threads(), _native.cpu_isa())
        return
    floats = native.multihead_loss_cuda_scratch(arguments[0], name == "backward")
    scratch = torch.empty(floats, dtype=torch.float32, device=device)  # freed in stream order by torch's allocator
    stream = torch.cuda.current_stream(device).cuda_stream
    getattr(native, f"multihead_loss_cuda_{name}")(*arguments, scratch.data_ptr(), device.index or 0, stream)


@torch.library.custom_op("rdc::multihead_loss", mutates_args=(), device_types=("cpu", "cuda"))
def _forward_op(
    h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor, keep: bool, keep_rows: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [N, K], and for the backward pass on a CPU, without elements if not asked for:

    ``keep``: residuals [N*T, H*W, K*C rounded up to a multiple of 16]; ``keep_rows``: losses of rows [N*T, K], float64.
    """
    arguments, alive = _arguments(h, weight, bias, target, level_weight)
    loss, *kept = _empty_results(h, weight, target, level_weight, keep, keep_rows)
    if loss.numel() and h.numel():
        _launch("forward", (*arguments, loss.data_ptr()), kept, h.device)
    del alive
    return loss, *kept


def _empty_results(
    h: Tensor, weight: Tensor, target: Tensor, level_weight: Tensor, keep: bool, keep_rows: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kept = (h.shape[0], h.shape[2] * h.shape[3], (weight.shape[0] + 15) // 16 * 16) if keep else (0,)
    rows = (h.shape[0], weight.shape[0] // target.shape[1]) if keep_rows else (0,)
    loss = empty_loss(h, weight, target, level_weight)
    return loss, h.new_empty(kept), h.new_empty(rows, dtype=torch.float64)


@_forward_op.register_fake
def _(h, weight, bias, target, level_weight, keep, keep_rows):
    return _empty_results(h, weight, target, level_weight, keep, keep_rows)


@torch.library.custom_op("rdc::multihead_loss_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _backward_op(
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
    """Gradients of (h, weight, bias, target, level_weight); those not wanted come back with no elements and cost nothing."""
    grads = empty_gradients(h, weight, bias, target, level_weight, wanted)
    if not grad_loss.numel() or not any(wanted):
        return [g.zero_() for g in grads]
    arguments, alive = _arguments(h, weight, bias, target, level_weight)
    upstream = grad_loss.to(torch.float32).contiguous()  # may arrive with stride 0
    in_kernel = [*wanted[:4], wanted[4] and h.device.type != "cpu"]
    level_row = torch.empty(h.shape[0] if in_kernel[4] else 0, dtype=torch.float32, device=h.device)
    outputs = [upstream, *grads[:4], level_row]
    pointers = tuple(t.data_ptr() if want else 0 for t, want in zip(outputs, [True, *in_kernel], strict=True))
    strides = tuple(grads[0].stride()) if wanted[0] else (0,) * 4
    if any(in_kernel):
        _launch("backward", (*arguments, strides, pointers), [kept], h.device)
    del alive
    if in_kernel[4]:
        grads[4] = level_row.view(-1, level_weight.shape[0]).sum(0)
    elif wanted[4]:
        if not row_loss.numel():  # the op was called by itself
            row_loss = _forward_op(h, weight, bias, target, level_weight, False, True)[2]
        grads[4] = _level_gradient(upstream, row_loss)
    return grads


def _level_gradient(upstream: Tensor, row_loss: Tensor) -> Tensor:
    """sum_nk upstream[n, k] row_loss[n*T + t, k] in float64 -> [T] float32. A class without gradient adds nothing, whatever its loss."""
    upstream = upstream[:, None].double()
    products = upstream * row_loss.view(upstream.shape[0], -1, row_loss.shape[1])
    return products.where(upstream != 0, 0).sum((0, 2)).float()


@_backward_op.register_fake
def _(grad_loss, h, weight, bias, target, level_weight, kept, row_loss, wanted):
    return empty_gradients(h, weight, bias, target, level_weight, wanted)


# --- Autograd: once by the kernels, a second time through the reference ------------------------------------------------------------------


def _save_inputs(ctx, inputs, output) -> None:
    _, kept, row_loss = output
    ctx.mark_non_differentiable(kept, row_loss)
    ctx.save_for_backward(*inputs[:5], kept, row_loss)


def _backward(ctx, grad_loss: Tensor, *grad_kept: Tensor | None):
    return *_gradients(_backward_op, ctx.needs_input_grad[:5], grad_loss, *ctx.saved_tensors), None, None


def _gradients(op, needs: tuple[bool, ...], *tensors: Tensor) -> list[Tensor | None]:
    """What ``op(*tensors, wanted)`` gives, None where nothing is wanted."""
    refuse_batches(tensors[0])
    wanted = list(needs)
    if transformed():  # a batch of upstream gradients, or forward mode through this backward pass
        some = iter(opaque(lambda *plain: [g for g, w in zip(op(*plain, wanted), wanted, strict=True) if w], *tensors))
        return [next(some) if want else None for want in wanted]
    return [g if want else None for g, want in zip(op(*tensors, wanted), wanted, strict=True)]


def _save_backward_inputs(ctx, inputs, output) -> None:
    *tensors, ctx.wanted = inputs
    ctx.save_for_backward(*tensors[:6])  # what the forward pass kept is a function of the others
    ctx.rest = len(tensors) - 5


def _double_backward(ctx, grad_grads: list[Tensor]):
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
        second = (
            torch.autograd.grad(
                [f for f, _ in pairs], asked, [g for _, g in pairs], create_graph=again, allow_unused=True
            )
            if pairs
            else [None] * len(asked)
        )
    second = iter(second)
    return *(next(second) if need else None for need in needs), *(None,) * ctx.rest


def _save_triton_inputs(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _triton_backward(ctx, grad_loss: Tensor):
    return tuple(_gradients(multihead_triton.backward_op, ctx.needs_input_grad, grad_loss, *ctx.saved_tensors))


_forward_op.register_autograd(_backward, setup_context=_save_inputs)
_backward_op.register_autograd(_double_backward, setup_context=_save_backward_inputs)
multihead_triton.forward_op.register_autograd(_triton_backward, setup_context=_save_triton_inputs)
multihead_triton.backward_op.register_autograd(_double_backward, setup_context=_save_backward_inputs)
