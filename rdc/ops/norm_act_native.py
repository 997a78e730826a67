"""Group norm with its conditioning and SiLU by the compiled kernel of csrc/ (norm_act.h); :mod:`rdc.networks.fused` calls it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # torch does not list it, its pages do

from rdc.ops import _native
from rdc.ops.convolution import images, plain

__all__ = ["backward", "backward_twice", "forward", "laid_out", "native", "takes"]

_TYPES = (torch.float32, torch.bfloat16)


def native(x: Tensor) -> bool:
    """Whether x belongs to the kernels of csrc/; Triton's interpreter takes tensors of a CPU, too."""
    return x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"


def takes(x: Tensor) -> bool:
    """Whether the kernel takes x [B, C, H, W] once it lies in channels_last."""
    if not native(x) or x.dtype not in _TYPES or not x.numel() or not plain(x):
        return False
    return not _native.why_not("cpu")


def laid_out(x: Tensor) -> Tensor:
    """x [B, C, H, W] in channels_last where the kernels would take it so, whatever the layout of the weights; else x itself."""
    return x.contiguous(memory_format=torch.channels_last) if takes(x) else x


def _row(tensor: Tensor) -> Any:
    tensor = tensor.detach()  # torch.func leaves wrappers without memory behind
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        tensor = tensor.to(torch.float32).contiguous()
    return to_dlpack(tensor)


def _given(x: Tensor, weight: Tensor, bias: Tensor, conditions: tuple[Tensor | None, ...]) -> list[Any]:
    """x, weight, bias, pre, scale, shift for the binding."""
    pre, scale, shift = conditions
    pre = pre if pre is None or pre.ndim == 2 else pre[None]
    of_norm = [images(x), _row(weight), _row(bias), None if pre is None else _row(pre)]
    if scale is None or shift is None:
        return [*of_norm, None, None]
    return [*of_norm, *map(_as_it_lies if _apart(scale) and _apart(shift) else _row, (scale, shift))]


def _as_it_lies(tensor: Tensor) -> Any:
    return to_dlpack(tensor.detach())


def _apart(rows: Tensor) -> bool:
    """Whether the kernel reads [B, C] as it lies: the two halves of one condition do."""
    step, side = rows.stride()
    return rows.dtype == torch.float32 and side == 1 and step == 2 * rows.shape[1]


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    conditions: tuple[Tensor | None, ...],
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y like x [B, C, H, W]; mean and 1 / deviation [B, C] of x + pre. ``conditions``: pre, scale, shift as of ``norm_act``."""
    y = torch.empty_like(x, memory_format=torch.channels_last)
    kept = torch.empty(2, *x.shape[:2])
    _native.extension().norm_act_cpu_forward(
        *_given(x, weight, bias, conditions), groups, eps, silu, images(y), to_dlpack(kept[0]), to_dlpack(kept[1]),
        torch.get_num_threads(), _native.cpu_isa(),
    )  # fmt: skip
    return y, kept[0], kept[1]


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    conditions: tuple[Tensor | None, ...],
    kept: tuple[Tensor, Tensor],
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and sums over positions [2 or 3, B, C]: of the gradient in front of the activation, of that times the normalised
    x, and, with pre, of the gradient of x. ``kept``: mean and 1 / deviation."""
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    sums = torch.empty(3 if conditions[0] is not None else 2, *x.shape[:2])
    rows = [to_dlpack(row) for row in sums]
    _native.extension().norm_act_cpu_backward(
        *_given(x, weight, bias, conditions), groups, eps, silu, images(grad), *map(_row, kept), images(grad_x),
        *rows, *[None] * (3 - len(rows)), torch.get_num_threads(), _native.cpu_isa(),
    )  # fmt: skip
    return grad_x, sums


def backward_twice(
    along: Tensor,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    conditions: tuple[Tensor | None, ...],
    kept: tuple[Tensor, Tensor],
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient ``along`` of the gradient of x (:func:`backward`): those of ``grad`` and of x, and sums as there, of the gradient
    in front of the activation, of what arrives at the slope, and of the gradient of x."""
    of_grad, of_x = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
    sums = torch.empty(3 if conditions[0] is not None else 2, *x.shape[:2])
    rows = [to_dlpack(row) for row in sums]
    _native.extension().norm_act_cpu_backward_twice(
        *_given(x, weight, bias, conditions), groups, eps, silu, images(grad), images(along), *map(_row, kept),
        images(of_grad), images(of_x), *rows, *[None] * (3 - len(rows)), torch.get_num_threads(), _native.cpu_isa(),
    )  # fmt: skip
    return of_grad, of_x, sums
