"""Pixels at every public boundary: floating, finite, in [0, 1] but for rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rdc.errors import InputError
from rdc.execution.opaque import plain_values

__all__ = ["SLACK", "boxed", "checked_pixels", "into_box", "slack"]

SLACK = 1e-6  #: how far outside [0, 1] a float32 or float64 pixel may lie by rounding; it counts as 0 or 1


def slack(kind: torch.dtype) -> float:
    """How far outside [0, 1] a pixel of this type may lie by rounding: one unit of rounding above 1, at least :data:`SLACK`.

    9.8e-4 for float16, 7.8e-3 for bfloat16.
    """
    return max(SLACK, torch.finfo(kind).eps)


def checked_pixels(pixels: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Refuse what is not a float batch [N, C, H, W] of finite values in [0, 1].

    Args:
        pixels: [N, C, H, W].
        image_shape: (C, H, W).

    Returns:
        The pixels; those outside by :func:`slack` at most as 0 or 1, see :func:`into_box`.

    Raises:
        InputError: another type, shape or range.
    """
    expected = f"a float tensor [N, {', '.join(str(size) for size in image_shape)}] with values in [0, 1]"
    if not isinstance(pixels, Tensor):
        raise InputError(
            f"pixels: expected {expected}; got {type(pixels).__name__}. Use torch.from_numpy or torch.tensor"
        )
    if not pixels.is_floating_point():
        raise InputError(
            f"pixels: expected {expected}; got {pixels.dtype}. Divide 8-bit images by 255: pixels.float() / 255"
        )
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != tuple(image_shape):
        hint = "add the batch dimension with pixels[None]" if pixels.ndim == 3 else "resize or convert the images"
        raise InputError(f"pixels: expected {expected}; got shape {list(pixels.shape)}: {hint}")
    if len(pixels) == 0:
        raise InputError(f"pixels: expected {expected} with N >= 1; got an empty batch")
    values = pixels.detach() if torch.compiler.is_compiling() else plain_values(pixels.detach())
    ends = torch.stack(torch.aminmax(values))  # one wait for a GPU, not two
    try:
        low, high = ends.tolist()
    except RuntimeError:  # torch 2.6 inside of torch.func
        low, high = (end.item() for end in ends)
    rounding = slack(pixels.dtype)
    if not (low >= -rounding and high <= 1 + rounding):  # also true for NaN
        raise InputError(
            f"pixels: expected {expected}; got values from {low:.9g} to {high:.9g}. "
            "Scale to [0, 1] (no mean/std normalisation) and remove NaN"
        )
    return into_box(pixels) if low < 0 or high > 1 else pixels


def boxed(pixels: Any) -> Any:
    """Floating pixels that lie outside [0, 1] by rounding alone (:func:`slack`), as 0 or 1; everything else itself, to be refused."""
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point() or not pixels.numel():
        return pixels
    low, high = torch.stack(torch.aminmax(pixels.detach())).tolist()
    outside, rounding = low < 0 or high > 1, slack(pixels.dtype)
    return into_box(pixels.detach()) if outside and -rounding <= low and high <= 1 + rounding else pixels


def into_box(pixels: Tensor) -> Tensor:
    """Pixels cut to [0, 1]; the gradient passes as if they had not been, so that a rounded pixel is still attacked."""
    return pixels + (pixels.clamp(0, 1) - pixels).detach()
