"""3 x 3 convolutions of bfloat16 images by oneDNN, on processors that multiply bfloat16 matrices as tiles (AMX).

There oneDNN is 1.6 to 4.7 times as fast as the float32 products of :mod:`rdc.ops.convolution`, which asks :func:`takes` first
(``RDC_CPU_ISA=avx512bf16 python -m benchmarks.test_network_ops``). Weights are rounded to bfloat16, as PyTorch rounds them; sums are
float32. ``RDC_CPU_ISA`` set to any instruction set switches this off, and so does ``ONEDNN_MAX_CPU_ISA`` without AMX.
"""

from __future__ import annotations

import functools
import os

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["forward", "has_tiles", "input_gradient", "takes", "weight_gradient"]

_TYPE = torch.bfloat16
#: below, oneDNN has no tiles for them, or a call costs more than its products
_LEAST_CHANNELS = 3
_LEAST_PRODUCTS = 300_000


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
    of = None if bias is None else _scaled(bias, factor)
    y = F.conv2d(_seen(x, doubled), _scaled(weight, factor), of, padding=1)
    if skip is not None:
        y.add_(_seen(skip, skip.shape[2] != y.shape[2]), alpha=factor)
    return y


def input_gradient(grad: Tensor, weight: Tensor, factor: float) -> Tensor:
    """Of x [B, I, H, W], from the gradient [B, O, H, W] of the sum."""
    grad, shape = _seen(grad, False), (grad.shape[0], weight.shape[1], *grad.shape[2:])
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


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    """Rounded to bfloat16 after it was scaled."""
    tensor = tensor.detach()
    return (tensor if factor == 1 else tensor * factor).to(_TYPE)


def _seen(x: Tensor, doubled: bool) -> Tensor:
    """In bfloat16 and channels_last, every pixel doubled or not."""
    x = x.detach().to(_TYPE).contiguous(memory_format=torch.channels_last)
    return F.interpolate(x, scale_factor=2, mode="nearest") if doubled else x
