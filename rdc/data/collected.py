"""Images and labels in memory, or given one after the other, as a :class:`rdc.data.Dataset`: arrays, Datasets, DataLoaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.class_names import checked_names
from rdc.arguments.scalars import shown
from rdc.data.arrays import ROUNDED, channels_first, class_labels, eight_bits
from rdc.data.dataset import Dataset
from rdc.data.float_dataset import FloatDataset
from rdc.errors import DataError, InputError
from rdc.images.files import from_picture
from rdc.images.pixels import boxed
from rdc.terminal.progress import bar

__all__ = ["as_array", "dataset_of_arrays", "dataset_of_items"]

_KEYS = ("image", "img", "pixel_values", "x"), ("label", "labels", "y")  # of items that are dicts


def dataset_of_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    split: str,
    name: str,
    class_names: Sequence[str] | None = None,
    image_ids: Any = None,
    *,
    exact: bool = False,
) -> Dataset:
    """A data set of arrays; arguments and errors as of :func:`rdc.data.as_dataset`."""
    where = f"data set {name!r}"
    if not images.ndim or not len(images):
        raise DataError(f"{where}: expected at least one image; got an array of shape {list(images.shape)}")
    given = images
    images, rounded = eight_bits(given, where)
    images = channels_first(images, None, where)
    kind = Dataset
    if exact and given.dtype.kind == "f":
        pixels = channels_first(given.clip(0, 1).astype(np.float32), None, where)
        if not np.array_equal(images.astype(np.float32) / np.float32(255), pixels):
            images, rounded, kind = pixels, False, FloatDataset
    found, classes = class_labels(labels, len(images), f"{where}: labels")
    if class_names is None:
        if found.min() < 0:
            raise DataError(f"{where}: labels must be 0 or more; got {int(found.min())}")
        class_names = tuple(str(label) for label in range(classes or int(found.max()) + 1))
    indices = None
    if image_ids is not None:
        ids = as_array(image_ids)
        if ids is None or ids.dtype.kind not in "iu" or ids.shape != (len(images),):
            raise DataError(
                f"{where}: image_ids must be integers [{len(images)}], one per image; got {shown(image_ids)}"
            )
        indices = torch.from_numpy(ids.astype(np.int64))
    names = checked_names(class_names, error=DataError)
    notices = (ROUNDED,) if rounded else ()
    owned = images if images.flags.writeable else images.copy()
    return kind(torch.from_numpy(owned), torch.from_numpy(found), names, name, split, indices, notices=notices)


def as_array(value: Any) -> np.ndarray | None:
    """An array of what is one, or a list of numbers."""
    if isinstance(value, Tensor):
        value = boxed(value.detach().cpu()) if value.dtype == torch.bfloat16 else value.detach().cpu()
        return cast("np.ndarray", (value.float() if value.dtype == torch.bfloat16 else value).numpy())
    if isinstance(value, np.ndarray):
        array: np.ndarray = value
        return array
    if hasattr(value, "__array__") and not hasattr(value, "getbands"):  # not PIL's images
        found: np.ndarray = np.asarray(value)
        return found
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, (int, np.integer)) for one in value):
        return np.array(value)
    return None


def dataset_of_items(
    data: Any,
    split: str,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    image_ids: Any = None,
    *,
    most: int | None = None,
    exact: bool = False,
    progress: bool = True,
) -> Dataset:
    """A data set of pairs (image, label), or of batches of them; arguments and errors as of :func:`rdc.data.as_dataset`."""
    images, labels = _collected(data, most, progress)
    names = _classes(data) if class_names is None else class_names
    called = type(data).__name__ if name is None else name
    return dataset_of_arrays(images, labels, split, called, names, image_ids, exact=exact)


def _collected(data: Any, most: int | None, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of pairs, one after the other; or of batches of them."""
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    count = 0
    single = _indexed(data)
    for pair in bar(_items(data), enabled=progress and _length(data) > 2000, desc=type(data).__name__):
        image, label = _pair(pair, count)
        array, numbers = as_array(image), as_array(label)
        array = _pixels(image, count) if array is None else array
        numbers = np.asarray(label) if numbers is None else numbers
        batch = not single and (array.ndim == 4 or (array.ndim == 3 and numbers.shape[:1] == array.shape[:1]))
        images.append(array if batch else array[None])
        labels.append(numbers if batch else numbers[None])
        if images[-1].shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"{type(data).__name__}: image {count} is {list(images[-1].shape[1:])}, those before are {list(images[0].shape[1:])}; "
                "expected one shape (resize them in its transform)"
            )
        if len(images[-1]) != len(labels[-1]) or labels[-1].dtype.kind not in "iufb":
            raise DataError(f"{type(data).__name__}: expected an integer label for each image; got {shown(label)}")
        count += len(images[-1])
        if most is not None and count >= most:
            break
    if not images:
        raise DataError(f"{type(data).__name__}: expected pairs of image and label; it has none")
    return np.concatenate(images)[:most], np.concatenate(labels)[:most]


def _indexed(data: Any) -> bool:
    """Whether it gives one image at a time, by its position, as torch's Datasets do."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (dict, list, tuple))


def _items(data: Any) -> Iterator[Any]:
    if _indexed(data):
        return (data[i] for i in range(len(data)))  # torch's Datasets need not end an iteration
    if isinstance(data, Iterable) and not isinstance(data, dict):
        return iter(data)
    raise DataError(
        f"data: expected a data set's name or path, (images, labels), a torch Dataset or a DataLoader; got {shown(data)}"
    )


def _length(data: Any) -> int:
    try:
        return len(data)
    except TypeError:
        return 0


def _pair(pair: Any, place: int) -> tuple[Any, Any]:
    if isinstance(pair, dict):
        images, labels = ([pair[key] for key in names if key in pair] for names in _KEYS)
        if images and labels:
            return images[0], labels[0]
    if isinstance(pair, (tuple, list)) and len(pair) >= 2:
        return pair[0], pair[1]
    raise DataError(f"item {place}: expected a pair of image and label; got {shown(pair)}")


def _pixels(image: Any, place: int) -> np.ndarray:
    """uint8 [C, H, W] of a PIL image."""
    if not hasattr(image, "getbands"):
        raise DataError(f"item {place}: expected an image as array, tensor or PIL image; got {shown(image)}")
    channels = 1 if image.mode.startswith(("1", "L", "I", "F")) else 3
    try:
        pixels, _ = from_picture(image, (channels, image.height, image.width))
    except InputError as error:
        raise DataError(f"item {place}: {error}") from error
    found: np.ndarray = np.rint(255 * pixels).astype(np.uint8)
    return found


def _classes(data: Any) -> Sequence[str] | None:
    """Names of classes that torch's Datasets carry, also inside a DataLoader or a Subset."""
    for _ in range(5):
        names = getattr(data, "classes", None)
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return names if len(set(names)) == len(names) else None
        data = getattr(data, "dataset", None)
    return None
