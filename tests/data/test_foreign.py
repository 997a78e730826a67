"""as_dataset: what people have in Python; torchvision:NAME, with a stand-in for torchvision."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from rdc.data import DataNotice, Dataset, as_dataset, load_dataset, save_npz
from rdc.errors import DataError
from rdc.images.pixels import SLACK

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 8), dtype=np.uint8)
LABELS = np.array([1, 0, 2, 1, 0])


class Pairs(torch.utils.data.Dataset):
    """Like torchvision's: a transform, and names of classes."""

    classes = ["cat", "dog", "fox"]

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, i):
        return self.item(i)


FLOATS = torch.from_numpy(IMAGES).float() / 255
ITEMS = Pairs(lambda i: (FLOATS[i], int(LABELS[i])))
SOURCES = {
    "arrays": lambda: ((IMAGES, LABELS), {}),
    "a pair": lambda: (((IMAGES, LABELS),), {}),
    "channels last": lambda: ((IMAGES.transpose(0, 2, 3, 1), LABELS), {}),
    "tensors": lambda: ((FLOATS, torch.from_numpy(LABELS)), {}),
    "halves": lambda: ((FLOATS.half(), LABELS[:, None]), {}),
    "with gradients": lambda: ((FLOATS.clone().requires_grad_(), np.eye(3)[LABELS]), {}),
    "a list of labels": lambda: ((IMAGES, LABELS.tolist()), {}),
    "TensorDataset": lambda: ((TensorDataset(FLOATS, torch.from_numpy(LABELS)),), {}),
    "Dataset": lambda: ((ITEMS,), {}),
    "PIL": lambda: ((Pairs(lambda i: (Image.fromarray(IMAGES[i].transpose(1, 2, 0)), LABELS[i])),), {}),
    "dicts": lambda: ((Pairs(lambda i: {"image": IMAGES[i], "label": int(LABELS[i])}),), {}),
    "Subset": lambda: ((Subset(ITEMS, range(5)),), {}),
    "ConcatDataset": lambda: ((ConcatDataset([Subset(ITEMS, range(2)), Subset(ITEMS, range(2, 5))]),), {}),
    "DataLoader": lambda: ((DataLoader(ITEMS, batch_size=2),), {}),
    "a loop": lambda: (((item for item in [(IMAGES[:2], LABELS[:2]), (IMAGES[2:], LABELS[2:])]),), {}),
    "a list of pairs": lambda: (([(IMAGES[i], LABELS[i]) for i in range(5)],), {}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_images(name):
    arguments, options = SOURCES[name]()
    data = as_dataset(*arguments, **options)
    assert isinstance(data, Dataset) and not data.notices
    assert np.array_equal(data.images.numpy(), IMAGES) and data.labels.tolist() == LABELS.tolist()
    named = name in ("Dataset", "PIL", "dicts", "Subset", "DataLoader")
    assert data.class_names == (("cat", "dog", "fox") if named else ("0", "1", "2"))
    assert data.indices.tolist() == [0, 1, 2, 3, 4] and data.split == "test"
    arguments, options = SOURCES[name]()
    first = as_dataset(*arguments, most=3, name="mine", split="train", class_names=["a", "b", "c"], **options)
    assert np.array_equal(first.images.numpy(), IMAGES[:3]) and (first.name, first.split) == ("mine", "train")
    assert first.class_names == ("a", "b", "c")


def test_one_hot_labels_of_single_images_are_no_batches():
    one_hot = Pairs(lambda i: (IMAGES[i], np.eye(3, dtype=int)[LABELS[i]]))
    assert as_dataset(one_hot).labels.tolist() == LABELS.tolist()


def test_a_data_set_is_itself_and_a_name_is_loaded(tmp_path):
    data = as_dataset(IMAGES, LABELS, image_ids=[9, 8, 7, 6, 5])
    assert as_dataset(data) is data and len(as_dataset(data, most=2)) == 2 and data.indices.tolist() == [9, 8, 7, 6, 5]
    save_npz(data, tmp_path / "own.npz")
    assert torch.equal(as_dataset(str(tmp_path / "own.npz")).images, data.images)
    assert len(as_dataset("fashion-mnist-sample", most=7)) == 7


def test_floats_between_levels_are_said():
    with pytest.warns(DataNotice, match="^images: images are floats between the 256 levels"):
        data = as_dataset(FLOATS.double() * 0.97, LABELS)
    assert (data.pixels() - FLOATS * 0.97).abs().max() <= 0.5 / 255 + SLACK and len(data.notices) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES,), r"images without labels; expected \(images, labels\)"),
        ((IMAGES, "x"), "expected images and labels as arrays or tensors; got ndarray and str"),
        ((IMAGES, LABELS[:3]), r"labels must be integers \[5\]"),
        ((IMAGES, LABELS - 1), "labels must be 0 or more; got -1"),
        ((FLOATS * 2 - 1, LABELS), r"must lie in \[0, 1\]"),
        ((IMAGES[:0], LABELS[:0]), "expected at least one image"),
        ((3,), "expected a data set's name or path"),
        (({},), "expected a data set's name or path"),
        (([],), "it has none"),
        (([("x",)],), "item 0: expected a pair of image and label"),
        (([("x", 1)],), "item 0: expected an image as array, tensor or PIL image"),
        (([(IMAGES[0], "cat")],), "expected an integer label for each image"),
        (([(IMAGES[0], 1), (IMAGES[0, :, :5], 1)],), r"image 1 is \[3, 5, 8\], those before are \[3, 6, 8\]"),
        (
            (Dataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS), ("a", "b", "c"), "n", "s"), LABELS),
            "has its labels",
        ),
    ],
)
def test_what_is_none(arguments, message):
    with pytest.raises(DataError, match=message):
        as_dataset(*arguments)
    with pytest.raises(DataError, match="image_ids must be integers"):
        as_dataset(IMAGES, LABELS, image_ids=[1, 2])


# ------------------------------------------------------------------------------------------------------------ torchvision


@pytest.fixture
def torchvision(monkeypatch):
    """A module with a class that is called as torchvision's STL10 and MNIST are."""
    seen = []

    class Set(Pairs):
        classes = ["a", "b", "b"]  # twice: useless as names

        def __init__(self, root, download, **options):
            seen.append((root, download, options))
            if root.endswith("nowhere"):
                raise RuntimeError("Dataset not found. You can use download=True to download it")
            super().__init__(lambda i: (Image.fromarray(IMAGES[i].transpose(1, 2, 0)), LABELS[i]))
            self.transform = self.transforms = "unused"

    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(STL10=Set, MNIST=Set)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    return seen


def test_torchvision(torchvision, tmp_path, monkeypatch):
    data = load_dataset("torchvision:STL10", "train", root=tmp_path)
    assert (
        np.array_equal(data.images.numpy(), IMAGES)
        and data.class_names == ("0", "1", "2")
        and data.name == "torchvision:STL10"
    )
    monkeypatch.setenv("RDC_DATA", str(tmp_path))
    assert load_dataset("torchvision:MNIST", size=(12, 16), channels=1).image_shape == (1, 12, 16)
    assert torchvision == [
        (str(tmp_path), False, {"split": "train"}),
        (str(tmp_path / "torchvision"), False, {"train": False}),
    ]
    with pytest.raises(DataError, match="not read from .*nowhere.*Dataset not found.*torchvision.datasets.STL10"):
        load_dataset("torchvision:STL10", root=tmp_path / "nowhere")


def test_torchvision_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match="torchvision:STL10 needs the package torchvision"):
        load_dataset("torchvision:STL10", root=tmp_path)
    with pytest.raises(DataError, match=r"CIFAR-10, test split"):  # by rdc's own reader, which runs no pickle
        load_dataset("torchvision:CIFAR10", root=tmp_path)
    with pytest.raises(DataError, match=r"torchvision:STL01 \(did you mean STL10\?\): expected one of CIFAR10, "):
        load_dataset("torchvision:STL01", root=tmp_path)
    with pytest.raises(DataError, match="expected the folder that torchvision calls root"):
        load_dataset("torchvision:STL10")


def test_notices_are_warnings(tmp_path):
    np.savez(tmp_path / "own.npz", images=IMAGES, labels=LABELS)
    with pytest.warns(DataNotice, match="^own: nothing tells"):
        as_dataset(tmp_path / "own.npz")
