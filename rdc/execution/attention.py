"""Which of torch's attention kernels compute: the fused ones cannot be differentiated twice."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["twice_differentiable"]


def twice_differentiable(x: Tensor) -> AbstractContextManager[None]:
    """Attention by plain products where a gradient with respect to ``x`` is recorded; else as it is."""
    wanted = x.requires_grad and torch.is_grad_enabled()
    held: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if wanted else contextlib.nullcontext()
    return held
