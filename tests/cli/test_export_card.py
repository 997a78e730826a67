"""`rdc export --evaluation RUN`: the accuracy under attack of a finished run goes into the file that is exported from the same weights."""

import json

import onnx

from rdc.cli import main
from rdc.models.checkpoints import save_model
from rdc.networks.presets import build_network
from rdc.runtime import OnnxClassifier
from tests.evaluation_models import TINY
from tests.tiny_models import randomize


def export(place, out, *more, model="tiny"):
    return main(["export", str(place / model), str(out), "--no-check", "--quiet", *map(str, more)])


def test_of_the_same_weights(place, tmp_path):
    assert export(place, tmp_path / "a.onnx", "--evaluation", place / "run") == 0
    report = json.loads((place / "run/report.json").read_text())
    card = OnnxClassifier(tmp_path / "a.onnx").card
    found = card["accuracy"]
    assert (found["clean"], found["robust"], found["n"]) == (report["clean"], report["robust"], 4)
    assert (
        found["norm"] == "linf"
        and found["attacks"] == ["apgd-ce, 2 steps, noise known"]
        and "blobs" in found["dataset"]
    )
    assert "under attack (linf 0.01569: apgd-ce, 2 steps, noise known)" in onnx.load(tmp_path / "a.onnx").doc_string
    assert export(place, tmp_path / "b.onnx", "--evaluation", place / "run", "--lm", "paper-v2,steps=1") == 0
    assert "accuracy" not in OnnxClassifier(tmp_path / "b.onnx").card  # of other settings


def test_of_others_it_is_refused(place, tmp_path, capsys):
    save_model(tmp_path / "other", randomize(build_network(TINY), seed=2), TINY, {})
    for folder, said in (
        (place / "run", "expected a run of the same weights"),
        (tmp_path, "there is no run.json in it"),
    ):
        assert main(["export", str(tmp_path / "other"), str(tmp_path / "c.onnx"), "--evaluation", str(folder)]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "c.onnx").exists()
