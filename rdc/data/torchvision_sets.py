"""``torchvision:NAME``: a data set that torchvision reads from a folder of the user's. Needs torchvision; nothing is downloaded.

Where rdc has a reader of its own it is used, so that no pickle is run; the others in the list below unpickle nothing.
"""

from __future__ import annotations

import difflib
import os
from typing import Any

import numpy as np

from rdc.data.cifar10 import load_cifar10
from rdc.data.cifar100 import load_cifar100
from rdc.data.collected import dataset_of_items
from rdc.data.dataset import Dataset
from rdc.data.fashion_mnist import load_fashion_mnist
from rdc.data.pictures import Form
from rdc.data.svhn import load_svhn
from rdc.errors import DataError, one_line
from rdc.images.files import from_picture
from rdc.storage.home import expanded

__all__ = ["load_torchvision"]

_OWN = {
    "CIFAR10": load_cifar10,
    "CIFAR100": load_cifar100,
    "FashionMNIST": load_fashion_mnist,
    "SVHN": load_svhn,
}
_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
_VALIDATION = {"train": {"split": "train"}, "test": {"split": "val"}}
#: name -> arguments of each split
_OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(("KMNIST", "MNIST", "QMNIST", "USPS"), _TRAIN),
    "EMNIST": {split: {"split": "balanced", **found} for split, found in _TRAIN.items()},
    **dict.fromkeys(
        (
            "Country211",
            "DTD",
            "FGVCAircraft",
            "Flowers102",
            "Food101",
            "GTSRB",
            "PCAM",
            "RenderedSST2",
            "STL10",
            "StanfordCars",
        ),
        _SPLIT,
    ),
    "Imagenette": _VALIDATION,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
}


def load_torchvision(
    name: str,
    split: str,
    root: str | os.PathLike[str] | None = None,
    form: Form | None = None,
    *,
    verify: bool = True,
    progress: bool = True,
) -> Dataset:
    """Read one split of ``torchvision.datasets.NAME``.

    Args:
        name: the class's name, such as ``"STL10"``.
        split: ``"train"`` or ``"test"`` (of Imagenette the validation images).
        root: what torchvision calls so; when None, ``$RDC_DATA/torchvision``.
        form: size and channels; None: as the images are, which must be of one size.
        verify, progress: as of :func:`rdc.data.load_dataset`.

    Raises:
        DataError: torchvision is missing, a name that is not in the list, no root, no files there, or images of different sizes.
    """
    form = form or Form()
    known = (*_OWN, *_OTHERS)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise DataError(
            f"torchvision:{one_line(name, 80)}{hint}: expected one of {', '.join(sorted(known))}. Others: rdc.data.as_dataset(dataset) in "
            "Python"
        )
    base = os.environ.get("RDC_DATA")
    if root is None and not base:
        raise DataError(
            f"torchvision:{name}: expected the folder that torchvision calls root; give it with root= (--data-root)"
        )
    place = expanded(root) if root is not None else expanded(base or "") / "torchvision"
    if name in _OWN:
        return _OWN[name](split, place, verify=verify)
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise DataError(
            f"torchvision:{name} needs the package torchvision, in the version of this torch: pip install torchvision "
            f"({one_line(error, 120)})"
        ) from error
    try:
        opened: Any = getattr(datasets, name)(str(place), download=False, **_OTHERS[name][split])
    except Exception as error:  # what torchvision raises where files are missing or damaged has many names
        raise DataError(
            f"torchvision:{name}, {split} split: not read from {place} ({one_line(error, 200)}). Get it by "
            f"torchvision.datasets.{name}({str(place)!r}, download=True)"
        ) from error
    names = [str(one) for one in getattr(opened, "classes", None) or []]
    unique = names if names and len(set(names)) == len(names) else None
    return dataset_of_items(_Items(opened, form), split, f"torchvision:{name}", unique, progress=progress)


class _Items:
    """Images as uint8 arrays, labels as integers."""

    def __init__(self, opened: Any, form: Form) -> None:
        opened.transform = opened.transforms = None
        self._opened, self._form = opened, form

    def __len__(self) -> int:
        return len(self._opened)

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        image, label = self._opened[place]
        return _pixels(image, self._form), int(label)


def _pixels(image: Any, form: Form) -> np.ndarray:
    grey = image.mode.startswith(("1", "L", "I", "F"))
    shape = (form.channels or (1 if grey else 3), *(form.size or (image.height, image.width)))
    pixels, _ = from_picture(image, shape, resample=form.resample)
    values: np.ndarray = np.rint(255 * pixels).astype(np.uint8)
    return values
