"""Folders of class folders, Tiny-ImageNet's layout, and pictures of several sizes and colours."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdc.data import DataNotice, load_dataset, tiny_imagenet
from rdc.errors import DataError
from tests.bounds import bounded

pytestmark = pytest.mark.filterwarnings("ignore::rdc.data.DataNotice")


def picture(path: Path, value: int, size: tuple[int, int] = (6, 4), mode: str = "RGB", **options: object) -> Path:
    """A file of one value, size (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(path, **options)
    return path


@pytest.fixture
def shapes(tmp_path):
    """train: 3 circles, 1 square; val: 1 circle, 1 triangle; a text file and a hidden one."""
    root = tmp_path / "shapes"
    train, val = (
        ("square/a.png", "circle/b.png", "circle/a.png", "circle/deep/c.PNG"),
        ("circle/z.png", "triangle/y.png"),
    )
    names = [f"{split}/{name}" for split, names in (("train", train), ("val", val)) for name in names]
    for value, name in enumerate(names):
        picture(root / name, 10 * value)
    (root / "train" / "circle" / "notes.txt").write_text("x")
    (root / "train" / "circle" / "._a.png").write_bytes(b"of a Mac")
    return root


def test_splits_classes_and_ids(shapes):
    train, test = (load_dataset(shapes, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("circle", "square", "triangle")
    assert train.image_shape == (3, 4, 6) and train.name == "shapes" and train.source == str(shapes)
    # by turns: circle/a, square/a, circle/b, circle/deep/c; ids count the circles first
    assert train.images[:, 0, 0, 0].tolist() == [20, 0, 10, 30]
    assert train.labels.tolist() == [0, 1, 0, 0] and train.indices.tolist() == [0, 3, 1, 2]
    assert test.images[:, 2, 3, 5].tolist() == [40, 50] and test.labels.tolist() == [0, 2]
    assert train.notices == ("1 files were left out: they end in none of .png, .jpg, .jpeg",)
    assert test.notices == ("the test split is the folder val",)


def test_without_splits(shapes):
    with pytest.warns(
        DataNotice, match="nothing tells train from test in it, so both are these 4 images.*--test-share"
    ):
        data = load_dataset(shapes / "train", "test")
    assert data.class_names == ("circle", "square") and len(data) == 4
    (shapes / "train").rename(shapes / "other")
    with pytest.raises(DataError, match="expected a folder train or training with a folder for each class"):
        load_dataset(shapes, "train")


def test_sizes_that_differ(shapes):
    picture(shapes / "train" / "circle" / "d.png", 99, (12, 8))
    with pytest.raises(
        DataError, match=r"d\.png: 12 x 8 pixels, those before are 6 x 4.*rdc data convert SRC out.npz --size H W"
    ):
        load_dataset(shapes, "train")
    data = load_dataset(shapes, "train", size=(8, 8), resample="box")
    assert data.images.shape == (5, 3, 8, 8) and sorted(data.images[:, 1, 4, 4].tolist()) == [0, 10, 20, 30, 99]
    assert "5 of 5 pictures: resized to 8 x 8 (box), proportions changed" in data.notices


def test_grey_and_colour(tmp_path):
    for value, (name, mode) in enumerate((("a", "L"), ("b", "L"), ("c", "RGB"), ("d", "L"))):
        picture(tmp_path / "x" / f"{name}.png", 10 * value, mode=mode)
    data = load_dataset(tmp_path)
    assert data.images.shape == (4, 3, 4, 6) and data.images[:, :, 0, 0].tolist() == [[10 * v] * 3 for v in range(4)]
    assert load_dataset(tmp_path, channels=1).images[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    (tmp_path / "x" / "c.png").unlink()
    assert load_dataset(tmp_path).images.shape == (3, 1, 4, 6)


def test_pictures_as_a_viewer_shows_them(tmp_path):
    """A palette, and a photograph that lies on its side."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
    (tmp_path / "x").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "x" / "a.png", exif=exif)
    data = load_dataset(tmp_path)
    assert data.images.shape == (1, 3, 16, 8)
    assert np.array_equal(data.images[0].permute(1, 2, 0).numpy(), np.rot90(pixels, -1))


def test_damaged_pictures_and_odd_names(tmp_path):
    (tmp_path / "x").mkdir()
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(noise, "png")
    for content, message in ((b"", "not a PNG or JPEG"), (noise.getvalue()[:2000], "a.png: cannot be read")):
        (tmp_path / "x" / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_dataset(tmp_path)
    (tmp_path / "x" / "a.png").unlink()
    picture(tmp_path / "a\nb" / "a.png", 1)
    with pytest.raises(DataError, match="without line breaks") as caught:
        load_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_small_files_that_unpack_to_much(tmp_path):
    first = picture(tmp_path / "x" / "0.png", 0, (2000, 2000), "L")
    for number in range(1, 100):
        (tmp_path / "x" / f"{number}.png").write_bytes(first.read_bytes())
    with bounded(megabytes=100), pytest.raises(DataError, match="100 images of 2000 x 2000 asks for 400,000,000 bytes"):
        load_dataset(tmp_path)


# -------------------------------------------------------------------------------------------------------- Tiny-ImageNet

IDS = ["n02", "n01", "n03"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    root = tmp_path / "tiny-imagenet-200"
    monkeypatch.setattr(tiny_imagenet, "IMAGES", {"train": 6, "test": 3})
    for number, wnid in enumerate(IDS):
        for image in range(2):
            picture(
                root / "train" / wnid / "images" / f"{wnid}_{image}.JPEG",
                20 * number + image,
                (64, 64),
                "L",
                quality=100,
            )
    lines = []
    for number, wnid in enumerate(reversed(IDS)):
        picture(root / "val" / "images" / f"val_{number}.JPEG", 100 + number, (64, 64), quality=100)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(IDS) + "\n")
    (root / "words.txt").write_text(
        "n01\tcrane, bird\nn02\tcrane, machine\nn03\tgoldfish, Carassius auratus\nn99\tother\n"
    )
    return root


def test_tiny_imagenet(tiny):
    train, test = (load_dataset("tiny-imagenet", split, root=tiny.parent) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("crane (n01)", "crane (n02)", "goldfish")
    assert train.images.shape == (6, 3, 64, 64) and train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (train.images[:, 0, 9, 9].int() - torch.tensor([20, 0, 40, 21, 1, 41])).abs().max() <= 1
    assert (
        test.labels.tolist() == [2, 0, 1] and (test.images[:, 1, 0, 0].int() - torch.arange(100, 103)).abs().max() <= 1
    )
    assert test.indices.tolist() == [0, 1, 2] and "the folder val" in test.notices[0]
    small = load_dataset("tiny-imagenet", root=tiny, size=(32, 32), resample="box")
    assert small.image_shape == (3, 32, 32) and any("resized to 32 x 32 (box)" in notice for notice in small.notices)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("val/val_annotations.txt", "val_0.JPEG\n", "expected 2 fields in every line"),
        ("val/val_annotations.txt", "val_0.JPEG\tn77\n", "expected a WordNet id of wnids.txt"),
        ("val/val_annotations.txt", "../../secret\tn01\n", "expected names without folders"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01\n", "1 images in the test split, expected 3"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01\nval_1.JPEG\tn01\nnone.JPEG\tn01\n", "none.JPEG: no such file"),
        ("wnids.txt", "n01\nn01\n", "a different WordNet id in every line"),
    ],
)
def test_tiny_imagenet_that_is_not_whole(tiny, file, text, message):
    (tiny / file).write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset("tiny-imagenet", root=tiny)
