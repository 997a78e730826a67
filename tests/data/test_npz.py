"""Users' own .npz files and folders."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
import torch

from rdc.data import Dataset, load_dataset, save_npz
from rdc.errors import DataError

GREY = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
COLOUR = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
LABELS = np.array([0, 2, 1])


@pytest.mark.parametrize(
    ("images", "layout", "shape"),
    [
        (GREY, None, (3, 1, 4, 5)),
        (GREY[..., None], None, (3, 1, 4, 5)),
        (GREY[:, None], None, (3, 1, 4, 5)),
        (COLOUR, None, (3, 3, 4, 5)),
        (COLOUR.transpose(0, 3, 1, 2), None, (3, 3, 4, 5)),
        (COLOUR, "NHWC", (3, 3, 4, 5)),
        (COLOUR[:, :3], "NHWC", (3, 3, 3, 5)),
        (COLOUR.transpose(0, 3, 1, 2)[..., :3], "NCHW", (3, 3, 4, 3)),
    ],
)
def test_every_layout_becomes_nchw(tmp_path, images, layout, shape):
    np.savez(tmp_path / "own.npz", images=images, labels=LABELS, **({"layout": layout} if layout else {}))
    data = load_dataset(tmp_path / "own.npz")
    assert data.images.shape == shape
    source = COLOUR if shape[1] == 3 else GREY[..., None]
    for n, row, column in [(0, 0, 0), (2, 1, 2), (1, 2, 1)]:
        assert data.images[n, :, row, column].tolist() == source[n, row, column].tolist()
    assert data.images.is_contiguous()
    assert data.labels.tolist() == [0, 2, 1]
    assert data.class_names == ("0", "1", "2")
    assert (data.name, data.split, data.source) == ("own", "test", str(tmp_path / "own.npz"))


def test_class_names_and_indices(tmp_path):
    np.savez(
        tmp_path / "own.npz", images=GREY, labels=LABELS.astype(np.uint8), class_names=list("abcd"), indices=[7, 5, 9]
    )
    data = load_dataset("own.npz", "train", root=tmp_path)
    assert data.class_names == ("a", "b", "c", "d")
    assert data.indices.tolist() == [7, 5, 9]


def test_saved_sets_come_back_and_the_bytes_do_not_change(tmp_path, monkeypatch):
    data = Dataset(
        torch.from_numpy(COLOUR.transpose(0, 3, 1, 2).copy()), torch.from_numpy(LABELS), ("x", "y", "z"), "own", "test"
    )
    save_npz(data.subset([2, 0]), tmp_path / "a.npz")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    save_npz(data.subset([2, 0]), tmp_path / "b.npz")
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.npz", "b.npz")}
    assert len(digests) == 1
    back = load_dataset(tmp_path / "a.npz")
    assert torch.equal(back.images, data.images[[2, 0]])
    assert back.labels.tolist() == [1, 0]
    assert back.indices.tolist() == [2, 0]
    assert back.class_names == ("x", "y", "z")


def test_folder_of_splits_and_shards(tmp_path):
    for name, start in [("test.npz", 0), ("train-1.npz", 20), ("train-0.npz", 10)]:
        np.savez(tmp_path / name, images=GREY + start, labels=LABELS)
    train = load_dataset(tmp_path, "train")
    assert train.images[:, 0, 0, 0].tolist() == [10, 30, 50, 20, 40, 60]
    assert train.labels.tolist() == [0, 2, 1] * 2
    assert train.indices.tolist() == list(range(6))
    assert (train.name, train.split) == (tmp_path.name, "train")
    assert len(load_dataset(tmp_path, "test")) == 3
    (tmp_path / "test.npz").unlink()
    with pytest.raises(DataError, match=r"no test\*\.npz in this folder; it has train-0\.npz, train-1\.npz"):
        load_dataset(tmp_path, "test")


def test_folder_without_split_names_is_read_whole(tmp_path):
    for name in ("b.npz", "a.npz"):
        np.savez(tmp_path / name, images=GREY, labels=LABELS)
    assert len(load_dataset(tmp_path, "test")) == 6


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"images": GREY[:, :3], "labels": LABELS}, r"images are \[1, 3, 5\].*\[1, 4, 5\]"),
        ({"images": GREY, "labels": LABELS, "class_names": list("abc")}, "class_names differ"),
    ],
)
def test_shards_must_agree(tmp_path, other, message):
    np.savez(tmp_path / "a.npz", images=GREY, labels=LABELS)
    np.savez(tmp_path / "b.npz", **other)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GREY}, "has no labels; it has images"),
        ({"x": GREY, "y": LABELS}, "has no images and no labels; it has x, y"),
        ({}, "it has nothing"),
        ({"images": GREY / 255, "labels": LABELS}, r"must be uint8.*got float64; store np.round\(255"),
        ({"images": GREY.astype(np.int64), "labels": LABELS}, "must be uint8.*got int64$"),
        ({"images": GREY[0], "labels": LABELS}, "not image shapes"),
        ({"images": COLOUR[..., :2], "labels": LABELS}, "not image shapes"),
        ({"images": COLOUR[:, :3], "labels": LABELS}, "add an array layout"),
        ({"images": COLOUR, "labels": LABELS, "layout": "HWCN"}, "layout 'HWCN' does not fit"),
        ({"images": COLOUR, "labels": LABELS, "layout": "NCHW"}, r"layout 'NCHW' does not fit images \[3, 4, 5, 3\]"),
        ({"images": COLOUR, "labels": LABELS, "layout": "NHW"}, "layout 'NHW' does not fit"),
        ({"images": GREY, "labels": LABELS[:2]}, r"labels must be integers \[3\].*got int64 \[2\]"),
        ({"images": GREY, "labels": LABELS.astype(float)}, "labels must be integers.*float64"),
        ({"images": GREY, "labels": LABELS > 0}, "labels must be integers.*bool"),
        ({"images": GREY, "labels": np.array([0, 1, 2**63], np.uint64)}, "64 signed bits"),
        ({"images": GREY, "labels": -LABELS}, "the first is -2 at position 1"),
        ({"images": GREY, "labels": LABELS, "class_names": ["a", "b"]}, r"0..1 \(2 classes\)"),
        ({"images": GREY, "labels": LABELS, "class_names": [1, 2, 3]}, "class_names must be strings"),
        ({"images": GREY, "labels": LABELS, "indices": [1, 2]}, "indices must be integers"),
        ({"images": GREY, "labels": np.array([0, 1, None])}, "without pickled objects"),
    ],
)
def test_unsuitable_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(tmp_path / "own.npz")
    assert str(tmp_path / "own.npz") in str(caught.value)


def test_pickled_arrays_run_nothing(tmp_path):
    target = tmp_path / "ran"

    class Runs:
        def __reduce__(self):
            return type(target).touch, (target,)

    np.savez(tmp_path / "own.npz", images=GREY, labels=np.array([Runs(), 1, 2], dtype=object))
    with pytest.raises(DataError, match="without pickled objects"):
        load_dataset(tmp_path / "own.npz")
    assert not target.exists()
    np.load(tmp_path / "own.npz", allow_pickle=True)["labels"]
    assert target.exists()


def test_damaged_files(tmp_path):
    path = tmp_path / "own.npz"
    np.savez_compressed(
        path, images=np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8), labels=np.arange(9)
    )
    content = path.read_bytes()
    middle = len(content) // 3
    for damaged in (content[:-40], content[:100], b"", b"no zip", content[:middle] + b"xxxx" + content[middle + 4 :]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"own\.npz: not a readable \.npz"):
            load_dataset(path)
    with open(path, "wb") as file:
        np.save(file, GREY)
    with pytest.raises(DataError, match="a single array"):
        load_dataset(path)


def test_folder_without_npz(tmp_path):
    with pytest.raises(DataError, match=r"it has no \.npz file"):
        load_dataset(tmp_path)
