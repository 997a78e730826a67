import json

import numpy as np
import pytest
import torch
from PIL import Image

from rdc.cli import main
from rdc.data import Dataset, load_dataset, train_holdout
from rdc.data.npz import save_npz
from rdc.models.checkpoints import load_model, save_model
from rdc.models.zoo import load
from rdc.training.preparation import fingerprint, held_out_of
from tests.evaluation_models import NAMES, labelled_by, save_tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(--model, --data, folder): a tiny model, and images most of whose labels are its decisions."""
    folder = tmp_path_factory.mktemp("calibrate")
    model, _ = save_tiny(folder)
    classifier = load(model)
    (folder / "data").mkdir()
    for split, count in (("train", 300), ("test", 60)):
        made = labelled_by(classifier, count, 0)
        labels = torch.where(torch.arange(count) % 3 == 0, torch.arange(count) // 3 % len(NAMES), made.labels)
        save_npz(Dataset(made.images, labels, NAMES, "blobs", split), folder / "data" / f"{split}.npz")
    other = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)  # another size, in colour
    np.savez(folder / "noise.npz", images=other, labels=np.zeros(40, np.int64))
    return model, str(folder / "data"), folder


def calibrate(trained, out, *more):
    model, data, _ = trained
    options = ["--holdout", "60", "--n", "50", "--test-n", "40", "--bins", "5", "--device", "cpu", *more]
    return main(["calibrate", "--model", model, "--data", data, "--out", str(out), *options])


def test_calibrate(trained, tmp_path, capsys):
    assert calibrate(trained, tmp_path, "--ood", str(trained[2] / "noise.npz"), "--ood-n", "30", "--risk", "0.5") == 0
    result = json.loads((tmp_path / "calibration.json").read_text())
    assert result["fitted_on"] == 50 and result["tested_on"] == 40 and sum(result["reliability"]["count"]) == 40
    assert result["logit_scale"]["before"] == 1.0 > result["logit_scale"]["fitted"] > 0
    assert result["cross_entropy"]["fitted"] < result["cross_entropy"]["before"]
    assert result["risk_coverage"]["coverage"][-1] == 1 and result["risk_coverage"]["risk"][-1] == pytest.approx(
        1 - result["accuracy"]
    )
    assert set(result["log_losses"]) == {"scale", "cross_entropy", "ece"} and result["log_losses"]["scale"] > 0
    kind = result["ood"]["kinds"]["noise"]
    assert kind["images"] == 30 and set(kind["auroc"]) == {"loss", "loss given complexity", "levels given complexity"}
    assert all(0 <= value <= 1 for value in kind["auroc"].values())
    for name in ("reliability", "risk_coverage", "scores"):
        assert min(Image.open(tmp_path / f"{name}.png").size) > 300
    said = capsys.readouterr().out
    assert "calibration error" in said and "AUROC against noise" in said


def test_score_under_attack(trained, tmp_path, capsys):
    """Attacked images of the other kind look more alike, attacked test images less; the box and the radius bind."""
    attack = ["--ood-eps", "16/255", "--ood-steps", "5", "--ood-attack-n", "20"]
    assert calibrate(trained, tmp_path, "--ood", str(trained[2] / "noise.npz"), "--ood-n", "30", *attack) == 0
    ood = json.loads((tmp_path / "calibration.json").read_text())["ood"]
    assert ood["attack"] == {"norm": "linf", "eps": "16/255", "steps": 5, "images": 20}
    found = ood["kinds"]["noise"]
    clean = found["auroc"]["levels given complexity"]
    assert found["under_attack"]["images"] == 20
    assert found["under_attack"]["test images made to fail"] < clean
    assert found["under_attack"]["made to pass"] <= clean
    assert "its score under attack: made to pass" in capsys.readouterr().out


def copied(trained, folder):
    """A checkpoint of one's own: its description may be written."""
    network, config, info = load_model(trained[0])
    save_model(folder / "mine", network, config, info)
    return str(folder / "mine"), *trained[1:]


def fitted_in(out):
    return json.loads((out / "calibration.json").read_text())["logit_scale"]["fitted"]


def test_write(trained, tmp_path, capsys):
    mine = copied(trained, tmp_path)
    assert calibrate(mine, tmp_path / "out", "--write") == 0
    fitted = fitted_in(tmp_path / "out")
    assert load_model(mine[0])[2]["classifier"] == {"levels": "log:3:0.5:3:flat", "logit_scale": fitted}
    assert load(mine[0]).scale == fitted
    said = capsys.readouterr().out
    assert f"written into {mine[0]}.json: logit scale {fitted:.4g}\n" in said
    assert f"written to {tmp_path / 'out'}: calibration.json, reliability.png, risk_coverage.png\n" in said


@pytest.mark.parametrize("kind", ["text", "file", "name"])
def test_levels_become_the_checkpoints_own(trained, tmp_path, capsys, kind):
    mine = copied(trained, tmp_path)
    levels = {"text": "log:2:1:3:eps", "file": str(tmp_path / "levels.json"), "name": "edm"}[kind]
    (tmp_path / "levels.json").write_text('{"sigma": [1.0, 2.0], "weight": [3, 1]}')
    before = load_model(mine[0])[0].state_dict()
    assert calibrate(mine, tmp_path / "out", "--write", "--levels", levels) == 0
    classifier = load(mine[0])
    (tmp_path / "levels.json").unlink()  # what it said is in the checkpoint
    assert load(mine[0]).levels == classifier.levels == load(mine[0], levels=classifier.levels).levels
    assert len(classifier.levels) == {"text": 2, "file": 2, "name": 125}[kind]
    assert classifier.levels.weight[0] == {"file": 0.75}.get(kind, classifier.levels.weight[0])
    assert classifier.scale == fitted_in(tmp_path / "out")
    assert f"written into {mine[0]}.json: levels {levels}, logit scale " in capsys.readouterr().out
    after = load_model(mine[0])[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_printed(trained, tmp_path, capsys):
    assert calibrate(trained, tmp_path / "out", "--quiet") == 0
    quiet = capsys.readouterr()
    assert "calibration error" in quiet.out and "written" not in quiet.out and quiet.err == ""
    assert calibrate(trained, tmp_path / "out", "--json", "--n", "all", "--test-n", "all") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found == json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert found["fitted_on"] == 60 == found["tested_on"]
    assert "--write puts this one into a checkpoint" in printed.err


def test_all_held_out_images_right(trained, tmp_path, capsys):
    """No scale is best then; the one taken is that of the accuracy to be expected after 60 of 60."""
    model, _, folder = trained
    made = labelled_by(load(model), 300, 0)
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        data = Dataset(made.images, made.labels, NAMES, "blobs", split)
        save_npz(data, tmp_path / "data" / f"{split}.npz")
    options = ["--holdout", "60", "--n", "all", "--test-n", "40", "--device", "cpu", "--risk", "0.5"]
    words = ["calibrate", "--model", model, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *options]
    assert main(words) == 0
    result = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert result["all_held_out_right"] is True and result["accuracy"] == 1
    assert (
        "all 60 held-out images are classified right: no scale fits best, and the one taken makes their mean confidence 98.4 %"
        in capsys.readouterr().out
    )
    rows = result["reliability"]
    assert 0.95 < sum(m * n for m, n in zip(rows["confidence"], rows["count"], strict=True)) / 40 < 1


def test_refusals(trained, tmp_path, capsys):
    assert calibrate(trained, tmp_path, "--write", "--lm", "paper-v2") == 2
    assert "leave --lm out" in capsys.readouterr().err
    words = ["calibrate", "--data", trained[1], "--out", str(tmp_path), "--write", "--model"]
    for model, kind in (("fashion-mnist", "a shipped model"), ("no-such-model", "none")):  # before anything is loaded
        assert main([*words, model]) == 2 and f"{model} is {kind}" in capsys.readouterr().err
    assert calibrate(trained, tmp_path, "--ood-eps", "8/255") == 2
    assert "name their files with --ood" in capsys.readouterr().err
    assert calibrate(trained, tmp_path, "--ood", str(trained[2] / "noise.npz"), "--ood-eps", "eight") == 2
    assert "8/255" in capsys.readouterr().err
    arguments = ["calibrate", "--model", "fashion-mnist-standard", "--data", trained[1], "--out", str(tmp_path)]
    assert main(arguments) == 2 and "expected a diffusion classifier" in capsys.readouterr().err


def test_the_hold_out_is_what_training_left_out(trained, tmp_path, capsys):
    """A run's folder says how many images it left out; others it has seen, and they tell nothing of calibration."""
    network, config, info = load_model(trained[0])
    data = load_dataset(trained[1], "train")

    def run(holdout, *more):
        save_model(tmp_path / "run/model", network, config, info)
        rest = train_holdout(data, holdout)[0] if holdout else data
        about = {"holdout": holdout, "data": {"crc32": fingerprint(rest.images, rest.labels)}}
        (tmp_path / "run/config.json").write_text(json.dumps(about))
        options = ["--model", str(tmp_path / "run"), "--data", trained[1], "--out", str(tmp_path / "out"), *more]
        status = main(["calibrate", *options, "--device", "cpu", "--test-n", "20"])
        return status, capsys.readouterr().err

    assert run(48)[0] == 0
    assert json.loads((tmp_path / "out/calibration.json").read_text())["fitted_on"] == 48
    assert run(48, "--holdout", "24")[0] == 0  # part of the other
    status, said = run(48, "--holdout", "60")
    assert status == 2 and "--holdout: expected at most 48 images" in said and said.count("\n") == 1
    status, said = run(0)
    assert status == 2 and "expected at most 0 images" in said and "Train with --holdout N" in said
    assert held_out_of(tmp_path / "run", load_dataset(trained[1], "test")) is None
    (tmp_path / "run/config.json").write_text('{"holdout": "all", "data": []}')
    assert held_out_of(tmp_path / "run", data) is None is held_out_of(tmp_path, data)


def test_what_cannot_work_is_said_before_the_work(trained, tmp_path, capsys, monkeypatch):
    """Files of other kinds are read first, and nothing is written."""
    folder = trained[2]
    np.savez(tmp_path / "noise.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.zeros(3, int))
    np.savez(tmp_path / "none.npz", images=np.zeros((0, 8, 8), np.uint8), labels=np.zeros(0, int))
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        images = np.zeros((600, 8, 8), np.uint8)
        np.savez(tmp_path / "data" / f"{split}.npz", images=images, labels=np.arange(600) % 6)
    monkeypatch.setattr("rdc.decisions.held_out.level_losses", None)
    model, _, _ = trained
    for more, words in (
        (["--ood", "missing.npz"], "missing.npz"),
        (["--ood", str(folder / "noise.npz"), str(tmp_path / "noise.npz")], "got noise twice"),
        (["--ood", str(tmp_path / "none.npz")], "none.npz has no images"),
        (["--ood", str(folder / "noise.npz"), "--n", "20"], "at least 24 images to fit on for 3 levels; got 20"),
        (
            ["--data", str(tmp_path / "data")],
            "of the model's 4 classes; the train-holdout split of data has the label 5",
        ),
    ):
        assert calibrate(trained, tmp_path / "out", *more) == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_overflow_is_said(trained, tmp_path, capsys):
    network, config, info = load_model(trained[0])
    for parameter in network.parameters():
        parameter.data.mul_(9e7 / parameter.data.abs().max().clamp(min=1e-9))
    save_model(tmp_path / "wild", network, config, info)
    assert calibrate((str(tmp_path / "wild"), trained[1], None), tmp_path / "out") == 2
    assert "50 of 50 images (held-out) have NaN or infinity" in capsys.readouterr().err
