"""A perceptual threat in an evaluation: which network measures, what the folder and the report say of it, what is refused."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from torch import nn

import rdc
from rdc.attacks.perceptual_distance import FeatureDistance
from rdc.cli import evaluate as command
from rdc.cli.evaluation_request import read_request
from rdc.data import load_dataset
from rdc.errors import ConfigError, InputError
from rdc.evaluation import EvaluationSettings, evaluate, parse_threats, settings_of_threats
from rdc.evaluation.shards import settings_of
from rdc.models.perceptual import feature_distance
from rdc.provenance.run import weights_digest
from rdc.reports import write_reports
from rdc.reports.words import network_words, wording
from rdc.storage.sealed import read_sealed
from tests.tiny_models import tiny_classifier

MEASURE = "fashion-mnist-standard"


def settings(**changes):
    base = {
        "model": "fashion-mnist-trades",
        "dataset": "d",
        "n": 6,
        "batch": 3,
        "norm": "lpips",
        "eps": "0.5",
        "steps": 5,
        "sanity": 0,
    }
    return EvaluationSettings(**{**base, "attacks": ("ppgd", "lpa"), "lpips_model": MEASURE, **changes})


@pytest.fixture(scope="module")
def model():
    return rdc.load("fashion-mnist-trades", device="cpu")


@pytest.fixture(scope="module")
def images():
    return load_dataset("fashion-mnist-sample").subset(range(6))


def read(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return read_request(argparse.Namespace(**vars(parser.parse_args([*words])), argv=[*words]))


def test_the_run_names_the_network_that_measures_and_goes_on_with_that_alone(model, images, tmp_path):
    run = evaluate(model, images, settings(), tmp_path / "run", progress=False)
    measured = feature_distance(MEASURE)
    assert bool((measured(torch.as_tensor(run.x_adv), images.pixels(slice(0, 6))) <= 0.5).all())
    assert run.figures.robust.accuracy < run.figures.clean.accuracy
    found = run.record.identity.networks[-1]
    assert (found.role, found.name, found.null_label) == ("perceptual distance", MEASURE, None)
    assert found.weights == weights_digest(rdc.load(MEASURE, device="cpu").model)
    assert any(line.startswith("perceptual distance: fashion-mnist-standard") for line in network_words(run.figures))
    assert wording(run).threat.startswith("LPIPS 0.5 by fashion-mnist-standard, exact gradient")
    page = write_reports(run, model)["report.html"].read_text()
    assert "free to change an image by LPIPS 0.5 by fashion-mnist-standard. The attacker" in page
    content, _ = read_sealed(tmp_path / "run" / "run.json", advice="")
    assert content["identity"]["settings"]["lpips_model"] == MEASURE
    assert settings_of(run.record.identity.settings) == settings()
    again = evaluate(model, images, settings(), tmp_path / "run", progress=False)
    assert torch.equal(torch.as_tensor(again.x_adv), torch.as_tensor(run.x_adv))
    with pytest.raises(ConfigError, match='lpips_model: "fashion-mnist-standard" there, "fashion-mnist-trades" now'):
        evaluate(model, images, settings(lpips_model="fashion-mnist-trades"), tmp_path / "run", progress=False)


def test_other_runs_say_nothing_of_it(model, images, tmp_path):
    linf = settings(norm="linf", eps="1/255", attacks=("apgd-ce",), steps=1, lpips_model=None, n=3)
    run = evaluate(model, images.subset(range(3)), linf, tmp_path / "run", progress=False)
    assert (
        "lpips" not in json.dumps(read_sealed(tmp_path / "run" / "run.json", advice=""))
        and len(run.record.identity.networks) == 1
    )


def test_one_of_several_threats():
    base = settings(norm="linf", eps="8/255", attacks=("apgd-ce",))
    found = settings_of_threats(base, ("apgd-ce", "autoattack"), parse_threats("linf:8/255,lpips:0.25"))
    assert [one.attacks for one in found] == [("apgd-ce", *found[0].attacks[1:]), ("ppgd", "lpa")]
    assert found[1].threat.norm == "lpips" and found[1].threat.eps == 0.25


def test_the_front_door_takes_it(images):
    module = rdc.load("fashion-mnist-trades", device="cpu").model
    x, y = images.pixels(slice(0, 4)), images.labels[:4]
    found = rdc.attack(module, x, y, eps=0.3, norm="lpips", attacks="lpa", steps=4, lpips_model=MEASURE)
    assert bool((feature_distance(module)(x, x) == 0).all())
    assert bool((feature_distance(MEASURE)(torch.as_tensor(found.adversarial), x) <= 0.3).all())


def test_the_option_of_the_command():
    request = read("--norm", "lpips", "--eps", "0.5", "--lpips-model", MEASURE, "--attacks", "lpa")
    assert request.settings.lpips_model == MEASURE and request.settings.attacks == ("lpa",)
    several = read("--threats", "linf:8/255,lpips:0.5", "--lpips-model", MEASURE)
    assert several.settings.lpips_model == MEASURE
    with pytest.raises(ConfigError, match="--lpips-model: expected the threat lpips with it; got linf. Leave it out"):
        read("--lpips-model", MEASURE)
    for words in (("--norm", "lpips", "--eps", "0.5", "--attacks", "lpa"), ("--threats", "linf:8/255,lpips:0.5")):
        with pytest.raises(
            ConfigError, match=r"norm lpips: expected the classifier .* \(--lpips-model\), such as fashion-mnist"
        ):
            read(*words)


def test_what_measures_nothing_is_refused(tmp_path):
    for eps in ("-1", "nan", "wide"):
        with pytest.raises(ConfigError, match="eps"):
            settings(eps=eps)
    with pytest.raises(ConfigError, match="apgd-ce attacks in linf, l2, l1, not in lpips. Leave it out"):
        settings(attacks=("apgd-ce",)).for_defence(tiny_classifier("multihead"))
    with pytest.raises(ConfigError, match="lpips_model: expected text"):
        settings(lpips_model=3)
    for model in ("fashion-mnist", "fashion-mnist-diffpure", 3, tiny_classifier("multihead"), None, lambda x: x):
        with pytest.raises(
            ConfigError, match="lpips_model: expected a convolutional classifier, such as fashion-mnist-standard"
        ):
            feature_distance(model)
    with pytest.raises(InputError, match="expected layers of rectified images"):
        feature_distance(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))(
            torch.zeros(1, 1, 28, 28), torch.zeros(1, 1, 28, 28)
        )
    (tmp_path / "net.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ConfigError, match="whose code is not run for this"):
        feature_distance(f"{tmp_path / 'net.py'}:make")
    with pytest.raises(InputError, match=r"fashion-mnist-standard: it takes images 1 x 28 x 28; these are 3 x 32 x 32"):
        feature_distance(MEASURE)(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    given = FeatureDistance(lambda z: [z], "pixels")
    assert feature_distance(given) is given
