"""The records of a run: each property at its boundary, and every file of a real run read and written letter by letter."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from rdc.evaluation import EvaluationSettings, accuracy_per_class, accuracy_per_step, evaluate
from rdc.evaluation.files import Batch, expected_images
from rdc.evaluation.records import (
    AttackOutcome,
    AttackTotals,
    BatchTotals,
    Decision,
    FreshScore,
    Identity,
    ImageRecord,
    ImageScores,
    OutputChecks,
    RunRecord,
    SettingsRecord,
)
from rdc.evaluation.report import AttackReport, RaisedFlag, Report, RobustRate, ScoreRates, rate
from rdc.evaluation.sanity_records import Sanity
from rdc.evaluation.scoring import has_majority, is_kept
from rdc.evaluation.totals import sum_batches
from rdc.reports import write_reports
from rdc.storage.json_records import ABSENT
from rdc.storage.sealed import open_line
from tests.evaluation_models import gaussian_classifier, labelled_by

EPSILON = 2.0**-40


# --- properties ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("right", "always", "ever"),
    [(1.0, True, True), (1 - EPSILON, False, True), (0.5, False, True), (EPSILON, False, True), (0.0, False, False)],
)
def test_a_decision(right, always, ever):
    decision = Decision(0, right)
    assert (decision.always_right, decision.ever_right) == (always, ever)
    assert FreshScore(right, True).worst is always


@pytest.mark.parametrize(("right", "broken"), [(1.0, False), (1 - EPSILON, True), (0.0, True)])
def test_broken_is_wrong_at_least_once(right, broken):
    assert AttackOutcome("a", "fresh", right, -1, -1, 0).broken is broken


@pytest.mark.parametrize(
    ("step", "right", "misclassified"), [(-1, 1.0, False), (-1, EPSILON, False), (-1, 0.0, True), (0, 1.0, True)]
)
def test_misclassified_is_seen_wrong_or_never_right(step, right, misclassified):
    assert AttackOutcome("a", "known", right, step, -1, 0).misclassified is misclassified


@pytest.mark.parametrize(
    ("steps", "step", "late"),
    [
        (20, 18, False),
        (20, 19, True),
        (100, 90, False),
        (100, 91, True),
        (10, 9, False),
        (10, 10, True),
        (5, -1, False),
    ],
)
def test_late_is_in_the_last_tenth(steps, step, late):
    assert AttackOutcome("a", "known", 0.0, step, 0, 0).is_late(steps) is late


@pytest.mark.parametrize(
    ("clean", "robust", "standing"),
    [(1.0, None, True), (0.5, None, False), (0.0, None, False), (1.0, False, False), (1.0, True, True)],
)
def test_standing_is_robust_or_without_attacks_right_in_all_draws(clean, robust, standing):
    assert image(0, clean=clean, robust=robust).standing is standing


def test_a_majority_is_more_votes_than_any_other_class():
    votes = torch.tensor([[2, 1, 1], [2, 2, 0], [1, 0, 3], [0, 0, 0], [1, 0, 0]])
    assert has_majority(votes, torch.zeros(5, dtype=torch.int64)).tolist() == [True, False, False, False, True]
    assert has_majority(votes.flip(1), torch.full((5,), 2)).tolist() == [True, False, False, False, True]


def test_of_equals_the_last_image_is_kept():
    found, share = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.5, 0.75, 0.25])
    assert is_kept(found, share).tolist() == [True, True, False]


def test_checks_are_made_or_not():
    checks = OutputChecks(0.0, None, 0, None)
    assert checks.made and not OutputChecks().made
    for name in ("repeat_difference", "logit_spread", "repeat_decisions_changed", "log_sum_exp"):
        assert not dataclasses.replace(checks, **{name: ABSENT}).made


def test_sanity_is_complete_or_not():
    assert Sanity().complete and Sanity(n=0).complete and Sanity(n=2, error="no gradient").complete
    assert not Sanity(n=2).complete


# --- sums ---------------------------------------------------------------------------------------------------------------
SETTINGS = {
    "model": "m", "dataset": "d", "n": 4, "split": "test", "start": 0, "attacks": ["a", "b"], "noise": "fresh", "seed": 0,
    "batch": 2, "resubmissions": 4, "eot": 5,
}  # fmt: skip


def image(position, *outcomes, clean=1.0, robust=False, fresh=(0.5, True)):
    attacked = robust is not None
    return ImageRecord(
        position, position % 2, Decision(0, clean), tuple(outcomes), Decision(1, fresh[0]) if attacked else None, robust,
        ImageScores(fresh=FreshScore(*fresh)) if attacked else ABSENT,
    )  # fmt: skip


def outcome(name, right, step):
    return AttackOutcome(name, "fresh", right, step, 0, 0)


def total(name, **changes):
    values = {
        "steps": 20, "restarts": 1, "gradient": "exact", "loss": "ce", "attacked": 2, "survivors": 1, "right": 1.25,
        "blind_images": 1, "non_finite_images": 2, "verify_mismatches": 3, "evaluations": 10, "seconds": 1.5, **changes,
    }  # fmt: skip
    return AttackTotals(name, "fresh", **values)


def batch(index, images, attacks, checks=OutputChecks()):  # noqa: B008
    return Batch(tuple(images), BatchTotals(index, len(images), tuple(attacks), checks, 1, 2, 100, 3.5, "digest"))


def totals():
    settings = SettingsRecord.from_json(SETTINGS, "settings")
    identity = Identity(
        schema=3, settings=settings, radius=0.1, classifier={"lm": None}, purifies=False, weights="w", images="i"
    )
    first = [image(0, outcome("a", 0.75, 19), outcome("b", 1.0, -1), robust=True, fresh=(1.0, True))]
    first += [image(1, outcome("a", 1.0, -1), clean=0.5, fresh=(0.75, False))]
    last = [image(2, outcome("a", 0.0, 18), outcome("b", 0.5, 40)), image(3, outcome("a", 1.0, 20), fresh=(0.0, False))]
    nothing = {"steps": 0, "restarts": 0, "loss": None, "attacked": 0}
    batches = [
        batch(0, first, [total("a"), total("b", **nothing)], OutputChecks(0.0, 1.0, 0, 0.0)),
        batch(1, last, [total("a", survivors=0), total("b", steps=40, restarts=2, loss="margin")]),
    ]
    return sum_batches(identity, batches, Sanity(n=2))


def test_sums_over_batches():
    found = totals()
    a, b = found.attacks
    assert (a.broken, b.broken) == (2, 1)
    assert (a.totals.steps, b.totals.steps, b.totals.restarts, b.totals.loss) == (20, 40, 2, "margin")
    assert (a.totals.survivors, a.totals.attacked, b.totals.attacked) == (1, 4, 2)
    assert (a.totals.right, a.totals.evaluations, a.totals.seconds) == (2.5, 20, 3.0)
    assert (a.totals.blind_images, a.totals.non_finite_images, a.totals.verify_mismatches) == (2, 4, 6)
    assert (found.n, found.mismatches, found.non_finite, found.network_evaluations, found.seconds) == (4, 2, 4, 200, 7)
    assert found.checks.made and found.of_attacks == (a.totals, b.totals)


def test_figures_of_the_sums():
    found = totals()
    assert found.clean == rate(3.5, 4) and found.late == {"a": 2, "b": 1}
    scores = found.scores
    assert (scores.average, scores.majority, scores.worst) == (rate(2.25, 4), rate(2, 4), rate(1, 4))
    assert scores.known is ABSENT and scores.submissions == 4
    assert (found.robust.accuracy, found.robust.average, found.robust.worst_of) == (0.25, scores.average, 4)


# --- files --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["known", "all", "none", "flow"])
def finished(request, tmp_path_factory):
    settings = {"n": 6, "batch": 4, "steps": 2, "sanity": 2, "attacks": ("apgd-ce", "square:queries=3"), "eps": "8/255"}
    settings |= {"all": {"noise": "all", "eot": 1, "resubmissions": 2}, "none": {"attacks": ()}}.get(request.param, {})
    if request.param == "flow":
        settings |= {"norm": "flow", "eps": "0.1", "attacks": ("stadv",)}
    classifier = gaussian_classifier(lm="paper-v2,steps=1")
    settings = EvaluationSettings(model="m", dataset="blobs", **settings)
    evaluation = evaluate(
        classifier, labelled_by(classifier, 6, 1), settings, tmp_path_factory.mktemp("x") / "run", progress=False
    )
    write_reports(evaluation, classifier)
    return evaluation


def same_text(record, text):
    """The record's JSON is what the file has, in its order of keys, but for the checksum."""
    value = json.loads(text)
    value.pop("digest", None)
    return json.dumps(record.to_json()) == json.dumps(value)


def test_every_file_is_read_and_written_letter_by_letter(finished):
    for name, kind, record in (("run.json", RunRecord, finished.record), ("report.json", Report, finished.figures)):
        text = (finished.out / name).read_text()
        assert same_text(record, text)
        value = {key: item for key, item in json.loads(text).items() if key != "digest"}
        assert kind.from_json(value, name) == record and not record.further
    if finished.settings["attacks"]:
        value = json.loads((finished.out / "sanity.json").read_text())
        value.pop("digest")
        assert json.dumps(Sanity.from_json(value, "sanity").to_json()) == json.dumps(value)
    lines = [open_line(line, "line")[0] for line in (finished.out / "results.jsonl").read_bytes().splitlines()]
    for line in lines:
        record = (BatchTotals if "end_of_batch" in line else ImageRecord).from_json(line, "line")
        assert json.dumps(record.to_json()) == json.dumps(line) and not record.further


def test_an_evaluation_is_dictionaries_and_records(finished):
    assert finished.report == finished.figures.to_json() and finished.run == finished.record.to_json()
    assert finished.images == [record.to_json() for record in finished.records]
    assert finished.report["clean"]["accuracy"] == finished.figures.clean.accuracy
    assert finished.settings == finished.record.identity.settings.to_json()
    assert accuracy_per_class(finished.images, 4) == accuracy_per_class(finished.records, 4)
    curves = accuracy_per_step(finished.figures.attacks, finished.records)
    assert accuracy_per_step(finished.report["attacks"], finished.images) == curves


@pytest.mark.parametrize(("index", "expected"), [(0, [5, 6, 7]), (1, [8, 9, 10]), (2, [11]), (3, []), (100, [])])
def test_images_of_a_batch(index, expected):
    settings = SettingsRecord(
        model="m", dataset="d", n=7, split="test", start=5, attacks=(), noise="known", resubmissions=1, seed=0, batch=3
    )
    assert list(expected_images(settings, index)) == expected


@pytest.mark.parametrize(
    ("key", "least"), [("n", 1), ("start", 0), ("seed", 0), ("batch", 1), ("resubmissions", 1), ("eot", 1)]
)
def test_settings_at_their_least(key, least):
    settings = SettingsRecord(
        model="m", dataset="d", n=7, split="test", start=5, attacks=(), noise="known", resubmissions=1, seed=0, batch=3
    ).to_json()
    assert getattr(SettingsRecord.from_json(settings | {key: least}, "settings"), key) == least
    with pytest.raises(ValueError, match=rf"settings\.{key}"):
        SettingsRecord.from_json(settings | {key: least - 1}, "settings")


def test_settings_by_default():
    """What a command without options means; docs and figures rest on it."""
    found = EvaluationSettings(model="m", dataset="d").to_json()
    assert found == {
        "model": "m", "dataset": "d", "n": 256, "split": "test", "start": 0, "attacks": ["apgd-ce", "apgd-dlr"], "norm": "linf",
        "eps": "8/255", "steps": 50, "restarts": 1, "gradient": "exact", "noise": "known", "eot": 1, "resubmissions": 10,
        "sanity": 8, "seed": 0, "batch": 32, "levels": None, "lm": None, "precision": None,
    }  # fmt: skip


# --- the report -------------------------------------------------------------------------------------------------------
ONE = {"accuracy": 0.5, "ci95": [0.25, 0.75]}
ATTACK = {
    "name": "a", "norm": "linf", "eps": 0, "steps": 0, "restarts": 0, "gradient": "exact", "noise": "known", "eot": 1, **ONE,
    "seconds": 0, "attacked": 0, "broken": 0, "survivors": 0, "network_evaluations": 0,
}  # fmt: skip
REPORT = {
    "schema": "s", "model": "m", "dataset": "d", "n": 1, "seed": 0, "classifier": {}, "clean": ONE, "robust": ONE, "scores": {},
    "attacks": [ATTACK], "sanity": {}, "flags": [], "network_evaluations": 0, "seconds": 0, "command": "c", "commit": None,
    "versions": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "value", "key"),
    [
        *((Report, REPORT, key) for key in ("n", "seed", "network_evaluations", "seconds")),
        *((AttackReport, ATTACK, key) for key in ("eps", "steps", "restarts", "eot", "seconds", "attacked", "broken")),
        *((AttackReport, ATTACK, key) for key in ("survivors", "network_evaluations")),
        (RobustRate, {**ONE, "worst_of": 1}, "worst_of"),
        (ScoreRates, {"submissions": 1}, "submissions"),
    ],
)
def test_a_report_at_its_least(kind, value, key):
    assert kind.from_json(value, "report").to_json() == value
    with pytest.raises(ValueError, match=rf"report\.{key}"):
        kind.from_json({**value, key: value[key] - 1}, "report")


@pytest.mark.parametrize(
    "change", [{"accuracy": 1.01}, {"accuracy": -0.01}, {"ci95": [0.5]}, {"ci95": [0, 0.5, 1]}, {"ci95": [0, 1.01]}]
)
@pytest.mark.parametrize("key", ["clean", "robust"])
def test_rates_are_shares_with_two_ends(key, change):
    with pytest.raises(ValueError, match=rf"report\.{key}\.{next(iter(change))}"):
        Report.from_json({**REPORT, key: ONE | change}, "report")


def test_of_robustness_nothing_may_be_known_and_of_clean_accuracy_something_must():
    nothing = {"accuracy": None, "ci95": None}
    assert Report.from_json({**REPORT, "robust": nothing}, "report").to_json()["robust"] == nothing
    with pytest.raises(ValueError, match="clean.accuracy"):
        Report.from_json({**REPORT, "clean": nothing}, "report")


def test_rates_are_rounded_to_six_digits():
    third = rate(1, 3)
    assert third.accuracy == 0.333333 and all(round(end, 6) == end for end in third.ci95)
    assert rate(0.123456789, 1).accuracy == 0.123457


@pytest.mark.parametrize(("severity", "warns"), [("warning", True), ("note", False)])
def test_warnings_warn(severity, warns):
    assert RaisedFlag("n", severity, "r", "e", "w", "e").warns is warns
    assert AttackReport.from_json(ATTACK, "a").attack == ("a", "known")
