"""What is printed of a run: the table for a terminal, and that the other two forms are the files' content."""

import argparse
import json
import re

import pytest

from rdc.cli import evaluate as command
from rdc.errors import ConfigError
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.reports import FORMS, present, text_report
from rdc.reports.words import interval, percent, seconds_words, wording
from tests.evaluation_models import gaussian_classifier, labelled_by


def finished(folder, **changes):
    classifier = gaussian_classifier()
    settings = EvaluationSettings("gaussian", "blobs", **{"n": 8, "eps": "4/255", "steps": 3, **changes})
    return evaluate(classifier, labelled_by(classifier), settings, folder, progress=False), classifier


@pytest.fixture(scope="module")
def stochastic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "stochastic"
    changes = {"attacks": ("apgd-ce", "square:queries=2"), "noise": "all", "eot": 2, "resubmissions": 3, "restarts": 2}
    return finished(folder, start=4, **changes)


def test_the_table_has_a_row_for_every_figure(stochastic):
    evaluation, _ = stochastic
    report, lines = evaluation.figures, text_report(evaluation).splitlines()
    assert lines[0] == "gaussian on blobs, images 4 to 11 of the test split"
    assert lines[1].endswith("likelihood maximisation: none") and wording(evaluation).levels in lines[1]
    assert lines[2].startswith(
        "l∞ 4/255, exact gradient, known noise, then fresh noise, EOT 2, worst of 3; 3 steps, 2 restarts;"
    )
    assert lines[4].split() == ["accuracy", "95", "%", "interval"]
    table = [re.split(" {2,}", line.strip()) for line in lines[5 : lines.index("", 5)]]
    attacked = [f"after {attack.name}" for attack in report.attacks]
    scored = ["known noise", "average of draws", "majority of 3", "worst of 3"]
    assert [name for name, *_ in table] == ["clean", *attacked, "robust to all", *scored]
    shown = {name: figures for name, *figures in table}
    figures = {"clean": report.clean, "robust to all": report.robust, "worst of 3": report.scores.worst}
    for name, figure in figures.items():
        assert shown[name] == [percent(figure.accuracy), interval(figure.ci95)]
    assert [row[3] for row in table[1 : 1 + len(attacked)]] == [seconds_words(a.seconds) for a in report.attacks]
    assert [line.strip().split(" (")[0] for line in lines[lines.index("", 5) + 1 :]] == [
        f"{flag.severity}: {flag.name}" for flag in report.flags
    ]


def test_nothing_is_said_of_attacks_where_there_were_none(tmp_path):
    text = text_report(finished(tmp_path / "run", attacks=())[0])
    assert "clean" in text and text.endswith("\n") and not text.endswith("\n\n")
    assert not any(word in text for word in ("robust", "steps", "no-attack"))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_printed_is_what_is_written(stochastic, form):
    shown = present(*stochastic, form)
    folder = stochastic[0].out
    assert shown.page == folder / "report.html" and shown.page.is_file()
    expected = {
        "text": text_report(stochastic[0]) + "\n",
        "json": (folder / "report.json").read_text(),
        "markdown": (folder / "report.md").read_text(),
    }
    assert shown.text == expected[form]


def test_another_form_is_refused_before_anything_is_written(tmp_path):
    evaluation, classifier = finished(tmp_path / "run", attacks=())
    with pytest.raises(ConfigError, match="format: expected one of text, json, markdown; got 'yaml'"):
        present(evaluation, classifier, "yaml")
    assert not (evaluation.out / "report.html").exists()


def test_the_command_offers_these_forms():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    (choices,) = [action.choices for action in parser._actions if action.dest == "format" and action.choices]
    assert tuple(choices) == FORMS


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "gaussian-blobs-64-linf-8-255-exact-known"),
        ({"attacks": (), "n": 3}, "gaussian-blobs-3-clean"),
        ({"model": "runs/a b", "norm": "l2", "eps": 0.5, "noise": "all"}, "a-b-blobs-64-l2-0.5-exact-all"),
        ({"dataset": "/data/über.npz", "gradient": "bpda"}, "gaussian-über.npz-64-linf-8-255-bpda-known"),
    ],
)
def test_the_folder_of_a_run_that_was_given_none(changes, name):
    settings = EvaluationSettings(**{"model": "gaussian", "dataset": "blobs", "n": 64, **changes})
    assert settings.default_folder.as_posix() == f"runs/{name}"


def test_the_preset_and_every_deviation_are_named(tmp_path):
    evaluation, classifier = finished(tmp_path / "run", attacks=(), preset="released")
    deviations = evaluation.figures.preset.deviations
    assert len(deviations) == 3 and deviations[2] == "likelihood maximisation: none in place of released"
    lines = text_report(evaluation).splitlines()
    assert lines[2:6] == ["preset released, but for", *(f"  {text}" for text in deviations)]
    words = f"released, but for {'; '.join(deviations)}"
    assert wording(evaluation).preset == words
    assert f"Preset: {words}" in present(evaluation, classifier, "markdown").text
    assert words in (evaluation.out / "report.html").read_text()
    assert f"Preset: {words}." in json.loads((evaluation.out / "model_info.json").read_text())["footnote"]
    assert evaluation.report["preset"] == {"name": "released", "deviations": list(deviations)}


def test_without_a_preset_no_file_names_one(tmp_path):
    evaluation, classifier = finished(tmp_path / "run", attacks=())
    present(evaluation, classifier, "text")
    assert wording(evaluation).preset == "" and "preset" not in evaluation.report
    for file in ("run.json", "report.json", "report.md", "report.html", "model_info.json"):
        assert "preset" not in (evaluation.out / file).read_text().lower(), file
