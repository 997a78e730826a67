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

Source: Chen et al., arXiv 2305.15241 (multi-head diffusion); Karras et al. 2022, arXiv 2206.00364, equations 7 and 8 for F and F*.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rdc.errors import ConfigError, InputError
from rdc.execution.opaque import opaque, transformed
from rdc.ops import _native, multihead_native, multihead_triton
from rdc.ops._operands import check_operands
from rdc.ops.multihead_gram import costs_less, multihead_loss_gram
from rdc.ops.multihead_reference import multihead_loss_reference

__all__ = ["multihead_loss", "multihead_loss_reference"]


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
        loss: Tensor = multihead_triton.forward_op(*operands)
        return loss
    if _use_native(h.device.type, dtype, backend):
        kept = multihead_native.keeps_residuals(*operands), multihead_native.keeps_row_loss(*operands)
        loss = multihead_native.forward_op(*operands, *kept)[0]
        return loss
    return multihead_loss_reference(*operands)


def _under_transforms(
    h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor, backend: str
) -> Tensor:
    """torch.func and forward mode: the same kernels on plain tensors. Compiled, they become operators of torch as the reference is."""
    if not torch.compiler.is_compiling():
        whole = functools.partial(multihead_loss, backend=backend)
        return opaque(whole, h, weight, bias, target, level_weight)
    for t in (weight, bias, target):
        h = h.to(torch.promote_types(h.dtype, t.dtype))
    return multihead_loss_reference(h, weight, bias, target, level_weight)


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


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_not(device_type: str) -> str:
    return _native.why_not(device_type)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_not_triton(device_type: str) -> str:
    return multihead_triton.why_not(device_type)
