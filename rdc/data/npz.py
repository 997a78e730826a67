"""A user's own images: one ``.npz`` file, or a folder of them, with arrays ``images`` and ``labels``."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdc.data.dataset import Dataset
from rdc.data.npy import read_arrays
from rdc.errors import DataError, one_line
from rdc.storage.files import atomic_write
from rdc.storage.home import expanded
from rdc.storage.reading import Budget, reading, regular_file

__all__ = ["MOST_CLASSES", "load_npz", "save_npz"]

MOST_CLASSES = 100_000  #: largest number of classes of a data set
_LONGEST_NAME = 200  # characters of a class's name
_LAYOUTS = ("NHW", "NHWC", "NCHW")
_ARRAYS = ("images", "labels", "class_names", "indices", "layout")
_PICTURES = (".png", ".jpg", ".jpeg")
_FLOOR, _EXPANSION = 128 * 2**20, 32  # what the arrays of a file may unpack to: bytes, and times the file's size
_ADVICE = "It must be a NumPy zip archive without pickled objects"


def load_npz(path: str | os.PathLike[str], split: str, name: str | None = None) -> Dataset:
    """Read ``path``: one ``.npz`` file, or a folder of them.

    Arrays in each file: ``images`` uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3; ``labels``, integers
    [N]; optionally ``class_names``, strings [K] (else ``"0"``.. up to the largest label), ``indices``, integers [N],
    and ``layout``, one of ``"NHW"``, ``"NHWC"``, ``"NCHW"``, for shapes that could be either.
    Pickled (object) arrays are refused, more than 100,000 classes too. The arrays of one call may take 128 MiB of memory, or 32
    times the size of the files if that is more; store larger ones with ``np.savez``, which does not compress.

    Of a folder, the files whose name starts with the split's name are read, in the order of their names, and joined;
    if no file's name starts with ``train`` or ``test``, all are.

    Args:
        path: the file or folder.
        split: ``"train"`` or ``"test"``; of a single file, it is only the name given to the split.
        name: the data set's name; the file's stem or the folder's name when None.

    Raises:
        DataError: nothing to read, a damaged file, a missing or unsuitable array, or files that do not fit together.
    """
    path = expanded(path)
    files = _files(path, split)
    size = sum(regular_file(file, DataError, "a .npz file") for file in files)
    budget = Budget(str(path), size, DataError, floor=_FLOOR, expansion=_EXPANSION)
    parts = [_read(file, budget) for file in files]
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
    class_names = first["class_names"]
    if class_names is None:
        class_names = tuple(str(label) for label in range(max(int(labels.max(initial=0)) + 1, 1)))
    indices = None
    if all(part["indices"] is not None for part in parts):
        indices = torch.from_numpy(_joined(parts, "indices"))
    return Dataset(
        torch.from_numpy(_joined(parts, "images")),
        torch.from_numpy(labels),
        class_names,
        path.stem if name is None else name,
        split,
        indices,
        source=str(path),
    )


def save_npz(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a data set as one compressed ``.npz`` for :func:`load_npz`; atomic, and the same bytes every time."""
    small = np.uint8 if dataset.num_classes <= 256 else np.int64
    with atomic_write(path) as file:
        np.savez_compressed(
            file,
            images=dataset.images.numpy(),
            labels=dataset.labels.numpy().astype(small),
            indices=dataset.indices.numpy().astype(np.int64),
            class_names=np.array(dataset.class_names),
            layout=np.array("NCHW"),
        )


def _joined(parts: list[dict[str, Any]], key: str) -> np.ndarray:
    arrays: list[np.ndarray] = [part[key] for part in parts]
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def _files(path: Path, split: str) -> list[Path]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; name a .npz file or a folder of them")
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.npz"))
    named = [file for file in files if file.name.startswith(("train", "test"))]
    chosen = [file for file in named if file.name.startswith(split)] if named else files
    if not chosen:
        has = one_line(", ".join(file.name for file in files) or "no .npz file", 400)
        pictures = any(file.suffix.lower() in _PICTURES for depth in ("*", "*/*", "*/*/*") for file in path.glob(depth))
        advice = ". Pictures are packed first: numpy.savez, see docs/data.md" if pictures else ""
        raise DataError(f"{path}: no {split}*.npz in this folder; it has {has}{advice}")
    return chosen


def _read(path: Path, budget: Budget) -> dict[str, Any]:
    """Arrays of one file in the forms a Dataset wants: images [N, C, H, W], labels and indices int64 [N] or None."""
    with reading(path, DataError, "a readable .npz file", _ADVICE):
        arrays = read_arrays(path, _ARRAYS, ("images", "labels"), budget)
    images = _channels_first(arrays["images"], arrays.get("layout"), path, budget)
    found: dict[str, Any] = {"path": path, "images": images, "class_names": None, "indices": None}
    for key in ("labels", "indices"):
        if key in arrays:
            budget.take(8 * len(images), f"{key} as int64")
            found[key] = _integers(arrays[key], len(images), f"{path}: {key}")
    if len(images) and found["labels"].max() >= MOST_CLASSES:
        at = int(found["labels"].argmax())
        raise DataError(
            f"{path}: label {found['labels'][at]} at position {at}; expected at most {MOST_CLASSES:,} classes, 0 to "
            f"{MOST_CLASSES - 1:,}"
        )
    if "class_names" in arrays:
        found["class_names"] = _names(arrays["class_names"], path)
    return found


def _names(names: np.ndarray, path: Path) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{path}: class_names must be strings [K]; got {names.dtype} {list(names.shape)}")
    if len(names) > MOST_CLASSES:
        raise DataError(f"{path}: {len(names):,} class_names; expected at most {MOST_CLASSES:,}")
    with reading(path, DataError, "a file with readable class_names"):
        found = tuple(names.tolist())
    for name in found:
        if len(name) > _LONGEST_NAME or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
            raise DataError(
                f"{path}: expected class_names of at most {_LONGEST_NAME} characters, without line breaks and control "
                f"characters; got {one_line(repr(name), 80)}"
            )
    return found


def _integers(array: np.ndarray, count: int, where: str) -> np.ndarray:
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise DataError(f"{where} must be integers [{count}], one per image; got {array.dtype} {list(array.shape)}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where} must fit into 64 signed bits; the largest is {array.max()}")
    return array.astype(np.int64)


def _channels_first(images: np.ndarray, layout: np.ndarray | None, path: Path, budget: Budget) -> np.ndarray:
    """[N, C, H, W], contiguous, with the axes told by ``layout`` or else by which of them has size 1 or 3."""
    if images.dtype != np.uint8:
        hint = "; store np.round(255 * pixels).astype(np.uint8)" if images.dtype.kind == "f" else ""
        raise DataError(f"{path}: images must be uint8, 0..255; got {images.dtype}{hint}")
    shape = list(images.shape)
    if layout is not None:
        axes = layout.item() if layout.dtype.kind == "U" and layout.size == 1 else f"of {layout.dtype}"
        fits = axes in _LAYOUTS and len(axes) == images.ndim
        if not fits or ("C" in axes and images.shape[axes.index("C")] not in (1, 3)):
            raise DataError(
                f"{path}: layout {one_line(repr(axes), 40)} does not fit images {shape}; use one of {', '.join(_LAYOUTS)}"
            )
    elif images.ndim == 3:
        axes = "NHW"
    else:
        likely = [axes for axes in _LAYOUTS[1:] if images.ndim == 4 and images.shape[axes.index("C")] in (1, 3)]
        if len(likely) != 1:
            why = "both axis 1 and axis 3 could be the channels: add an array layout" if likely else "not image shapes"
            raise DataError(
                f"{path}: images {shape}: {why}; expected [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels"
            )
        axes = likely[0]
    if 0 in shape[1:]:
        raise DataError(f"{path}: images {shape}: not image shapes; expected at least one pixel")
    turned = {"NHW": lambda: images[:, None], "NCHW": lambda: images, "NHWC": lambda: images.transpose(0, 3, 1, 2)}[
        axes
    ]()
    if not turned.flags.c_contiguous:
        budget.take(turned.nbytes, "array images with channels first")
    return np.ascontiguousarray(turned)
