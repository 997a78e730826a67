"""Held-out images: the logit scale and the likelihood score that a checkpoint records, and what is said without them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from rdc.attacks import ThreatModel
from rdc.attacks.apgd import apgd
from rdc.data import Dataset
from rdc.decisions.answers import uncalibrated
from rdc.decisions.held_out import FEWEST, fit_held_out, known_kind, level_losses, record_of_losses
from rdc.errors import InputError
from rdc.models.zoo import load
from tests.evaluation_models import images as blobs
from tests.evaluation_models import labelled_by, save_tiny
from tests.tolerances import FITTED, FLOAT64_FORMULA


def images(classifier, count: int, wrong: int = 3) -> Dataset:
    """Its own decisions, every ``wrong``-th label replaced."""
    made = labelled_by(classifier, count, 0)
    rows = torch.arange(count)
    labels = (
        torch.where(rows % wrong == 0, rows // wrong % classifier.num_classes, made.labels) if wrong else made.labels
    )
    return Dataset(made.images, labels, made.class_names, "blobs", "train-holdout")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return load(save_tiny(tmp_path_factory.mktemp("tiny"))[0])


@pytest.fixture(scope="module")
def fitted(classifier):
    held = images(classifier, 240)
    return held, fit_held_out(classifier, held)


def test_the_record(classifier, fitted):
    """What it says, against the formulas written out; and again, to the last bit, through JSON."""
    held, record = fitted
    losses = level_losses(classifier, held.pixels(), 50, "test", False)
    total, labels = np.einsum("ntk,t->nk", losses, classifier.levels.weight), held.labels.numpy()
    scale, cost = record["logit_scale"], record["negative_log_likelihood"]

    def nll(by: float) -> float:
        scores = -by * total
        return float(-(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))[np.arange(240), labels].mean())

    assert cost == {
        "before": pytest.approx(nll(1.0), rel=FLOAT64_FORMULA),
        "after": pytest.approx(nll(scale), rel=FLOAT64_FORMULA),
    }
    assert cost["after"] < min(nll(0.9 * scale), nll(1.1 * scale)) and cost["after"] < cost["before"]
    assert record["accuracy"] == (total.argmin(1) == labels).mean() and record["images"] == 240
    assert record["split"] == "train-holdout" and record["all_right"] is False
    assert json.loads(json.dumps(record, allow_nan=False)) == record == fit_held_out(classifier, held)


def test_the_scale_changes_no_decision_and_no_attack(classifier, fitted):
    held, record = fitted
    x, labels = held.pixels(range(8)), classifier(held.pixels(range(8))).argmax(1)
    scaled = classifier.with_(logit_scale=record["logit_scale"])
    assert torch.equal(scaled(x).argmax(1), labels)
    found = []
    for model in (classifier, scaled):
        for loss in ("ce", "dlr"):
            threat = ThreatModel("linf", 8 / 255)
            result = apgd(model, x, labels, threat, seed=0, image_ids=torch.arange(8), steps=3, loss=loss)
            found.append(classifier(result.x_adv).argmax(1).tolist())
    assert found[:2] == found[2:]


def test_images_that_are_all_right_have_a_scale_too(classifier):
    """No finite one is best; the one taken makes their mean confidence what so many right answers are worth."""
    record = fit_held_out(classifier, images(classifier, 40, wrong=0))
    assert record["all_right"] is True and record["accuracy"] == 1 and 0 < record["logit_scale"] < math.inf
    with torch.no_grad():
        p = classifier.with_(logit_scale=record["logit_scale"])(images(classifier, 40, wrong=0).pixels()).exp().amax(1)
    assert float(p.mean()) == pytest.approx(41 / 42, rel=FITTED)


def test_too_few_or_meaningless_images_fit_nothing(classifier):
    few = fit_held_out(classifier, images(classifier, FEWEST - 1))
    assert few["logit_scale"] is None and few["why"] == "19 held-out images are too few; expected 20 or more"
    held = images(classifier, 60)
    backwards = -np.abs(level_losses(classifier, held.pixels(), 50, "test", False))
    record = record_of_losses(
        classifier, np.where(np.arange(4) == held.labels.numpy()[:, None, None], 0, backwards), held
    )
    assert record["logit_scale"] is None and "no better than chance" in record["why"]


# --- images of other kinds --------------------------------------------------------------------------------------------
def test_the_threshold_is_the_conformal_quantile(classifier, fitted):
    """120 images that the score was not fitted on: a new one is above them all with probability 1 / 121, which is within 1 %."""
    held, record = fitted
    kind = known_kind(json.loads(json.dumps(record)), classifier)
    assert (kind.rate, kind.images, record["likelihood_score"]["fitted_on"]) == (0.01, 120, 120)
    scores = kind.scores(classifier, held.pixels())
    fitted_on = np.random.Generator(np.random.Philox(key=np.array([0, 0], np.uint64))).permutation(240) % 2 == 0
    assert kind.threshold == scores[~fitted_on].max() and scores[fitted_on].max() != kind.threshold
    half = fit_held_out(classifier, images(classifier, 60))["likelihood_score"]
    assert (half["exceeded_by"], half["images"]) == (0.05, 30)  # 99 are too many to ask for
    assert fit_held_out(classifier, images(classifier, 30))["likelihood_score"] is None


def test_new_images_of_the_kind_seldom_exceed_it_and_others_do(classifier, fitted):
    held, record = fitted
    kind = known_kind(record, classifier)
    share = (kind.scores(classifier, blobs(400, 7).float() / 255) > kind.threshold).mean()
    assert share < 0.04  # 1 % is meant: 4 of 400, and more by the chance of 120 images
    sharp = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert (kind.scores(classifier, sharp) > kind.threshold).mean() > 10 * max(share, 0.03)


def test_a_record_of_other_settings_says_nothing(classifier, fitted):
    record = fitted[1]
    for other in (
        classifier.with_(levels="log:3:0.5:2:flat"),
        classifier.with_(noise_seed=1),
        classifier.with_(lm="paper-v2"),
    ):
        assert known_kind(record, other) is None
    for nothing in (None, {}, "x", {**record, "likelihood_score": None}):
        assert known_kind(nothing, classifier) is None


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("threshold", "high"), ("threshold", None), ("whitening", [[1.0]]), ("whitening", [[1.0, 2.0], [3.0]]),
        ("coefficients", [[1.0, 1.0]] * 2), ("coefficients", [[1.0]] * 3), ("images", 0), ("exceeded_by", 2),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(classifier, fitted, entry, value):
    record = {**fitted[1], "likelihood_score": {**fitted[1]["likelihood_score"], entry: value}}
    with pytest.raises(InputError, match=r"info.calibration: likelihood_score.*rdc calibrate --write"):
        known_kind(record, classifier)


def test_who_has_set_the_scale():
    assert "'sum', which no held-out image has set" in uncalibrated("sum") and uncalibrated("mean", False)
    assert uncalibrated(0.02) == "" and "other noise levels" in uncalibrated(0.02, own_settings=False)
