"""Users' own .npz files and folders."""

from __future__ import annotations

import hashlib
import io
import os
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rdc.data import DataNotice, Dataset, load_dataset, save_npz, save_splits
from rdc.errors import ConfigError, DataError
from tests.bounds import bounded

pytestmark = pytest.mark.filterwarnings("ignore::rdc.data.DataNotice")

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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_the_nearest_levels(tmp_path, dtype):
    values = np.arange(256).reshape(4, 8, 8)
    np.savez(tmp_path / "exact.npz", images=(values / 255).astype(dtype), labels=np.zeros(4, int))
    data = load_dataset(tmp_path / "exact.npz")
    assert np.array_equal(data.images[:, 0].numpy(), values)
    assert not any("rounded" in notice for notice in data.notices)
    between = ((values + 0.4) / 256).astype(dtype)
    np.savez(tmp_path / "between.npz", images=between, labels=np.zeros(4, int))
    with pytest.warns(DataNotice, match="between: images are floats between the 256 levels"):
        data = load_dataset(tmp_path / "between.npz")
    assert np.array_equal(data.images[:, 0].numpy(), np.rint(255 * between.astype(np.float64)))


@pytest.mark.parametrize("labels", [LABELS[:, None], np.eye(4)[LABELS], np.eye(4, dtype=bool)[LABELS]])
def test_columns_and_one_hot_rows(tmp_path, labels):
    np.savez(tmp_path / "own.npz", images=GREY, labels=labels)
    data = load_dataset(tmp_path / "own.npz")
    assert data.labels.tolist() == [0, 2, 1]
    assert data.num_classes == (3 if labels.shape[1] == 1 else 4)  # of the fourth there is no image


@pytest.mark.parametrize(
    "keys", [("x_{}", "y_{}"), ("X_{}", "y_{}"), ("{}_images", "{}_labels"), ("images_{}", "labels_{}")]
)
def test_one_file_with_both_splits(tmp_path, keys):
    images, labels = keys
    arrays = {}
    for start, split in enumerate(("train", "test")):
        arrays |= {images.format(split): GREY + start, labels.format(split): (LABELS + start)[:, None]}
    np.savez(tmp_path / "own.npz", **arrays, indices_test=[7, 8, 9])
    for start, split in enumerate(("train", "test")):
        data = load_dataset(tmp_path / "own.npz", split)
        assert data.images[:, 0].numpy().tolist() == (GREY + start).tolist()
        assert data.labels.tolist() == (LABELS + start).tolist()
        assert data.indices.tolist() == ([7, 8, 9] if split == "test" else [0, 1, 2])
        assert not data.notices


def test_saved_splits_come_back(tmp_path):
    parts = [
        Dataset(torch.from_numpy(GREY[:, None] + i), torch.from_numpy(LABELS), ("x", "y", "z"), "own", "s")
        for i in (0, 1)
    ]
    save_splits(*parts, tmp_path / "own.npz")
    for split, part in zip(("train", "test"), parts, strict=True):
        back = load_dataset(tmp_path / "own.npz", split)
        assert torch.equal(back.images, part.images) and back.class_names == part.class_names and not back.notices
    wider = Dataset(torch.zeros(1, 1, 4, 6, dtype=torch.uint8), torch.tensor([0]), ("x", "y", "z"), "own", "s")
    with pytest.raises(DataError, match="expected splits of one image shape and the same classes"):
        save_splits(parts[0], wider, tmp_path / "own.npz")


def test_unnamed_arrays(tmp_path):
    np.savez(tmp_path / "own.npz", GREY, LABELS)
    assert load_dataset(tmp_path / "own.npz").labels.tolist() == [0, 2, 1]


def test_a_file_that_serves_both_splits_is_said(tmp_path):
    np.savez(tmp_path / "own.npz", images=GREY, labels=LABELS)
    for split in ("train", "test"):
        with pytest.warns(DataNotice, match="own: nothing tells train from test in it, so both are these 3 images"):
            data = load_dataset(tmp_path / "own.npz", split)
        assert len(data.notices) == 1 and data[:2].notices == data.notices
    save_npz(Dataset(data.images, data.labels, data.class_names, "own", "test"), tmp_path / "saved.npz")
    assert not load_dataset(tmp_path / "saved.npz", "test").notices
    assert load_dataset(tmp_path / "saved.npz", "train").notices == (
        "it says that it holds the split test; read for train",
    )
    assert not load_dataset("fashion-mnist-sample").notices


def test_other_sizes_and_colours(tmp_path):
    np.savez(tmp_path / "own.npz", images=COLOUR, labels=LABELS)
    data = load_dataset(tmp_path / "own.npz", size=(8, 10), resample="nearest")
    assert data.images.shape == (3, 3, 8, 10)
    assert torch.equal(data.images[:, :, ::2, ::2], load_dataset(tmp_path / "own.npz").images)
    assert any("resized from 5 x 4 to 10 x 8 (nearest)" in notice for notice in data.notices)
    assert load_dataset(tmp_path / "own.npz", channels=1).image_shape == (1, 4, 5)
    for options in ({"size": (0, 8)}, {"size": 8}, {"size": (8,)}, {"channels": 2}, {"resample": "area"}):
        with pytest.raises(ConfigError, match="expected"):
            load_dataset(tmp_path / "own.npz", **options)


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
        (
            {"images": GREY * 1.0, "labels": LABELS},
            r"must lie in \[0, 1\]; got values from 0 to 59; store them as uint8",
        ),
        ({"images": GREY / 127.5 - 1, "labels": LABELS}, r"values from -1 to -0.5373; undo the normalisation"),
        ({"images": np.where(GREY == 7, np.nan, 0.5), "labels": LABELS}, r"must lie in \[0, 1\]; got NaN"),
        ({"images": GREY, "labels": np.eye(3)[:2]}, r"labels must be integers \[3\]"),
        ({"images": GREY, "labels": np.eye(3) / 2}, r"expected one-hot rows.*\[0.5, 0.0, 0.0\] at position 0"),
        ({"images": GREY, "labels": np.ones((3, 2), int)}, r"expected one-hot rows.*\[1, 1\]"),
        ({"images": GREY, "labels": LABELS[:, None] * 1.0}, "labels must be integers.*float64"),
        ({"x_train": GREY, "y_train": LABELS}, "has x_train and no x_test, so it holds the train split alone"),
        ({"arr_0": GREY, "arr_1": LABELS, "arr_2": LABELS}, "has no images and no labels; it has arr_0"),
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


def test_pictures_in_no_folder_of_a_class(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="a folder for each class; it has 1 pictures that are in no folder of a class"):
        load_dataset(tmp_path, "train")


def test_folder_without_npz(tmp_path):
    with pytest.raises(DataError, match=r"it has no \.npz file"):
        load_dataset(tmp_path)


# ------------------------------------------------------------------------------------- files made to fill the memory


def header(descr: object = "|u1", shape: str = "(3, 4, 5)", version: bytes = b"\1\0", text: str | None = None) -> bytes:
    """A .npy header with this text in place of the shape's."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}" if text is None else text
    content = text.encode("latin-1")
    return b"\x93NUMPY" + version + len(content).to_bytes(2 if version == b"\1\0" else 4, "little") + content


def member(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(path, members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as file:
        warnings.simplefilter("ignore")  # names that come twice
        for name, content in members.items() if isinstance(members, dict) else members:
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("label", [10**5, 10**8, 2**62])
def test_a_label_does_not_make_names_without_end(tmp_path, label):
    np.savez(tmp_path / "own.npz", images=GREY, labels=np.array([0, label, 1]))
    with bounded(), pytest.raises(DataError, match=f"label {label} at position 1; expected at most 100,000 classes"):
        load_dataset(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", images=GREY, labels=[0, 99_999, 1])
    assert load_dataset(tmp_path / "own.npz").num_classes == 100_000


def test_archives_that_inflate(tmp_path):
    path, labels = tmp_path / "own.npz", member(LABELS)
    archive(path, {"images.npy": header(shape="(200000, 28, 28)") + bytes(200_000 * 784), "labels.npy": labels})
    assert path.stat().st_size < 200_000
    with bounded(megabytes=20), pytest.raises(DataError, match="array images asks for 156,800,000 bytes.*uncompressed"):
        load_dataset(path)
    for name in ("labels", "class_names", "indices", "layout"):
        arrays = {"images": GREY, "labels": LABELS, name: np.zeros(2**25, "U1" if name[0] in "cl" else np.int64)}
        np.savez_compressed(path, **arrays)
        with (
            bounded(megabytes=300),
            pytest.raises(DataError, match=f"array {name} asks for|{name} must be|class_names"),
        ):
            load_dataset(path)


def test_black_images_that_compress_well_are_read(tmp_path):
    np.savez_compressed(tmp_path / "own.npz", images=np.zeros((60_000, 28, 28), np.uint8), labels=np.zeros(60_000, int))
    assert (tmp_path / "own.npz").stat().st_size < 60_000
    assert len(load_dataset(tmp_path / "own.npz")) == 60_000


def test_a_folder_of_archives_has_one_budget(tmp_path):
    for number in range(5):
        np.savez_compressed(
            tmp_path / f"{number}.npz", images=np.zeros((50_000, 28, 28), np.uint8), labels=np.zeros(50_000, int)
        )
    with bounded(), pytest.raises(DataError, match="asks for 39,200,000 bytes"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(shape=f"({2**40}, 28, 28)"), "promises 862,0"),
        (header(shape=f"({2**40}, 28, 28)", version=b"\2\0"), "promises 862,0"),
        (header(shape=f"({'1, ' * 3000})"), "of 3,000 axes"),
        (header(shape=f"({'1, ' * 20_000})"), "header has 60,0"),
        (header(shape=f"({2**62}, {2**62}, {2**62}, {2**62})"), "promises"),
        (header(shape=f"(0, {2**62})"), "not image shapes"),
        (header(shape="(" + "9" * 9000 + ",)"), "not a readable"),
        (header(shape="(-1, 4, 5)"), "not of the form that NumPy writes"),
        (header(shape="(3, 4, 5"), "not of the form"),
        (header(shape="(" * 9000), "not of the form"),
        (header(shape="(" + "1 " * 4000 + ")"), "sizes"),
        (header(shape="-" * 9000 + "1"), "not of the form"),
        (header(text="[" * 9000), "not of the form"),
        (header(text="{" + "'descr': '|u1', " * 600), "not of the form"),
        (header(text=""), "not of the form"),
        (header("|O"), "array of type object"),
        (header("|u99999999999999"), "not a readable"),
        (header("<U0", f"({2**40},)"), "array of type <U0"),
        (header("|V0", f"({2**40},)"), "array of type .*V0"),
        (header([("a", "|u1")]), "not of the form"),
        (header("__import__('os').abort()"), "not of the form|array of type"),
        (header() + bytes(59), r"promises 60 bytes, 59 follow"),
        (header() + bytes(61), r"promises 60 bytes, 61 follow"),
        (header()[:20], "not of the form"),
        (b"\x93NUMPY\4\0" + header()[8:], "format 1 to 3"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(60), "header has 4,294,967,295 bytes"),
        (b"", "no array"),
    ],
    ids=range(27),
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_of_anything(tmp_path, content, message, method):
    path = archive(tmp_path / "own.npz", {"images.npy": content, "labels.npy": member(LABELS)}, method)
    with bounded(megabytes=5), pytest.raises(DataError, match=message) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("descr", ["|u1", "u1", "B"])
def test_headers_as_other_programs_write_them(tmp_path, descr):
    """Double quotes, another order, Python 2's long integers, Fortran's order."""
    text = f'{{"shape": (3L,4L, 5L), "fortran_order": True , "descr": "{descr}"}}   \n'
    content = header(text=text) + GREY.tobytes(order="F")
    for version in (b"\1\0", b"\2\0", b"\3\0"):
        again = header(text=text, version=version) + content[len(header(text=text)) :]
        path = archive(tmp_path / "own.npz", {"images.npy": again, "labels.npy": member(LABELS.astype(">i4"))})
        if descr == "B":
            with pytest.raises(DataError, match="array of type B|not a readable"):
                load_dataset(path)
        else:
            assert np.array_equal(load_dataset(path).images[:, 0].numpy(), GREY)
            assert load_dataset(path).labels.tolist() == [0, 2, 1]


def test_archives_of_many_members(tmp_path):
    members = [(f"{number}.npy", b"") for number in range(30_000)]
    path = archive(tmp_path / "own.npz", [*members, ("images.npy", member(GREY)), ("labels.npy", member(LABELS))])
    with bounded(megabytes=50), pytest.raises(DataError, match="directory has more than the 1,048,576 bytes"):
        load_dataset(path)
    path = archive(tmp_path / "own.npz", [("images.npy", member(GREY))] * 2 + [("labels.npy", member(LABELS))])
    with pytest.raises(DataError, match="has images more than once"):
        load_dataset(path)
    path = archive(tmp_path / "own.npz", [(f"{'x' * 60_000}\n.npy", b"")] * 5)
    with pytest.raises(DataError, match="it has x") as caught:
        load_dataset(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_numpy_does_not_write(tmp_path, method):
    path = archive(tmp_path / "own.npz", {"images.npy": member(GREY), "labels.npy": member(LABELS)}, method)
    with pytest.raises(DataError, match="not a readable"):
        load_dataset(path)


def test_the_archives_checksums_are_compared(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, images=GREY, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[content.index(GREY.tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable.*CRC"):
        load_dataset(path)


@pytest.mark.parametrize("which", ["find", "rfind"])
def test_a_changed_letter_does_not_hide_an_array(tmp_path, which):
    """An archive has every name twice, and no checksum over either."""
    path = tmp_path / "own.npz"
    np.savez(path, images=GREY, labels=LABELS, class_names=["a", "b", "c"])
    content = bytearray(path.read_bytes())
    content[getattr(content, which)(b"class_names") + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable"):
        load_dataset(path)
    np.savez(path, images=GREY, labels=LABELS, something=[1, 2])  # further arrays are no fault
    assert load_dataset(path).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b\nc", "d"], r"without line breaks.*b\\nc"),
        (["a", "b", "c" * 201], "at most 200 characters"),
        (["\x1b[2J", "b", "c"], "control characters"),
        (["\ud800", "b", "c"], "control characters"),
        (np.zeros(100_001, "U1"), "100,001 class_names; expected at most 100,000"),
    ],
)
def test_class_names_fit_on_a_line(tmp_path, names, message):
    np.savez(tmp_path / "own.npz", images=GREY, labels=LABELS, class_names=names)
    with bounded(), pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", images=GREY, labels=LABELS, class_names=["größe\xa0∞", "猫", ""])
    assert load_dataset(tmp_path / "own.npz").class_names == ("größe\xa0∞", "猫", "")


def test_images_without_pixels(tmp_path):
    np.savez(tmp_path / "own.npz", images=np.zeros((2**24, 0, 3), np.uint8), labels=LABELS)
    with bounded(), pytest.raises(DataError, match="at least one pixel"):
        load_dataset(tmp_path / "own.npz")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"
    (tmp_path / "pointer.npz").write_text(pointer)
    for name, words in (("pipe.npz", "device or pipe"), ("pointer.npz", "Git LFS pointer"), ("no\0.npz", "no file")):
        with pytest.raises(DataError, match=words):
            load_dataset(tmp_path / name)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.npz")
    Path(odd).write_bytes(b"")
    with pytest.raises(DataError, match=r"/\\udcff\\n\.npz: not a readable"):
        load_dataset(odd)
