"""Models by a name with a prefix."""

from __future__ import annotations

import json

import pytest
import torch

import rdc
from rdc.cli import main
from rdc.data import Dataset, first_balanced, save_npz
from rdc.errors import ConfigError, DataError
from rdc.method.optimal import OptimalDenoiser
from tests.tolerances import FLOAT32_ROUNDING


@pytest.fixture
def data(tmp_path):
    """Twenty 4 x 5 images of two classes, bright above or below, as a .npz file with both splits."""
    make = torch.Generator().manual_seed(0)
    labels = torch.arange(20) % 2
    images = torch.randint(0, 80, (20, 1, 4, 5), generator=make).to(torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 120
    made = Dataset(images, labels, ("above", "below"), "bars", "train")
    save_npz(made, tmp_path / "bars.npz")
    return tmp_path / "bars.npz", made


def test_the_optimal_classifier_of_a_data_set(data):
    path, made = data
    model = rdc.load(f"optimal:{path}", levels="log:4:0.2:1:flat")
    assert isinstance(model.denoiser, OptimalDenoiser)
    assert model.class_names == made.class_names
    assert torch.equal(model(made.pixels()).argmax(1), made.labels)
    assert len(model.denoiser.distribution.images) == 20


def test_fields_of_the_name(data):
    path, made = data
    few = rdc.load(f"optimal:{path},images=6,exponent=released")
    assert few.denoiser.exponent == "released"
    again = few.denoiser.distribution
    first = first_balanced(made, 6).pixels().flatten(1) * 2 - 1
    found = again.images + again.centre
    assert torch.allclose(found.sort(0).values, first.sort(0).values, rtol=0, atol=FLOAT32_ROUNDING)


@pytest.mark.parametrize(
    ("behind", "error", "message"),
    [
        (",images=1", ConfigError, "images: expected an integer from 2 to 20; got '1'"),
        (",images=21", ConfigError, "images: expected an integer from 2 to 20; got '21'"),
        (",images=two", ConfigError, "images: expected an integer from 2 to 20; got 'two'"),
        (",exponent=2s", ConfigError, "exponent: expected gaussian or released; got '2s'"),
        (",count=5", ConfigError, "images=..., split=..., exponent=..."),
        (",split=half", DataError, 'split must be "train" or "test"'),
        ("x", DataError, "unknown data set"),
    ],
)
def test_wrong_names(data, behind, error, message):
    with pytest.raises(error, match=message):
        rdc.load(f"optimal:{data[0]}{behind}")


def test_wrong_settings(data):
    with pytest.raises(ConfigError, match="settings: expected some of"):
        rdc.load(f"optimal:{data[0]}", level="log:4:0.2:1:flat")


def test_evaluate_takes_it(data, tmp_path, capsys):
    path, _ = data
    command = [
        "evaluate",
        "--model",
        f"optimal:{path}",
        "--data",
        str(path),
        "--n",
        "8",
        "--levels",
        "log:3:0.2:1:flat",
    ]
    command += ["--attacks", "apgd-ce", "--steps", "3", "--eps", "8/255", "--quiet", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["model"] == f"optimal:{path}"
    assert report["classifier"]["head"] == "optimal"
    assert report["clean"]["accuracy"] == 1


def test_noise_per_class_of_a_model(tmp_path):
    from rdc.method.per_class_noise import PerClassNoise

    model = rdc.load("per-class:fashion-mnist", levels="log:2:0.1:0.5:eps", noise_seed=3)
    plain = rdc.load("fashion-mnist", levels="log:2:0.1:0.5:eps", noise_seed=3)
    assert isinstance(model.denoiser, PerClassNoise) and model.evaluations_per_image == 20
    assert {k: v for k, v in model.settings().items() if k != "memory_budget_mb"} == {
        k: v for k, v in plain.settings().items() if k != "memory_budget_mb"
    }
    with pytest.raises(ConfigError, match="model per-class: expected the name of a diffusion model"):
        rdc.load("per-class:fashion-mnist-trades")
