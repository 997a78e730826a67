"""Several threats in one run: how they are written, which attacks each gets, the union, and what a smaller radius hands on."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import rdc.evaluation.run as run_module
from rdc.errors import ConfigError
from rdc.evaluation import (
    EvaluationSettings,
    Threat,
    evaluate,
    evaluate_threats,
    parse_threats,
    settings_of_threats,
)
from rdc.evaluation.files import is_ours
from rdc.evaluation.report import rate
from rdc.evaluation.smaller import Smaller
from rdc.evaluation.threat_report import image_records, threats_report
from rdc.evaluation.threat_run import rising
from rdc.evaluation.threats import attacks_within, folder_of_threats
from rdc.norm_balls import check_budget
from tests.evaluation_models import gaussian_classifier, labelled_by

BASE = EvaluationSettings(model="gaussian", dataset="blobs", n=12, batch=5, steps=4, sanity=2)
LIST = "linf:6/255,l2:0.2,flow:0.03,linf:2/255"
ATTACKS = ("apgd-ce", "square:queries=10")


@pytest.fixture(scope="module")
def classifier():
    return gaussian_classifier()


@pytest.fixture(scope="module")
def dataset(classifier):
    return labelled_by(classifier, 12, wrong=2)


def run(classifier, dataset, out, threats=LIST, attacks=ATTACKS, **options):
    every = settings_of_threats(BASE, attacks, parse_threats(threats))
    return evaluate_threats(classifier, dataset, every, out, command="rdc", progress=False, **options)


@pytest.fixture(scope="module")
def whole(classifier, dataset, tmp_path_factory):
    return run(classifier, dataset, tmp_path_factory.mktemp("threats") / "run")


def test_lists_of_threats():
    found = parse_threats(" linf:8/255, l2:0.5,flow:0.05")
    assert [threat.text for threat in found] == ["linf:8/255", "l2:0.5", "flow:0.05"]
    assert found[0].folder == "linf-8-255" and found[1].radius == 0.5
    assert parse_threats("2/255,0.1", "l2") == (Threat("l2", "2/255"), Threat("l2", "0.1"))
    assert rising(parse_threats("linf:8/255,l2:1,linf:2/255,linf:0.02")) == [(2, None), (3, 2), (0, 3), (1, None)]
    out = folder_of_threats(dataclasses.replace(BASE, norm="linf", eps="8/255"), found)
    assert str(out) == "runs/gaussian-blobs-12-linf-8-255-l2-0.5-flow-0.05-exact-known"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("linf", "expected norm:radius"),
        ("", "expected norm:radius"),
        ("lp:0.1", "expected norm:radius"),
        ("linf:8/255,", "expected norm:radius"),
        ("linf:8/255,linf:16/510", "each once"),
        ("linf:-1", "expected a budget"),
        (",".join(f"l2:{place}" for place in range(65)), "at most 64"),
    ],
)
def test_lists_that_are_none(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_threats(text)


def test_each_threat_gets_the_attacks_that_know_its_norm():
    assert attacks_within("linf", ("autoattack", "pgd-ce", "stadv")) == ("autoattack", "pgd-ce")
    assert attacks_within("l1", ("apgd-ce", "pgd-ce")) == ("apgd-ce",)
    assert attacks_within("flow", ("autoattack", "stadv:steps=7")) == ("stadv:steps=7",)
    assert attacks_within("flow", ("autoattack", "pgd-ce")) == ("stadv",)
    with pytest.raises(ConfigError, match="attacks in l1"):
        attacks_within("l1", ("pgd-ce",))
    with pytest.raises(ConfigError, match="stadv attacks in none of linf"):
        settings_of_threats(BASE, ("apgd-ce", "stadv"), parse_threats("linf:1/255,linf:2/255"))
    with pytest.raises(ConfigError, match="attacks: none"):
        settings_of_threats(BASE, (), parse_threats(LIST))
    every = settings_of_threats(BASE, ("autoattack",), parse_threats(LIST))
    assert [one.sanity for one in every] == [0, 2, 2, 2]  # of the smallest radius of each norm
    assert every[2].attacks == ("stadv",) and every[0].attacks == every[3].attacks


def test_the_figures_are_those_of_the_images(whole):
    report, runs = whole.figures, whole.runs
    standing = np.array([[record.robust for record in one.records] for one in runs]).T
    assert report.union.accuracy == pytest.approx(standing.all(1).mean())
    assert report.mean.accuracy == pytest.approx(standing.mean())
    assert report.mean.ci95[0] < report.mean.accuracy < report.mean.ci95[1]
    assert [threat.robust for threat in report.threats] == [one.figures.robust for one in runs]
    assert [threat.threat for threat in report.threats] == LIST.split(",")
    lines = [json.loads(line) for line in (whole.out / "results.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [record.image for record in runs[0].records]
    assert [list(line["threats"].values()) for line in lines] == standing.tolist()
    assert [line["union"] for line in lines] == standing.all(1).tolist()


def test_a_threat_alone_is_the_run_that_it_always_was(classifier, dataset, whole, tmp_path):
    """The smallest radius of a norm knows of no other threat: the same lines, the same arrays."""
    for place in (1, 2, 3):
        settings = settings_of_threats(BASE, ATTACKS, parse_threats(LIST))[place]
        alone = evaluate(classifier, dataset, settings, tmp_path / str(place), progress=False)
        assert alone.records == whole.runs[place].records
        assert np.array_equal(alone.x_adv, whole.runs[place].x_adv)
        assert alone.run["identity"] == whole.runs[place].run["identity"] and "smaller" not in alone.run["identity"]


def test_a_larger_radius_begins_with_the_images_of_the_smaller(classifier, dataset, whole, monkeypatch, tmp_path):
    larger, smaller = whole.runs[0], whole.runs[3]
    first = larger.figures.attacks[0]
    assert (first.name, first.steps, first.attacked) == ("radius-2/255", 0, 10)
    assert first.survivors == sum(record.robust for record in smaller.records) == larger.figures.attacks[1].attacked
    assert 0 < first.survivors < 10
    for small, large, image in zip(smaller.records, larger.records, larger.x_adv, strict=True):
        assert large.robust <= small.robust
        if small.clean.ever_right and not small.robust:  # its image is kept, and nothing else was tried
            assert np.array_equal(image, smaller.x_adv[[r.image for r in smaller.records].index(small.image)])
            assert [outcome.name for outcome in large.attacks] == ["radius-2/255"]
    check_budget(torch.from_numpy(larger.x_adv), dataset.pixels(), 6 / 255, "linf")
    assert whole.figures.threats[0].smaller == "linf:2/255" and not whole.figures.threats[3].smaller
    starts, real = [], run_module.evaluate_batch.__globals__["run_attack"]

    def watching(bench, spec, *arguments, start=None):
        starts.append((spec.name, None if start is None else start.clone()))
        return real(bench, spec, *arguments, **({} if start is None else {"start": start}))

    monkeypatch.setitem(run_module.evaluate_batch.__globals__, "run_attack", watching)
    run(classifier, dataset, tmp_path / "watched", "linf:2/255,linf:6/255")
    given = [start for name, start in starts if name == "apgd-ce"]
    assert (
        all(start is None for start in given[:2]) and len(given) == 4
    )  # of the third batch no image is right when clean
    rows = [row for row in range(5) if smaller.records[row].robust]
    assert np.array_equal(given[2].numpy(), smaller.x_adv[rows])


def test_what_a_smaller_radius_broke_is_broken(classifier, dataset, tmp_path):
    """Even where its image is classified right now, as fresh noise may have it."""
    settings = dataclasses.replace(BASE, eps="2/255", attacks=("apgd-ce:steps=1",))
    clean = dataset.pixels().numpy()
    smaller = Smaller("1/255", "one", clean, np.arange(12) % 2 == 0)
    found = evaluate(classifier, dataset, settings, tmp_path / "run", progress=False, smaller=smaller)
    assert not any(record.robust for record in found.records[1::2]) and any(record.robust for record in found.records)
    other = Smaller("1/255", "other", clean, np.arange(12) % 2 == 0)
    with pytest.raises(ConfigError, match="smaller: "):
        evaluate(classifier, dataset, settings, tmp_path / "run", progress=False, smaller=other)


class Stop(Exception):
    pass


@pytest.mark.parametrize("batches", [1, 4, 11])
def test_goes_on_after_it_was_stopped(classifier, dataset, whole, tmp_path, batches):
    """In the first threat, in a second radius, in the last; a line that was cut short is computed again."""
    done = []

    def stop(finished, total):
        assert total == 48 and finished <= total
        done.append(finished)
        if len(done) == batches:
            raise Stop

    with pytest.raises(Stop):
        run(classifier, dataset, tmp_path / "run", on_batch=stop)
    last = max((tmp_path / "run").glob("*/results.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[:-3])
    again = run(classifier, dataset, tmp_path / "run")
    assert again.images == whole.images and [one.records for one in again.runs] == [one.records for one in whole.runs]
    assert all(np.array_equal(one.x_adv, other.x_adv) for one, other in zip(again.runs, whole.runs, strict=True))
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == (whole.out / "results.jsonl").read_bytes()


def test_the_folder_belongs_to_its_threats(classifier, dataset, tmp_path):
    out = tmp_path / "run"
    run(classifier, dataset, out, "linf:1/255,l2:0.1", ("apgd-ce:steps=1",))
    (out / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="These threats differ"):
        run(classifier, dataset, out, "linf:1/255,l2:0.2", ("apgd-ce:steps=1",))
    with pytest.raises(ConfigError, match=r"no run\.json"):
        evaluate(classifier, dataset, dataclasses.replace(BASE, eps="1/255"), out, progress=False)
    run(classifier, dataset, out, "linf:1/255", ("apgd-ce:steps=1",), overwrite=True)
    left = {path.name for path in out.iterdir()}
    assert left >= {"threats.json", "linf-1-255", "results.jsonl", "note.txt"}
    assert not any(is_ours(path.name) for path in (out / "l2-0.1").iterdir())
    (out / "threats.json").write_text('{"schema": 9}')
    with pytest.raises(ConfigError, match="later version"):
        run(classifier, dataset, out, "linf:1/255", ("apgd-ce:steps=1",))


def test_an_image_that_one_threat_breaks_does_not_stand(whole):
    """Of twelve images two threats break three others each: half stand under both, each threat leaves three quarters."""
    stood = [[place % 4 != rest for place in range(12)] for rest in (0, 1)]
    runs = [
        dataclasses.replace(
            one, records=tuple(dataclasses.replace(r, robust=s) for r, s in zip(one.records, standing, strict=True))
        )
        for one, standing in zip(whole.runs[:2], stood, strict=True)
    ]
    images = image_records(["a", "b"], runs)
    assert [image.union for image in images] == [place % 4 > 1 for place in range(12)]
    report = threats_report(whole.figures.threats[:2], runs, images, "rdc")
    assert report.union.accuracy == 0.5 and report.mean.accuracy == 0.75
    assert report.union == rate(6, 12)
    assert report.mean.ci95 == (0.625, 0.875)  # 1/2 + B / 24, B binomial (12, 1/2): P(B <= 2) < 0.025 < P(B <= 3)


def test_images_of_runs_that_differ_in_number_are_refused(whole):
    short = dataclasses.replace(whole.runs[1], records=whole.runs[1].records[:-1])
    with pytest.raises(ValueError, match="zip"):
        image_records(["a", "b"], [whole.runs[0], short])
