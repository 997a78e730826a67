"""A user's own images: one ``.npz`` file, or a folder of them, with arrays of images and labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdc.data.arrays import MOST_CLASSES, ROUNDED, channels_first, class_labels, class_names, eight_bits, integers
from rdc.data.dataset import Dataset
from rdc.data.npy import array_names, read_arrays
from rdc.errors import DataError, one_line
from rdc.storage.files import atomic_write
from rdc.storage.home import expanded
from rdc.storage.reading import Budget, reading, regular_file

__all__ = ["MOST_CLASSES", "load_npz", "save_npz", "save_splits"]

_FLOOR, _EXPANSION = 128 * 2**20, 32  # what the arrays of a file may unpack to: bytes, and times the file's size
_ADVICE = "It must be a NumPy zip archive without pickled objects"
#: names of the arrays of a file that has both splits
_SPLIT_KEYS = (("x_{}", "y_{}"), ("X_{}", "y_{}"), ("{}_images", "{}_labels"), ("images_{}", "labels_{}"))


def load_npz(path: str | os.PathLike[str], split: str, name: str | None = None) -> Dataset:
    """Read ``path``: one ``.npz`` file, or a folder of them.

    Arrays in each file: ``images`` [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3, uint8 or floats in [0, 1] (which are rounded to
    8 bits); ``labels``, integers [N] or [N, 1] or one-hot [N, K]. For both splits in one file ``x_train``, ``y_train``, ``x_test``,
    ``y_test`` (or ``train_images``, ``train_labels``, ...). What ``numpy.savez(file, images, labels)`` calls ``arr_0`` and ``arr_1`` is
    read too. Optionally ``class_names``, strings [K] (else ``"0"``.. up to the largest label), ``indices`` (``indices_test``), integers
    [N], and ``layout``, one of ``"NHW"``, ``"NHWC"``, ``"NCHW"``, for shapes that could be either.
    Pickled (object) arrays are refused, more than 100,000 classes too. The arrays of one call may take 128 MiB of memory, or 32
    times the size of the files if that is more; store larger ones with ``np.savez``, which does not compress.

    Of a folder, the files whose name starts with the split's name are read, in the order of their names, and joined;
    if no file's name starts with ``train`` or ``test``, all are.

    Args:
        path: the file or folder.
        split: ``"train"`` or ``"test"``; of a single file without arrays of splits, it is only the name given to the split.
        name: the data set's name; the file's stem or the folder's name when None.

    Raises:
        DataError: nothing to read, a damaged file, a missing or unsuitable array, or files that do not fit together.
    """
    path = expanded(path)
    files, split_by_name = _files(path, split)
    size = sum(regular_file(file, DataError, "a .npz file") for file in files)
    budget = Budget(str(path), size, DataError, floor=_FLOOR, expansion=_EXPANSION)
    parts = [_read(file, split, budget) for file in files]
    first, *others = parts
    for part in others:
        if part["images"].shape[1:] != first["images"].shape[1:]:
            raise DataError(
                f"{part['path']}: images are {list(part['images'].shape[1:])} (C, H, W), those of {first['path']} "
                f"{list(first['images'].shape[1:])}; files that are joined must agree"
            )
        if part["class_names"] != first["class_names"]:
            raise DataError(f"{part['path']}: class_names differ from those of {first['path']}; they must agree")
    labels = _joined(parts, "labels")
    names = first["class_names"]
    if names is None:
        most = max(int(labels.max(initial=0)) + 1, 1, *(part["classes"] or 1 for part in parts))
        names = tuple(str(label) for label in range(most))
    indices = None
    if all(part["indices"] is not None for part in parts):
        indices = torch.from_numpy(_joined(parts, "indices"))
    notices = [ROUNDED] if any(part["rounded"] for part in parts) else []
    if not split_by_name:
        notices += sorted({_about_split(part["split"], split, len(labels)) for part in parts} - {""})
    return Dataset(
        torch.from_numpy(_joined(parts, "images")),
        torch.from_numpy(labels),
        names,
        path.stem if name is None else name,
        split,
        indices,
        source=str(path),
        notices=tuple(notices),
    )


def save_npz(dataset: Dataset, path: str | os.PathLike[str], compressed: bool = True) -> None:
    """Write a data set as one ``.npz`` for :func:`load_npz`; atomic, and the same bytes every time.

    Args:
        dataset: the images.
        path: of the file.
        compressed: some 30 MB of images a second and core; False: as fast as the disk.
    """
    small = np.uint8 if dataset.num_classes <= 256 else np.int64
    save = np.savez_compressed if compressed else np.savez
    with atomic_write(path) as file:
        save(
            file,
            images=dataset.images.numpy(),
            labels=dataset.labels.numpy().astype(small),
            indices=dataset.indices.numpy().astype(np.int64),
            class_names=np.array(dataset.class_names),
            layout=np.array("NCHW"),
            split=np.array(dataset.split),
        )


def save_splits(train: Dataset, test: Dataset, path: str | os.PathLike[str]) -> None:
    """Write both splits as one ``.npz`` for :func:`load_npz`: x_train, y_train, x_test, y_test; atomic, the same bytes every time.

    Raises:
        DataError: they differ in image shape or class names.
    """
    if train.image_shape != test.image_shape or train.class_names != test.class_names:
        raise DataError(
            f"{one_line(path, 400)}: expected splits of one image shape and the same classes; got {train!r} and {test!r}"
        )
    small = np.uint8 if train.num_classes <= 256 else np.int64
    arrays: dict[str, Any] = {}
    for split, data in (("train", train), ("test", test)):
        arrays[f"x_{split}"] = data.images.numpy()
        arrays[f"y_{split}"] = data.labels.numpy().astype(small)
        arrays[f"indices_{split}"] = data.indices.numpy().astype(np.int64)
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays, class_names=np.array(train.class_names), layout=np.array("NCHW"))


def _about_split(said: str, split: str, count: int) -> str:
    """What a user should know where one file is read for either split."""
    if not said:
        return (
            f"nothing tells train from test in it, so both are these {count:,} images. For splits: arrays x_train, y_train, x_test, "
            "y_test, or a folder of train*.npz and test*.npz"
        )
    return "" if said.startswith(split) else f"it says that it holds the split {one_line(said, 60)}; read for {split}"


def _joined(parts: list[dict[str, Any]], key: str) -> np.ndarray:
    arrays: list[np.ndarray] = [part[key] for part in parts]
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def _files(path: Path, split: str) -> tuple[list[Path], bool]:
    """The files of the split, and whether their names say so."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; name a .npz file or a folder of them")
    if not path.is_dir():
        return [path], False
    files = sorted(path.glob("*.npz"))
    named = [file for file in files if file.name.startswith(("train", "test"))]
    chosen = [file for file in named if file.name.startswith(split)] if named else files
    if not chosen:
        has = one_line(", ".join(file.name for file in files) or "no .npz file", 400)
        raise DataError(f"{path}: no {split}*.npz in this folder; it has {has}")
    return chosen, bool(named)


def _keys(path: Path, split: str) -> tuple[str, str, bool]:
    """Names of the arrays with images and labels, and whether they say which split they are of."""
    names = set(array_names(path))
    if {"images", "labels"} <= names:
        return "images", "labels", False
    other = "train" if split == "test" else "test"
    for keys in _SPLIT_KEYS:
        images, labels = (key.format(split) for key in keys)
        if {images, labels} <= names:
            return images, labels, True
        if {key.format(other) for key in keys} <= names:
            raise DataError(
                f"{path}: has {keys[0].format(other)} and no {images}, so it holds the {other} split alone; ask for that, or add "
                f"{images} and {labels}"
            )
    if {name for name in names if name.startswith("arr_")} == {"arr_0", "arr_1"}:
        return "arr_0", "arr_1", False
    return "images", "labels", False  # the reader says what is missing


def _read(path: Path, split: str, budget: Budget) -> dict[str, Any]:
    """Arrays of one file in the forms a Dataset wants: images [N, C, H, W], labels and indices int64 [N] or None."""
    with reading(path, DataError, "a readable .npz file", _ADVICE):
        images_key, labels_key, own = _keys(path, split)
        indices_key = f"indices_{split}" if own else "indices"
        keys = (images_key, labels_key, "class_names", indices_key, "layout", "split")
        arrays = read_arrays(path, keys, (images_key, labels_key), budget)
    images, rounded = eight_bits(arrays[images_key], str(path), budget)
    images = channels_first(images, arrays.get("layout"), str(path), budget)
    budget.take(8 * len(images), "labels as int64")
    labels, classes = class_labels(arrays[labels_key], len(images), f"{path}: labels")
    said = (
        arrays["split"].item()
        if "split" in arrays and arrays["split"].dtype.kind == "U" and arrays["split"].size == 1
        else ""
    )
    found: dict[str, Any] = {"path": path, "images": images, "labels": labels, "classes": classes}
    found["split"] = split if own else said
    found |= {"rounded": rounded, "indices": None, "class_names": None}
    if indices_key in arrays:
        budget.take(8 * len(images), "indices as int64")
        found["indices"] = integers(arrays[indices_key], len(images), f"{path}: indices")
    if "class_names" in arrays:
        found["class_names"] = class_names(arrays["class_names"], path)
    return found
