"""CIFAR-10.1: about 2,000 further test images for CIFAR-10, chosen anew from the same source, as the official ``.npy`` files.

rdc neither ships nor downloads it. Get ``cifar10.1_v6_data.npy`` and ``cifar10.1_v6_labels.npy`` (or v4) from
https://github.com/modestyachts/CIFAR-10.1.

Source: B. Recht, R. Roelofs, L. Schmidt, V. Shankar, "Do CIFAR-10 Classifiers Generalize to CIFAR-10?", arXiv 1806.00451.
"""

from __future__ import annotations

import os

import torch

from rdc.data import cifar10
from rdc.data.arrays import channels_first, class_labels
from rdc.data.contents import find_folder, search_places
from rdc.data.dataset import Dataset
from rdc.data.npy import read_rows
from rdc.errors import DataError
from rdc.storage.reading import reading, regular_file

__all__ = ["load_cifar10_1"]

VERSIONS = {"v4": 2021, "v6": 2000}  # images


def load_cifar10_1(
    split: str, root: str | os.PathLike[str] | None = None, version: str = "v6", *, verify: bool = True
) -> Dataset:
    """Read one version.

    Args:
        split: ``"test"``; it has no other.
        root: the folder with the files, or one that has it as ``cifar10.1``, ``CIFAR-10.1`` or ``datasets``; when None:
            ``$RDC_DATA/cifar10.1``, then ``~/.cache/rdc/cifar10.1``.
        version: ``"v6"`` (2,000 images, balanced) or ``"v4"`` (2,021).
        verify: demand the official number of images; no checksum is known to us.

    Raises:
        DataError: another split or version, not found (the message lists the places), damaged, or other images.
    """
    if split != "test":
        raise DataError('"cifar10.1" has test images only; for training images load "cifar10"')
    if version not in VERSIONS:
        raise DataError(f'"cifar10.1:{version}": expected {" or ".join(f"cifar10.1:{name}" for name in VERSIONS)}')
    names = [f"cifar10.1_{version}_{what}.npy" for what in ("data", "labels")]
    advice = "Get it from https://github.com/modestyachts/CIFAR-10.1 (folder datasets)"
    places = search_places("cifar10.1", root)
    folder = find_folder(f"CIFAR-10.1 {version}", names, places, ("cifar10.1", "CIFAR-10.1", "datasets"), advice)
    arrays = []
    for name in names:
        regular_file(folder / name, DataError, "a .npy file")
        with reading(folder / name, DataError, "a readable .npy file"):
            arrays.append(read_rows(folder / name))
    images, labels = arrays
    where = str(folder / names[0])
    if images.dtype != "u1" or images.shape[1:] != (32, 32, 3) or (verify and len(images) != VERSIONS[version]):
        raise DataError(
            f"{where}: expected uint8 [{VERSIONS[version]}, 32, 32, 3]; got {images.dtype} {list(images.shape)}"
            f"{'' if images.shape[1:] != (32, 32, 3) else '. Get it again, or pass verify=False to use it as it is'}"
        )
    return Dataset(
        torch.from_numpy(channels_first(images, None, where)),
        torch.from_numpy(class_labels(labels, len(images), f"{folder / names[1]}: labels")[0]),
        cifar10.CLASS_NAMES,
        f"cifar10.1:{version}",
        split,
        source=str(folder),
    )
