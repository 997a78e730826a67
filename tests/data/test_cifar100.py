"""CIFAR-100 in both official versions, with small files written here."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from rdc.data import cifar100 as module
from rdc.data import load_dataset
from rdc.errors import DataError

COUNT = 200  # two of each class


@pytest.fixture
def labels() -> np.ndarray:
    """[COUNT, 2]: group and class."""
    fine = np.random.default_rng(3).permutation(np.arange(COUNT) % 100)
    return np.stack([fine // 5, fine], axis=1).astype(np.uint8)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (COUNT, 3072), dtype=np.uint8)


@pytest.fixture
def files(labels, pixels, monkeypatch) -> dict[str, bytes]:
    """test.bin and test, and the module told that they are the official ones."""
    found = {
        b"coarse_labels": labels[:, 0].tolist(), b"fine_labels": labels[:, 1].tolist(), b"data": pixels, b"filenames": [b"a.png"] * COUNT
    }  # fmt: skip
    made = {"test.bin": np.concatenate([labels, pixels], axis=1).tobytes(), "test": pickle.dumps(found, 2)}
    monkeypatch.setattr(module, "RECORDS", {"train": COUNT, "test": COUNT})
    monkeypatch.setattr(module, "PYTHON_MD5", {"test": hashlib.md5(made["test"]).hexdigest()})
    return made


def put(folder: Path, files: dict[str, bytes], name: str, where: str) -> Path:
    inner = "cifar-100-binary" if name.endswith("bin") else "cifar-100-python"
    if where == "archive":
        with tarfile.open(folder / f"{inner}.tar.gz", "w:gz") as tar:
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
        return folder
    (folder / inner).mkdir()
    (folder / inner / name).write_bytes(files[name])
    return folder / inner if where == "folder" else folder


@pytest.mark.parametrize("name", ["test", "test.bin"])
@pytest.mark.parametrize("where", ["folder", "folder above", "archive"])
def test_both_versions(tmp_path, files, labels, pixels, name, where):
    root = put(tmp_path, files, name, where)
    data, groups = (load_dataset(f"cifar100{option}", root=root) for option in ("", ":groups"))
    assert data.labels.tolist() == labels[:, 1].tolist() and groups.labels.tolist() == labels[:, 0].tolist()
    assert np.array_equal(data.images.numpy().reshape(COUNT, -1), pixels)
    assert len(data.class_names) == 100 and data.class_names[::33] == ("apple", "forest", "raccoon", "worm")
    assert len(groups.class_names) == 20 and groups.name == "cifar100:groups" and data.split == "test"


def test_names_are_sorted_and_complete():
    for names, count in ((module.CLASS_NAMES, 100), (module.GROUP_NAMES, 20)):
        assert len(set(names)) == count and list(names) == sorted(names)


def test_other_content(tmp_path, files, labels, pixels):
    folder = put(tmp_path, files, "test.bin", "folder")
    (folder / "test.bin").write_bytes(files["test.bin"][: 3074 * 150])
    with pytest.raises(DataError, match="150 images, . to 2 of a class; expected 200"):
        load_dataset("cifar100", root=folder)
    assert len(load_dataset("cifar100", root=folder, verify=False)) == 150
    (folder / "test.bin").write_bytes(files["test.bin"][:-1])
    with pytest.raises(DataError, match="not a whole number of records of 3074"):
        load_dataset("cifar100", root=folder)
    wrong = labels.copy()
    wrong[7, 1] = 100
    (folder / "test.bin").write_bytes(np.concatenate([wrong, pixels], axis=1).tobytes())
    with pytest.raises(DataError, match=r"class 100 of image 7 is not in 0\.\.99"):
        load_dataset("cifar100", root=folder, verify=False)


def test_a_pickle_runs_nothing(tmp_path, files):
    target = tmp_path / "ran"

    class Runs:
        def __reduce__(self):
            return type(target).touch, (target,)

    folder = put(tmp_path, files, "test", "folder")
    (folder / "test").write_bytes(pickle.dumps({b"data": Runs(), b"fine_labels": [], b"coarse_labels": []}))
    with pytest.raises(DataError, match="checksum"):
        load_dataset("cifar100", root=folder)
    with pytest.raises(DataError, match="nothing in it was run"):
        load_dataset("cifar100", root=folder, verify=False)
    assert not target.exists()
    for key, value, message in (
        ("fine_labels", [0], "fine_labels must be a list with one for each"),
        ("coarse_labels", ["x"] * COUNT, "coarse_labels has 'x'"),
        ("data", np.zeros((2, 5), np.uint8), r"data must be uint8 \[n, 3072\]"),
    ):
        found = {k.decode(): v for k, v in pickle.loads(files["test"]).items()} | {key: value}
        (folder / "test").write_bytes(pickle.dumps(found))
        with pytest.raises(DataError, match=message):
            load_dataset("cifar100", root=folder, verify=False)


def test_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("RDC_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset("cifar100", "train")
    assert f"{tmp_path / 'cifar100'}  (does not exist)" in str(caught.value) and "CIFAR-100, train split" in str(
        caught.value
    )
    with pytest.raises(DataError, match="expected cifar100 or cifar100:groups"):
        load_dataset("cifar100:fine")
    with pytest.raises(DataError, match="expected cifar100 or cifar100:groups"):
        load_dataset("cifar100:groups:x")
