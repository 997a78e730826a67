"""Attacks in bfloat16, decisions in float32: whose passes they are, what the folder says, and that nothing is decided in 16 bits."""

import json

import pytest
import torch

from rdc.data import Dataset
from rdc.defences import as_defence
from rdc.errors import ConfigError
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.evaluation.attacking import Bench
from rdc.evaluation.cost.calls import Call, plan_calls
from rdc.evaluation.cost.timing import CallTimes
from rdc.evaluation.records import SettingsRecord
from rdc.evaluation.shards import settings_of
from rdc.reports.words import wording
from rdc.storage.sealed import read_sealed
from tests.tiny_models import tiny_classifier


def settings(**changes):
    values = {
        "model": "t",
        "dataset": "d",
        "n": 8,
        "batch": 8,
        "eps": "16/255",
        "steps": 4,
        "attacks": ("apgd-ce",),
        "sanity": 0,
    }
    return EvaluationSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def classifier():
    return tiny_classifier("multihead", levels="log:2:0.5:1:flat", class_names=("a", "b", "c"))


def data(classifier):
    pixels = torch.randint(
        0, 256, (8, *classifier.image_shape), generator=torch.Generator().manual_seed(2), dtype=torch.uint8
    )
    with torch.no_grad():
        labels = classifier(pixels.float() / 255).argmax(1)
    return Dataset(pixels, labels, classifier.class_names, "noise", "test")


def test_gradients_in_bfloat16_decisions_in_float32(classifier, tmp_path):
    seen = []

    def counted(bench, gradient=None, rounded=False, made=Bench.model):
        found = made(bench, gradient, rounded)
        seen.append((rounded, found.describe()["precision"]))
        return found

    images = data(classifier)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "model", counted)
        run = evaluate(classifier, images, settings(attack_precision="bfloat16"), tmp_path / "run", progress=False)
    assert set(seen) == {(False, "float32"), (True, "bfloat16")}
    with torch.no_grad():
        right = classifier(torch.from_numpy(run.x_adv)).argmax(1) == images.labels
    assert [record.robust for record in run.records] == right.tolist() and not right.all()
    assert run.record.identity.classifier["precision"] == "float32"
    assert run.settings["attack_precision"] == "bfloat16" and settings_of(run.record.identity.settings) == settings(
        attack_precision="bfloat16"
    )
    assert "exact gradient in bfloat16, decisions in float32" in wording(run).threat
    again = evaluate(classifier, images, settings(attack_precision="bfloat16"), tmp_path / "run", progress=False)
    assert again.images == run.images
    with pytest.raises(ConfigError, match='attack_precision: "bfloat16" there, null now'):
        evaluate(classifier, images, settings(), tmp_path / "run", progress=False)


def test_every_kind_of_attack_and_its_cost(classifier, tmp_path):
    """Surrogates, penalties and draws are those of the copy that gives gradients; the plan needs no such copy."""
    moved, few = (
        classifier.with_(lm="paper-v2,steps=1"),
        {"eps": "0.1/255", "n": 2, "batch": 2, "steps": 2, "attack_precision": "bfloat16"},
    )
    for model, attacks, noise in (
        (moved, ("transfer:surrogate=plain", "lagrange:searches=1", "square:queries=2"), "known"),
        (classifier, ("selective:draws=2",), "fresh"),
    ):
        chosen = settings(attacks=attacks, noise=noise, resubmissions=2, **few)
        run = evaluate(model, data(model), chosen, tmp_path / noise, progress=False)
        assert [attack.attacked > 0 for attack in run.figures.attacks] == [True] * len(attacks)
    assert (
        plan_calls(classifier, settings(**few), 2, 2).calls
        == plan_calls(classifier, settings(n=2, batch=2, steps=2), 2, 2).calls
    )
    kind, pixels = Call("model", 1, "exact", 2), torch.rand(2, *classifier.image_shape)
    times = CallTimes(classifier, pixels, torch.zeros(2, dtype=torch.int64), "bfloat16")
    slopes = [times._work(model, kind, 2)() for model in (classifier, classifier.with_(precision="bfloat16"))]
    assert torch.equal(*slopes) and not torch.equal(
        slopes[0], CallTimes(classifier, pixels, pixels)._work(classifier, kind, 2)()
    )


def test_without_it_folders_say_nothing_of_it(classifier, tmp_path):
    run = evaluate(classifier, data(classifier), settings(), tmp_path / "run", progress=False)
    content, _ = read_sealed(tmp_path / "run" / "run.json", advice="")
    assert "attack_precision" not in json.dumps(content) and "bfloat16" not in wording(run).threat
    record = SettingsRecord.from_json(content["identity"]["settings"], "settings")
    assert settings_of(record).attack_precision is None


def test_who_has_no_such_setting(tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 3))
    tiny = tiny_classifier("multihead", class_names=("a", "b", "c"))
    plain = as_defence(net, torch.zeros(2, *tiny.image_shape))
    with pytest.raises(ConfigError, match=r"attack_precision: expected a diffusion classifier.*Leave it out"):
        evaluate(plain, labelled(plain), settings(attack_precision="bfloat16"), tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="attack_precision: expected one of float32, bfloat16; got 'float16'"):
        settings(attack_precision="float16")
    assert settings(attacks=(), attack_precision="bfloat16").attack_precision is None  # nothing attacks


def labelled(model):
    pixels = torch.zeros(8, *model.image_shape, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(8)
    return Dataset(pixels, torch.arange(8) % 3, model.class_names, "zeros", "test")
