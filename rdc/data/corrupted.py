"""Corrupted test images as official ``.npy`` files: CIFAR-10-C, and the layouts in use for Fashion-MNIST-C.

    CIFAR-10-C/fog.npy, labels.npy                      five severities one after the other, [5 n, H, W(, C)]
    fashion-mnist-c/fog/test_images.npy, ..labels.npy   one severity (the layout of MNIST-C)
    fmnist-c-test.npy, fmnist-c-test-labels.npy         each image another corruption and severity (Weiss and Tonella's FMNIST-C)

rdc neither ships nor downloads them: CIFAR-10-C is https://zenodo.org/records/2535967, FMNIST-C
https://github.com/testingautomated-usi/fashion-mnist-c. Files that you make for the first layout will do as well.

Source: D. Hendrycks, T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", arXiv
1903.12261; N. Mu, J. Gilmer, "MNIST-C", arXiv 1906.02337; M. Weiss, P. Tonella, ISSTA 2022.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import torch

from rdc.data import cifar10, fashion_mnist
from rdc.data.arrays import channels_first, class_labels
from rdc.data.contents import find_folder, search_places
from rdc.data.dataset import Dataset
from rdc.data.npy import read_rows
from rdc.errors import DataError, one_line
from rdc.storage.reading import reading, regular_file

__all__ = ["CORRUPTED", "SEVERITIES", "load_corrupted"]

SEVERITIES = 5
_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """One data set.

    Args:
        title: its name, for errors.
        classes: names of its classes.
        shape: (C, H, W).
        folders: names of its folder.
        page: where to get it.
    """

    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    folders: tuple[str, ...]
    page: str


CORRUPTED = {
    "cifar10-c": Corrupted(
        "CIFAR-10-C",
        cifar10.CLASS_NAMES,
        (3, 32, 32),
        ("cifar10-c", "CIFAR-10-C"),
        "https://zenodo.org/records/2535967",
    ),
    "fashion-mnist-c": Corrupted(
        "Fashion-MNIST-C",
        fashion_mnist.CLASS_NAMES,
        (1, 28, 28),
        ("fashion-mnist-c", "Fashion-MNIST-C", "fmnist-c"),
        "https://github.com/testingautomated-usi/fashion-mnist-c (generated/npy)",
    ),
}


def load_corrupted(
    name: str, split: str, root: str | os.PathLike[str] | None = None, corruption: str = "", severity: str = ""
) -> Dataset:
    """Read the images of one corruption and severity; image ids are positions in the clean test set.

    No checksum of the files is known to us: shapes, labels and sizes are checked.

    Args:
        name: ``"cifar10-c"`` or ``"fashion-mnist-c"``.
        split: ``"test"``; there is no other.
        root: the folder with the files, or one that has it; when None: ``$RDC_DATA/<name>``, then ``~/.cache/rdc/<name>``.
        corruption: the file's or folder's name, such as ``"fog"``; empty: the file of all kinds, where there is one.
        severity: ``"1"`` to ``"5"``; empty where the layout has one only.

    Raises:
        DataError: not found (the message lists the places or what is there), damaged, or other images.
    """
    about = CORRUPTED[name]
    if split != "test":
        raise DataError(f'"{name}" has test images only; for training images load "{name.removesuffix("-c")}"')
    if corruption and not _NAME.fullmatch(corruption):
        raise DataError(
            f"{name}: expected the name of a corruption, such as {name}:fog:3; got {one_line(repr(corruption), 80)}"
        )
    if severity and severity not in ("1", "2", "3", "4", "5"):
        raise DataError(
            f"{name}:{corruption}: expected a severity from 1 to {SEVERITIES}; got {one_line(repr(severity), 40)}"
        )
    places = search_places(name, root)
    images_path, labels_path, parts = _files(about, places, name, corruption, severity)
    images = _rows(images_path, int(severity or 1) - 1, parts)
    labels = _labels(labels_path, len(images), parts)
    where = str(images_path)
    images = channels_first(images, None, where) if images.dtype == np.uint8 else images
    if images.dtype != np.uint8 or images.shape[1:] != about.shape:
        channels, height, width = about.shape
        raise DataError(
            f"{where}: expected uint8 [N, {height}, {width}{f', {channels}' if channels > 1 else ''}]; got {images.dtype} "
            f"{list(images.shape)} (N, C, H, W)"
        )
    return Dataset(
        torch.from_numpy(images.copy()),
        torch.from_numpy(labels),
        about.classes,
        ":".join(part for part in (name, corruption, severity) if part),
        split,
        source=str(images_path),
    )


def _files(about: Corrupted, places: list[Path], name: str, corruption: str, severity: str) -> tuple[Path, Path, int]:
    """The images' file, the labels' file, and how many severities the first has."""
    advice = f"Get it from {about.page}"
    if not corruption:
        mixed = ["fmnist-c-test.npy", "fmnist-c-test-labels.npy"]
        if name == "fashion-mnist-c" and (own := _first(places, about.folders, mixed)):
            return own / mixed[0], own / mixed[1], 1
        raise DataError(
            f"{about.title}: expected a corruption and a severity, such as {name}:fog:3; {_there(about, places)}"
        )
    if folder := _first(places, about.folders, [f"{corruption}/test_images.npy", f"{corruption}/test_labels.npy"]):
        if severity:
            raise DataError(f"{folder / corruption}: has one severity; ask for {name}:{corruption}")
        return folder / corruption / "test_images.npy", folder / corruption / "test_labels.npy", 1
    names = [f"{corruption}.npy", "labels.npy"]
    title = f"{about.title} ({_there(about, places)})"
    found = find_folder(title, names, places, about.folders, advice)
    if not severity:
        raise DataError(f"{found / names[0]}: has {SEVERITIES} severities; ask for one, such as {name}:{corruption}:3")
    return found / names[0], found / names[1], SEVERITIES


def _first(places: list[Path], below: tuple[str, ...], names: list[str]) -> Path | None:
    folders = (folder for place in places for folder in (place, *(place / inner for inner in below)))
    return next((folder for folder in folders if all((folder / name).is_file() for name in names)), None)


def _there(about: Corrupted, places: list[Path]) -> str:
    """What corruptions the places have."""
    folders = [folder for place in places for folder in (place, *(place / inner for inner in about.folders))]
    found = {file.stem for folder in folders for file in folder.glob("*.npy")} - {"labels"}
    found |= {file.parent.name for folder in folders for file in folder.glob("*/test_images.npy")}
    return f"there are {one_line(', '.join(sorted(found)), 300)}" if found else "none is there"


def _rows(path: Path, part: int, parts: int) -> np.ndarray:
    regular_file(path, DataError, "a .npy file")
    with reading(path, DataError, "a readable .npy file"):
        return read_rows(path, part, parts)


def _labels(path: Path, count: int, parts: int) -> np.ndarray:
    """Of ``count`` images; a file of all severities repeats them."""
    labels = _rows(path, 0, 1)
    if parts > 1 and len(labels) == parts * count:
        blocks = labels.reshape(parts, count, -1)
        if not (blocks == blocks[:1]).all():
            raise DataError(f"{path}: the labels of the {parts} severities differ; expected the same images in each")
        labels = labels[:count]
    return class_labels(labels, count, f"{path}: labels")[0]
