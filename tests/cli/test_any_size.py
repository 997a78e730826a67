"""From pictures of any size to a deployed file: colour 64 x 64 of five classes, and grey 20 x 24 of three."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")

from rdc.cli import main
from rdc.data import Dataset, save_npz
from rdc.models.checkpoints import load_model

SHAPES = {"colour": (5, (3, 64, 64)), "grey": (3, (1, 20, 24))}
FAST = ["--batch-size", "4", "--warmup-images", "4", "--quiet", "--device", "cpu", "--threads", "1"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pictures(count: int, classes: int, shape: tuple[int, int, int], seed: int) -> Dataset:
    """A class is a bright stripe at a height of its own; the rest is noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 60, (count, *shape), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        high = shape[1] // classes
        image[:, label * high : (label + 1) * high] += 120
    return Dataset(images, labels, tuple(f"stripe {k}" for k in range(classes)), "stripes", "train")


@pytest.fixture(scope="module", params=list(SHAPES))
def run(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, tuple[int, int, int]]:
    """Data, a teacher and a student in a folder."""
    classes, shape = SHAPES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    (root / "data").mkdir()
    for seed, split in enumerate(("train", "test")):
        save_npz(pictures(15, classes, shape, seed), root / "data" / f"{split}.npz")
    data = ["--data", str(root / "data")]
    augment = ["--augment", "0.2", "--posterior-weight", "0.3", "--flip"]
    network = ["--network", "tiny"]
    assert main(["train", *data, *network, *augment, "--images", "12", "--out", str(root / "teacher"), *FAST]) == 0
    terms = [
        "--wide-channels",
        "12",
        "--posterior-weight",
        "1",
        "--shift",
        "2",
        "--secant-eps",
        "8/255",
        "--cutmix",
        "0.5",
    ]
    words = [
        "distill",
        "--teacher",
        str(root / "teacher"),
        *data,
        *terms,
        "--images",
        "12",
        "--out",
        str(root / "student"),
    ]
    assert main([*words, *FAST]) == 0
    return root, classes, shape


def test_teacher_and_student_are_of_the_images(run) -> None:
    root, classes, shape = run
    for name, kind in (("teacher", "conditional"), ("student", "multihead")):
        _, config, info = load_model(root / name)
        assert (config["kind"], config["num_classes"], config["image_shape"]) == (kind, classes, list(shape))
        assert config["patch_size"] == {64: 4, 20: 2}[shape[1]] and info["images"] == 12
        with Image.open(root / name / "samples.png") as picture:
            assert picture.width > 8 * shape[2] and picture.height > classes * shape[1]


def test_sampling_evaluation_and_certificates(run) -> None:
    root, classes, shape = run
    student, data = str(root / "student"), ["--data", str(root / "data")]
    words = [
        "sample",
        str(root / "teacher"),
        "--out",
        str(root / "grid.png"),
        "--per-class",
        "1",
        "--steps",
        "1",
        "--quiet",
    ]
    assert main(words) == 0
    words = [
        "evaluate",
        "--model",
        student,
        *data,
        "--n",
        "2",
        "--attacks",
        "apgd-ce",
        "--eps",
        "8/255",
        "--steps",
        "1",
    ]
    words += ["--levels", "log:2:0.5:1:flat", "--sanity", "0", "--threads", "1", "--quiet"]
    assert main([*words, "--out", str(root / "evaluated")]) == 0
    report = json.loads((root / "evaluated" / "report.json").read_text())
    assert report["n"] == 2 and report["robust"]["accuracy"] <= report["clean"]["accuracy"]
    words = ["certify", "--model", student, *data, "--n-images", "1", "--n0", "1", "--n", "2", "--sigma", "0.25"]
    words += ["--noised-levels", "1"]
    assert main([*words, "--threads", "1", "--quiet", "--out", str(root / "certified")]) == 0


def test_a_file_that_predicts(run) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import numpy as np

    import rdc
    from rdc.runtime import OnnxClassifier

    root, classes, shape = run
    student = str(root / "student")
    assert (
        main(["export", student, str(root / "m.onnx"), "--levels", "log:2:0.5:1:flat", "--quiet"]) == 0
    )  # compared with PyTorch
    pixels = torch.rand(2, *shape, generator=torch.Generator().manual_seed(3))
    found = OnnxClassifier(root / "m.onnx", provider="cpu", threads=1)(pixels.numpy())
    assert (found.labels == rdc.load(student, levels="log:2:0.5:1:flat")(pixels).argmax(1).numpy()).all()
    picture = root / "one.png"
    array = (255 * pixels[0]).byte().permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if shape[0] == 1 else np.ascontiguousarray(array)).save(picture)
    assert main(["classify", "--model", student, str(picture)]) == 0


@pytest.mark.parametrize("method", ["standard", "jem", "hybvit"])
def test_classifiers_beside_them(tmp_path: Path, method: str) -> None:
    """No --network: theirs is for other images, so it is scaled. Sides of nine and thirteen pixels."""
    save_npz(pictures(8, 2, (1, 9, 13), 0), tmp_path / "train.npz")
    words = ["train", "--method", method, "--data", str(tmp_path), "--images", "8", "--out", str(tmp_path / "c"), *FAST]
    assert main([*words, *(["--sgld-steps", "2", "--replay-buffer", "8"] if method == "jem" else [])]) == 0
    _, config, _ = load_model(tmp_path / "c")
    assert config["image_shape"] == [1, 9, 13] and config["kind"] == ("vit" if method == "hybvit" else "resnet")


def test_a_network_of_ones_own(run, tmp_path: Path) -> None:
    root, _, shape = run
    path = tmp_path / "mine.toml"
    path.write_text('size = "tiny"\n[unet]\nmodel_channels = 8\n')
    words = [
        "train",
        "--data",
        str(root / "data"),
        "--network",
        str(path),
        "--images",
        "4",
        "--out",
        str(tmp_path / "r"),
        *FAST,
    ]
    assert main(words) == 0
    _, config, _ = load_model(tmp_path / "r")
    assert config["unet"]["model_channels"] == 8 and config["image_shape"] == list(shape)
    assert main(words) == 0  # it is the same run
