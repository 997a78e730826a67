"""The definition of ``multihead_loss`` in torch: what every other form of it is measured against.

The formula is in :mod:`rdc.ops.multihead_loss`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["multihead_loss_reference"]

#: at most this many values are predicted at once
REFERENCE_CHUNK = 2**24


def multihead_loss_reference(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
    """The definition in torch: any device, any floating type (at least float32 inside), differentiable any number of times.

    Classes are taken in chunks, so that without gradients the prediction stays small; autograd keeps all chunks.

    Args, Returns: as :func:`rdc.ops.multihead_loss.multihead_loss`.
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


def _classes_at_once(values_per_class: int, classes: int) -> int:
    if torch.compiler.is_compiling():  # shapes may be symbolic: no loop that depends on them
        return max(classes, 1)
    return max(1, min(classes, REFERENCE_CHUNK // max(values_per_class, 1)))
