"""What is said beside an answer: a picture of another kind, a confidence that nobody has fitted; in classify, predict, export, report."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from rdc.cli import main
from rdc.data import load_dataset
from rdc.data.npz import save_npz
from rdc.images.kinds import unlike
from rdc.models.assets import ASSETS
from rdc.models.checkpoints import load_model
from rdc.models.descriptions import read_description
from rdc.models.zoo import load
from tests.cli.conftest import ROOT
from tests.evaluation_models import grey, images, labelled_by, save_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, uncalibrated and (``fitted``) calibrated; pictures of its kind and of others."""
    folder = tmp_path_factory.mktemp("kinds")
    for name in ("raw", "fitted"):
        (folder / name).mkdir()
        save_tiny(folder / name)
    (folder / "data").mkdir()
    classifier = load(folder / "raw" / "tiny")
    for split in ("train", "test"):
        made, rows = labelled_by(classifier, 1300, 0), torch.arange(1300)
        labels = torch.where(rows % 3 == 0, rows // 3 % 4, made.labels)  # some of every class
        save_npz(dataclasses.replace(made, labels=labels), folder / "data" / f"{split}.npz")
    words = [
        "calibrate",
        "--model",
        str(folder / "fitted" / "tiny"),
        "--data",
        str(folder / "data"),
        "--write",
        "--device",
        "cpu",
    ]
    assert main([*words, "--holdout", "300", "--n", "300", "--test-n", "20", "--out", str(folder / "out")]) == 0
    own = images(320)[5, 0].numpy()
    pictures = {
        "own": own,
        "large": np.kron(own, np.ones((5, 5), np.uint8)),
        "small": own[:3, :3],
        "wide": np.kron(own, np.ones((1, 2), np.uint8)),
        "colour": np.stack([own, own // 2, 255 - own], 2),
        "noise": 255 * (np.indices((8, 8)).sum(0) % 2).astype(np.uint8),
    }
    for name, array in pictures.items():
        Image.fromarray(np.ascontiguousarray(array)).save(folder / f"{name}.png")
    return folder


def classify(place, capsys, model, *names, json_=True):
    files = [str(place / f"{name}.png") for name in names]
    assert (
        main(
            [
                "classify",
                "--model",
                str(place / model / "tiny"),
                *(["--json"] if json_ else []),
                "--device",
                "cpu",
                *files,
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    return (json.loads(printed.out) if json_ else printed.out), printed.err


def test_size_and_colour_are_named(place, capsys):
    names = ("own", "large", "small", "wide", "colour")
    own, large, small, wide, colour = (answer["unlike"] for answer in classify(place, capsys, "raw", *names)[0])
    assert own == [] and large == ["size: 40 x 40 pixels, 5 times the model's 8 x 8"]
    assert small == ["size: 3 x 3 pixels, 3 times smaller than the model's 8 x 8"]
    assert wide == ["proportions: 16 x 8 pixels squeezed into 8 x 8"]
    assert colour == ["colour: the model knows grey pictures"]
    table, _ = classify(place, capsys, "raw", "large", json_=False)
    assert "  (of another kind? size: 40 x 40 pixels, 5 times the model's 8 x 8)" in table.splitlines()


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [
        ((28, 28), (1, 28, 28), 0), ((112, 112), (1, 28, 28), 0), ((113, 113), (1, 28, 28), 1), ((14, 14), (1, 28, 28), 0),
        ((13, 14), (1, 28, 28), 1), ((640, 480), (3, 64, 64), 1), ((24, 20), (1, 20, 24), 0), ((20, 24), (1, 20, 24), 0),
        ((4032, 1000), (3, 64, 64), 2),
    ],
)  # fmt: skip
def test_far_is_four_times_or_half(size, shape, expected):
    assert len(unlike(size, False, shape)) == expected
    assert len(unlike(size, True, shape)) == expected + (shape[0] == 1)


def test_a_likelihood_beyond_held_out_images_is_named(place, capsys):
    """With the threshold that calibration recorded; the score is that of the losses; without a record there is none."""
    answers, _ = classify(place, capsys, "fitted", "own", "noise")
    record = load_model(place / "fitted" / "tiny")[2]["calibration"]["likelihood_score"]
    own, noise = answers
    assert own["likelihood_score"]["threshold"] == record["threshold"] == noise["likelihood_score"]["threshold"]
    assert (
        own["unlike"] == []
        and own["likelihood_score"]["value"] < record["threshold"] < noise["likelihood_score"]["value"]
    )
    assert noise["unlike"][0].startswith("likelihood: score ") and "1 % of pictures" in noise["unlike"][0]
    assert "(150 held-out images)" in noise["unlike"][0]
    raw, _ = classify(place, capsys, "raw", "noise")
    assert "likelihood_score" not in raw[0] and raw[0]["unlike"] == []
    assert raw[0]["label"] == noise["label"]  # no decision changes
    table, _ = classify(place, capsys, "fitted", "noise", json_=False)
    assert "of another kind? likelihood: score" in table


def test_an_uncalibrated_confidence_is_flagged(place, capsys, tmp_path):
    for model, calibrated in (("raw", False), ("fitted", True)):
        answers, _ = classify(place, capsys, model, "own")
        assert answers[0]["calibrated"] is calibrated
        table, error = classify(place, capsys, model, "own", json_=False)
        assert error == "" and ("confidence (not calibrated)" in table.splitlines()[0]) is not calibrated
        words = [
            "evaluate",
            "--model",
            str(place / model / "tiny"),
            "--data",
            str(place / "data"),
            "--n",
            "8",
            "--attacks",
            "none",
        ]
        for more, flagged in ((), not calibrated), (("--levels", "log:2:0.5:3:flat"), True):
            out = str(tmp_path / f"{model}-{len(more)}")
            assert main([*words, *more, "--device", "cpu", "--quiet", "--out", out]) == 0
            names = {flag["name"] for flag in json.loads(open(f"{out}/report.json").read())["flags"]}
            assert ("uncalibrated-confidence" in names) is flagged
            assert ("uncalibrated-confidence" in open(f"{out}/report.html").read()) is flagged
        capsys.readouterr()


def test_a_file_says_whether_it_is_calibrated(place, capsys, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from rdc.runtime import OnnxClassifier

    for model, calibrated in (("raw", False), ("fitted", True)):
        for more in ((), ("--levels", "log:2:0.5:3:flat")):
            path = str(tmp_path / f"{model}.onnx")
            assert main(["export", str(place / model / "tiny"), path, "--no-check", "--quiet", *more]) == 0
            good = calibrated and not more
            assert ("its confidence is not calibrated" in capsys.readouterr().out) is not good
            properties = OnnxClassifier(path, provider="cpu", threads=1).properties
            assert properties["calibrated"] is good
            assert ("why" in properties["calibration"]) is not good
        assert (
            main(["predict", "--onnx", path, "--provider", "cpu", str(place / "large.png"), str(place / "own.png")])
            == 0
        )
        printed = capsys.readouterr()
        large, own = (json.loads(line) for line in printed.out.splitlines())
        assert large["calibrated"] is own["calibrated"] is False and "confidence is not calibrated" in printed.err
        assert own["unlike"] == [] and large["unlike"] == ["size: 40 x 40 pixels, 5 times the model's 8 x 8"]
    assert main(["export", str(place / "fitted" / "tiny"), path, "--no-check", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["calibrated"] is True
    record = OnnxClassifier(path, provider="cpu", threads=1).properties["calibration"]
    assert record["images"] == 300 and set(record["negative_log_likelihood"]) == {"before", "after"}


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_what_shipped_models_record(name):
    """The scale in use, of held-out images that agree with it; the levels in use; how robust it is, as the results have it."""
    info = read_description(ASSETS / f"{name}.json")["info"]
    record, evaluation = info["calibration"], info["evaluation"]
    assert record["logit_scale"] == info["classifier"]["logit_scale"] and record["images"] == 1000
    assert 0.9 < record["refitted"]["logit_scale"] / record["logit_scale"] < 1.1
    costs = record["refitted"]["negative_log_likelihood"], record["negative_log_likelihood"]["after"]
    assert costs[0] <= costs[1] < 1.01 * costs[0]
    assert record["levels"]["sigma"] == evaluation["classifier"]["levels"]["sigma"]
    assert evaluation["robust"]["ci95"][0] < evaluation["robust"]["accuracy"] < evaluation["clean"]["accuracy"]
    assert (ROOT / evaluation["from"].split(",")[0]).is_file()


def test_shipped_models_know_their_kind(capsys, tmp_path):
    """Clothes are not named as something else, noise is; other levels have no score."""
    sample = load_dataset("fashion-mnist-sample")
    for row in range(8):
        Image.fromarray(sample.images[row, 0].numpy()).save(tmp_path / f"{row}.png")
    Image.fromarray(grey((28, 28))).save(tmp_path / "noise.png")
    assert main(["classify", str(tmp_path), "--json", "--threads", "1"]) == 0
    *clothes, noise = json.loads(capsys.readouterr().out)
    assert all(answer["calibrated"] and not answer["unlike"] for answer in clothes)
    assert noise["unlike"][0].startswith("likelihood: score") and noise["likelihood_score"]["value"] > 10
    assert (
        main(["classify", str(tmp_path / "noise.png"), "--json", "--threads", "1", "--levels", "log:2:0.3:1:flat"]) == 0
    )
    (other,) = json.loads(capsys.readouterr().out)
    assert other["calibrated"] is False and "likelihood_score" not in other and not other["unlike"]
