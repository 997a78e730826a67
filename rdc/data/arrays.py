"""Arrays of images, labels and class names in the forms that people keep them in, to those of a :class:`rdc.data.Dataset`."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from rdc.errors import DataError, one_line
from rdc.storage.reading import Budget, reading

__all__ = ["MOST_CLASSES", "channels_first", "class_labels", "check_name", "class_names", "eight_bits", "integers"]

MOST_CLASSES = 100_000  #: largest number of classes of a data set
_LONGEST_NAME = 200  # characters of a class's name
_LAYOUTS = ("NHW", "NHWC", "NCHW")
_SLACK = 1e-6  # as rdc.images.pixels.SLACK
_EXACT = 0.13  # of one of 255 steps: float16 keeps 8-bit values to that
_PIECE = 2**22  # numbers worked on at once

ROUNDED = "images are floats between the 256 levels of 8-bit images; each was rounded to the nearest, by at most 1/510"


def eight_bits(images: np.ndarray, where: str, budget: Budget | None = None) -> tuple[np.ndarray, bool]:
    """Images as uint8.

    Args:
        images: uint8; or floats in [0, 1], which become round(255 x).
        where: for errors, such as ``"own.npz"``.
        budget: what the result is taken from, if it is another array.

    Returns:
        The images, and whether any value was between two levels by more than float16 explains.

    Raises:
        DataError: another type; floats that are not finite or outside [0, 1].
    """
    if images.dtype == np.uint8:
        return images, False
    if images.dtype.kind != "f":
        raise DataError(f"{where}: images must be uint8, 0..255, or floats in [0, 1]; got {images.dtype}")
    if budget is not None:
        budget.take(images.size, "images as uint8")
    flat = images.reshape(-1)
    found = np.empty(flat.shape, np.uint8)
    rounded = False
    for begin in range(0, len(flat), _PIECE):
        part = flat[begin : begin + _PIECE].astype(np.float64)
        low, high = float(part.min()), float(part.max())
        rounding = max(_SLACK, float(np.finfo(images.dtype).eps))  # as rdc.images.pixels.slack
        if not (low >= -rounding and high <= 1 + rounding):  # also true for NaN
            raise DataError(f"{where}: images of floats must lie in [0, 1]; got {_range(images)}")
        part = 255 * part.clip(0, 1)
        nearest = np.rint(part)
        rounded = rounded or float(np.abs(part - nearest).max()) > _EXACT
        found[begin : begin + _PIECE] = nearest
    return found.reshape(images.shape), rounded


def _range(images: np.ndarray) -> str:
    low, high = float(np.min(images)), float(np.max(images))
    if not (np.isfinite(low) and np.isfinite(high)):
        return "NaN or infinity"
    hint = "store them as uint8" if high > 2 else "undo the normalisation: (x + 1) / 2, or x * std + mean"
    digits = 4 if low < -0.001 or high > 1.001 else 9  # what is wrong is to be seen
    return f"values from {low:.{digits}g} to {high:.{digits}g}; {hint}"


def channels_first(
    images: np.ndarray, layout: np.ndarray | None, where: str, budget: Budget | None = None
) -> np.ndarray:
    """[N, C, H, W], contiguous, with the axes told by ``layout`` or else by which of them has size 1 or 3.

    Args:
        images: [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3, not empty.
        layout: one text, ``"NHW"``, ``"NHWC"`` or ``"NCHW"``; None: told by the shape.
        where: for errors.
        budget: what a copy is taken from.

    Raises:
        DataError: another shape, or one that could be either.
    """
    shape = list(images.shape)
    if layout is not None:
        axes = layout.item() if layout.dtype.kind == "U" and layout.size == 1 else f"of {layout.dtype}"
        fits = axes in _LAYOUTS and len(axes) == images.ndim
        if not fits or ("C" in axes and images.shape[axes.index("C")] not in (1, 3)):
            raise DataError(
                f"{where}: layout {one_line(repr(axes), 40)} does not fit images {shape}; use one of {', '.join(_LAYOUTS)}"
            )
    elif images.ndim == 3:
        axes = "NHW"
    else:
        likely = [axes for axes in _LAYOUTS[1:] if images.ndim == 4 and images.shape[axes.index("C")] in (1, 3)]
        if len(likely) != 1:
            why = "both axis 1 and axis 3 could be the channels: add an array layout" if likely else "not image shapes"
            raise DataError(
                f"{where}: images {shape}: {why}; expected [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels"
            )
        axes = likely[0]
    if 0 in shape[1:]:
        raise DataError(f"{where}: images {shape}: not image shapes; expected at least one pixel")
    turned = {"NHW": lambda: images[:, None], "NCHW": lambda: images, "NHWC": lambda: images.transpose(0, 3, 1, 2)}[
        axes
    ]()
    if not turned.flags.c_contiguous and budget is not None:
        budget.take(turned.nbytes, "array images with channels first")
    return np.ascontiguousarray(turned)


def class_labels(labels: np.ndarray, count: int, where: str) -> tuple[np.ndarray, int | None]:
    """Labels int64 [N].

    Args:
        labels: integers [N] or [N, 1]; or one-hot [N, K] of integers, bools or floats.
        count: N.
        where: for errors.

    Returns:
        The labels, and K if one-hot rows say it.

    Raises:
        DataError: another shape or type, a row that has no one or several, or a label of 100,000 or more.
    """
    if labels.shape == (count, 1) and labels.dtype.kind in "iu":
        labels = labels[:, 0]
    classes = None
    if labels.ndim == 2 and len(labels) == count and labels.shape[1] > 1 and labels.dtype.kind in "iubf":
        labels, classes = _of_one_hot(labels, where), labels.shape[1]
    found = integers(labels, count, where)
    if count and found.max() >= MOST_CLASSES:
        at = int(found.argmax())
        raise DataError(
            f"{where.removesuffix(': labels')}: label {found[at]} at position {at}; expected at most {MOST_CLASSES:,} classes, 0 to "
            f"{MOST_CLASSES - 1:,}"
        )
    return found, classes


def _of_one_hot(labels: np.ndarray, where: str) -> np.ndarray:
    if labels.shape[1] > MOST_CLASSES:
        raise DataError(f"{where}: one-hot rows of {labels.shape[1]:,}; expected at most {MOST_CLASSES:,} classes")
    places = labels.argmax(1)
    right = (np.count_nonzero(labels, axis=1) == 1) & (labels[np.arange(len(labels)), places] == 1)
    if not right.all():
        at = int(np.argmin(right))
        raise DataError(
            f"{where} {list(labels.shape)}: expected one-hot rows, a single 1 and zeros; got {one_line(labels[at].tolist(), 60)} at "
            f"position {at}. Store integers [N]"
        )
    found: np.ndarray = places
    return found


def integers(array: np.ndarray, count: int, where: str) -> np.ndarray:
    """int64 [N] of integers [N].

    Raises:
        DataError: another type or shape, or a number beyond 64 signed bits.
    """
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise DataError(f"{where} must be integers [{count}], one per image; got {array.dtype} {list(array.shape)}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where} must fit into 64 signed bits; the largest is {array.max()}")
    return array.astype(np.int64)


def class_names(names: np.ndarray, path: Path) -> tuple[str, ...]:
    """Names of classes from an array of text [K].

    Raises:
        DataError: no text, too many, or a name that does not fit on a line.
    """
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{path}: class_names must be strings [K]; got {names.dtype} {list(names.shape)}")
    if len(names) > MOST_CLASSES:
        raise DataError(f"{path}: {len(names):,} class_names; expected at most {MOST_CLASSES:,}")
    with reading(path, DataError, "a file with readable class_names"):
        found = tuple(names.tolist())
    for name in found:
        check_name(name, str(path))
    return found


def check_name(name: str, where: str) -> None:
    """Refuse a class's name that does not fit on a line."""
    if len(name) > _LONGEST_NAME or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise DataError(
            f"{where}: expected class_names of at most {_LONGEST_NAME} characters, without line breaks and control "
            f"characters; got {one_line(repr(name), 80)}"
        )
