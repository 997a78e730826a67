"""Fashion-MNIST: where it is looked for, what is refused, the download (from a server on loopback), the sample."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from rdc.data import Dataset, download_fashion_mnist, first_balanced, load_dataset, save_npz
from rdc.data import fashion_mnist as module
from rdc.data import load as load_module
from rdc.errors import DataError
from tests.bounds import bounded

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_FILES = pytest.mark.skipif(
    not (DEBIAN / "train-images-idx3-ubyte.gz").is_file(),
    reason=f"needs the real files in {DEBIAN} (apt install dataset-fashion-mnist)",
)
COUNTS = {"train": 30, "test": 20}


def small_files() -> dict[str, bytes]:
    """Four idx files like the real ones, fewer images."""
    generator = np.random.default_rng(7)
    files = {}
    for split, count in COUNTS.items():
        images, labels = module.FILES[split]
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in pixels.shape)
        files[images.stem] = header + pixels.tobytes()
        values = (np.arange(count) % 10).astype(np.uint8)
        files[labels.stem] = b"\0\0\x08\x01" + count.to_bytes(4, "big") + values.tobytes()
    return files


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """Small files, and the module told that they are the official ones."""
    files = small_files()
    monkeypatch.setattr(module, "DEBIAN_FOLDER", Path("/nowhere/debian"))
    monkeypatch.setattr(module, "MIRRORS", ())
    told = {
        split: tuple(
            dataclasses.replace(
                file, shape=(COUNTS[split], *file.shape[1:]), sha256=hashlib.sha256(files[file.stem]).hexdigest()
            )
            for file in pair
        )
        for split, pair in module.FILES.items()
    }
    monkeypatch.setattr(module, "FILES", told)
    return files


def write(folder: Path, files: dict[str, bytes], packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content, 1) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_reads_both_splits(files, tmp_path, packed):
    write(tmp_path, files, packed)
    for split, count in COUNTS.items():
        data = load_dataset("fashion-mnist", split, root=tmp_path)
        raw = files[module.FILES[split][0].stem][16:]
        assert data.images.shape == (count, 1, 28, 28)
        assert data.images.numpy().tobytes() == raw
        assert data.labels.tolist() == [i % 10 for i in range(count)]
        assert (data.name, data.split, data.source) == ("fashion-mnist", split, str(tmp_path))
        assert data.class_names[9] == "Ankle boot"


def test_recompressed_files_pass_the_checksum(files, tmp_path):
    write(tmp_path, files, packed=True)
    name = f"{module.FILES['test'][0].stem}.gz"
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(gzip.decompress(before), 9, mtime=1))
    assert (tmp_path / name).read_bytes() != before
    assert len(load_dataset("fashion-mnist", "test", root=tmp_path)) == 20


def test_search_order(files, tmp_path, monkeypatch, empty_home):
    places = {
        "environment": tmp_path / "data" / "fashion-mnist",
        "debian": tmp_path / "debian",
        "cache": empty_home / ".cache" / "rdc" / "fashion-mnist",
    }
    for place in places.values():
        write(place, files)
    monkeypatch.setenv("RDC_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(module, "DEBIAN_FOLDER", places["debian"])
    for place in places.values():
        assert load_dataset("fashion-mnist", "train").source == str(place)
        (place / "train-labels-idx1-ubyte").unlink()  # half a split does not count
    with pytest.raises(DataError) as caught:
        load_dataset("fashion-mnist", "train")
    for place in places.values():
        assert f"{place}  (has train-images-idx3-ubyte only)" in str(caught.value)


@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_root_may_hold_the_usual_subfolders(files, tmp_path, below):
    write(tmp_path / below, files)
    assert len(load_dataset("fashion-mnist", "test", root=tmp_path)) == 20


def test_root_is_the_only_place_when_given(files, tmp_path, empty_home):
    write(empty_home / ".cache" / "rdc" / "fashion-mnist", files)
    with pytest.raises(DataError, match="not found together") as caught:
        load_dataset("fashion-mnist", "test", root=tmp_path / "absent")
    message = str(caught.value)
    assert f"{tmp_path}/absent  (no such folder)" in message
    assert ".cache" not in message
    for way in ("download=True", "apt install dataset-fashion-mnist", "root=", "fashion-mnist-sample"):
        assert way in message


def damaged(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_one_wrong_bit_is_a_checksum_error_and_can_be_waved_through(files, tmp_path):
    stem = module.FILES["test"][0].stem
    path = write(tmp_path, files) / stem
    path.write_bytes(damaged(files[stem]))
    with pytest.raises(DataError) as caught:
        load_dataset("fashion-mnist", "test", root=tmp_path)
    message = str(caught.value)
    for part in (
        str(path),
        hashlib.sha256(damaged(files[stem])).hexdigest(),
        hashlib.sha256(files[stem]).hexdigest(),
        "get it again",
        "verify=False",
    ):
        assert part in message
    assert len(load_dataset("fashion-mnist", "test", root=tmp_path, verify=False)) == 20
    assert len(load_dataset("fashion-mnist", "train", root=tmp_path)) == 30  # the other split is untouched


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: gzip.compress(content)[:-20], "truncated or damaged gzip"),
        (lambda content: gzip.compress(content)[:200] + b"garbage" + gzip.compress(content)[207:], "damaged gzip"),
        (lambda content: content[:-5], "truncated or damaged, the header promises 15,680 bytes"),
        (lambda content: content[:3], "truncated, 3 bytes"),
        (lambda content: b"<html>" + content[6:], "magic number"),
        (lambda content: content + b"more", "more than the 15,696 bytes expected"),
        (lambda content: gzip.compress(bytes(10**6)), "more than the 15,696 bytes expected"),
    ],
)
def test_damaged_files_are_told_apart(files, tmp_path, change, message):
    stem = module.FILES["test"][0].stem
    path = write(tmp_path, files) / stem
    path.write_bytes(change(files[stem]))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("fashion-mnist", "test", root=tmp_path)
    assert str(path) in str(caught.value)


def test_unverified_files_may_differ_in_number_but_must_fit_together(files, tmp_path):
    images, labels = (file.stem for file in module.FILES["test"])
    own = dict(files)
    own[images] = b"\0\0\x08\x03\0\0\0\x02\0\0\0\x1c\0\0\0\x1c" + bytes(2 * 784)
    own[labels] = b"\0\0\x08\x01\0\0\0\x02\x03\x09"
    write(tmp_path, own)
    with pytest.raises(DataError, match="sizes 2 x 28 x 28, expected 20 x 28 x 28"):
        load_dataset("fashion-mnist", "test", root=tmp_path)
    assert load_dataset("fashion-mnist", "test", root=tmp_path, verify=False).labels.tolist() == [3, 9]
    write(tmp_path, {labels: b"\0\0\x08\x01\0\0\0\x02\x03\x0a"})
    with pytest.raises(DataError, match=f"{tmp_path}.*the first is 10 at position 1"):
        load_dataset("fashion-mnist", "test", root=tmp_path, verify=False)
    write(tmp_path, {labels: b"\0\0\x08\x01\0\0\0\x01\x03"})
    with pytest.raises(DataError, match="one per image"):
        load_dataset("fashion-mnist", "test", root=tmp_path, verify=False)


def test_unverified_files_that_inflate(files, tmp_path):
    images, labels = (file.stem for file in module.FILES["test"])
    count = 200_000
    content = b"\0\0\x08\x03" + count.to_bytes(4, "big") + b"\0\0\0\x1c" * 2 + bytes(784 * count)
    write(tmp_path, {images: content}, packed=True)
    write(tmp_path, {labels: b"\0\0\x08\x01" + count.to_bytes(4, "big") + bytes(count)}, packed=True)
    assert (tmp_path / f"{images}.gz").stat().st_size < 10**6
    with bounded(), pytest.raises(DataError, match="more than the 67,108,864 bytes expected"):
        load_dataset("fashion-mnist", "test", root=tmp_path, verify=False)
    write(tmp_path, {labels: b"\0\0\x08\x01" + (60 * 2**20).to_bytes(4, "big") + bytes(60 * 2**20)}, packed=True)
    write(tmp_path, {images: content[:4] + b"\0\0\0\x01" + content[8:16] + bytes(784)}, packed=True)
    with bounded(), pytest.raises(DataError, match="62,914,560 labels for 1 images; expected one per image"):
        load_dataset("fashion-mnist", "test", root=tmp_path, verify=False)


def test_pointers_of_git_lfs_are_named(files, tmp_path):
    write(
        tmp_path, {**files, module.FILES["test"][0].stem: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"}
    )
    with pytest.raises(DataError, match="Git LFS pointer"):
        load_dataset("fashion-mnist", "test", root=tmp_path)


# ---------------------------------------------------------------------------------------------------- download


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        cut = self.server.cut_after
        if cut is None:
            return super().do_GET()
        content = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        return None


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *args) -> None:
        """Say nothing when a client breaks off: some tests are about that."""


@pytest.fixture
def server(tmp_path):
    """A web server on loopback with a folder to fill; ``.url``, ``.requests``, ``.cut_after`` bytes."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.requests, server.cut_after, server.folder = [], None, folder
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_when_nowhere_found(files, server, monkeypatch, empty_home, capsys):
    write(server.folder, files, packed=True)
    monkeypatch.setenv("RDC_FASHION_MNIST_URL", server.url)
    cache = empty_home / ".cache" / "rdc" / "fashion-mnist"
    data = load_dataset("fashion-mnist", "test", download=True)
    assert (len(data), data.source) == (20, str(cache))
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{stem}.gz" for stem in files)
    assert "train-images-idx3-ubyte.gz" in capsys.readouterr().err  # the progress bar
    asked = len(server.requests)
    assert asked == 4
    assert len(load_dataset("fashion-mnist", "train", download=True, progress=False)) == 30
    assert len(server.requests) == asked  # nothing fetched twice
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("setting", ["root", "RDC_DATA"])
def test_download_goes_where_the_user_said(files, server, tmp_path, monkeypatch, capsys, setting):
    write(server.folder, files, packed=True)
    monkeypatch.setattr(module, "MIRRORS", (f"{server.url}/",))
    place = tmp_path / "data" / "fashion-mnist"
    if setting == "RDC_DATA":
        monkeypatch.setenv("RDC_DATA", str(place.parent))
    root = place if setting == "root" else None
    assert load_dataset("fashion-mnist", root=root, download=True, progress=False).source == str(place)
    assert capsys.readouterr().err == ""  # no bar when told so


def test_download_fetches_only_what_is_missing(files, server, tmp_path, monkeypatch):
    write(server.folder, files, packed=True)
    monkeypatch.setattr(module, "MIRRORS", (f"{server.url}/",))
    write(tmp_path / "own", {"train-images-idx3-ubyte": files["train-images-idx3-ubyte"]})
    paths = download_fashion_mnist(tmp_path / "own", progress=False)
    assert len(server.requests) == 3
    assert sorted(path.name for path in paths)[-2:] == ["train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"]


def test_next_mirror_is_tried_and_nothing_unchecked_is_kept(files, server, tmp_path, monkeypatch):
    write(server.folder / "good", files, packed=True)
    write(server.folder / "bad", {stem: damaged(content) for stem, content in files.items()}, packed=True)
    mirrors = (f"{server.url}/absent/", f"{server.url}/bad/", f"{server.url}/good/")
    monkeypatch.setattr(module, "MIRRORS", mirrors)
    assert len(load_dataset("fashion-mnist", root=tmp_path / "a", download=True, progress=False)) == 20
    monkeypatch.setattr(module, "MIRRORS", mirrors[:2])
    with pytest.raises(DataError) as caught:
        load_dataset("fashion-mnist", root=tmp_path / "b", download=True, progress=False)
    for part in ("/absent/train-images", "404", "/bad/train-images", "SHA256", "by hand", str(tmp_path / "b")):
        assert part in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_connection_cut_leaves_no_file(files, server, tmp_path, monkeypatch):
    write(server.folder, files, packed=True)
    server.cut_after = 100
    monkeypatch.setattr(module, "MIRRORS", (f"{server.url}/",))
    with pytest.raises(DataError, match=r"cut after 100 of|IncompleteRead"):
        load_dataset("fashion-mnist", root=tmp_path / "a", download=True, progress=False)
    assert not (tmp_path / "a").exists()


def test_oversized_download_is_broken_off(files, server, tmp_path, monkeypatch):
    write(server.folder, {f"{stem}.gz": bytes(200_000) for stem in files})
    monkeypatch.setattr(module, "MIRRORS", (f"{server.url}/",))
    with pytest.raises(DataError, match="delivers more than"):
        load_dataset("fashion-mnist", root=tmp_path / "a", download=True, progress=False)


def test_offline_is_a_clear_error(files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9/",))  # the discard port: nothing listens
    with pytest.raises(DataError, match=r"(?s)could not be downloaded.*127\.0\.0\.1:9.*offline.*by hand.*root="):
        load_dataset("fashion-mnist", root=tmp_path, download=True, progress=False)


def test_folder_that_cannot_be_written(files, server, tmp_path, monkeypatch):
    write(server.folder, files, packed=True)
    monkeypatch.setattr(module, "MIRRORS", (f"{server.url}/",))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        load_dataset("fashion-mnist", root=tmp_path / "file" / "below", download=True, progress=False)


def test_upstream_mirrors_are_https():
    assert module.MIRRORS
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in module.MIRRORS)


# ------------------------------------------------------------------------------------------------ the real files


@DEBIAN_FILES
@pytest.mark.parametrize(("split", "per_class"), [("train", 6000), ("test", 1000)])
def test_debians_files_are_the_official_ones(split, per_class):
    data = load_dataset("fashion-mnist", split)
    assert data.source == str(DEBIAN)
    assert data.images.shape == (10 * per_class, 1, 28, 28)
    assert data.labels.bincount().tolist() == [per_class] * 10


@DEBIAN_FILES
def test_sample_is_the_first_balanced_512_test_images(tmp_path):
    expected = first_balanced(load_dataset("fashion-mnist", "test"), 512)
    save_npz(expected, tmp_path / "again.npz")
    sample = load_dataset("fashion-mnist-sample")
    assert torch.equal(sample.images, expected.images)
    assert torch.equal(sample.labels, expected.labels)
    assert torch.equal(sample.indices, expected.indices)


def test_sample():
    sample = load_dataset("fashion-mnist-sample")
    assert sample.images.shape == (512, 1, 28, 28)
    assert sample.labels.bincount().tolist() == [52, 52] + [51] * 8
    assert sample.indices[:388].tolist() == list(range(388))  # so --n 256 of the sample is --n 256 of the test set
    assert sample.indices[-1] == 641
    assert sample.class_names == module.CLASS_NAMES
    assert sample.name == "fashion-mnist-sample"
    assert load_module.SAMPLE.stat().st_size < 300_000


def test_sample_is_test_images_only_and_checked(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="test images only"):
        load_dataset("fashion-mnist-sample", "train")
    sample = load_dataset("fashion-mnist-sample")
    images = sample.images.clone()
    images[3, 0, 14, 14] ^= 1
    save_npz(
        Dataset(images, sample.labels, sample.class_names, sample.name, "test", sample.indices), tmp_path / "other.npz"
    )
    monkeypatch.setattr(load_module, "SAMPLE", tmp_path / "other.npz")
    with pytest.raises(DataError, match="checksum"):
        load_dataset("fashion-mnist-sample")
    monkeypatch.setattr(load_module, "SAMPLE", tmp_path / "absent.npz")
    with pytest.raises(DataError, match="incomplete"):
        load_dataset("fashion-mnist-sample")


def test_unknown_names_and_splits(tmp_path):
    with pytest.raises(DataError, match=r"did you mean 'fashion-mnist'\?.*fashion-mnist-sample, cifar10"):
        load_dataset("fashion_mnist")
    with pytest.raises(DataError, match="unknown data set"):
        load_dataset(tmp_path / "absent.npz")
    with pytest.raises(DataError, match='"train" or "test"; got \'valid\''):
        load_dataset("fashion-mnist", "valid")
