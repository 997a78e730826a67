"""Fashion-MNIST: 60,000 + 10,000 grey images, 28 x 28, ten classes of clothing, MIT licence.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms", arXiv:1708.07747.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from rdc.data.dataset import Dataset
from rdc.data.idx import check_digest, parse_idx, read_content
from rdc.errors import DataError

__all__ = ["CLASS_NAMES", "load_fashion_mnist", "search_places"]

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

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

# SHA-256 of the decompressed idx files: recompressed archives pass too.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
}


def search_places(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """Folders searched, in order: ``root`` alone when given; else $RDC_DATA/fashion-mnist, Debian's, the user's cache."""
    if root is not None:
        return [Path(root).expanduser()]
    places = []
    if os.environ.get("RDC_DATA"):
        places.append(Path(os.environ["RDC_DATA"]).expanduser() / "fashion-mnist")
    return [*places, DEBIAN_FOLDER, cache_folder()]


def cache_folder() -> Path:
    """Where downloads go: ~/.cache/rdc/fashion-mnist."""
    return Path("~/.cache/rdc/fashion-mnist").expanduser()


def _find(folder: Path, stem: str) -> Path | None:
    for name in (stem, f"{stem}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def load_fashion_mnist(split: str, root: str | os.PathLike[str] | None = None, *, verify: bool = True) -> Dataset:
    """Read the idx files of one split from the first folder that has both of them.

    Raises:
        DataError: not found (the message lists the places), truncated, wrong magic, sizes or checksum.
    """
    images_stem, labels_stem, count = _FILES[split]
    for folder in search_places(root):
        images_path, labels_path = _find(folder, images_stem), _find(folder, labels_stem)
        if images_path and labels_path:
            images = _read(images_path, images_stem, (count, 28, 28), verify)
            labels = _read(labels_path, labels_stem, (count,), verify)
            return Dataset(images[:, None], labels.to(torch.int64), CLASS_NAMES, "fashion-mnist", split)
    places = "\n".join(f"  {place}" for place in search_places(root))
    raise DataError(f"Fashion-MNIST ({split}) needs {images_stem}[.gz] and {labels_stem}[.gz]; searched:\n{places}")


def _read(path: Path, stem: str, shape: tuple[int, ...], verify: bool) -> torch.Tensor:
    size = 4 + 4 * len(shape)
    for extent in shape:
        size = size if extent is None else size
    content = read_content(path, limit=4 + 4 * len(shape) + int(torch.Size(shape).numel()))
    array = parse_idx(content, shape, str(path))
    if verify:
        check_digest(path, content, "sha256", SHA256[stem])
    return torch.from_numpy(array)
