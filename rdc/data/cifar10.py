"""CIFAR-10: 50,000 + 10,000 colour images, 32 x 32, ten classes, in the official binary and python versions.

rdc neither ships nor downloads it: it has no formal licence. Get it from https://www.cs.toronto.edu/~kriz/cifar.html.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; formats as on the page above.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from rdc.arguments.scalars import shown
from rdc.data.cifar_files import CifarFiles
from rdc.data.contents import check_digest, digest, search_places
from rdc.data.dataset import Dataset
from rdc.errors import DataError
from rdc.storage.pickles import load_plain_dict

__all__ = ["CLASS_NAMES", "load_cifar10"]

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
RECORDS = 10_000  # a batch
_PIXELS = 3 * 32 * 32
_LIMIT = 64 << 20  # bytes of a batch, in either version
_ARCHIVE_LIMIT = 512 << 20  # bytes of an unpacked archive; the official ones have 186 million

# SHA-256 of the records (label byte, then red, green and blue plane): these are the bytes of the binary version's
# files, computed here from files with the published SHA-1; the python version holds the same records.
SHA256 = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
# MD5 of the python version's files as widely published (torchvision has the same); a match spares hashing the records.
PYTHON_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}

# what the python version's files say of themselves
_LABELS = {
    **{f"data_batch_{number}": f"training batch {number} of 5" for number in range(1, 6)},
    "test_batch": "testing batch 1 of 1",
}

_FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
_ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")


def load_cifar10(split: str, root: str | os.PathLike[str] | None = None, *, verify: bool = True) -> Dataset:
    """Read one split from a folder or, without unpacking, from an official ``.tar.gz``.

    Args:
        split: ``"train"`` (50,000) or ``"test"`` (10,000).
        root: the archive, the folder with the batches, or a folder that has either; nowhere else is searched. When
            None: ``$RDC_DATA/cifar10``, then ``~/.cache/rdc/cifar10``.
        verify: demand the official records by checksum. Without it, any number of records will do; what says, or by its checksum
            is, another batch than its name does is refused all the same.

    Raises:
        DataError: not found (the message lists the places), truncated, wrong sizes, checksum or labels, or a python
            batch that asks to run something.
    """
    files = CifarFiles("CIFAR-10", _FOLDERS, _ARCHIVES, _LIMIT, _ARCHIVE_LIMIT, "31 million")
    source, contents = files.find(search_places("cifar10", root), BATCHES[split], split)
    return _dataset(source, contents, split, verify)


def _dataset(source: Path, contents: dict[str, bytes], split: str, verify: bool) -> Dataset:
    records = [_records(f"{source}/{name}", name, content, verify) for name, content in contents.items()]
    joined = np.concatenate(records)
    return Dataset(
        torch.from_numpy(joined[:, 1:].reshape(-1, 3, 32, 32).copy()),
        torch.from_numpy(joined[:, 0].astype(np.int64)),
        CLASS_NAMES,
        "cifar10",
        split,
        source=str(source),
    )


def _records(where: str, name: str, content: bytes, verify: bool) -> np.ndarray:
    """One batch as uint8 [n, 1 + 3072], label first, in the layout of the binary version."""
    batch = name.removesuffix(".bin")
    if name.endswith(".bin"):
        if not content or len(content) % (1 + _PIXELS):
            raise DataError(
                f"{where}: {len(content):,} bytes are not a whole number of records of {1 + _PIXELS} bytes; it is "
                "truncated or another file. Get it again"
            )
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + _PIXELS)
    else:
        records = _records_of_pickle(where, batch, content)
    if verify and len(records) != RECORDS:
        raise DataError(
            f"{where}: {len(records):,} images, expected {RECORDS:,}; it is truncated or another file. Get it again, "
            "or pass verify=False to use it as it is"
        )
    if records[:, 0].max() >= len(CLASS_NAMES):
        at = int(np.argmax(records[:, 0] >= len(CLASS_NAMES)))
        raise DataError(f"{where}: label {records[at, 0]} of image {at} is not in 0..9; this is not a CIFAR-10 batch")
    if not (verify and name == batch and digest(content, "md5") == PYTHON_MD5[batch]):
        _check_records(where, batch, records.tobytes(), verify)
    return records


def _check_records(where: str, batch: str, records: bytes, verify: bool) -> None:
    """Refuse the official records of another batch always, others than the official ones if they are asked for."""
    found = digest(records, "sha256")
    for other, expected in SHA256.items():
        if found == expected and other != batch:
            raise _exchanged(where, other)
    if verify and found != SHA256[batch]:
        check_digest(where, records, "sha256", SHA256[batch])


def _exchanged(where: str, other: str) -> DataError:
    return DataError(
        f"{where}: holds the images of {other}; the files were renamed or exchanged, so that splits or their order would be wrong. "
        "Unpack the archive again"
    )


def _records_of_pickle(where: str, batch: str, content: bytes) -> np.ndarray:
    found = load_plain_dict(content, where)
    missing = [key for key in ("data", "labels") if key not in found]
    if missing:
        raise DataError(f"{where}: has no {' and no '.join(missing)}; expected a batch of CIFAR-10's python version")
    label = found.get("batch_label")
    label = label.decode("latin1") if isinstance(label, bytes) else label
    other = next((name for name, own in _LABELS.items() if label == own), batch)
    if other != batch:
        raise _exchanged(where, other)
    data, labels = found["data"], found["labels"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        got = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{where}: data must be uint8 [n, {_PIXELS}]; got {got}")
    labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(labels, list) or len(labels) != len(data) or not labels:
        got = f"{len(labels):,} of them" if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{where}: labels must be a list with one for each of the {len(data):,} images; got {got}")
    bad = next((label for label in labels if type(label) is not int or not 0 <= label < len(CLASS_NAMES)), None)
    if bad is not None:
        raise DataError(f"{where}: label {shown(bad)} is not an integer in 0..9; this is not a CIFAR-10 batch")
    return np.concatenate([np.array(labels, dtype=np.uint8)[:, None], data], axis=1)
