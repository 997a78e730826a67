"""``load_dataset``: one name, one data set."""

from __future__ import annotations

import os

from rdc.data.dataset import Dataset
from rdc.data.fashion_mnist import load_fashion_mnist
from rdc.errors import DataError

__all__ = ["load_dataset"]


def load_dataset(
    name: str | os.PathLike[str],
    split: str = "test",
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    *,
    verify: bool = True,
    progress: bool = True,
) -> Dataset:
    """Load a labelled image set into memory."""
    if split not in ("train", "test"):
        raise DataError(f'split must be "train" or "test"; got {split!r}')
    if name == "fashion-mnist":
        return load_fashion_mnist(split, root, verify=verify)
    raise DataError(f"unknown data set {name!r}")
