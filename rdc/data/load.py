"""``load_dataset``: one name, one data set."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from rdc.arguments.close_names import did_you_mean
from rdc.data.cifar10 import load_cifar10
from rdc.data.cifar10_1 import load_cifar10_1
from rdc.data.cifar100 import load_cifar100
from rdc.data.contents import check_digest
from rdc.data.corrupted import load_corrupted
from rdc.data.dataset import DataNotice, Dataset
from rdc.data.fashion_mnist import load_fashion_mnist
from rdc.data.npz import load_npz
from rdc.data.own import load_own
from rdc.data.pictures import Form
from rdc.data.resizing import reshaped
from rdc.data.svhn import load_svhn
from rdc.data.tiny_imagenet import load_tiny_imagenet
from rdc.data.torchvision_sets import load_torchvision
from rdc.errors import DataError, one_line
from rdc.storage.home import expanded

__all__ = ["DATASET_NAMES", "load_dataset"]

DATASET_NAMES = (
    "fashion-mnist",
    "fashion-mnist-sample",
    "cifar10",
    "cifar100",
    "cifar10.1",
    "cifar10-c",
    "fashion-mnist-c",
    "svhn",
    "tiny-imagenet",
)

SAMPLE = Path(__file__).resolve().parent.parent / "assets" / "fashion_mnist_sample.npz"
# SHA-256 of the images' bytes followed by the labels' (one byte each)
SAMPLE_SHA256 = "4e664ed688e0b452b8364df068f7574ee59fbbf3f957a5b4100c2a15be23b04a"


@dataclasses.dataclass(frozen=True)
class _Request:
    """What a reader is asked for; fields as the arguments of :func:`load_dataset`, options as behind the name's colons."""

    split: str
    root: str | os.PathLike[str] | None
    options: tuple[str, ...]
    form: Form
    download: bool
    verify: bool
    progress: bool


def load_dataset(
    name: str | os.PathLike[str],
    split: str = "test",
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    *,
    verify: bool = True,
    progress: bool = True,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    resample: str = "lanczos",
) -> Dataset:
    """Load a labelled image set into memory.

    Args:
        name: ``"fashion-mnist"``; ``"fashion-mnist-sample"``, 512 test images that come with rdc; ``"cifar10"``, ``"cifar100"`` (also
            ``"cifar100:groups"``), ``"cifar10.1"`` (``:v4``, ``:v6``), ``"cifar10-c:fog:3"`` and ``"fashion-mnist-c:fog:3"`` (corruption,
            severity), ``"svhn"``, ``"tiny-imagenet"``, ``"torchvision:NAME"``; or the path of a ``.npz`` or ``.parquet`` file, of a
            folder of them, or of a folder of pictures in a folder for each class (see docs/data.md).
        split: ``"train"`` or ``"test"``.
        root: the only folder (for CIFAR also ``.tar.gz``) to look in. When None, in order: ``$RDC_DATA/<name>``,
            Debian's ``/usr/share/datasets/fashion-mnist``, ``~/.cache/rdc/<name>``.
        download: fetch Fashion-MNIST (about 30 MB) when it is nowhere to be found. Nothing else can be downloaded.
        verify: demand the official content by checksum, where one is known.
        progress: draw bars on stderr.
        size: height and width to bring images to; None: as they are. Needed for pictures of different sizes.
        channels: 1 or 3; None: as they are.
        resample: filter of a change of size: nearest, box, bilinear, hamming, bicubic or lanczos (PIL's).

    Returns:
        The data set; :meth:`Dataset.pixels` gives float32 in [0, 1]. What a user should know of how it was read stands in its ``notices``
        and is a warning (:class:`rdc.data.DataNotice`) too.

    Raises:
        DataError: unknown name or split, or files that are missing, truncated, or not what their name says; the
            message says what to do.
        ConfigError: no such size, number of channels or filter.
    """
    if split not in ("train", "test"):
        raise DataError(f'split must be "train" or "test"; got {split!r}')
    if not isinstance(name, (str, os.PathLike)):
        raise DataError(f"data set: expected a name or path; got a {type(name).__name__}")
    form = Form(size, channels, resample)
    base, *options = name.split(":") if isinstance(name, str) else [""]
    reader = _READERS.get(base)
    if reader is not None:
        if len(options) > _OPTIONS.get(base, 0):
            raise DataError(f"{one_line(name, 120)}: expected {_FORMS.get(base, base)}")
        request = _Request(split, root, tuple(options), form, download, verify, progress)
        data = reshaped(reader(request), form)
    else:
        path = expanded(name) if root is None else expanded(root) / name
        if not path.exists():
            raise _unknown(str(name), base, path)
        data = load_own(path, split, form, progress=progress)
    for notice in data.notices:
        warnings.warn(f"{one_line(data.name)}: {notice}", DataNotice, stacklevel=2)
    return data


def _unknown(name: str, base: str, path: Path) -> DataError:
    return DataError(
        f"unknown data set {name!r}{did_you_mean(base or name, DATASET_NAMES)}: it is none of "
        f"{', '.join(DATASET_NAMES)}, torchvision:NAME, and {path} is no file or folder either"
    )


def _cifar100(request: _Request) -> Dataset:
    if request.options not in ((), ("groups",)):
        raise DataError(f"cifar100:{one_line(request.options[0], 60)}: expected {_FORMS['cifar100']}")
    return load_cifar100(request.split, request.root, groups=bool(request.options), verify=request.verify)


def _corrupted(name: str) -> Callable[[_Request], Dataset]:
    return lambda request: load_corrupted(name, request.split, request.root, *request.options)


def _torchvision(request: _Request) -> Dataset:
    name = request.options[0] if request.options else ""
    return load_torchvision(
        name, request.split, request.root, request.form, verify=request.verify, progress=request.progress
    )


_READERS: dict[str, Callable[[_Request], Dataset]] = {
    "fashion-mnist": lambda request: load_fashion_mnist(
        request.split, request.root, download=request.download, verify=request.verify, progress=request.progress
    ),
    "fashion-mnist-sample": lambda request: _load_sample(request.split, request.verify),
    "cifar10": lambda request: load_cifar10(request.split, request.root, verify=request.verify),
    "cifar100": _cifar100,
    "cifar10.1": lambda request: load_cifar10_1(request.split, request.root, *request.options, verify=request.verify),
    "cifar10-c": _corrupted("cifar10-c"),
    "fashion-mnist-c": _corrupted("fashion-mnist-c"),
    "svhn": lambda request: load_svhn(request.split, request.root, verify=request.verify),
    "tiny-imagenet": lambda request: load_tiny_imagenet(
        request.split, request.root, request.form, verify=request.verify, progress=request.progress
    ),
    "torchvision": _torchvision,
}
#: how many options may stand behind a name, and how they are written
_OPTIONS = {"cifar100": 1, "cifar10.1": 1, "cifar10-c": 2, "fashion-mnist-c": 2, "torchvision": 1}
_FORMS = {
    "cifar100": "cifar100 or cifar100:groups",
    "cifar10.1": "cifar10.1, cifar10.1:v4 or cifar10.1:v6",
    "cifar10-c": "cifar10-c:CORRUPTION:SEVERITY, such as cifar10-c:fog:3",
    "fashion-mnist-c": "fashion-mnist-c, or :CORRUPTION, or :CORRUPTION:SEVERITY",
    "torchvision": "torchvision:NAME",
}


def _load_sample(split: str, verify: bool) -> Dataset:
    if split != "test":
        raise DataError('"fashion-mnist-sample" has test images only; for training images load "fashion-mnist"')
    if not SAMPLE.is_file():
        raise DataError(f"{SAMPLE}: missing, this installation of rdc is incomplete. Install it again")
    sample = load_npz(SAMPLE, split, name="fashion-mnist-sample")
    if verify:
        content = sample.images.numpy().tobytes() + sample.labels.numpy().astype("uint8").tobytes()
        check_digest(SAMPLE, content, "sha256", SAMPLE_SHA256)
    return dataclasses.replace(sample, notices=())
