"""CIFAR-10.1, CIFAR-10-C and the layouts of Fashion-MNIST-C, with small files written here."""

from __future__ import annotations

import numpy as np
import pytest

from rdc.data import cifar10_1, load_dataset
from rdc.errors import DataError
from tests.bounds import bounded

LABELS = np.array([3, 0, 9, 1], np.uint8)


@pytest.fixture
def cifar10_c(tmp_path):
    """CIFAR-10-C of four images: every pixel of image i at severity s is 10 s + i."""
    values = (10 * np.arange(1, 6)[:, None] + np.arange(4)).reshape(20, 1, 1, 1)
    (tmp_path / "CIFAR-10-C").mkdir()
    np.save(tmp_path / "CIFAR-10-C" / "fog.npy", np.broadcast_to(values, (20, 32, 32, 3)).astype(np.uint8))
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.tile(LABELS, 5))
    return tmp_path


@pytest.mark.parametrize("severity", range(1, 6))
def test_one_severity_of_five(cifar10_c, severity):
    data = load_dataset(f"cifar10-c:fog:{severity}", root=cifar10_c)
    assert data.images.shape == (4, 3, 32, 32)
    assert data.images[:, 2, 5, 7].tolist() == [10 * severity + i for i in range(4)]
    assert data.labels.tolist() == LABELS.tolist() and data.indices.tolist() == [0, 1, 2, 3]
    assert data.name == f"cifar10-c:fog:{severity}" and data.class_names[3] == "cat" and not data.notices
    (cifar10_c / "CIFAR-10-C" / "fog.npy").rename(cifar10_c / "fog.npy")
    np.save(cifar10_c / "labels.npy", LABELS)  # of one severity will do
    assert load_dataset(f"cifar10-c:fog:{severity}", root=cifar10_c).labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10-c", "expected a corruption and a severity, such as cifar10-c:fog:3; there are fog"),
        ("cifar10-c:fog", "has 5 severities; ask for one, such as cifar10-c:fog:3"),
        ("cifar10-c:fog:0", "expected a severity from 1 to 5; got '0'"),
        ("cifar10-c:fog:x", "expected a severity from 1 to 5"),
        ("cifar10-c:snow:3", r"CIFAR-10-C \(there are fog\): snow.npy and labels.npy not found"),
        ("cifar10-c:../fog:3", "expected the name of a corruption"),
        ("cifar10-c:fog:3:x", "expected cifar10-c:CORRUPTION:SEVERITY"),
    ],
)
def test_what_is_not_there(cifar10_c, name, message):
    with pytest.raises(DataError, match=message):
        load_dataset(name, root=cifar10_c)
    with pytest.raises(DataError, match="test images only"):
        load_dataset("cifar10-c:fog:3", "train", root=cifar10_c)


def test_files_that_do_not_fit(cifar10_c):
    folder = cifar10_c / "CIFAR-10-C"
    for images, labels, message in (
        (np.zeros((19, 32, 32, 3), np.uint8), np.tile(LABELS, 5), "19 rows; expected 5 equal parts"),
        (np.zeros((20, 28, 28), np.uint8), np.tile(LABELS, 5), r"expected uint8 \[N, 32, 32, 3\]"),
        (np.zeros((20, 32, 32, 3), np.float32), np.tile(LABELS, 5), "expected uint8"),
        (np.zeros((20, 32, 32, 3), np.uint8), np.arange(20) % 10, "labels of the 5 severities differ"),
        (np.zeros((20, 32, 32, 3), np.uint8), LABELS[:3], r"labels must be integers \[4\]"),
        (np.zeros((20, 32, 32, 3), np.uint8), np.array([0, 1, None] * 5), "not a readable .npy"),
    ):
        np.save(folder / "fog.npy", images)
        np.save(folder / "labels.npy", labels, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            load_dataset("cifar10-c:fog:3", root=cifar10_c)
    content = (folder / "fog.npy").read_bytes()
    for damaged in (content[:-1], content[:60], b"", content.replace(b"(20, 32", b"(2**40,")):
        (folder / "fog.npy").write_bytes(damaged)
        with bounded(megabytes=20), pytest.raises(DataError, match="not a readable .npy"):
            load_dataset("cifar10-c:fog:3", root=cifar10_c)


def test_layouts_of_fashion_mnist_c(tmp_path):
    images = np.arange(20 * 784, dtype=np.int64).reshape(20, 28, 28).astype(np.uint8)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5))
    (tmp_path / "shear").mkdir()
    np.save(tmp_path / "shear" / "test_images.npy", images[:4, :, :, None])
    np.save(tmp_path / "shear" / "test_labels.npy", LABELS)
    np.save(tmp_path / "fmnist-c-test.npy", images[8:12])
    np.save(tmp_path / "fmnist-c-test-labels.npy", LABELS)
    for name, part in (
        ("fashion-mnist-c:fog:2", slice(4, 8)),
        ("fashion-mnist-c:shear", slice(0, 4)),
        ("fashion-mnist-c", slice(8, 12)),
    ):
        data = load_dataset(name, root=tmp_path)
        assert np.array_equal(data.images[:, 0].numpy(), images[part]) and data.labels.tolist() == LABELS.tolist()
        assert data.name == name and data.class_names[9] == "Ankle boot"
    with pytest.raises(DataError, match="has one severity; ask for fashion-mnist-c:shear"):
        load_dataset("fashion-mnist-c:shear:2", root=tmp_path)


def test_cifar10_1(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10_1, "VERSIONS", {"v4": 3, "v6": 4})
    for version, count in cifar10_1.VERSIONS.items():
        np.save(tmp_path / f"cifar10.1_{version}_data.npy", np.full((count, 32, 32, 3), count, np.uint8))
        np.save(tmp_path / f"cifar10.1_{version}_labels.npy", LABELS[:count].astype(np.int32))
    for name, count in (("cifar10.1", 4), ("cifar10.1:v6", 4), ("cifar10.1:v4", 3)):
        data = load_dataset(name, root=tmp_path)
        assert data.images.shape == (count, 3, 32, 32) and int(data.images.min()) == count
        assert data.labels.tolist() == LABELS[:count].tolist()
    np.save(tmp_path / "cifar10.1_v6_data.npy", np.zeros((3, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"expected uint8 \[4, 32, 32, 3\].*verify=False"):
        load_dataset("cifar10.1", root=tmp_path)
    for name, split, message in (
        ("cifar10.1:v5", "test", "cifar10.1:v4 or cifar10.1:v6"),
        ("cifar10.1", "train", "test images only"),
    ):
        with pytest.raises(DataError, match=message):
            load_dataset(name, split, root=tmp_path)
    with pytest.raises(
        DataError, match="CIFAR-10.1 v6: cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy not found together"
    ):
        load_dataset("cifar10.1", root=tmp_path / "nowhere")
