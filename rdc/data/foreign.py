"""Whatever a caller has as images and labels, as a :class:`rdc.data.Dataset`: arrays, tensors, torch's Datasets and DataLoaders, names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from rdc.data.collected import as_array, dataset_of_arrays, dataset_of_items
from rdc.data.dataset import DataNotice, Dataset
from rdc.data.load import load_dataset
from rdc.errors import DataError, one_line

__all__ = ["as_dataset"]


def as_dataset(
    data: Any,
    labels: Any = None,
    *,
    split: str = "test",
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    image_ids: Any = None,
    most: int | None = None,
    exact: bool = False,
    progress: bool = True,
) -> Dataset:
    """A data set of what the caller has.

    Images are uint8, or floats in [0, 1], which become the nearest 8-bit values (a notice and a warning say so where that changes them by
    more than float16 would). They are [N, C, H, W], [N, H, W, C] or [N, H, W] with 1 or 3 channels.

    Args:
        data: a Dataset of rdc (given back as it is); images as an array or tensor, with ``labels``; a pair of both; a name or
            path for :func:`rdc.data.load_dataset`; or anything with pairs of image and label: torch's Datasets, DataLoaders and
            iterables. Their images are arrays, tensors or PIL images; of a DataLoader, batches.
        labels: integers [N] or [N, 1], or one-hot [N, K]; only with images.
        split: ``"test"`` or ``"train"``: the split to load, or what to call it.
        name: what to call it; the class's name or ``"images"`` when None.
        class_names: names of the K classes; when None the data's own (``.classes``), else ``"0"``, ``"1"``, ... up to the largest label.
        image_ids: integers [N] that random starts of attacks depend on; 0..N-1 when None.
        most: take the first so many images of ``data``.
        exact: keep floats that lie between 8-bit values as they are: the data set's ``images`` are then float32 in [0, 1]. Evaluations
            and attacks take it; training and files want 8 bits.
        progress: draw a bar while many single images are read.

    Raises:
        DataError: none of these, no images, images of different shapes or outside [0, 1], or labels that do not fit.
    """
    if isinstance(data, (str, os.PathLike)):
        data = load_dataset(data, split, progress=progress)
    if isinstance(data, Dataset):
        if labels is not None:
            raise DataError(f"{data!r} has its labels; expected none beside it")
        return data if most is None else data[:most]
    if labels is None and isinstance(data, (tuple, list)) and len(data) == 2 and _is_batch(data[0]):
        data, labels = data
    if labels is None:
        if as_array(data) is not None:
            raise DataError("images without labels; expected (images, labels)")
        found = dataset_of_items(data, split, name, class_names, image_ids, most=most, exact=exact, progress=progress)
    else:
        images, numbers = as_array(data), as_array(labels)
        if images is None or numbers is None:
            raise DataError(
                f"expected images and labels as arrays or tensors; got {type(data).__name__} and {type(labels).__name__}"
            )
        name = "images" if name is None else name
        found = dataset_of_arrays(images[:most], numbers[:most], split, name, class_names, image_ids, exact=exact)
    for notice in found.notices:
        warnings.warn(f"{one_line(found.name)}: {notice}", DataNotice, stacklevel=2)
    return found


def _is_batch(value: Any) -> bool:
    """Whether it is an array of several images."""
    array = as_array(value)
    return array is not None and array.ndim >= 3
