"""3 x 3 convolutions of bfloat16 images by oneDNN, on processors that multiply bfloat16 matrices as tiles (AMX).

There oneDNN is 1.6 to 4.7 times as fast as the float32 products of :mod:`rdc.ops.convolution`, which asks :func:`takes` first
(``RDC_CPU_ISA=avx512bf16 python -m benchmarks.test_network_ops``). Weights are rounded to bfloat16, as PyTorch rounds them; sums are
float32. Weights that nobody trains are kept in oneDNN's own layout from call to call (:mod:`rdc.ops.packed_weights`), which gives the
same bits: with few rows a call would spend half of its time on making them. ``RDC_CPU_ISA`` set to any instruction set switches this
off, and so does ``ONEDNN_MAX_CPU_ISA`` without AMX.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from rdc.execution.surroundings import outside_inference_mode
from rdc.ops.packed_weights import kept_for

__all__ = ["forward", "has_tiles", "input_gradient", "takes", "weight_gradient"]

_TYPE = torch.bfloat16
#: below, oneDNN has no tiles for them, or a call costs more than its products
_LEAST_CHANNELS = 3
_LEAST_PRODUCTS = 300_000
#: padding, stride, dilation, groups
_GEOMETRY: tuple[list[int], list[int], list[int], int] = [1, 1], [1, 1], [1, 1], 1


def has_tiles() -> bool:
    """Whether this processor and PyTorch's oneDNN multiply bfloat16 tiles."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "AMX").upper()
    if os.environ.get("RDC_CPU_ISA") or not ("AMX" in allowed or allowed in ("ALL", "DEFAULT")):
        return False
    return bool(getattr(torch.backends.mkldnn, "enabled", True)) and _supported()


@functools.cache
def _supported() -> bool:
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)  # PyTorch has no public name for it
    return bool(asked and asked() and torch.backends.mkldnn.is_available())


def takes(x: Tensor, weight: Tensor, doubled: bool = False) -> bool:
    """Whether oneDNN is faster: by the shape of one image, so that no batch changes who computes (within oneDNN some sums are ordered by
    batch and threads).

    Args:
        x: [B, C, H, W], the images or the gradient of the sum.
        weight: [O, I, 3, 3].
        doubled: every pixel of x counts for 2 x 2.
    """
    if x.dtype != _TYPE or not has_tiles():
        return False
    products = weight.numel() * x.shape[2] * x.shape[3] * (4 if doubled else 1)
    return min(weight.shape[:2]) >= _LEAST_CHANNELS and products >= _LEAST_PRODUCTS


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, factor: float, doubled: bool
) -> Tensor:
    """:func:`rdc.ops.convolution.convolution`, without gradient."""
    of, seen = None if bias is None else _scaled(bias, factor), _seen(x, doubled)
    packed = _packed(weight, factor, False, seen)
    y = F.conv2d(seen, _scaled(weight, factor), of, padding=1) if packed is None else _pointwise(seen, packed, of)
    if skip is not None:
        y.add_(_seen(skip, skip.shape[2] != y.shape[2]), alpha=factor)
    return y


def input_gradient(grad: Tensor, weight: Tensor, factor: float) -> Tensor:
    """Of x [B, I, H, W], from the gradient [B, O, H, W] of the sum."""
    grad, shape = _seen(grad, False), (grad.shape[0], weight.shape[1], *grad.shape[2:])
    if (packed := _packed(weight, factor, True, grad)) is not None:
        return _pointwise(grad, packed, None)
    # never read; with other strides it would be copied
    like = torch.empty(shape, dtype=_TYPE, memory_format=torch.channels_last)
    return _gradients(grad, like, _scaled(weight, factor), (True, False))


def weight_gradient(x: Tensor, weight: Tensor, grad: Tensor, factor: float, doubled: bool) -> Tensor:
    """[O, I, 3, 3] in the type and layout of the weight, rounded to bfloat16 once."""
    found = _gradients(_seen(grad, False), _seen(x, doubled), _scaled(weight, 1.0), (False, True))
    return torch.empty_like(weight).copy_(found).mul_(factor)


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, of: tuple[bool, bool]) -> Tensor:
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (*of, False)
    )
    return found[of.index(True)]


@functools.cache
def _packs() -> bool:
    """Whether this PyTorch lends oneDNN's layout of weights; inductor asks for it by these names, which are no promise."""
    lent = hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    if not lent or not all(
        hasattr(torch.ops.mkldnn, name) for name in ("_convolution_pointwise", "_is_mkldnn_bf16_supported")
    ):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed(weight: Tensor, factor: float, reversed_: bool, x: Tensor) -> Any:
    """The weight as oneDNN wants it for x; None where it is trained, where a mode looks on (it has no memory to show), or without room."""
    if weight.requires_grad or _get_current_dispatch_mode() is not None or not _packs():
        return None

    def make() -> Any:
        plain = _scaled(weight, factor)
        if reversed_:
            plain = plain.flip(2, 3).transpose(0, 1)
        with outside_inference_mode(), torch.no_grad():
            held = plain.clone(memory_format=torch.contiguous_format).to_mkldnn()
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            return reorder(held, *_GEOMETRY, list(x.shape))

    return kept_for(weight, ("oneDNN", reversed_, factor), 2 * weight.numel(), make)


def _pointwise(x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
    padding, stride, dilation, groups = _GEOMETRY
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, packed, bias, padding, stride, dilation, groups, "none", [], ""
    )
    return y


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    """Rounded to bfloat16 after it was scaled."""
    tensor = tensor.detach()
    return (tensor if factor == 1 else tensor * factor).to(_TYPE)


def _seen(x: Tensor, doubled: bool) -> Tensor:
    """In bfloat16 and channels_last, every pixel doubled or not."""
    x = x.detach().to(_TYPE).contiguous(memory_format=torch.channels_last)
    return F.interpolate(x, scale_factor=2, mode="nearest") if doubled else x
