"""CIFAR-10 in both official versions, from folders and archives, with small batches written here."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from rdc.data import cifar10 as module
from rdc.data import load_dataset
from rdc.errors import DataError
from tests.bounds import bounded

BATCHES = [*module.BATCHES["train"], *module.BATCHES["test"]]
SMALL = 4  # images a batch


def records() -> dict[str, np.ndarray]:
    """uint8 [SMALL, 3073] for each batch: label, then planes; plane values tell channel, row and column apart."""
    generator = np.random.default_rng(11)
    found = {}
    for batch in BATCHES:
        pixels = generator.integers(0, 256, (SMALL, 3072), dtype=np.uint8)
        labels = generator.integers(0, 10, (SMALL, 1)).astype(np.uint8)
        found[batch] = np.concatenate([labels, pixels], axis=1)
    return found


@pytest.fixture
def small(monkeypatch) -> dict[str, np.ndarray]:
    """Small batches, and the module told that they are the official ones."""
    found = records()
    monkeypatch.setattr(module, "RECORDS", SMALL)
    monkeypatch.setattr(module, "SHA256", {b: hashlib.sha256(r.tobytes()).hexdigest() for b, r in found.items()})
    return found


LABELS = {**{f"data_batch_{i}": f"training batch {i} of 5" for i in range(1, 6)}, "test_batch": "testing batch 1 of 1"}


def as_files(found: dict[str, np.ndarray], version: str, protocol: int = 2) -> dict[str, bytes]:
    if version == "bin":
        return {f"{batch}.bin": array.tobytes() for batch, array in found.items()}
    return {
        batch: pickle.dumps(
            {b"labels": array[:, 0].tolist(), b"data": array[:, 1:], b"batch_label": LABELS[batch].encode()}, protocol
        )
        for batch, array in found.items()
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, version: str, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in [("readme.html", b"<html>"), *reversed(files.items())]:
            member = tarfile.TarInfo(f"cifar-10-batches-{version}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def check(found: dict[str, np.ndarray], root: Path | None) -> None:
    for split, batches in module.BATCHES.items():
        data = load_dataset("cifar10", split, root=root)
        expected = np.concatenate([found[batch] for batch in batches])
        assert data.labels.tolist() == expected[:, 0].tolist()
        assert data.images.shape == (len(expected), 3, 32, 32)
        for channel, row, column in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2, 31, 31)]:
            at = 1 + 1024 * channel + 32 * row + column
            assert data.images[:, channel, row, column].tolist() == expected[:, at].tolist()
        assert (data.name, data.split, data.class_names[6]) == ("cifar10", split, "frog")


@pytest.mark.parametrize("version", ["bin", "py"])
@pytest.mark.parametrize("where", ["folder", "folder above", "archive", "folder with archive"])
def test_reads_both_versions_wherever_they_are(small, tmp_path, version, where):
    files = as_files(small, version)
    name = {"bin": "cifar-10-binary.tar.gz", "py": "cifar-10-python.tar.gz"}[version]
    root = {
        "folder": lambda: write(tmp_path, files),
        "folder above": lambda: write(tmp_path / f"cifar-10-batches-{version}", files).parent,
        "archive": lambda: write_archive(tmp_path / "renamed.tgz", version, files),
        "folder with archive": lambda: write_archive(tmp_path / name, version, files).parent,
    }[where]()
    before = sorted(tmp_path.rglob("*"))
    check(small, root)
    assert sorted(tmp_path.rglob("*")) == before  # an archive is read where it is


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_python_version_in_other_protocols(small, tmp_path, protocol):
    check(small, write(tmp_path, as_files(small, "py", protocol)))


def test_search_order(small, tmp_path, monkeypatch, empty_home):
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10")
    cache = empty_home / ".cache" / "rdc" / "cifar10"
    for part in (f"{cache}  (does not exist)", "https://www.cs.toronto.edu/~kriz/cifar.html", "root=", "test_batch"):
        assert part in str(caught.value)
    write(cache, as_files(small, "py"))
    check(small, None)
    monkeypatch.setenv("RDC_DATA", str(tmp_path))
    write(tmp_path / "cifar10", as_files(small, "bin"))
    assert load_dataset("cifar10").source == str(tmp_path / "cifar10")


def test_a_split_needs_all_its_batches(small, tmp_path):
    (write(tmp_path, as_files(small, "bin")) / "data_batch_3.bin").unlink()
    assert len(load_dataset("cifar10", "test", root=tmp_path)) == SMALL
    with pytest.raises(DataError, match=r"data_batch_3.*not found together"):
        load_dataset("cifar10", "train", root=tmp_path)


@pytest.mark.parametrize("version", ["bin", "py"])
def test_one_wrong_pixel_is_a_checksum_error_and_can_be_waved_through(small, tmp_path, version):
    expected = module.SHA256["test_batch"]
    small["test_batch"][2, 100] ^= 1
    write(tmp_path, as_files(small, version))
    with pytest.raises(DataError, match=f"(?s)test_batch.*{expected}.*get it again.*verify=False"):
        load_dataset("cifar10", root=tmp_path)
    assert len(load_dataset("cifar10", root=tmp_path, verify=False)) == SMALL


def test_the_published_md5_of_a_python_batch_is_accepted_too(small, tmp_path, monkeypatch):
    files = as_files(small, "py")
    monkeypatch.setattr(module, "SHA256", dict.fromkeys(BATCHES, "0" * 64))
    write(tmp_path, files)
    with pytest.raises(DataError, match="checksum"):
        load_dataset("cifar10", root=tmp_path)
    monkeypatch.setattr(
        module, "PYTHON_MD5", {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    )
    assert len(load_dataset("cifar10", root=tmp_path)) == SMALL


def test_wrong_sizes(small, tmp_path):
    files = as_files(small, "bin")
    for content, message in [
        (files["test_batch.bin"][:-1], "not a whole number of records of 3073 bytes"),
        (b"", "0 bytes are not a whole number"),
        (files["test_batch.bin"][:-3073], "3 images, expected 4"),
    ]:
        write(tmp_path, {"test_batch.bin": content})
        with pytest.raises(DataError, match=message) as caught:
            load_dataset("cifar10", root=tmp_path)
        assert str(tmp_path / "test_batch.bin") in str(caught.value)
    assert len(load_dataset("cifar10", root=tmp_path, verify=False)) == 3


@pytest.mark.parametrize("version", ["bin", "py"])
def test_label_out_of_range(small, tmp_path, version):
    small["test_batch"][1, 0] = 10
    write(tmp_path, as_files(small, version))
    with pytest.raises(DataError, match=r"test_batch.*label 10 .*0\.\.9"):
        load_dataset("cifar10", root=tmp_path, verify=False)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8)}, "has no labels"),
        ({"labels": [1]}, "has no data"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]}, r"uint8 \[n, 3072\]; got uint8 \[2, 3071\]"),
        ({"data": np.zeros((2, 3072)), "labels": [1, 2]}, "got float64"),
        ({"data": b"bytes", "labels": [1, 2]}, "got bytes"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "got 1 of them"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": "12"}, "got str"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, -1]}, "label -1"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, True]}, "label True"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2**70]}, "is not an integer in 0..9"),
        ([1, 2], "holds a list"),
    ],
)
def test_wrong_python_batches(tmp_path, batch, message):
    write(tmp_path, {"test_batch": pickle.dumps(batch, 2)})
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("cifar10", root=tmp_path, verify=False)
    assert str(tmp_path / "test_batch") in str(caught.value)


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("inside", ["folder", "archive"])
def test_a_python_batch_that_wants_to_run_code(tmp_path, inside):
    target = tmp_path / "ran"
    content = pickle.dumps({"labels": [1], "data": Runs(target)}, 2)
    if inside == "folder":
        root = write(tmp_path / "data", {"test_batch": content})
    else:
        root = write_archive(tmp_path / "cifar-10-python.tar.gz", "py", {"test_batch": content})
    with pytest.raises(DataError, match="nothing in it was run"):
        load_dataset("cifar10", root=root)
    assert not target.exists()
    pickle.loads(content)
    assert target.exists()


def test_damaged_archives(small, tmp_path):
    files = as_files(small, "bin")
    path = write_archive(tmp_path / "a.tar.gz", "bin", files)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"not an archive", b"", gzip.compress(b"not a tar")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.tar\.gz.*(not a readable archive|not found)"):
            load_dataset("cifar10", "train", root=path)


def test_archive_members_elsewhere_or_too_large_are_not_read(small, tmp_path, monkeypatch):
    files = as_files(small, "bin")
    path = write_archive(tmp_path / "a.tar.gz", "other", files)
    with pytest.raises(DataError, match="not found together"):
        load_dataset("cifar10", root=path)
    path = write_archive(tmp_path / "b.tar.gz", "bin", files)
    monkeypatch.setattr(module, "_LIMIT", 1000)
    with pytest.raises(DataError, match="12,292 bytes"):
        load_dataset("cifar10", root=path)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("version", ["bin", "py"])
def test_exchanged_batches(small, tmp_path, version, verify):
    """Each is an official file, but not the one that its name says."""
    files = as_files(small, version)
    one, two, test = (
        f"{name}{'.bin' if version == 'bin' else ''}" for name in ("data_batch_1", "data_batch_2", "test_batch")
    )
    for changed, split, other in (
        ({one: files[two], two: files[one]}, "train", "data_batch_2"),
        ({one: files[test]}, "train", "test_batch"),
        ({test: files[one]}, "test", "data_batch_1"),
        ({two: files[one]}, "train", "data_batch_1"),
    ):
        write(tmp_path, {**files, **changed})
        with pytest.raises(DataError, match=rf"holds the images of {other}; the files were renamed or exchanged"):
            load_dataset("cifar10", split, root=tmp_path, verify=verify)
        path = write_archive(tmp_path / "a.tar.gz", version, {**files, **changed})
        with pytest.raises(DataError, match=f"holds the images of {other}"):
            load_dataset("cifar10", split, root=path, verify=verify)


def test_exchanged_batches_that_are_not_the_official_ones(tmp_path):
    """By what the python version says of itself."""
    files = as_files(records(), "py")
    write(tmp_path, {**files, "data_batch_1": files["data_batch_4"]})
    with pytest.raises(DataError, match="data_batch_1: holds the images of data_batch_4"):
        load_dataset("cifar10", "train", root=tmp_path, verify=False)
    write(tmp_path, files)
    assert len(load_dataset("cifar10", "train", root=tmp_path, verify=False)) == 5 * SMALL


def test_an_archive_of_both_versions(small, tmp_path):
    """The first complete version, not the first five files."""
    both = {**as_files(small, "bin"), **as_files(small, "py")}
    mixed = {name: both[name] for name in sorted(both)}
    check(small, write_archive(tmp_path / "a.tar.gz", "py", mixed))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("packed", ["", "gz", "bz2"])
def test_archives_of_other_programs(small, tmp_path, form, packed):
    files, path = as_files(small, "py"), tmp_path / "a"
    deep = "unpacked/by/somebody/" * 5 + "some/where"
    with tarfile.open(path, f"w:{packed}", format=form) as tar:
        folder = tarfile.TarInfo(f"{deep}/cifar-10-batches-py")
        folder.type = tarfile.DIRTYPE
        link = tarfile.TarInfo(f"{deep}/cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        for member in (folder, link):
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(f"{deep}/cifar-10-batches-py/{name}")
            member.size, member.mtime, member.uname = len(content), 1.5, "ä" * 30
            tar.addfile(member, io.BytesIO(content))
    check(small, path)


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, 1)


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


BATCH = "cifar-10-batches-py/test_batch"
TARS = {
    "zeros": (gzipped(tar_header("zeros", 100 << 20) + bytes(100 << 20)), "unpacks to more than 67,108,864 bytes"),
    "a batch of 8 GiB": (tar_header(BATCH, (8 << 30) - 1), "has 8,589,934,591 bytes"),
    "a batch of 2^70": (tar_header(BATCH, 2**70), "a header that is none"),
    "a batch of -1": (tar_header(BATCH, -1), "a header that is none"),
    "a name of 30 MB": (gzipped(tar_header("x", 30 << 20, tarfile.GNUTYPE_LONGNAME) + bytes(31 << 20)), "a name of 31,457,280 bytes"),
    "properties of 30 MB": (gzipped(tar_header("x", 30 << 20, tarfile.XHDTYPE) + b"9 a=bcde\n" * (31 << 17)), "a name of 31,457,280"),
    "many members": (gzipped(tar_header("x", 0) * 100_000), "more than 10,000 members"),
    "one batch twice": (tar_header("cifar-10-batches-py/data_batch_1", 0) * 2, "data_batch_1 more than once"),
    "a wrong checksum": (tar_header(BATCH, 1).replace(b"test_", b"best_") + bytes(1024), "a header that is none"),
    "cut in a header": (tar_header(BATCH, 1)[:300], "ends in the middle"),
    "cut in a batch": (tar_header(BATCH, 5000) + bytes(4000), "ends in the middle"),
    "nothing": (gzipped(b""), "ends in the middle"),
    "an empty file": (b"", "ends in the middle"),
    "damaged gzip": (gzipped(bytes(5000))[:10] + b"abcd" * 9, "not a readable archive"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TARS))
def test_archives_that_lie(tmp_path, name):
    content, message = TARS[name]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    with bounded(), pytest.raises(DataError, match=message) as caught:
        load_dataset("cifar10", "train" if "twice" in name else "test", root=path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif("RDC_TEST_CIFAR10" not in os.environ, reason="set RDC_TEST_CIFAR10 to the real data set's folder")
@pytest.mark.parametrize(("split", "per_class"), [("train", 5000), ("test", 1000)])
def test_the_real_files(split, per_class):
    data = load_dataset("cifar10", split, root=os.environ["RDC_TEST_CIFAR10"])
    assert data.labels.bincount().tolist() == [per_class] * 10
