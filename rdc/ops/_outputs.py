"""Empty tensors for the results of the ops of multihead_loss, the same for every backend and for fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["empty_gradients", "empty_loss"]


def empty_loss(h: Tensor, weight: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
    """[N, K] float32."""
    shape = (h.shape[0] // level_weight.shape[0], weight.shape[0] // target.shape[1])
    return torch.empty(shape, dtype=torch.float32, device=h.device)


def empty_gradients(
    h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor, wanted: list[bool]
) -> list[Tensor]:
    """One for each of the five; without elements where it is not wanted. That of h keeps channels_last."""
    contiguous = torch.contiguous_format
    like = [torch.empty_like(h)] if wanted[0] else [h.new_empty(0)]
    for t, want in zip((weight, bias, target, level_weight), wanted[1:], strict=True):
        like.append(torch.empty_like(t, memory_format=contiguous) if want else t.new_empty(0))
    return like
