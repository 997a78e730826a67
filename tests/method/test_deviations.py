"""Versions of the paper by name: what each sets, and what is said of a classifier that differs."""

import dataclasses

import pytest

from rdc.arguments.paper_presets import PAPER_PRESETS, PaperPreset, paper_preset
from rdc.errors import ConfigError
from rdc.method.deviations import deviations
from rdc.method.levels import LEVEL_PRESETS, parse_levels
from rdc.method.likelihood_maximization import LM_PRESETS, resolve_lm
from tests.evaluation_models import gaussian_classifier

OWN_NETWORK = "likelihood maximisation: by the classifier's own network without a label"


def described(preset: PaperPreset, **changes):
    settings = {"levels": preset.levels, "lm": preset.lm, **changes}
    return gaussian_classifier(**settings).describe()


def test_names_are_those_of_levels_and_of_likelihood_maximisation():
    for name, preset in PAPER_PRESETS.items():
        assert preset.name == name == paper_preset(name).name
        assert preset.levels in LEVEL_PRESETS and preset.lm in LM_PRESETS
        assert preset.noise == ("known" if name == "released" else "fresh")


def test_the_presets_are_the_versions_of_the_paper():
    """shared/method.md, sections 2 and 3."""
    assert [preset.levels for preset in PAPER_PRESETS.values()] == ["edm", "edm", "rdc-released"]
    assert [preset.lm for preset in PAPER_PRESETS.values()] == list(PAPER_PRESETS)


@pytest.mark.parametrize("wrong", ["paper", "", None, 3])
def test_an_unknown_preset_is_refused(wrong):
    with pytest.raises(ConfigError, match="preset: expected one of paper-v1, paper-v2, released; got"):
        paper_preset(wrong)


@pytest.mark.parametrize("preset", PAPER_PRESETS.values(), ids=PAPER_PRESETS)
def test_the_preset_as_it_stands_lacks_the_second_network_alone(preset):
    (found,) = deviations(preset, described(preset), preset.noise)
    assert found.startswith(OWN_NETWORK) and "--lm-model" in found
    two = {**described(preset), "lm_network": {"head": "unconditional"}}
    assert deviations(preset, two, preset.noise) == ()


ALL_125 = "125 (systematic, sigma 0.0001 to 2.98)"
LM = "likelihood maximisation"
TWO = "log:2:0.5:1:flat"
EQUAL = dataclasses.replace(parse_levels("edm"), weight=(1.0,) * 125)


@pytest.mark.parametrize(
    ("changes", "noise", "expected"),
    [
        ({"levels": TWO}, "fresh", [f"levels: 2 (log, sigma 0.5 to 1) in place of {ALL_125}", "weighting: flat in place of edm"]),
        ({"levels": "rdc-released"}, "fresh", ["weighting: rdc-released in place of edm"]),
        ({"levels": EQUAL}, "fresh", ["weighting: not the weights of edm"]),
        ({"lm": "paper-v2,steps=10"}, "fresh", [f"{LM}, steps: 10 in place of 5"]),
        ({"lm": "paper-v2,eta=none"}, "fresh", [f"{LM}, eta: none in place of 0.03137"]),
        ({"lm": "paper-v2,sign=true"}, "fresh", [f"{LM}, sign: true in place of false"]),
        ({"lm": "paper-v2,sigma_range=0.4:1"}, "fresh", [f"{LM}, sigma_range: 0.4 to 1 in place of 0.4 to 0.6"]),
        ({"lm": f"paper-v2,levels={TWO}"}, "fresh", [f"{LM}, levels: 2 (log, sigma 0.5 to 1) in place of none"]),
        ({"lm": None}, "fresh", [f"{LM}: none in place of paper-v2"]),
        ({}, "known", ["noise: known in place of fresh"]),
        ({}, "all", ["noise: all in place of fresh"]),
    ],
)  # fmt: skip
def test_every_deviation_is_named(changes, noise, expected):
    preset = PAPER_PRESETS["paper-v2"]
    found = deviations(preset, described(preset, **changes), noise)
    assert [text for text in found if not text.startswith(OWN_NETWORK)] == expected


def test_a_name_that_says_more_than_the_settings_is_no_deviation():
    preset = PAPER_PRESETS["paper-v1"]
    same = dataclasses.replace(resolve_lm("paper-v1"), name="mine")
    assert len(deviations(preset, described(preset, lm=same), "fresh")) == 1


def test_a_classifier_without_levels_differs_in_everything():
    about = {"levels": None, "weighting": None, "lm": None, "noise": "none", "head": "discriminative"}
    found = deviations(PAPER_PRESETS["released"], about, "known")
    assert [text.split(":")[0] for text in found] == ["levels", "likelihood maximisation", "network"]
