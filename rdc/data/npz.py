"""A user's own images: one ``.npz`` file, or a folder of them, with arrays ``images`` and ``labels``."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from rdc.data.dataset import Dataset
from rdc.errors import DataError
from rdc.storage.files import atomic_write

__all__ = ["load_npz", "save_npz"]

_LAYOUTS = ("NHW", "NHWC", "NCHW")
_READ_ERRORS = (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


def load_npz(path: str | os.PathLike[str], split: str, name: str | None = None) -> Dataset:
    """Read ``path``: one ``.npz`` file, or a folder of them.

    Arrays in each file: ``images`` uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3; ``labels``, integers
    [N]; optionally ``class_names``, strings [K] (else ``"0"``.. up to the largest label), ``indices``, integers [N],
    and ``layout``, one of ``"NHW"``, ``"NHWC"``, ``"NCHW"``, for shapes that could be either.
    Pickled (object) arrays are refused.

    Of a folder, the files whose name starts with the split's name are read, in the order of their names, and joined;
    if no file's name starts with ``train`` or ``test``, all are.

    Args:
        path: the file or folder.
        split: ``"train"`` or ``"test"``; of a single file, it is only the name given to the split.
        name: the data set's name; the file's stem or the folder's name when None.

    Raises:
        DataError: nothing to read, a damaged file, a missing or unsuitable array, or files that do not fit together.
    """
    path = Path(path).expanduser()
    parts = [_read(file) for file in _files(path, split)]
    first, *others = parts
    for part in others:
        if part["images"].shape[1:] != first["images"].shape[1:]:
            raise DataError(
                f"{part['path']}: images are {list(part['images'].shape[1:])} (C, H, W), those of {first['path']} "
                f"{list(first['images'].shape[1:])}; files that are joined must agree"
            )
        if part["class_names"] != first["class_names"]:
            raise DataError(f"{part['path']}: class_names differ from those of {first['path']}; they must agree")
    labels = np.concatenate([part["labels"] for part in parts])
    class_names = first["class_names"]
    if class_names is None:
        class_names = tuple(str(label) for label in range(max(int(labels.max(initial=0)) + 1, 1)))
    indices = None
    if all(part["indices"] is not None for part in parts):
        indices = torch.from_numpy(np.concatenate([part["indices"] for part in parts]))
    return Dataset(
        torch.from_numpy(np.concatenate([part["images"] for part in parts])),
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


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; name a .npz file or a folder of them")
    files = sorted(path.glob("*.npz"))
    named = [file for file in files if file.name.startswith(("train", "test"))]
    chosen = [file for file in named if file.name.startswith(split)] if named else files
    if not chosen:
        has = ", ".join(file.name for file in files) or "no .npz file"
        raise DataError(f"{path}: no {split}*.npz in this folder; it has {has}")
    return chosen


def _read(path: Path) -> dict:
    """Arrays of one file in the forms a Dataset wants: images [N, C, H, W], labels and indices int64 [N] or None."""
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: a single array (.npy), expected .npz with images and labels")
        with opened as file:
            missing = [key for key in ("images", "labels") if key not in file]
            if missing:
                raise DataError(f"{path}: has no {' and no '.join(missing)}; it has {', '.join(file) or 'nothing'}")
            arrays = {key: file[key] for key in ("images", "labels", "class_names", "indices", "layout") if key in file}
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise DataError(
            f"{path}: not a readable .npz file ({error}). It must be a NumPy zip archive without pickled objects"
        ) from error
    images = _channels_first(arrays["images"], arrays.get("layout"), path)
    found = {"path": path, "images": images, "class_names": None, "indices": None}
    for key in ("labels", "indices"):
        if key in arrays:
            found[key] = _integers(arrays[key], len(images), f"{path}: {key}")
    if "class_names" in arrays:
        names = arrays["class_names"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise DataError(f"{path}: class_names must be strings [K]; got {names.dtype} {list(names.shape)}")
        found["class_names"] = tuple(names.tolist())
    return found


def _integers(array: np.ndarray, count: int, where: str) -> np.ndarray:
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise DataError(f"{where} must be integers [{count}], one per image; got {array.dtype} {list(array.shape)}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where} must fit into 64 signed bits; the largest is {array.max()}")
    return array.astype(np.int64)


def _channels_first(images: np.ndarray, layout: np.ndarray | None, path: Path) -> np.ndarray:
    """[N, C, H, W], contiguous, with the axes told by ``layout`` or else by which of them has size 1 or 3."""
    if images.dtype != np.uint8:
        hint = "; store np.round(255 * pixels).astype(np.uint8)" if images.dtype.kind == "f" else ""
        raise DataError(f"{path}: images must be uint8, 0..255; got {images.dtype}{hint}")
    shape = list(images.shape)
    if layout is not None:
        axes = str(layout)
        fits = axes in _LAYOUTS and len(axes) == images.ndim
        if not fits or ("C" in axes and images.shape[axes.index("C")] not in (1, 3)):
            raise DataError(f"{path}: layout {axes!r} does not fit images {shape}; use one of {', '.join(_LAYOUTS)}")
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
    if axes == "NHW":
        return images[:, None]
    return np.ascontiguousarray(images if axes == "NCHW" else images.transpose(0, 3, 1, 2))
