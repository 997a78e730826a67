"""Images and labels as people have them: arrays, tensors, data sets, loaders, names -> one Dataset."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.scalars import as_integer, shown
from rdc.data import Dataset, load_dataset
from rdc.errors import InputError
from rdc.images.pixels import boxed

__all__ = ["FloatDataset", "as_images"]

_NAME = "arrays"  # of what came without a name
_MOST_IMAGES = 10**7  # of a data set that does not say how many it has


class FloatDataset(Dataset):
    """A Dataset whose pixels are no 8-bit grey levels: ``images`` is float32 [N, C, H, W] in [0, 1], used as it is.

    Args: as of :class:`rdc.data.Dataset`, but for ``images``; checked by :func:`as_images`.
    """

    def __post_init__(self) -> None:
        if self.indices is None:
            object.__setattr__(self, "indices", torch.arange(len(self.labels)))

    def pixels(self, index: Any = None) -> Tensor:
        """Pixels [n, C, H, W] float32 in [0, 1] of these positions; all when None."""
        if index is None:
            return self.images
        return self.images[index if isinstance(index, (int, slice, Tensor)) else torch.as_tensor(np.asarray(index))]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        return self.images[index], int(self.labels[index])


def as_images(
    x: Any, y: Any = None, *, n: int | None = None, image_ids: Any = None, class_names: Sequence[str] | None = None
) -> Dataset:
    """A Dataset of whatever holds images and labels.

    Args:
        x: pixels [N, C, H, W] (one channel: also [N, H, W]), uint8 or floating in [0, 1], as a NumPy array or a tensor on any device;
            or, with ``y`` None, a :class:`rdc.data.Dataset`, a PyTorch data set or DataLoader of (image, label), a data set's name or path.
        y: [N] or [N, 1] integers, the classes.
        n: take the first n images; None: all.
        image_ids: N different integers >= 0, which fix the images' random starts; None: 0 to N - 1, or the data set's own.
        class_names: K names; None: the data set's, or numbers.

    Returns:
        The images, 8-bit ones as they are; others with pixels in float32, none of them rounded to 8 bits.

    Raises:
        InputError: images, labels or ids of another kind, shape or range. DataError: no such data set.
    """
    if isinstance(x, (str, os.PathLike)):
        _no_labels(y, "a data set's name")
        found = load_dataset(x)
    elif isinstance(x, Dataset):
        _no_labels(y, "a Dataset")
        found = x
    elif y is None:
        found = _from_arrays(*_collected(x, n), class_names)
    else:
        found = _from_arrays(x, y, class_names)
    if n is not None:
        count = as_integer(n)
        if count is None or not 1 <= count <= len(found):
            raise InputError(f"n: expected an integer from 1 to {len(found)}, the number of images; got {shown(n)}")
        found = found.subset(slice(0, count))
    return found if image_ids is None else _with_ids(found, image_ids)


def _no_labels(y: Any, what: str) -> None:
    if y is not None:
        raise InputError(f"y: expected None beside {what}, which has its own labels; got {type(y).__name__}")


def _from_arrays(x: Any, y: Any, class_names: Sequence[str] | None) -> Dataset:
    pixels, labels = _pixels(x, y), _labels(y)
    if len(pixels) != len(labels):
        raise InputError(f"y: expected {len(pixels)} labels, one for each image; got {len(labels)}")
    names = tuple(class_names) if class_names is not None else tuple(str(k) for k in range(int(labels.max()) + 1))
    if int(labels.max()) >= len(names):
        raise InputError(f"y: label {int(labels.max())} is out of range; class_names has {len(names)} names")
    if pixels.dtype == torch.uint8:
        return Dataset(pixels, labels, names, _NAME, "test")
    levels = (pixels * 255).round().to(torch.uint8)
    if torch.equal(levels.to(torch.float32) / 255, pixels):  # they were 8-bit images, and are again
        return Dataset(levels, labels, names, _NAME, "test")
    return FloatDataset(pixels, labels, names, _NAME, "test")


def _pixels(x: Any, y: Any) -> Tensor:
    """uint8 or float32 [N, C, H, W] on the CPU."""
    expected = "x: expected pixels [N, C, H, W], uint8 or floating in [0, 1]"
    pixels = _tensor(x, expected)
    if pixels.ndim == 3 and hasattr(y, "__len__") and len(y) == len(pixels):
        pixels = pixels[:, None]
    if pixels.ndim != 4 or pixels.numel() == 0:
        hint = ": add the batch dimension with x[None]" if pixels.ndim == 3 else ""
        raise InputError(f"{expected}; got shape {list(pixels.shape)}{hint}")
    if pixels.shape[1] not in (1, 3) and pixels.shape[3] in (1, 3):
        raise InputError(
            f"{expected}; got shape {list(pixels.shape)}: channels come first, as in x.transpose(0, 3, 1, 2)"
        )
    if pixels.dtype == torch.uint8:
        return pixels.contiguous()
    if not pixels.is_floating_point():
        raise InputError(f"{expected}; got {pixels.dtype}. Grey levels 0 to 255: x.astype('uint8')")
    inside: Tensor = boxed(pixels).to(torch.float32).contiguous()
    low, high = float(inside.min()), float(inside.max())
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise InputError(
            f"{expected}; got values from {low:.9g} to {high:.9g}. Divide grey levels by 255, undo any normalisation, remove NaN"
        )
    return inside


def _labels(y: Any) -> Tensor:
    """int64 [N] on the CPU."""
    expected = "y: expected labels [N], integers >= 0"
    labels = _tensor(y, expected)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{expected}; got {labels.dtype} {list(labels.shape)}")
    labels = labels.to(torch.int64)
    if labels.numel() == 0 or int(labels.min()) < 0:
        raise InputError(f"{expected}; got {'none' if labels.numel() == 0 else int(labels.min())}")
    return labels


def _tensor(value: Any, expected: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to("cpu")
    try:
        array = np.asarray(value)
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            array = array.astype(np.int64)
        array = np.ascontiguousarray(array)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        raise InputError(f"{expected}; got {type(value).__name__}") from error


def _collected(source: Any, n: int | None) -> tuple[Tensor, Tensor]:
    """The images and labels of a PyTorch data set or loader, the first n at least."""
    if isinstance(source, (Tensor, np.ndarray)):
        raise InputError("y: expected the labels of these images; got None")
    expected = "x: expected arrays with y, a data set or a DataLoader that gives (image, label)"
    images, labels, count = [], [], 0
    for pixels, label in _batches(source, n, expected):
        images.append(pixels)
        labels.append(label)
        count += len(pixels)
        if n is not None and count >= n:
            break
    if not images:
        raise InputError(f"{expected}; got an empty {type(source).__name__}")
    if len({(part.dtype, tuple(part.shape[1:])) for part in images}) > 1:
        raise InputError(
            f"{expected}, all of one shape and type; resize and convert them, for example with its transform"
        )
    return torch.cat(images), torch.cat(labels)


def _batches(source: Any, n: int | None, expected: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of pixels and labels; a data set's images one by one."""
    if isinstance(source, torch.utils.data.DataLoader):
        for batch in source:
            yield _pair(batch, expected)
        return
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise InputError(f"{expected}; got {type(source).__name__}")
    for place in range(min(len(source), n or _MOST_IMAGES)):
        image, label = _pair(source[place], expected, one=True)
        yield image[None], label.reshape(1)


def _pair(entry: Any, expected: str, one: bool = False) -> tuple[Tensor, Tensor]:
    if not isinstance(entry, (tuple, list)) or len(entry) < 2:
        raise InputError(f"{expected}; it gives {type(entry).__name__}")
    image = entry[0]
    pixels = _tensor(image, expected)
    if one and not isinstance(image, (Tensor, np.ndarray)):  # a PIL image: [H, W] or [H, W, C]
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return pixels, _tensor(entry[1], expected)


def _with_ids(found: Dataset, image_ids: Any) -> Dataset:
    expected = f"image_ids: expected {len(found)} different integers >= 0, one for each image"
    ids = _tensor(image_ids, expected)
    if ids.ndim != 1 or len(ids) != len(found) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"{expected}; got {ids.dtype} {list(ids.shape)}")
    ids = ids.to(torch.int64)
    if int(ids.min()) < 0 or len(ids.unique()) < len(ids):
        raise InputError(f"{expected}; got {int(ids.min()) if int(ids.min()) < 0 else 'one of them twice'}")
    return dataclasses.replace(found, indices=ids)
