"""Tiny-ImageNet: 100,000 + 10,000 colour images, 64 x 64, 200 classes, as its archive unpacks.

rdc neither ships nor downloads it (for non-commercial research). Get http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it.
Its test images have no labels: the validation images are the test split here.
"""

from __future__ import annotations

import os
from pathlib import Path

from rdc.data.class_folders import dataset_of_files
from rdc.data.contents import find_folder, read_content, search_places
from rdc.data.dataset import Dataset
from rdc.data.pictures import Form
from rdc.errors import DataError, one_line
from rdc.storage.reading import reading

__all__ = ["load_tiny_imagenet"]

IMAGES = {"train": 100_000, "test": 10_000}
_FOLDER = "tiny-imagenet-200"
_TEXT = 16 * 2**20  # bytes of a list


def load_tiny_imagenet(
    split: str,
    root: str | os.PathLike[str] | None = None,
    form: Form | None = None,
    *,
    verify: bool = True,
    progress: bool = True,
) -> Dataset:
    """Read one split. Classes are the sorted WordNet ids; their names are the first words of ``words.txt``.

    Args:
        split: ``"train"`` (100,000) or ``"test"`` (the 10,000 validation images).
        root: the unpacked folder or one that has it as ``tiny-imagenet-200``; when None: ``$RDC_DATA/tiny-imagenet``, then
            ``~/.cache/rdc/tiny-imagenet``.
        form: size and filter; None: 64 x 64 as they are.
        verify: demand the official number of images; no checksum is known to us. (The training images come class by turns.)
        progress: draw a bar on stderr.

    Raises:
        DataError: not found (the message lists the places), an image that is missing or damaged, or a list that does not fit.
    """
    form = form or Form()
    places = search_places("tiny-imagenet", root)
    advice = "Get http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it"
    folder = find_folder("Tiny-ImageNet", ["wnids.txt", "train", "val"], places, (_FOLDER,), advice)
    ids = sorted(line[0] for line in _lines(folder / "wnids.txt", 1))
    if len(set(ids)) < len(ids) or not ids:
        raise DataError(f"{folder / 'wnids.txt'}: expected a different WordNet id in every line")
    files = _training(folder, ids) if split == "train" else _validation(folder, ids)
    if verify and len(files) != IMAGES[split]:
        raise DataError(
            f"{folder}: {len(files):,} images in the {split} split, expected {IMAGES[split]:,}. Unpack it again, or pass verify=False to "
            "use it as it is"
        )
    notices = (
        [] if split == "train" else ["the test split is the folder val: Tiny-ImageNet's test images have no labels"]
    )
    colour = Form(form.size, form.channels or 3, form.resample)
    mixed = split == "test"
    names = tuple(_names(folder, ids))
    return dataset_of_files(
        folder, files, names, split, colour, notices, name="tiny-imagenet", mixed=mixed, progress=progress
    )


def _lines(path: Path, least: int) -> list[list[str]]:
    """Fields of every line that is not empty."""
    with reading(path, DataError, "a list in UTF-8"):
        text = read_content(path, _TEXT).decode("utf-8")
    found = [line.split("\t") if "\t" in line else line.split() for line in text.splitlines() if line.strip()]
    if short := next((line for line in found if len(line) < least), None):
        raise DataError(f"{path}: expected {least} fields in every line; got {one_line(short, 80)}")
    return found


def _training(folder: Path, ids: list[str]) -> list[tuple[Path, int]]:
    files = []
    for label, wnid in enumerate(ids):
        _plain(wnid, folder / "wnids.txt")
        images = folder / "train" / wnid / "images"
        found = sorted(file for file in images.glob("*") if file.suffix.lower() in (".jpeg", ".jpg", ".png"))
        files += [(file, label) for file in found]
    return files


def _validation(folder: Path, ids: list[str]) -> list[tuple[Path, int]]:
    path = folder / "val" / "val_annotations.txt"
    labels = {wnid: label for label, wnid in enumerate(ids)}
    files = []
    for name, wnid, *_ in _lines(path, 2):
        _plain(name, path)
        if wnid not in labels:
            raise DataError(
                f"{path}: {one_line(name, 80)} is of {one_line(wnid, 40)}; expected a WordNet id of wnids.txt"
            )
        files.append((folder / "val" / "images" / name, labels[wnid]))
    return files


def _plain(name: str, path: Path) -> None:
    """Names from a list stay in their folder."""
    if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise DataError(f"{path}: expected names without folders; got {one_line(repr(name), 80)}")


def _names(folder: Path, ids: list[str]) -> list[str]:
    """First words of each id; the id itself where words.txt has none, or behind them where two are alike."""
    words = {}
    if (folder / "words.txt").is_file():
        words = {wnid: text for wnid, text, *_ in _lines(folder / "words.txt", 2)}
    names = [words.get(wnid, wnid).split(",")[0].strip()[:150] for wnid in ids]
    return [name if names.count(name) == 1 else f"{name} ({wnid})" for name, wnid in zip(names, ids, strict=True)]
