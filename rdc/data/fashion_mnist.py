"""Fashion-MNIST: 60,000 + 10,000 grey images, 28 x 28, ten classes of clothing, MIT licence.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms", arXiv:1708.07747.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import torch

from rdc.data.contents import check_digest, decompress, read_content, search_places
from rdc.data.dataset import Dataset
from rdc.data.download import fetch
from rdc.data.idx import parse_idx
from rdc.errors import DataError
from rdc.storage.home import expanded

__all__ = ["CLASS_NAMES", "download_fashion_mnist", "load_fashion_mnist"]

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist

_UNVERIFIED_LIMIT = 1 << 30  # bytes

MIRROR_VARIABLE = "RDC_FASHION_MNIST_URL"
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
)


@dataclasses.dataclass(frozen=True)
class IdxFile:
    """One of the four files: name without .gz, shape of its array, SHA-256 of the decompressed content.

    The checksum is of the decompressed content so that recompressed files (Debian's are) pass too.
    """

    stem: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def size(self) -> int:
        """Bytes of the decompressed file."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


FILES = {
    "train": (
        IdxFile(
            "train-images-idx3-ubyte",
            (60_000, 28, 28),
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            (60_000,),
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
    ),
    "test": (
        IdxFile(
            "t10k-images-idx3-ubyte",
            (10_000, 28, 28),
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            (10_000,),
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}


def load_fashion_mnist(
    split: str,
    root: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    verify: bool = True,
    progress: bool = True,
) -> Dataset:
    """Read one split from the first folder that has both its files, ``.gz`` or not.

    Args:
        split: ``"train"`` (60,000) or ``"test"`` (10,000).
        root: the only folder to look in (also in its ``fashion-mnist`` and torchvision's ``FashionMNIST/raw``); when
            None: ``$RDC_DATA/fashion-mnist``, Debian's folder, ``~/.cache/rdc/fashion-mnist``.
        download: fetch all four files, when no folder has this split, into ``root`` or else the first of
            ``$RDC_DATA/fashion-mnist`` and ``~/.cache/rdc/fashion-mnist``.
        verify: demand the official content by SHA-256. Without it, any number of 28 x 28 images will do.
        progress: draw download bars.

    Raises:
        DataError: not found (the message lists the places), truncated, wrong magic, sizes, checksum or labels.
    """
    places = search_places("fashion-mnist", root, DEBIAN_FOLDER)
    paths = _find(places, split)
    if paths is None and download:
        target = next((place for place in places if place != DEBIAN_FOLDER or root is not None), None)
        if target is None:
            raise DataError(
                "Fashion-MNIST: no folder to download into: RDC_DATA is not set, and this user has no home folder. Set RDC_DATA, or "
                "name a folder with root="
            )
        download_fashion_mnist(target, progress=progress)
        paths = _find([target], split)
    if paths is None:
        raise _missing(places, split)
    images, labels = (_read(path, file, verify) for path, file in zip(paths, FILES[split], strict=True))
    if len(images) != len(labels):
        raise DataError(f"{paths[1]}: {len(labels):,} labels for {len(images):,} images; expected one per image")
    return Dataset(
        torch.from_numpy(images[:, None]),
        torch.from_numpy(labels.astype(np.int64)),
        CLASS_NAMES,
        "fashion-mnist",
        split,
        source=str(paths[0].parent),
    )


def download_fashion_mnist(folder: str | os.PathLike[str], *, progress: bool = True) -> list[Path]:
    """Fetch those of the four files that ``folder`` lacks from the upstream project; each is checked, then written.

    The environment variable ``RDC_FASHION_MNIST_URL`` names a mirror to try first (checksums stay in force).

    Returns:
        The four paths.

    Raises:
        DataError: offline, no mirror has the right file, or the folder cannot be written.
    """
    folder = expanded(folder)
    own = os.environ.get(MIRROR_VARIABLE)
    mirrors = [own.rstrip("/") + "/", *MIRRORS] if own else list(MIRRORS)
    paths = []
    for file in (file for pair in FILES.values() for file in pair):
        path = _path_of(folder, file)
        if path is None:
            path = folder / f"{file.stem}.gz"

            def check(content: bytes, file: IdxFile = file) -> None:
                check_digest(file.stem, decompress(content, file.stem, file.size), "sha256", file.sha256)

            urls = [mirror + path.name for mirror in mirrors]
            fetch(urls, path, check, limit=file.size + 4096, progress=progress)
        paths.append(path)
    return paths


def _find(places: list[Path], split: str) -> tuple[Path, ...] | None:
    for place in places:
        for folder in (place, place / "fashion-mnist", place / "FashionMNIST" / "raw"):
            paths = [_path_of(folder, file) for file in FILES[split]]
            there = tuple(path for path in paths if path is not None)
            if len(there) == len(paths):
                return there
    return None


def _path_of(folder: Path, file: IdxFile) -> Path | None:
    return next((path for path in (folder / file.stem, folder / f"{file.stem}.gz") if path.is_file()), None)


def _missing(places: list[Path], split: str) -> DataError:
    stems = " and ".join(f"{file.stem}[.gz]" for file in FILES[split])
    return DataError(
        f"Fashion-MNIST, {split} split: {stems} not found together in",
        *(f"  {place}{_state(place, split)}" for place in places),
        "Get them by any of",
        "  load_dataset('fashion-mnist', download=True), about 30 MB",
        "  apt install dataset-fashion-mnist",
        "  root= a folder that has them",
        'The 512 test images of "fashion-mnist-sample" come with rdc',
    )


def _state(place: Path, split: str) -> str:
    if not place.is_dir():
        return "  (no such folder)"
    present = [path.name for file in FILES[split] if (path := _path_of(place, file))]
    return f"  (has {present[0]} only)" if present else ""


def _read(path: Path, file: IdxFile, verify: bool) -> np.ndarray:
    content = read_content(path, limit=file.size if verify else _UNVERIFIED_LIMIT)
    array = parse_idx(content, file.shape if verify else (None, *file.shape[1:]), str(path))
    if verify:
        check_digest(path, content, "sha256", file.sha256)
    return array
