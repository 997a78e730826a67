"""The end of a run: confidence fitted on images that training did not see, recorded, off on demand; training itself as before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

import rdc
from rdc.cli.training_run import _report
from rdc.data import Dataset, train_holdout
from rdc.decisions.held_out import fit_held_out
from rdc.models.checkpoints import load_model
from rdc.storage.json_files import read_json
from rdc.training import Recipe, run
from rdc.training.confidence import MOST, automatic_holdout, cost_afterwards, with_holdout
from rdc.training.config import TrainConfig
from rdc.training.run import Training

TRAIN = TrainConfig(images=16, batch_size=4, warmup_images=4, learning_rate=3e-3)


def data(count: int = 240, classes: int = 2, side: int = 8) -> Dataset:
    labels = torch.arange(count) % classes
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 90, (count, 1, side, side), generator=generator, dtype=torch.uint8)
    pixels[labels == 1, :, : side // 2] += 120
    return Dataset(pixels, labels, tuple("abcdef"[:classes]), "halves", "train")


def recipe(**changes: object) -> Recipe:
    return dataclasses.replace(Recipe("diffusion", network="tiny", train=TRAIN), **changes)


def trained(out: Path, **changes: object):
    done = run(recipe(**changes), data(), out, device="cpu", progress=False)
    return done, load_model(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "teacher"
    return out, *trained(out)


def test_a_run_ends_with_its_confidence(finished):
    """The record is that of the images left out, under the model as it is loaded; the loaded model has the scale."""
    out, done, (_, _, info) = finished
    rest, held = train_holdout(data(), 24)
    described = read_json(out / "config.json", kind=dict)
    assert described["holdout"] == 24 and described["data"]["images"] == len(rest) == 216
    record = info["calibration"]
    assert done.calibration == record and (record["images"], record["split"]) == (24, "train-holdout")
    model = rdc.load(out)
    assert info["classifier"] == {"levels": "log:12:0.3:4:flat", "logit_scale": model.scale}
    assert record == json.loads(json.dumps(fit_held_out(model, held)))
    assert record["negative_log_likelihood"]["after"] <= record["negative_log_likelihood"]["before"]


def test_the_same_command_keeps_it(finished, monkeypatch):
    """It is not fitted again where the weights are the same; it is where the record is gone."""
    out, done, (_, _, info) = finished
    monkeypatch.setattr("rdc.training.confidence.fit_held_out", None)
    again, (_, _, kept) = trained(out)
    assert again.calibration == done.calibration and kept == info


def test_off_trains_on_all_images(finished, tmp_path):
    """As before there was calibration: no image left out, nothing recorded; and a run so begun goes on so."""
    done, (_, _, info) = trained(tmp_path / "off", calibrate=False)
    assert done.calibration is None and "calibration" not in info and "classifier" not in info
    assert read_json(tmp_path / "off/config.json", kind=dict)["holdout"] == 0
    assert with_holdout(recipe(), data(), tmp_path / "off").holdout == 0
    assert with_holdout(recipe(), data(), finished[0]).holdout == 24
    done, (_, _, info) = trained(tmp_path / "off")
    assert done.calibration["logit_scale"] is None and done.calibration["why"] == "no image was held out (--holdout)"
    assert "classifier" not in info and rdc.load(tmp_path / "off").scale == 1


def test_training_does_not_depend_on_it(tmp_path):
    """With the same images left out the weights are the same to the last bit."""
    on, off = (trained(tmp_path / str(k), calibrate=k, holdout=24)[1][0] for k in (True, False))
    for one, other in zip(on.parameters(), off.parameters(), strict=True):
        assert torch.equal(one, other)


def test_students_too(finished, tmp_path):
    student = Recipe("distill", teacher=str(finished[0]), wide_channels=8, train=TRAIN)
    done = run(student, data(), tmp_path / "s", device="cpu", progress=False)
    assert done.calibration["images"] == 24 and rdc.load(tmp_path / "s").scale == done.calibration["logit_scale"]
    assert "seen_by" not in done.calibration
    trained(tmp_path / "all", calibrate=False)
    student = dataclasses.replace(student, teacher=str(tmp_path / "all"))
    done = run(student, data(), tmp_path / "t", device="cpu", progress=False)
    assert done.calibration["seen_by"] == [str(tmp_path / "all")]


@pytest.mark.parametrize(
    ("count", "classes", "expected"),
    [(20, 2, 0), (199, 2, 0), (200, 2, 20), (1000, 4, 100), (60_000 // 10, 5, MOST), (240, 6, 24), (100, 6, 0)],
)
def test_a_tenth_is_held_out_but_not_too_few(count, classes, expected):
    assert automatic_holdout(data(count, classes, 2)) == expected


def test_no_class_gives_more_than_half():
    images = data(600, 2, 2)
    rare = images.subset([*range(0, 600, 2), 1, 3, 5, *range(7, 40, 2)])
    counts = rare.labels.bincount().tolist()
    count = automatic_holdout(rare)
    assert counts == [300, 20] and count == 20  # ten of twenty
    train_holdout(rare, count)


def test_other_methods_hold_nothing_out():
    for method in ("trades", "jem", "hybvit"):
        assert with_holdout(Recipe(method), data(), "nowhere").holdout == 0
    assert with_holdout(recipe(holdout=7), data(), "nowhere").holdout == 7


def test_what_comes_after_the_last_step():
    """100 images at most, under twelve levels and each class (a student's passes have all), and 35 passes for each sample."""
    config, held = {"num_classes": 5}, recipe(holdout=300)
    assert cost_afterwards(held, config) == (100 * 12 * 5 + 8 * 35 * 5) // 3
    assert cost_afterwards(dataclasses.replace(held, holdout=40, calibrate=False), config) == 8 * 35 * 5 // 3
    student = Recipe("distill", teacher="x", train=TRAIN, holdout=300)
    assert cost_afterwards(student, config) == (100 * 12 + 8 * 35 * 5) // 6
    assert cost_afterwards(Recipe("standard", train=TRAIN), config) == 0


_RATED = {"logit_scale": 0.1, "images": 100, "negative_log_likelihood": {"before": 2.0, "after": 1.0}}
_BLIND = {"logit_scale": None, "why": "no better than chance", "images": 100}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({**_RATED, "accuracy": 0.35}, True),
        ({**_RATED, "accuracy": 0.8}, False),
        (_BLIND, True),
        ({**_BLIND, "images": 0}, False),
    ],
)
def test_a_weak_run_says_what_would_help(record, said, capsys, tmp_path):
    """Where held-out images show that it is weak; not where there were none."""
    _report(Training(tmp_path, 64, 64, 1.0, True, True, True, record))
    assert ("--batch-size 16" in capsys.readouterr().out) is said
