"""SVHN, cropped digits: 73,257 + 26,032 colour images, 32 x 32, ten classes, as the two official ``.mat`` files.

rdc neither ships nor downloads it (for non-commercial use). Get ``train_32x32.mat`` and ``test_32x32.mat`` from
http://ufldl.stanford.edu/housenumbers/.

Source: Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS workshop 2011.
"""

from __future__ import annotations

import os

import numpy as np
import torch

from rdc.data.contents import check_file_digest, find_folder, search_places
from rdc.data.dataset import Dataset
from rdc.data.matlab import read_mat
from rdc.errors import DataError

__all__ = ["load_svhn"]

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
# MD5 of the files as widely published (torchvision has the same)
MD5 = {"train": "e26dedcc434d2e4c54c9b2d4a06d8373", "test": "eb5a983be6a315427106f1b164d9cef3"}


def load_svhn(split: str, root: str | os.PathLike[str] | None = None, *, verify: bool = True) -> Dataset:
    """Read one split.

    Args:
        split: ``"train"`` (73,257) or ``"test"`` (26,032).
        root: the folder with the files, or one that has it as ``svhn`` or ``SVHN``; when None: ``$RDC_DATA/svhn``, then
            ``~/.cache/rdc/svhn``.
        verify: demand the official file by its published checksum. Without it, any number of images will do.

    Raises:
        DataError: not found (the message lists the places), damaged, or not what SVHN has: X uint8 [32, 32, 3, N], y in 1..10.
    """
    places = search_places("svhn", root)
    advice = "Get it from http://ufldl.stanford.edu/housenumbers/ (cropped digits)"
    path = find_folder(f"SVHN, {split} split", [FILES[split]], places, ("svhn", "SVHN"), advice) / FILES[split]
    if verify:
        check_file_digest(path, "md5", MD5[split])
    found = read_mat(path, ("X", "y"))
    images, labels = found["X"], found["y"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X must be uint8 [32, 32, 3, N]; got {images.dtype} {list(images.shape)}")
    count = images.shape[3]
    if labels.size != count or max(labels.shape, default=0) != count or not count:
        raise DataError(f"{path}: y must be [{count}, 1], one label an image; got {list(labels.shape)}")
    digits = labels.reshape(-1).astype(np.float64)
    if not np.isin(digits, np.arange(1, 11)).all():
        raise DataError(
            f"{path}: y must be in 1..10 (10 is the digit 0); got {digits[~np.isin(digits, np.arange(1, 11))][0]:g}"
        )
    return Dataset(
        torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))),
        torch.from_numpy(digits.astype(np.int64) % 10),
        tuple("0123456789"),
        "svhn",
        split,
        source=str(path),
    )
