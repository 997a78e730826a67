"""rdc data: what is there, and data sets as one .npz; notices of --data on stderr."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from rdc.cli import main
from rdc.data import load_dataset
from tests.evaluation_models import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore::rdc.data.DataNotice")


@pytest.fixture
def pictures(tmp_path):
    """Twenty pictures of two classes, of several sizes and colours."""
    rng = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "pictures" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = 10 + number, 12
        Image.fromarray(rng.integers(0, 256, (height, width, 3)[: 2 + number % 2], dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


def test_pictures_become_one_file(pictures, tmp_path, capsys):
    assert main(["data", "convert", str(pictures), str(tmp_path / "own.npz"), "--quiet"]) == 2
    assert (
        "expected pictures of one size. Bring them to one: rdc data convert SRC out.npz --size H W"
        in capsys.readouterr().err
    )
    words = [
        "data",
        "convert",
        str(pictures),
        str(tmp_path / "own.npz"),
        "--size",
        "8",
        "16",
        "--filter",
        "box",
        "--test-share",
        "0.2",
    ]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "own.npz: 16 + 4 images, 3 x 8 x 16, 2 classes" in said.err and said.out == ""
    assert "rdc: pictures: 20 of 20 pictures: resized to 16 x 8 (box), proportions changed" in said.err
    train, test = (load_dataset(tmp_path / "own.npz", split) for split in ("train", "test"))
    assert (len(train), len(test), train.class_names) == (16, 4, ("cat", "dog")) and not train.notices
    assert sorted([*train.indices.tolist(), *test.indices.tolist()]) == list(range(20))
    assert test.labels.bincount().tolist() == [2, 2]
    whole = load_dataset(pictures, size=(8, 16), resample="box")
    place = whole.indices.tolist().index(int(test.indices[0]))
    assert np.array_equal(whole.images[place].numpy(), test.images[0].numpy())
    first = hashlib.sha256((tmp_path / "own.npz").read_bytes()).hexdigest()
    assert main([*words, "--quiet"]) == 0
    assert hashlib.sha256((tmp_path / "own.npz").read_bytes()).hexdigest() == first
    # both splits again, from the file itself, in grey
    assert (
        main(["data", "convert", str(tmp_path / "own.npz"), str(tmp_path / "grey.npz"), "--channels", "1", "--quiet"])
        == 0
    )
    assert load_dataset(tmp_path / "grey.npz", "train").image_shape == (1, 8, 16)
    assert (
        main(["data", "convert", str(tmp_path / "own.npz"), str(tmp_path / "one.npz"), "--split", "test", "--quiet"])
        == 0
    )
    assert load_dataset(tmp_path / "one.npz").indices.tolist() == test.indices.tolist()


def test_info(capsys):
    assert main(["data", "info", "fashion-mnist-sample"]) == 0
    said = capsys.readouterr().out
    data = load_dataset("fashion-mnist-sample")
    digest = hashlib.sha256(data.images.numpy().tobytes() + data.labels.numpy().tobytes()).hexdigest()[:16]
    for part in (
        "fashion-mnist-sample, test split",
        "512 of 1 x 28 x 28",
        "10, 51 to 52 images each",
        digest,
        "T-shirt/top 5",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "x"], "expected the file to write behind the data set"),
        (["convert", "x", "y.npy"], "expected a file that ends in .npz; got y.npy"),
        (["info", "x", "y.npz"], "expected a single data set; got y.npz too"),
        (["info", "nowhere"], "unknown data set 'nowhere'"),
        (["info", "cifar1O"], "did you mean 'cifar10'?"),
        (["info", "fashion-mnist-sample", "--size", "0", "8"], "size: expected height and width"),
        (
            ["convert", "fashion-mnist-sample", "y.npz", "--test-share", "1"],
            "expected a number between 0 and 1; got 1.0",
        ),
    ],
)
def test_wrong_use(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_file_for_both_splits_is_said_by_every_command(tmp_path, capsys):
    model, _ = save_tiny(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", images=rng.integers(0, 256, (6, 8, 8), dtype=np.uint8), labels=np.arange(6) % 3)
    words = ["evaluate", "--model", model, "--data", str(tmp_path / "own.npz"), "--n", "2", "--attacks", "none"]
    assert main([*words, "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet"]) == 0
    assert "rdc: own: nothing tells train from test in it, so both are these 6 images" in capsys.readouterr().err
