"""Pictures in a folder for each class, with or without folders of splits above them (the layout of torchvision's ImageFolder)."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from rdc.data.arrays import MOST_CLASSES, check_name
from rdc.data.dataset import Dataset
from rdc.data.pictures import EXPANSION, FLOOR, PICTURES, Form, stacked
from rdc.errors import DataError, one_line
from rdc.images.files import picture_content
from rdc.storage.reading import Budget
from rdc.terminal.progress import bar

__all__ = ["dataset_of_files", "has_class_folders", "load_class_folders"]

SPLITS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
_MOST = 2_000_000  # of a data set
_DEPTH = 4  # of folders in a class's folder


def has_class_folders(path: Path) -> bool:
    """Whether there is a picture in a folder of the folder, or in a folder of one of its splits."""
    tops = [path, *(path / name for names in SPLITS.values() for name in names)]
    return any(_first_picture(folder) for top in tops for folder in _folders(top))


def load_class_folders(path: Path, split: str, form: Form | None = None, *, progress: bool = True) -> Dataset:
    """Read ``path/CLASS/*`` or ``path/train/CLASS/*`` and ``path/test/CLASS/*`` (also ``val``, ``valid``, ``validation``).

    Classes are the folders' names in alphabetical order, of all splits together. Image ids are positions in ImageFolder's order (by
    class, then by name); the images themselves come as the first of every class, the second of every class, and so on, so that the first
    n are of all classes.

    Args:
        path: the folder.
        split: ``"train"`` or ``"test"``.
        form: size and channels; None: as the pictures are.
        progress: draw a bar on stderr.

    Raises:
        DataError: no pictures, sizes that differ, or a picture that cannot be read.
    """
    tops = {
        key: next((path / name for name in names if _has_pictures(path / name)), None) for key, names in SPLITS.items()
    }
    notices = []
    if any(tops.values()):
        top = tops[split]
        if top is None:
            raise DataError(
                f"{path}: expected a folder {' or '.join(SPLITS[split])} with a folder for each class; there is none"
            )
        if top.name not in (split, "training"):
            notices.append(f"the {split} split is the folder {top.name}")
        used = [folder for folder in tops.values() if folder is not None]
    else:
        top, used = path, [path]
    names = sorted({folder.name for one in used for folder in _folders(one)})
    classes = {folder: _pictures(top / folder) for folder in names}
    skipped = sum(other for _, other in classes.values())
    if skipped:
        notices.append(f"{skipped:,} files were left out: they end in none of {', '.join(PICTURES)}")
    files = [(file, label) for label, folder in enumerate(names) for file in classes[folder][0]]
    if not files:
        raise DataError(f"{top}: has no pictures ({', '.join(PICTURES)}) in folders of classes")
    if top == path:
        notices.append(
            f"nothing tells train from test in it, so both are these {len(files):,} images. For splits: folders train and test, or "
            "rdc data convert SRC out.npz --test-share 0.2"
        )
    return dataset_of_files(path, files, tuple(names), split, form or Form(), notices, progress=progress)


def dataset_of_files(
    path: Path,
    files: list[tuple[Path, int]],
    names: tuple[str, ...],
    split: str,
    form: Form,
    notices: list[str],
    *,
    name: str | None = None,
    mixed: bool = False,
    progress: bool = True,
) -> Dataset:
    """A data set of picture files.

    Args:
        path: where they are.
        files: the files and their labels, in the order of their ids.
        names: of the classes.
        split, form, notices, progress: as of :func:`load_class_folders`.
        name: the data set's name; the folder's when None.
        mixed: whether the order is kept; else the classes take turns.
    """
    for class_name in names:
        check_name(class_name, str(path))
    if len(names) > MOST_CLASSES:
        raise DataError(f"{path}: {len(names):,} folders of classes; expected at most {MOST_CLASSES:,}")
    order = range(len(files)) if mixed else _turns([label for _, label in files])
    sizes = sum(_size(file) for file, _ in files)
    budget = Budget(one_line(path, 400), sizes, DataError, floor=FLOOR, expansion=EXPANSION)
    shown = bar(order, desc=f"{path.name}, {split}", enabled=progress and len(files) > 2000)
    contents = ((one_line(files[i][0], 400), _content(files[i][0])) for i in shown)
    images, said = stacked(contents, len(files), form, budget)
    indices = torch.tensor(list(order), dtype=torch.int64)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)[indices]
    name = path.name if name is None else name
    return Dataset(torch.from_numpy(images), labels, names, name, split, indices, str(path), (*notices, *said))


def _content(file: Path) -> Callable[[], bytes]:
    return functools.partial(picture_content, file)


def _turns(labels: list[int]) -> list[int]:
    """Positions: the first of every class, the second of every class, ..."""
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    rounds = itertools.zip_longest(*places.values())
    return [place for one in rounds for place in one if place is not None]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # whoever reads it says what is wrong


def _folders(path: Path) -> list[Path]:
    try:
        found = [
            Path(entry.path) for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith((".", "__"))
        ]
    except OSError:
        return []
    return sorted(found)


def _has_pictures(path: Path) -> bool:
    return any(_first_picture(folder) for folder in _folders(path))


def _first_picture(folder: Path) -> bool:
    return any(file.name.lower().endswith(PICTURES) for file in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, by name, but those that are hidden or far down."""
    for top, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if len(Path(top).relative_to(folder).parts) >= _DEPTH:
            below.clear()
        yield from (Path(top) / name for name in sorted(names) if not name.startswith("."))


def _pictures(folder: Path) -> tuple[list[Path], int]:
    """Pictures below the folder of a class, by name, and how many other files there are."""
    found, others = [], 0
    for file in _files(folder):
        if file.name.lower().endswith(PICTURES):
            found.append(file)
        else:
            others += 1
        if len(found) > _MOST:
            raise DataError(f"{folder}: has more than {_MOST:,} pictures; expected at most so many")
    return found, others
