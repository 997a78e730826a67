"""Every protocol of one run, against the records it is made of."""

import dataclasses
import math

import pytest

from rdc.evaluation import EvaluationSettings, evaluate
from rdc.evaluation.files import Batch
from rdc.evaluation.protocols import WHILE_OPTIMISING, protocols
from rdc.evaluation.results import read_results
from rdc.evaluation.sanity_records import Sanity
from rdc.evaluation.totals import sum_batches
from rdc.reports import html_report
from rdc.reports.drawings import Drawings
from rdc.reports.words import wording
from rdc.storage.json_records import ABSENT
from tests.evaluation_models import gaussian_classifier, labelled_by


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    classifier = gaussian_classifier(levels="log:1:2:4:flat")
    dataset = labelled_by(classifier, 16, wrong=2)
    made = {}
    for noise, eot in (("known", None), ("fresh", 2), ("all", 2)):
        settings = EvaluationSettings(
            model="g", dataset="blobs", n=16, batch=16, eps="5/255", steps=4, attacks=("apgd-ce", "apgd-dlr"), noise=noise,
            eot=eot, resubmissions=6, sanity=0,
        )  # fmt: skip
        made[noise] = evaluate(classifier, dataset, settings, tmp_path_factory.mktemp(noise) / "run", progress=False)
    return made


def of(evaluation):
    found = protocols(evaluation.figures, evaluation.records, evaluation.record.identity.settings)
    assert len({(one.attacks, one.scoring) for one in found}) == len(found)
    (headline,) = (one for one in found if one.headline)
    assert headline.rate.accuracy == evaluation.figures.robust.accuracy
    return {(one.attacks, one.scoring): one.rate.accuracy for one in found}


def test_known_noise(runs):
    evaluation = runs["known"]
    found, attacks = of(evaluation), evaluation.figures.attacks
    assert found["no attack", "known noise"] == evaluation.figures.clean.accuracy
    assert found["apgd-ce alone", "known noise"] == found["up to apgd-ce", "known noise"] == attacks[0].accuracy
    assert attacks[1].attacked < attacks[0].attacked and ("apgd-dlr alone", "known noise") not in found
    assert found["up to apgd-dlr", "known noise"] == found["all attacks", "known noise"] == attacks[1].accuracy
    assert (
        found["all attacks", "worst of 6"] == evaluation.figures.scores.worst.accuracy
    )  # of the images made for the known draw
    assert not any(
        scoring == WHILE_OPTIMISING for _, scoring in found
    )  # without randomness it is the known noise's figure


def test_fresh_noise(runs):
    evaluation = runs["fresh"]
    found = of(evaluation)
    right = [round(6 * record.scores.fresh.right) for record in evaluation.records]
    assert any(0 < count < 6 for count in right)
    for size in (2, 5):
        chance = sum(math.comb(count, size) / math.comb(6, size) for count in right) / 16
        assert found["all attacks", f"worst of {size}"] == round(chance, 6)
    line = [found["all attacks", scoring] for scoring in ("one fresh draw", "worst of 2", "worst of 5", "worst of 6")]
    assert line == sorted(line, reverse=True) and line[0] > line[-1]
    assert found["all attacks", "worst of 6"] == sum(count == 6 for count in right) / 16
    tried = [record for record in evaluation.records if record.attacks]
    for count, attacks in ((1, "apgd-ce alone"), (2, "all attacks")):  # right at every iterate, and once in the end
        stood = [all(not one.on_the_way and one.right > 0 for one in record.attacks[:count]) for record in tried]
        assert found[attacks, WHILE_OPTIMISING] == sum(stood) / 16
    assert found["all attacks", WHILE_OPTIMISING] <= found["apgd-ce alone", WHILE_OPTIMISING] < 1
    assert found["all attacks", WHILE_OPTIMISING] == evaluation.figures.scores.while_optimising.accuracy
    alone = [record.attacks[0].right == 1 for record in evaluation.records if record.attacks]
    assert found["apgd-ce alone", "worst of 6"] == sum(alone) / 16


def test_both_and_the_page(runs):
    found = of(runs["all"])
    assert found["no attack", "known noise"] == runs["known"].figures.clean.accuracy  # both begin with the known draw
    assert found["all attacks", "known noise, and worst of 6"] <= min(
        found["all attacks", "known noise"], found["all attacks", "worst of 6"]
    )
    blank = Drawings(
        rows=[], clean=[], adversarial=[], differences=[], maximized=None, gain=1, grey=True, steps=None, losses={}
    )
    page = html_report(runs["all"], blank, wording(runs["all"]))
    section = page[page.index("<h2>Protocols</h2>") : page.index("<h2>Steps and queries until broken</h2>")]
    assert (
        "worst of 5" in section and "all attacks (the headline)" in section and section.count("<tr") == len(found) + 1
    )
    assert section.count("(disputed)") == 2 and section.count("Disputed: Evaluated while optimising") == 1


def test_a_run_of_an_earlier_version_has_no_such_row(runs):
    """Nothing is made up where one image's iterates were not recorded."""
    evaluation = runs["fresh"]
    first = next(record for record in evaluation.records if record.attacks)
    old = dataclasses.replace(
        first, attacks=tuple(dataclasses.replace(one, on_the_way=ABSENT) for one in first.attacks)
    )
    records = [old if record is first else record for record in evaluation.records]
    identity = evaluation.record.identity
    (batch,) = read_results(evaluation.out / "results.jsonl", identity.settings, sealed=True).batches.values()
    figures = sum_batches(identity, [Batch(tuple(records), batch.totals)], Sanity())
    assert figures.scores.worst == evaluation.figures.scores.worst and figures.scores.while_optimising is ABSENT
    report = dataclasses.replace(evaluation.figures, scores=figures.scores)
    found = protocols(report, records, evaluation.record.identity.settings)
    assert not any(one.scoring == WHILE_OPTIMISING for one in found)
