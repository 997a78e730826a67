"""Group norm with its SiLU, and the sum that ends a residual block, in one pass each over channels_last tensors.

On a CPU: :mod:`rdc.ops.norm_act_native`, and the sum is part of the convolution before it (:mod:`rdc.ops.convolution`). On a GPU: Triton.

PyTorch's group norm on a GPU takes contiguous tensors only, so a network in channels_last, which its convolutions want, copies
around every norm; and each bias, scale and activation is a pass of its own over memory. Here a norm with the bias before it, its
conditioning and its SiLU is one kernel, forward and backward, and so is the residual sum with both biases. Sums and
intermediate values are float32, and one rounding follows. Where Triton or a GPU is missing, :func:`usable` says no and the
networks compute with PyTorch.

Environment (read at every call):
    RDC_DISABLE_TRITON=1   behave as if Triton were not installed
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rdc.execution.opaque import opaque, refuse_batches, transformed
from rdc.networks.norm_derivatives import (
    gradients_by_reference,
    input_gradient,
    norm_act_reference,
    of_conditions,
    opaquely,
)
from rdc.ops import norm_act_native
from rdc.ops.convolution import differentiable
from rdc.ops.norm_act_native import native, takes

__all__ = [
    "fits",
    "norm_act",
    "norm_act_reference",
    "residual_sum",
    "residual_sum_reference",
    "usable",
    "why_not",
]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_ELEMENTS = 16384  # of a group that a program can hold


def why_not() -> str:
    """Why the kernels do not run on GPUs here; empty if they do."""
    if os.environ.get("RDC_DISABLE_TRITON", "") not in ("", "0"):
        return f"RDC_DISABLE_TRITON={os.environ['RDC_DISABLE_TRITON']} is set"
    if torch.version.hip:
        return "this torch runs on ROCm, where the kernels were never tried"
    if not _triton_found():
        return "Triton is not installed"
    return _too_old()


@functools.cache
def _too_old() -> str:
    old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
    return "the GPU is older than compute capability 8.0" if old else ""


@functools.cache
def _triton_found() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _kernels() -> ModuleType:
    from rdc.networks import triton_kernels  # imports Triton, which takes a second

    return triton_kernels


def usable(x: Tensor) -> bool:
    """Whether the kernels take x [B, C, H, W]: in channels_last, of a floating type they know, outside tracing."""
    if native(x):
        return on_cpu(x)
    if x.device.type != "cuda" or x.dtype not in _TYPES or torch.compiler.is_compiling():
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and x.numel() > 0 and not why_not()


def on_cpu(x: Tensor) -> bool:
    """Whether the CPU's norm takes x."""
    return takes(x) and x.is_contiguous(memory_format=torch.channels_last)


def fits(x: Tensor, groups: int) -> bool:
    """Whether a group of x [B, C, H, W] fits one program of the GPU; on a CPU every group does."""
    if native(x):
        return True
    return _power(x.shape[2] * x.shape[3]) * _power(x.shape[1] // groups) <= _ELEMENTS


def norm_act(
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
    """Group normalisation of x + pre, scaled and shifted, then SiLU; for x that is :func:`usable` and :func:`fits`.

    Args:
        x: [B, C, H, W] in channels_last.
        weight, bias: [C].
        groups: of channels; divides C.
        eps: added to the variance.
        pre: [B, C], or [C] for all images, added to x first; None: nothing.
        scale, shift: [B, C]; the normalised x is multiplied by scale + 1 and shifted. Both or neither.
        silu: False: no activation.

    Returns:
        [B, C, H, W] in channels_last and in the type of x. Second derivatives: :mod:`rdc.networks.norm_derivatives`.
    """
    if transformed():
        return opaquely(norm_act, x, weight, bias, groups, eps, pre, scale, shift, silu)
    if native(x) and not differentiable(x, weight, bias, pre, scale, shift):
        return norm_act_native.forward(x, weight, bias, (pre, scale, shift), groups, eps, silu)[0]
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _NormAct.apply(x, weight, bias, pre, scale, shift, groups, eps, silu)[0]  # type: ignore[no-untyped-call]
        return out


def residual_sum_reference(x: Tensor, skip: Tensor, bias: Tensor | None, factor: float) -> Tensor:
    """What :func:`residual_sum` computes, in PyTorch; differentiable any number of times."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = x.to(dtype) + skip.to(dtype)
    if bias is not None:
        total = total + bias.to(dtype)[:, None, None]
    return (total * factor).to(x.dtype)


def residual_sum(x: Tensor, skip: Tensor, bias: Tensor | None, factor: float) -> Tensor:
    """factor * (x + skip + bias) for x and skip [B, C, H, W] of one type in channels_last, bias [C] or None."""
    if native(x):
        return residual_sum_reference(x, skip, bias, factor)
    if transformed():
        return opaquely(residual_sum, x, skip, bias, factor)
    total: Tensor = _ResidualSum.apply(x, skip, bias, factor)  # type: ignore[no-untyped-call]
    return total


def _device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _tile(x: Tensor, groups: int, elements: int = 8192) -> tuple[dict[str, int], tuple[int, int]]:
    """Block sizes for as many groups a program as ``elements`` registers hold, and the grid."""
    positions, group = x.shape[2] * x.shape[3], x.shape[1] // groups
    rows, padded = _power(positions), _power(group)
    tile = max(1, min(elements // (rows * padded), _power(groups)))
    warps = max(1, min(16, rows * padded * tile // 1024))
    sizes = {
        "GROUP": group,
        "ROWS": rows,
        "TILE": tile,
        "PADDED": padded,
        "FULL": rows == positions,
        "num_warps": warps,
    }
    return sizes, (x.shape[0], -(-groups // tile))


def _rows(conditions: Tensor | None) -> Tensor | None:
    """[B, C] or [C] whose channels lie side by side; rows may have any stride."""
    return conditions if conditions is None or conditions.stride(-1) == 1 else conditions.contiguous()


def _row_stride(conditions: Tensor | None) -> int:
    """0 where all images share a row."""
    return 0 if conditions is None or conditions.ndim == 1 else conditions.stride(0)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        pre: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if native(x):
            return norm_act_native.forward(x, weight, bias, (pre, scale, shift), groups, eps, silu)
        pre, scale, shift = _conditions(pre, scale, shift)
        y = torch.empty_like(x)
        mean, rstd = torch.empty(2, *x.shape[:2], dtype=torch.float32, device=x.device)
        sizes, grid = _tile(x, groups)
        given = [x if tensor is None else tensor for tensor in (pre, weight, bias, scale, shift)]
        strides = (_row_stride(pre), _row_stride(scale))
        flags = {"PRE": pre is not None, "ADAPTIVE": scale is not None, "SILU": silu}
        with _device(x):
            _kernels().norm_forward[grid](
                x, *given, y, mean, rstd, x.shape[2] * x.shape[3], x.shape[1], groups, *strides, eps, **flags, **sizes
            )
        return y, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, groups, eps, silu = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)  # the caller never sees them
        ctx.save_for_backward(*tensors, mean, rstd)
        ctx.settings = groups, eps, silu

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_batches(grad)
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[:6]
        if not transformed():
            return (*_norm_gradients(needs, ctx.settings, grad, *tensors), None, None, None)
        there = [i for i, tensor in enumerate(tensors) if tensor is not None]

        def plain(grad: Tensor, *some: Tensor) -> list[Tensor | None]:
            given: list[Tensor | None] = [None] * len(tensors)
            for i, tensor in zip(there, some, strict=True):
                given[i] = tensor
            found = _norm_gradients(needs, ctx.settings, grad, *given)
            return [g for g, need in zip(found, needs, strict=True) if need]

        found = iter(opaque(plain, grad, *(tensors[i] for i in there)))
        return (*(next(found) if need else None for need in needs), None, None, None)


def _norm_gradients(
    needs: Sequence[bool], settings: tuple[int, float, bool], grad: Tensor, *tensors: Any
) -> list[Tensor | None]:
    """Of x, weight, bias, pre, scale and shift, where needed."""
    x, weight, bias, pre, scale, shift, *moments = tensors
    again = torch.is_grad_enabled()
    if again and not native(x):
        return gradients_by_reference(needs, settings, grad, tensors[:6])
    if again:
        grad_x, kept = input_gradient(grad.to(x.dtype), *tensors, *settings)
    else:
        given = grad.to(x.dtype), x, weight, bias, (pre, scale, shift), tuple(moments), *settings
        grad_x, kept = norm_act_native.backward(*given) if native(x) else _backward_on_gpu(*given)
    of_rows = of_conditions(needs[1:], kept, weight, bias, pre, scale, shift)
    return [grad_x if needs[0] else None, *of_rows]


def _backward_on_gpu(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    conditions: tuple[Tensor | None, Tensor | None, Tensor | None],
    moments: tuple[Tensor, Tensor],
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """What :func:`rdc.ops.norm_act_native.backward` gives, by Triton."""
    pre, scale, shift = _conditions(*conditions)
    mean, rstd = moments
    grad = grad.contiguous(memory_format=torch.channels_last)
    grad_x = torch.empty_like(x)
    kept = torch.empty(3 if pre is not None else 2, *x.shape[:2], dtype=torch.float32, device=x.device)
    sums, normed_sums, grad_sums = kept[0], kept[1], kept[-1]
    sizes, grid = _tile(x, groups)
    given = [x if tensor is None else tensor for tensor in (pre, weight, bias, scale, shift)]
    strides = (_row_stride(pre), _row_stride(scale))
    flags = {"PRE": pre is not None, "ADAPTIVE": scale is not None, "SILU": silu}
    with _device(x):
        _kernels().norm_backward[grid](
            grad, x, *given, mean, rstd, grad_x, sums, normed_sums, grad_sums,
            x.shape[2] * x.shape[3], x.shape[1], groups, *strides, **flags, **sizes,
        )  # fmt: skip
    return grad_x, kept


def _conditions(
    pre: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """In strides that the kernels take."""
    pre, scale, shift = _rows(pre), _rows(scale), _rows(shift)
    if scale is not None and shift is not None and scale.stride(0) != shift.stride(0):
        scale, shift = scale.contiguous(), shift.contiguous()
    return pre, scale, shift


class _ResidualSum(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, skip: Tensor, bias: Tensor | None, factor: float) -> Tensor:
        y, block = torch.empty_like(x), 2048
        given = x if bias is None else bias.contiguous()
        with _device(x):
            _kernels().residual_forward[(-(-x.numel() // block),)](
                x, skip, given, y, x.numel(), x.shape[1], factor, BIAS=bias is not None, BLOCK=block, num_warps=8
            )
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, bias, ctx.factor = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """In operators of PyTorch: every derivative and transform has its rule."""
        grad = grad * ctx.factor
        wanted = ctx.bias_dtype is not None and ctx.needs_input_grad[2]
        bias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype) if wanted else None
        return grad, grad, bias, None
