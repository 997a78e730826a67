"""A user's own images by their path: what kind of file or folder it is, and who reads it."""

from __future__ import annotations

from pathlib import Path

from rdc.data.class_folders import has_class_folders, load_class_folders
from rdc.data.dataset import Dataset
from rdc.data.npz import load_npz
from rdc.data.parquet import load_parquet, parquet_files
from rdc.data.pictures import PICTURES, Form
from rdc.data.resizing import reshaped
from rdc.errors import DataError, one_line

__all__ = ["load_own"]

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


def load_own(path: Path, split: str, form: Form | None = None, *, progress: bool = True) -> Dataset:
    """Read a ``.npz`` or ``.parquet`` file, or a folder of either, or of folders of pictures for each class.

    Args:
        path: the file or folder.
        split: ``"train"`` or ``"test"``.
        form: size and channels; None: as the images are.
        progress: draw a bar on stderr.

    Raises:
        DataError: none of these, or its reader's.
    """
    form = form or Form()
    if path.is_dir() and not any(path.glob("*.npz")):
        if parquet_files(path):
            return load_parquet(path, split, form, progress=progress)
        if has_class_folders(path):
            return load_class_folders(path, split, form, progress=progress)
        raise DataError(f"{one_line(path, 400)}: {_nothing(path)}")
    if path.suffix == ".parquet":
        return load_parquet(path, split, form, progress=progress)
    if path.suffix.lower() in _ARCHIVES and path.is_file():
        raise DataError(f"{one_line(path, 400)}: an archive; unpack it and name the folder, or the .npz file in it")
    if path.suffix.lower() == ".npy" and path.is_file():
        raise DataError(
            f"{one_line(path, 400)}: a single array (.npy); images and labels belong together: numpy.savez('own.npz', images=.., labels=..)"
        )
    return reshaped(load_npz(path, split), form)


def _nothing(path: Path) -> str:
    expected = "expected .npz files, .parquet files, or pictures in a folder for each class"
    loose = sum(file.suffix.lower() in PICTURES for file in path.glob("*"))
    if loose:
        return f"{expected}; it has {loose:,} pictures that are in no folder of a class, so that nothing says what they show"
    names = one_line(", ".join(entry.name for entry in sorted(path.glob("*"))[:10]), 200)
    return f"{expected}; it has no .npz file and {f'no pictures, but {names}' if names else 'nothing else'}"
