"""``load_dataset``: one name, one data set."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from rdc.data.cifar10 import load_cifar10
from rdc.data.contents import check_digest
from rdc.data.dataset import Dataset
from rdc.data.fashion_mnist import load_fashion_mnist
from rdc.data.npz import load_npz
from rdc.errors import DataError
from rdc.storage.home import expanded

__all__ = ["DATASET_NAMES", "load_dataset"]

DATASET_NAMES = ("fashion-mnist", "fashion-mnist-sample", "cifar10")

SAMPLE = Path(__file__).resolve().parent.parent / "assets" / "fashion_mnist_sample.npz"
# SHA-256 of the images' bytes followed by the labels' (one byte each)
SAMPLE_SHA256 = "4e664ed688e0b452b8364df068f7574ee59fbbf3f957a5b4100c2a15be23b04a"


def load_dataset(
    name: str | os.PathLike[str],
    split: str = "test",
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    *,
    verify: bool = True,
    progress: bool = True,
) -> Dataset:
    """Load a labelled image set into memory.

    Args:
        name: ``"fashion-mnist"``; ``"fashion-mnist-sample"``, 512 test images that come with rdc; ``"cifar10"``; or the
            path of a ``.npz`` file or of a folder of them (arrays ``images`` and ``labels``, see docs/data.md).
        split: ``"train"`` or ``"test"``.
        root: the only folder (for CIFAR-10 also ``.tar.gz``) to look in. When None, in order: ``$RDC_DATA/<name>``,
            Debian's ``/usr/share/datasets/fashion-mnist``, ``~/.cache/rdc/<name>``.
        download: fetch Fashion-MNIST (about 30 MB) when it is nowhere to be found. Nothing else can be downloaded.
        verify: demand the official content by checksum.
        progress: draw download bars on stderr.

    Returns:
        The data set; :meth:`Dataset.pixels` gives float32 in [0, 1].

    Raises:
        DataError: unknown name or split, or files that are missing, truncated, or not what their name says; the
            message says what to do.
    """
    if split not in ("train", "test"):
        raise DataError(f'split must be "train" or "test"; got {split!r}')
    if name == "fashion-mnist":
        return load_fashion_mnist(split, root, download=download, verify=verify, progress=progress)
    if name == "fashion-mnist-sample":
        return _load_sample(split, verify)
    if name == "cifar10":
        return load_cifar10(split, root, verify=verify)
    if not isinstance(name, (str, os.PathLike)):
        raise DataError(f"data set: expected a name or path; got a {type(name).__name__}")
    path = expanded(name) if root is None else expanded(root) / name
    if path.exists():
        return load_npz(path, split)
    close = difflib.get_close_matches(str(name), DATASET_NAMES, n=1)
    raise DataError(
        f"unknown data set {str(name)!r}{f' (did you mean {close[0]!r}?)' if close else ''}: it is none of "
        f"{', '.join(DATASET_NAMES)}, and {path} is no file or folder of .npz either"
    )


def _load_sample(split: str, verify: bool) -> Dataset:
    if split != "test":
        raise DataError('"fashion-mnist-sample" has test images only; for training images load "fashion-mnist"')
    if not SAMPLE.is_file():
        raise DataError(f"{SAMPLE}: missing, this installation of rdc is incomplete. Install it again")
    sample = load_npz(SAMPLE, split, name="fashion-mnist-sample")
    if verify:
        content = sample.images.numpy().tobytes() + sample.labels.numpy().astype("uint8").tobytes()
        check_digest(SAMPLE, content, "sha256", SAMPLE_SHA256)
    return sample
