"""A model's measures as records: every file of a real comparison is read and written letter by letter, and damage is named."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rdc.gradient_analysis import GradientSettings, NamedModel, compare_models
from rdc.gradient_analysis.records import ComparisonReport, Measures, ModelPart
from tests.evaluation_models import gaussian_classifier, labelled_by


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = gaussian_classifier(lm="paper-v2,steps=1")
    settings = GradientSettings("blobs", n=3, draws=2, samples=1, ascent_steps=1, steps=2, slices=2, grid=3)
    out = tmp_path_factory.mktemp("gradients") / "run"
    compare_models([NamedModel("a b", "a", model)], labelled_by(model, 3, 1), settings, out, progress=False)
    return out


def read(path):
    value = json.loads(path.read_text())
    value.pop("digest", None)
    return value


def part_of(folder):
    return read(next((folder / "models").glob("*.json")))


def test_every_file_is_read_and_written_letter_by_letter(folder):
    report, part = read(folder / "gradients.json"), part_of(folder)
    assert json.dumps(ComparisonReport.from_json(report, "report").to_json()) == json.dumps(report)
    assert json.dumps(ModelPart.from_json(part, "model").to_json()) == json.dumps(part)
    compared, kept = ComparisonReport.from_json(report, "report").models[0], ModelPart.from_json(part, "model")
    assert compared.measures == kept.measures and not kept.measures.further
    assert (compared.label, compared.commit, compared.classifier) == (kept.label, kept.commit, kept.identity.classifier)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": 3}, "model.label: expected a text; got 3"),
        ({"accuracy": 1.5}, "model.accuracy: expected a number >= 0 and <= 1; got 1.5"),
        ({"summary": {"x": {"n": 1}}}, "model.summary.x: undefined is missing"),
        ({"images": [{}]}, r"model.images\[0\]: image is missing"),
        ({"path": {"loss": {"mean": ["x"], "q25": [], "q75": []}}}, r"model.path.loss.mean\[0\]: expected a number"),
        ({"identity": {"classifier": None}}, "model.identity: text is missing"),
    ],
)
def test_what_is_wrong_is_named(folder, change, words):
    with pytest.raises(ValueError, match=words):
        ModelPart.from_json({**part_of(folder), **change}, "model")


def test_measures_are_of_one_number_of_images(folder):
    measures = ModelPart.from_json(part_of(folder), "model").measures
    assert measures.of_one_number_of_images
    fewer = {**measures.per_image, "gradient.norm_l2": [1.0]}
    assert not dataclasses.replace(measures, per_image=fewer).of_one_number_of_images
    one, two = measures.slices
    assert not dataclasses.replace(measures, slices=(one, two, one, two)).of_one_number_of_images
    assert Measures.from_json(measures.to_json(), "measures") == measures
