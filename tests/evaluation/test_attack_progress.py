"""Accuracy against steps and queries: the counts against a model that keeps a list of its calls, curves against hand counts."""

import dataclasses

import pytest
import torch

from rdc.attacks import ThreatModel, parse_attack
from rdc.attacks.autoattack import autoattack
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.evaluation.attack_progress import MOST_POINTS, attack_progress
from rdc.evaluation.records import AttackOutcome, AttackTotals, Decision, ImageRecord
from rdc.evaluation.report import AttackProgress, Fall
from rdc.reports import html_report
from rdc.reports.drawings import Drawings
from rdc.reports.progress_section import progress_plot
from rdc.reports.words import wording
from rdc.storage.json_records import ABSENT
from rdc.storage.sealed import open_line, seal_line
from tests.evaluation_models import gaussian_classifier, labelled_by

EPS = 0.05


class Listening:
    """A linear classifier of four classes that keeps a list, for each clean image, of the points at which it was asked."""

    def __init__(self, clean):
        made = torch.Generator().manual_seed(3)
        self.weight = torch.randn(4, clean[0].numel(), generator=made)
        self.clean = clean
        self.asked = [[] for _ in clean]

    def __call__(self, x):
        logits = (x - 0.5).flatten(1) @ self.weight.T
        away = (x.detach()[:, None] - self.clean[None]).flatten(2).abs().amax(2)  # no point is nearer to another image
        for row, owner in enumerate(away.argmin(1).tolist()):
            self.asked[owner].append((x[row].detach().clone(), int(logits[row].argmax())))
        return logits


def listening():
    clean = torch.rand(8, 1, 3, 4, generator=torch.Generator().manual_seed(5)) * 0.8 + 0.1
    model = Listening(clean)
    labels = model(clean).argmax(1)
    model.asked = [[] for _ in clean]
    return model, clean, labels


def within(point, clean, eps):
    return float((point.double() - clean.double()).abs().max()) <= eps


def first_wrong(model, row, label, eps, last):
    """Number of the first call, after the first look, at which a point within the budget is misclassified; -1: none up to ``last``."""
    for number, (point, decided) in enumerate(model.asked[row][1 : last + 1], 1):
        if decided != int(label) and within(point, model.clean[row], eps):
            return number
    return -1


@pytest.mark.parametrize(
    "name",
    ["pgd-ce", "apgd-ce:restarts=2", "apgd-t:targets=2", "fab-t:targets=2", "fab", "square:queries=60"],
)
def test_queries_are_what_the_model_was_asked(name):
    spec = parse_attack(name)
    model, x, y = listening()
    found = spec.kind.attack(model, x, y, ThreatModel("linf", EPS), **{"steps": 4, **dict(spec.options)} if
                             spec.kind.white_box else dict(spec.options))  # fmt: skip
    assert 0 < int(found.correct.sum()) < len(y)  # both kinds are there
    for row in range(len(y)):
        asked = len(model.asked[row]) - 2  # neither the first look nor the final check
        assert int(found.queries[row]) == asked
        assert int(found.broken_query[row]) == first_wrong(model, row, y[row], EPS, asked)


def test_queries_of_decisions_alone_and_of_several_attacks():
    for name in ("hop-skip-jump:queries=300:draws=10", "smoothed:steps=3"):
        spec = parse_attack(name)
        model, x, y = listening()
        found = spec.kind.attack(model, x, y, ThreatModel("linf", EPS), **dict(spec.options))
        assert int(found.queries.sum()) == sum(map(len, model.asked)) - 2 * len(y)  # points of noise are nobody's
        assert ((found.broken_query >= found.broken_at) & (found.broken_query <= found.queries)).all()
        assert torch.equal(found.broken_query >= 0, ~found.correct) and not found.correct.all()
    model, x, y = listening()
    whole = autoattack(model, x, y, ThreatModel("linf", EPS), steps=4, queries=60)
    assert whole.broken_by.max() >= 0 and not whole.correct.all()
    for row in range(len(y)):
        looks = sum(row in part.rows.tolist() for part in whole.components if part.result is not None)
        assert (
            int(whole.queries[row]) == len(model.asked[row]) - 2 * looks
        )  # each component looks first and checks last
        assert (int(whole.broken_query[row]) >= 0) == (not whole.correct[row])
        assert int(whole.broken_query[row]) <= int(whole.queries[row])


@pytest.mark.parametrize(
    "name", ["apgd-ce:restarts=2", "apgd-t:targets=2", "fab-t:targets=2", "square:queries=30", "transfer:check_every=2"]
)
def test_what_one_draw_of_each_iterate_says(name):
    """A model whose label's logit is shifted by its draw: of two draws of an evaluation the first alone is the iterate's submission."""
    spec = parse_attack(name)
    model, x, y = listening()
    draws = torch.Generator().manual_seed(1)

    def drawn(points):
        before = [len(asked) for asked in model.asked]
        logits = model(points)
        shift = 0.6 * torch.randn(len(points), generator=draws)
        owners = [row for row in range(len(x)) if len(model.asked[row]) > before[row]]
        assert len(owners) == len(points)
        moved = logits.clone()
        for place, row in enumerate(owners):  # calls have their rows in order
            moved[place, y[row]] += shift[place]
            point, _ = model.asked[row][-1]
            model.asked[row][-1] = (point, int(moved[place].argmax()))
        return moved

    options = {**dict(spec.options), "eot": 2, "redraw": lambda: None}
    if spec.kind.white_box:
        options |= {"steps": 3}
    if spec.name == "transfer":
        options |= {"surrogate": Listening(x)}
    eps = EPS / 4
    found = spec.kind.attack(drawn, x, y, ThreatModel("linf", eps), **options)
    for row in range(len(y)):
        inside = [decided for point, decided in model.asked[row][2::2] if within(point, x[row], eps)]
        expected = not found.clean_correct[row] or any(decided != int(y[row]) for decided in inside)
        said = bool(found.wrong_on_the_way[row])
        assert said == expected or (spec.name == "fab-t" and expected)  # FAB looks at points that it does not submit
    if spec.name != "fab-t":
        assert (found.wrong_on_the_way & found.correct).any()  # the mean of two draws is another protocol


def record(image, clean, *attacks):
    outcomes = tuple(AttackOutcome(name, "known", right, step, restart, 0, query=query)
                     for name, right, step, restart, query in attacks)  # fmt: skip
    return ImageRecord(image, 0, Decision(0, clean), outcomes, Decision(0, 1.0), True)


def totals(name, **changes):
    values = {"steps": 4, "restarts": 2, "gradient": "exact", "loss": "ce", "attacked": 4, "survivors": 1, "right": 1.0,
              "blind_images": 0, "non_finite_images": 0, "verify_mismatches": 0, "evaluations": 120, "seconds": 1.0,
              "queries": 12, "calls": 40, **changes}  # fmt: skip
    return AttackTotals(name, "known", **values)


RECORDS = [
    record(0, 0.0),
    record(1, 1.0, ("a", 0.0, 0, 0, 1)),
    record(2, 1.0, ("a", 0.0, 3, 1, 9)),
    record(3, 1.0, ("a", 0.0, -1, -1, -1)),  # the final check alone says so
    record(4, 1.0, ("a", 1.0, -1, -1, -1), ("b", 0.0, 2, 0, 3)),
]


def test_curves_by_hand():
    first, second = attack_progress([totals("a"), totals("b", restarts=1, calls=0)], RECORDS)
    assert first == AttackProgress(
        Fall((0, 8, 9), (0.6, 0.4, 0.2), 8, 9), Fall((0, 1, 9, 12), (0.8, 0.6, 0.4, 0.2), 9, 12), 3.0
    )
    assert second == AttackProgress(Fall((0, 2, 4), (0.2, 0.0, 0.0), 2, 2), Fall((0, 3, 12), (0.2, 0.0, 0.0), 3, 3))
    assert attack_progress([totals("a", steps=0)], RECORDS) == (ABSENT,)  # images of a smaller radius


def test_one_image_of_an_earlier_version_leaves_the_steps_alone():
    old = dataclasses.replace(RECORDS[2], attacks=(dataclasses.replace(RECORDS[2].attacks[0], query=ABSENT),))
    (found,) = attack_progress([totals("a")], [*RECORDS[:2], old])
    assert found.queries is ABSENT and found.steps.last == 8
    (found,) = attack_progress([totals("a", queries=ABSENT)], RECORDS)
    assert found.queries is ABSENT and found.passes_per_query is ABSENT


def test_a_long_curve_keeps_points_that_are_right():
    many = [record(place, 1.0, ("a", 0.0, 1, 0, place + 1)) for place in range(500)]
    (found,) = attack_progress([totals("a", queries=600)], many)
    at, accuracy = found.queries.at, found.queries.accuracy
    assert len(at) == len(set(at)) == MOST_POINTS and at[0] == 0 and at[-1] == 600 and found.queries.median == 250
    assert all(value == (500 - min(place, 500)) / 500 for place, value in zip(at, accuracy, strict=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    classifier = gaussian_classifier(levels="log:1:2:4:flat")
    dataset = labelled_by(classifier, 16, wrong=2)
    settings = EvaluationSettings(
        model="g",
        dataset="blobs",
        n=16,
        batch=8,
        eps="5/255",
        steps=4,
        attacks=("apgd-ce", "square:queries=20"),
        sanity=0,
    )
    return classifier, dataset, settings, tmp_path_factory.mktemp("run") / "run"


def test_a_run_and_its_page(finished):
    classifier, dataset, settings, out = finished
    evaluation = evaluate(classifier, dataset, settings, out, progress=False)
    white, black = (attack.progress for attack in evaluation.figures.attacks)
    assert white.queries.at[-1] == 5 and white.steps.at[-1] == 4  # the starting point is a query, too
    assert black.queries == black.steps and black.steps.at[-1] == 20
    for attack, progress in zip(evaluation.figures.attacks, (white, black), strict=True):
        assert progress.passes_per_query == classifier.evaluations_per_image
        assert progress.steps.accuracy[-1] == progress.queries.accuracy[-1] == attack.accuracy
    broken = [one for record in evaluation.records for one in record.attacks if one.name == "apgd-ce" and one.step >= 0]
    assert broken and all(one.query == one.step + 1 for one in broken)
    page = html_report(evaluation, blank(progress_plot(evaluation.figures.attacks)), wording(evaluation))
    section = page[page.index("<h2>Steps and queries until broken</h2>") : page.index("<h2>By class</h2>")]
    assert section.count("<tr") == 3 and "earlier version" not in section and 'class="plot"' in section
    svg = progress_plot(evaluation.figures.attacks).wide.decode()
    assert "queries of the model for an image" in svg and "square:queries=20" in svg


def blank(progress):
    return Drawings(rows=[], clean=[], adversarial=[], differences=[], maximized=None, gain=1, grey=True, steps=None,
                    losses={}, progress=progress)  # fmt: skip


def test_a_folder_of_an_earlier_version_is_read_and_gone_on_with(finished):
    """Lines without queries: the first batch as an earlier version wrote it, the second still to do."""
    classifier, dataset, settings, out = finished
    whole = evaluate(classifier, dataset, settings, out, progress=False)
    lines = (out / "results.jsonl").read_bytes().splitlines()[:9]
    old = []
    for line in lines:
        value, _ = open_line(line, "line")
        for attack in value["attacks"]:
            for name in ("query", "queries", "calls"):
                attack.pop(name, None)
        old.append(seal_line(value))
    (out / "results.jsonl").write_bytes(b"".join(old))
    again = evaluate(classifier, dataset, settings, out, progress=False)
    assert again.figures.robust == whole.figures.robust and again.records[8:] == whole.records[8:]
    for before, after in zip(whole.figures.attacks, again.figures.attacks, strict=True):
        assert after.progress.queries is ABSENT and after.progress.steps == before.progress.steps
    page = html_report(again, blank(progress_plot(again.figures.attacks)), wording(again))
    assert "an earlier version" in page and "–" in page
    assert "queries of the model" not in progress_plot(again.figures.attacks).wide.decode()
