"""CIFAR-100: 50,000 + 10,000 colour images, 32 x 32, a hundred classes in twenty groups, in the official binary and python versions.

rdc neither ships nor downloads it: it has no formal licence. Get it from https://www.cs.toronto.edu/~kriz/cifar.html.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; formats as on the page above.
"""

from __future__ import annotations

import os

import numpy as np
import torch

from rdc.arguments.scalars import shown
from rdc.data.cifar_files import CifarFiles
from rdc.data.contents import check_digest, search_places
from rdc.data.dataset import Dataset
from rdc.errors import DataError
from rdc.storage.pickles import load_plain_dict

__all__ = ["CLASS_NAMES", "GROUP_NAMES", "load_cifar100"]

CLASS_NAMES = tuple(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar "
    "cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster "
    "house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree "
    "orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose "
    "sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm".split()
)
GROUP_NAMES = tuple(
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture insects "
    "large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals "
    "non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2".split()
)
RECORDS = {"train": 50_000, "test": 10_000}
_PIXELS = 3 * 32 * 32
_FILES = CifarFiles(
    "CIFAR-100",
    ("cifar-100-binary", "cifar-100-python"),
    ("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"),
    batch=256 << 20,
    archive=512 << 20,
    about="154 million",
)
# MD5 of the python version's files as widely published (torchvision has the same)
PYTHON_MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}


def load_cifar100(
    split: str, root: str | os.PathLike[str] | None = None, *, groups: bool = False, verify: bool = True
) -> Dataset:
    """Read one split from a folder or, without unpacking, from an official ``.tar.gz``.

    Args:
        split: ``"train"`` (50,000) or ``"test"`` (10,000).
        root: the archive, the folder with the files, or a folder that has either; nowhere else is searched. When
            None: ``$RDC_DATA/cifar100``, then ``~/.cache/rdc/cifar100``.
        groups: the 20 groups ("coarse labels") as classes.
        verify: demand the official content: the python version by its published checksum; the binary version, of which none is
            known to us, by the number of images, as many of each class. Without it, any number of records will do.

    Raises:
        DataError: not found (the message lists the places), truncated, wrong sizes, checksum or labels, or a python
            file that asks to run something.
    """
    source, contents = _FILES.find(search_places("cifar100", root), (split,), split)
    ((name, content),) = contents.items()
    where = f"{source}/{name}"
    labels, images = _of_binary(where, content) if name.endswith(".bin") else _of_pickle(where, split, content, verify)
    for column, count, what in ((0, len(GROUP_NAMES), "group"), (1, len(CLASS_NAMES), "class")):
        if not ((labels[:, column] >= 0) & (labels[:, column] < count)).all():
            at = int(np.argmax((labels[:, column] < 0) | (labels[:, column] >= count)))
            raise DataError(
                f"{where}: {what} {labels[at, column]} of image {at} is not in 0..{count - 1}; this is no file of CIFAR-100"
            )
    each = np.bincount(labels[:, 1], minlength=len(CLASS_NAMES))
    if verify and (len(images) != RECORDS[split] or each.min() != each.max()):
        raise DataError(
            f"{where}: {len(images):,} images, {each.min()} to {each.max()} of a class; expected {RECORDS[split]:,}, as many of each. It "
            "is truncated or another file: get it again, or pass verify=False to use it as it is"
        )
    return Dataset(
        torch.from_numpy(images.reshape(-1, 3, 32, 32).copy()),
        torch.from_numpy(labels[:, 0 if groups else 1].astype(np.int64)),
        GROUP_NAMES if groups else CLASS_NAMES,
        "cifar100:groups" if groups else "cifar100",
        split,
        source=str(source),
    )


def _of_binary(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n, 2], group and class, and planes [n, 3072]."""
    if not content or len(content) % (2 + _PIXELS):
        raise DataError(
            f"{where}: {len(content):,} bytes are not a whole number of records of {2 + _PIXELS} bytes; it is "
            "truncated or another file. Get it again"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 2 + _PIXELS)
    return records[:, :2].astype(np.int64), records[:, 2:]


def _of_pickle(where: str, split: str, content: bytes, verify: bool) -> tuple[np.ndarray, np.ndarray]:
    if verify:
        check_digest(where, content, "md5", PYTHON_MD5[split])
    found = load_plain_dict(content, where)
    missing = [key for key in ("data", "coarse_labels", "fine_labels") if key not in found]
    if missing:
        raise DataError(f"{where}: has no {' and no '.join(missing)}; expected a file of CIFAR-100's python version")
    data = found["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        got = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{where}: data must be uint8 [n, {_PIXELS}]; got {got}")
    columns = [_labels(where, key, found[key], len(data)) for key in ("coarse_labels", "fine_labels")]
    return np.stack(columns, axis=1), data


def _labels(where: str, key: str, labels: object, count: int) -> np.ndarray:
    labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(labels, list) or len(labels) != count or not labels:
        got = f"{len(labels):,} of them" if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{where}: {key} must be a list with one for each of the {count:,} images; got {got}")
    bad = next((label for label in labels if type(label) is not int or not 0 <= label < 256), None)
    if bad is not None:
        raise DataError(f"{where}: {key} has {shown(bad)}; expected small integers. This is no file of CIFAR-100")
    return np.array(labels, dtype=np.int64)
