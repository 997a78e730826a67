"""The data set that ``--data`` names, for every command that takes one."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

from rdc.errors import one_line

if TYPE_CHECKING:
    from rdc.data import Dataset

__all__ = ["DATA", "load_images"]

#: help of --data
DATA = (
    "fashion-mnist, fashion-mnist-sample (comes with rdc), cifar10, cifar100, svhn, tiny-imagenet, cifar10.1, "
    "cifar10-c:fog:3, torchvision:NAME; a .npz or .parquet file or a folder of them; a folder of class folders"
)


def load_images(name: Any, *arguments: Any, notices: bool = True, **options: Any) -> Dataset:
    """:func:`rdc.data.load_dataset`, whose notices are lines on stderr (or nothing: where splits do not matter)."""
    from rdc.data import DataNotice, load_dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNotice)
        data = load_dataset(name, *arguments, **options)
    for notice in data.notices if notices else ():
        print(f"rdc: {one_line(data.name)}: {one_line(notice, 400)}", file=sys.stderr)
    return data
