"""Networks whose weights are not float32: called in the type of their weights, their answers as float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["in_own_type", "own_type"]


def own_type(model: Any) -> torch.dtype | None:
    """The type of all weights of a module, where that is one other than float32; None for anything else.

    Args:
        model: an ``nn.Module``, or a method of one; another function has no type of its own.
    """
    model = getattr(model, "__self__", model)
    if not isinstance(model, nn.Module):
        return None
    found = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 and torch.float32 not in found else None


def in_own_type(model: Callable[..., Any]) -> Callable[..., Any]:
    """A model of float16, bfloat16 or float64 weights as a function of float32 pixels; any other model itself.

    Args:
        model: pixels -> logits. Pixels are brought to the type of its weights (a float16 pixel is at most 2.4e-4 off); a gradient
            passes through. Answers of 16 bits come back as float32, so that what is made of them is not rounded again.
    """
    kind = own_type(model)
    if kind is None:
        return model

    def call(pixels: Tensor) -> Any:
        answer = model(pixels.to(kind))
        return (
            answer.float() if isinstance(answer, Tensor) and answer.dtype in (torch.float16, torch.bfloat16) else answer
        )

    return call
