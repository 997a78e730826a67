"""Images and labels as people have them, for an attack: none of them rounded, each with its id."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.scalars import as_integer, shown
from rdc.data import Dataset, as_dataset
from rdc.errors import InputError

__all__ = ["as_images"]


def as_images(
    x: Any, y: Any = None, *, n: int | None = None, image_ids: Any = None, class_names: Sequence[str] | None = None
) -> Dataset:
    """A Dataset of whatever holds images and labels.

    Args:
        x, y: images and labels, or all in one, as :func:`rdc.data.as_dataset` takes them; floats that are no 8-bit values stay as they are.
        n: take the first n images; None: all.
        image_ids: N different integers >= 0, which fix the images' random starts; None: 0 to N - 1, or the data set's own.
        class_names: K names; None: the data set's, or numbers.

    Raises:
        DataError: see :func:`rdc.data.as_dataset`. InputError: n or image_ids do not fit.
    """
    most = None if n is None else as_integer(n)
    if n is not None and (most is None or most < 1):
        raise InputError(f"n: expected an integer >= 1; got {shown(n)}")
    found = as_dataset(x, y, class_names=class_names, most=most, exact=True, progress=False)
    if most is not None and len(found) < most:
        raise InputError(f"n: expected an integer from 1 to {len(found)}, the number of images; got {most}")
    return found if image_ids is None else _with_ids(found, image_ids)


def _with_ids(found: Dataset, image_ids: Any) -> Dataset:
    expected = f"image_ids: expected {len(found)} different integers >= 0, one for each image"
    try:
        given = image_ids.detach().cpu() if isinstance(image_ids, Tensor) else torch.as_tensor(np.asarray(image_ids))
    except (TypeError, ValueError) as error:
        raise InputError(f"{expected}; got {shown(image_ids)}") from error
    if given.shape != (len(found),) or given.is_floating_point() or given.dtype == torch.bool:
        raise InputError(f"{expected}; got {given.dtype} {list(given.shape)}")
    ids = given.to(torch.int64)
    if int(ids.min()) < 0 or len(ids.unique()) < len(ids):
        raise InputError(f"{expected}; got {int(ids.min()) if int(ids.min()) < 0 else 'one of them twice'}")
    return dataclasses.replace(found, indices=ids)
