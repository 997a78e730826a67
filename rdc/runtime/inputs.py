"""Whatever people have images in -> one float32 or uint8 batch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from rdc.errors import InputError

__all__ = ["as_array", "as_pixels"]

_SLACK = 1e-6  # rdc.images.pixels.SLACK, which torch comes with: a pixel outside [0, 1] by rounding is 0 or 1


def _slack(kind: np.dtype[Any]) -> float:
    """As rdc.images.pixels.slack: one unit of rounding above 1, at least 1e-6."""
    return max(_SLACK, float(np.finfo(kind).eps))


def as_array(images: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """Images as one array, checked; :func:`as_pixels` makes what the model takes of any part of it.

    Args:
        images: an array [N, C, H, W] or [C, H, W] (for one channel also [H, W]), uint8 or floating in [0, 1]; a path of a PNG or JPEG
            file; a PIL image; or a sequence of these (each one image). Files and PIL images are converted and resized to ``shape``.
        shape: (C, H, W) of the model.

    Returns:
        [N, C, H, W], N >= 1: uint8, or floating in [0, 1] but for rounding. An array is not copied.

    Raises:
        InputError: another type, shape or range; a file that cannot be read (its path is named).
    """
    if isinstance(images, np.ndarray):
        return _array(images, shape)
    if isinstance(images, (str, os.PathLike)) or _is_picture(images):
        return _one(images, shape)[None]
    if isinstance(images, Iterable):
        parts = [_one(image, shape) for image in images]
        if not parts:
            raise InputError("images: expected at least one; got an empty sequence")
        return np.stack(parts)
    raise InputError(f"images: expected arrays, paths or PIL images; got {_kind(images)}")


def as_pixels(array: np.ndarray) -> np.ndarray:
    """Float32 pixels in [0, 1] of an array by :func:`as_array`, or of a part of one."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    inside = array.min() >= 0 and array.max() <= 1
    return (array if inside else np.clip(array, 0, 1)).astype(np.float32)


def _one(image: Any, shape: tuple[int, int, int]) -> np.ndarray:
    if isinstance(image, np.ndarray):
        batch = _array(image, shape)
        if len(batch) != 1:
            raise InputError(f"images: expected one image in each entry of a sequence; got shape {list(image.shape)}")
        return as_pixels(batch[0])
    from rdc.images.files import from_picture, read_image

    if isinstance(image, (str, os.PathLike)):
        try:
            return read_image(image, shape).pixels
        except InputError as error:
            raise InputError(f"{os.fspath(image)}: {error}") from error
    if _is_picture(image):
        return from_picture(image, shape)[0]
    raise InputError(f"images: expected arrays, paths or PIL images; got {_kind(image)}")


def _is_picture(value: Any) -> bool:
    import sys

    pil = sys.modules.get("PIL.Image")  # nobody can hold a PIL image without it
    return pil is not None and isinstance(value, pil.Image)


def _kind(value: Any) -> str:
    if type(value).__module__.startswith("torch"):
        return f"{type(value).__name__} of torch; use .numpy()"
    return type(value).__name__


def _array(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    expected = f"[N, {', '.join(str(size) for size in shape)}] or one such image, uint8 or floating in [0, 1]"
    if array.dtype != np.uint8 and array.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(f"images: expected {expected}; got {array.dtype}. 8-bit images: array.astype(numpy.uint8)")
    if array.shape == shape[1:] and shape[0] == 1:
        array = array[None]
    if array.shape == shape:
        array = array[None]
    if array.ndim != 4 or array.shape[1:] != shape:
        last = array.shape[-3:] == (*shape[1:], shape[0])
        hint = "channels come first: use array.transpose(2, 0, 1)" if last else "resize or convert the images"
        raise InputError(f"images: expected {expected}; got shape {list(array.shape)}: {hint}")
    if len(array) == 0:
        raise InputError(f"images: expected {expected} with N >= 1; got an empty batch")
    if array.dtype == np.uint8:
        return array
    low, high, rounding = float(array.min()), float(array.max()), _slack(array.dtype)
    if not (low >= -rounding and high <= 1 + rounding):  # also true for NaN
        raise InputError(
            f"images: expected {expected}; got values from {low:.9g} to {high:.9g}. Scale to [0, 1] (no mean/std normalisation) "
            "and remove NaN"
        )
    return array
