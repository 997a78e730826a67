"""What an evaluation will take: the calls that are planned are the calls that are made, and measuring changes nothing."""

import collections
import dataclasses
import random

import numpy as np
import pytest
import torch

from rdc.attacks.perceptual_distance import FeatureDistance
from rdc.attacks.registry import ATTACKS, applies
from rdc.contracts import BaseDefence
from rdc.defences.plain import PlainClassifier
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.evaluation.cost import Call, CallTimes, Prediction, Seconds, plan_calls, predict, timing
from rdc.evaluation.cost import calls as counting
from rdc.evaluation.cost import prediction as predicting
from rdc.evaluation.cost.calls import _run
from rdc.evaluation.results import finished_batches
from rdc.execution.upstream import do_all_classes_carry
from rdc.method.classifier import DiffusionClassifier
from rdc.models import perceptual
from rdc.reports.forecast import about, forecast_line, plan_text
from tests.evaluation_models import gaussian_classifier, labelled_by
from tests.tiny_models import pixels as tiny_pixels
from tests.tiny_models import tiny_classifier
from tests.tolerances import FLOAT32_ROUNDING

THREAT = {"linf": "8/255", "l2": "0.5", "l1": "6", "l0": "5", "flow": "0.05", "lpips": "0.1", "corruption": "2"}


def settings_of(attacks, norm="linf", **changes):
    known = {"n": 4, "batch": 4, "norm": norm, "eps": THREAT[norm], "steps": 35, "sanity": 0}
    known |= {"lpips_model": "pixels"} if norm == "lpips" else {}
    return EvaluationSettings("m", "d", attacks=tuple(attacks), **{**known, **changes})


def cases():
    for name, kind in ATTACKS.items():
        spec = f"{name}:queries=47" if "queries" in kind.takes else name
        noise = "fresh" if kind.needs == "draws" else "known"
        yield pytest.param(spec, kind.norms[0], noise, id=name)


@pytest.mark.parametrize(("spec", "norm", "noise"), list(cases()))
def test_long_attacks_are_counted_from_short_ones(spec, norm, noise, monkeypatch):
    """35 steps, or 47 queries, planned from 10 and 20 of them, are the calls of an attack run as it is."""
    pixels = FeatureDistance(lambda x: [torch.cat([x, 1 - x], dim=1)], "pixels")
    monkeypatch.setattr(perceptual, "feature_distance", lambda name: pixels)
    classifier = gaussian_classifier(lm="paper-v2,steps=1")
    settings = settings_of(["pgd-ce:steps=3", spec] if spec.startswith("endpoints") else [spec], norm, noise=noise)
    assert applies(settings.specs[-1], classifier, norm, noise) is None
    lengths = [int(each.get("steps", 35)) if each.kind.white_box else 47 for each in settings.specs]
    whole = _run(classifier, settings, settings.specs, lengths, 4, 3)
    assert plan_calls(classifier, settings, 4, 3).calls == +whole.calls
    assert all(call.images in (3, 4) for call in whole.calls) or not settings.specs[-1].kind.even


class Firm(BaseDefence):
    """Never gives class 0 up; counts its calls."""

    def __init__(self):
        super().__init__((1, 8, 8), 4)
        self.calls = collections.Counter()

    def forward(self, pixels):
        self.network_evaluations += len(pixels)
        self.calls[len(pixels), torch.is_grad_enabled() and pixels.requires_grad] += 1
        sum_ = pixels.flatten(1).mean(1, keepdim=True)
        return torch.tensor([9.0, 1.0, 2.0, 3.0]) + 1e-3 * sum_ * torch.arange(4.0)


@pytest.mark.parametrize(
    "attacks", ["none", "apgd-ce,apgd-dlr", "apgd-t,square:queries=40", "pgd-ce:steps=2:restarts=2"]
)
def test_the_plan_is_what_an_evaluation_does(attacks, tmp_path):
    """On a model that nothing breaks: as many calls, on as many images, with as many gradients, sanity checks included."""
    data, firm = labelled_by(gaussian_classifier(), n=20), Firm()
    data = dataclasses.replace(data, labels=torch.zeros_like(data.labels))
    settings = EvaluationSettings("m", "d", n=10, batch=4, attacks=attacks, eps="8/255", steps=25, sanity=3)
    whole = predicting._whole(firm, settings, 1.0, 0, 1)
    evaluate(firm, data, settings, tmp_path / "run", progress=False)
    planned = collections.Counter()
    for call, count in whole.calls.items():
        planned[call.images, call.gradient is not None] += round(count)
    checks = {(4, False): 2}  # what is asked of the first batch alone: the model twice, on 4 images
    for counted in (
        planned,
        firm.calls,
    ):  # the sanity checks: this model stands even where the budget is large, the stand-in does not
        assert bool(counted[3, True]) == (attacks != "none")
        del counted[3, False], counted[3, True]
    assert planned + collections.Counter(checks) == firm.calls


def test_the_prediction_is_the_number_of_evaluations_where_each_takes_a_second(tmp_path, monkeypatch):
    """A clock that shows network evaluations; a model that is broken by nothing."""
    monkeypatch.setattr(CallTimes, "seconds", lambda self, call: Seconds(call.images, call.images))
    monkeypatch.setattr(
        counting, "timed", lambda work, device: (work(), Seconds())[1]
    )  # nothing lies between the calls
    data, firm = labelled_by(gaussian_classifier(), n=20), Firm()
    data = dataclasses.replace(data, labels=torch.zeros_like(data.labels))
    settings = EvaluationSettings("m", "d", n=9, batch=4, attacks="apgd-ce,square:queries=30", eps="8/255", sanity=0)
    found = predict(firm, data, settings)
    evaluation = evaluate(firm, data, settings, tmp_path / "run", progress=False)
    made = evaluation.figures.network_evaluations - 8  # the first batch is asked twice more
    assert round(found.at_most.wall) == made
    half = predict(firm, data, settings, finished=1)
    assert half.at_most.wall < 0.7 * found.at_most.wall
    assert predict(firm, data, settings, processes=2).at_most.wall < 0.75 * found.at_most.wall


def test_images_that_are_wrong_are_not_attacked():
    classifier, settings = gaussian_classifier(), settings_of(["pgd-ce"])
    calls = plan_calls(classifier, settings, 4, 1).calls
    assert calls[Call("model", 1, "exact", 4)] == 35 and not calls[Call("model", 4, "exact", 4)]
    assert calls[Call("model", 4)] == 2 + 10  # clean, at the end, and ten submissions to fresh noise


def test_kinds_of_calls_are_told_apart():
    classifier = gaussian_classifier(lm="paper-v2,steps=1")
    attacks = ["pgd-margin:gradient=bpda", "pgd-ce", "lagrange:steps=2", "transfer:surrogate=one-step:steps=2"]
    seen = plan_calls(classifier, settings_of(attacks), 4, 4).calls
    assert (
        seen[Call("model", 4, "bpda", 2)]
        == 35
        == seen[Call("model", 4, "exact", 4)] - seen[Call("penalty", 4, "exact")]
    )
    assert any(call.role == "one-step" and call.gradient for call in seen)
    assert not any(call.role == "plain" for call in seen)
    steps = plan_calls(gaussian_classifier(lm="paper-v2,steps=3"), settings_of(["per-step:steps=5"]), 4, 4).calls
    assert (
        steps[Call("model", 4, "exact", 4)] == 5 == steps[Call("plain", 8, "exact", 4)]
    )  # the two images before the last


def test_corruptions_are_counted_as_they_are():
    calls = plan_calls(gaussian_classifier(), settings_of(["corruptions"], "corruption"), 4, 4).calls
    assert calls[Call("model", 4)] == 2 + 12 + 2 + 10  # clean, six kinds at two severities, at the end, and fresh noise


def test_measuring_changes_no_generator_and_no_defence():
    data = labelled_by(gaussian_classifier(), n=8)
    classifier = gaussian_classifier(noise="fresh")

    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    class Drawing(BaseDefence):
        def forward(self, pixels):
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
            return pixels.flatten(1)[:, :4] * 1.0

    before, draw = states(), classifier._draw
    settings = EvaluationSettings("m", "d", n=8, batch=8, attacks="pgd-ce", steps=2, eps="8/255")
    predict(classifier, data, settings)
    predict(Drawing((1, 8, 8), 4), data, settings)
    assert states() == before and (classifier._draw, classifier.network_evaluations) == (draw, 0)


@pytest.mark.parametrize("lm", [None, "paper-v2,steps=4", "paper-v1,steps=2,levels=log:3:0.5:1:flat"])
@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_parts_of_a_long_call_add_up(kind, lm, monkeypatch):
    """A clock that shows network passes: one level and one step stand for all of them."""
    monkeypatch.setattr(timing, "_LONGEST", 0.0)

    def evaluations(work, device):
        made = []
        real = type(classifier)._undisturbed

        def watched(self, function, pixels):
            before = self.network_evaluations
            out = real(self, function, pixels)
            made.append(self.network_evaluations - before)
            return out

        monkeypatch.setattr(type(classifier), "_undisturbed", watched)
        work()
        monkeypatch.setattr(type(classifier), "_undisturbed", real)
        return Seconds(sum(made), sum(made))

    classifier = tiny_classifier(kind, lm=lm)
    times = CallTimes(classifier, tiny_pixels(2), torch.zeros(2, dtype=torch.long))
    monkeypatch.setattr(timing, "timed", evaluations)
    assert times.parts is not None
    for mode in (None, "exact", "bpda"):
        assert times.seconds(Call("model", 3, mode)).wall == 3 * classifier.evaluations_per_image
    if lm is not None:
        assert times.seconds(Call("plain", 1, "exact")).wall == 5 * classifier.denoiser.passes_per_level
        assert times.seconds(Call("penalty", 2, "exact")).wall == 2 * (
            classifier.evaluations_per_image - 5 * classifier.denoiser.passes_per_level
        )


def test_gradients_are_timed_as_attacks_ask_for_them(monkeypatch):
    """Of all classes, and said to be, for a cross-entropy; of two for a margin."""
    said = []
    real = DiffusionClassifier.forward
    monkeypatch.setattr(
        DiffusionClassifier, "forward", lambda *given: (said.append(do_all_classes_carry()), real(*given))[1]
    )
    classifier = tiny_classifier("conditional")
    for classes, expected in ((2, False), (classifier.num_classes, True)):
        timing._slope(classifier, tiny_pixels(2), classes)
        assert said.pop() is expected


def test_a_line_through_one_image_and_several(monkeypatch):
    classifier = gaussian_classifier()
    times = CallTimes(classifier, torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.long))
    monkeypatch.setattr(times, "once", lambda model, kind, count, *_: Seconds(0.02 + 0.01 * count, 0.02 + 0.01 * count))
    for count, seconds in (
        (1, 0.03),
        (5, 0.07),
        (8, 0.1),
        (16, 0.2),
    ):  # beyond the eight that were measured: twice as many, twice as long
        assert abs(times.seconds(Call("model", count)).wall - seconds) < FLOAT32_ROUNDING


@pytest.mark.parametrize(
    ("images", "count", "measured"),
    [
        (12, 1, [1, 2]),  # one second: two images take 0.7, four would take 1.4
        (12, 18, [1, 2, 4, 8]),  # a twentieth of 18 calls
        (12, 25, [1, 12]),
        (40, 100_000, [1, 2, 24]),  # ten seconds, and no more images than there are
    ],
)
def test_calls_are_measured_at_the_size_of_the_run_where_that_is_a_small_part_of_it(
    monkeypatch, images, count, measured
):
    """A call that takes 0.3 s and 0.2 s an image: proportion from two images would say 4.2 s of twelve in place of 2.7."""
    times = CallTimes(gaussian_classifier(), torch.rand(24, 1, 8, 8), torch.zeros(24, dtype=torch.long))
    asked = []

    def once(model, kind, count, *_):
        asked.append(count)
        return Seconds(0.3 + 0.2 * count, 0.3 + 0.2 * count)

    monkeypatch.setattr(times, "once", once)
    times.expect({Call("model", images, "exact", 4): count, Call("model", 2, "exact", 2): 1, Call("model", images): 1})
    found = times.seconds(Call("model", images, "exact", 4))
    assert asked == measured
    assert images not in asked or abs(found.cpu - 0.3 - 0.2 * images) < FLOAT32_ROUNDING


def test_the_middle_of_several_and_what_there_is_time_for(monkeypatch):
    """The first call of a kind is slow: it counts only where there is no time for another."""
    given = [Seconds(4.0, 0.4), Seconds(1.0, 0.1), Seconds(9.0, 0.2), Seconds(2.0, 0.3), Seconds(5.0, 0.5)]
    times = CallTimes(gaussian_classifier(), torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))
    for allowed, expected in ((2.0, Seconds(2.0, 0.2)), (1.0, Seconds(1.0, 0.1)), (0.5, Seconds(4.0, 0.4))):
        left = iter(given)
        monkeypatch.setattr(timing, "timed", lambda work, device, left=left: next(left))
        assert times.once(times.classifier, Call("model", 1), 2, allowed) == expected


@pytest.mark.parametrize(
    ("attack", "classes"), [("apgd-ce", 4), ("apgd-dlr", 3), ("pgd-margin", 2), ("apgd-t:targets=1", 4)]
)
def test_classes_of_a_gradient_are_counted_and_measured(attack, classes):
    """A conditional network's backward pass has a pass for every class that carries gradient."""
    classifier, x = gaussian_classifier(), torch.rand(2, 1, 8, 8)
    calls = plan_calls(classifier, settings_of([attack], steps=3), 2, 2).calls
    assert {call.classes for call in calls if call.gradient} == {classes}
    kind = CallTimes(classifier, x, torch.zeros(2, dtype=torch.long))._kind(Call("model", 2, "exact", classes))
    seen = []

    def model(pixels):
        logits = pixels.flatten(1)[:, :4] * 1.0
        logits.register_hook(seen.append)
        return logits

    model.num_classes = 4
    timing._slope(model, x, kind.classes)
    assert (seen[0] != 0).sum(1).tolist() == [classes, classes]
    assert float(seen[0].sum(1).abs().max()) < FLOAT32_ROUNDING  # what all logits share has no gradient


def test_classes_matter_where_each_is_a_pass_in_a_part_too():
    def kind(classifier):
        times = CallTimes(classifier, tiny_pixels(1), torch.zeros(1, dtype=torch.long))
        return times._kind(Call("model", 1, "exact", 4)).classes

    conditional, together = tiny_classifier("conditional"), tiny_classifier("multihead")
    assert (kind(conditional), kind(together)) == (4, 2)
    assert (
        kind(PlainClassifier(conditional, image_shape=conditional.image_shape, num_classes=conditional.num_classes))
        == 4
    )


def test_how_many_images_stand_decides_what_is_likely(monkeypatch):
    """Where there is no time for a short attack, the share that is right when clean; where there is none for that, nothing."""
    data = labelled_by(gaussian_classifier(), n=20)
    data = dataclasses.replace(data, labels=torch.where(torch.arange(20) < 15, data.labels, (data.labels + 1) % 4))
    settings = EvaluationSettings("m", "d", n=20, batch=8, attacks="pgd-ce", steps=100, eps="0.0001", sanity=0)
    monkeypatch.setattr(
        counting, "timed", lambda work, device: (work(), Seconds())[1]
    )  # whatever this machine is doing

    def found(each, **changes):
        monkeypatch.setattr(CallTimes, "seconds", lambda self, call: Seconds(each * call.images, each * call.images))
        return predict(gaussian_classifier(), data, dataclasses.replace(settings, **changes))

    quick = found(1e-3)
    assert (quick.standing, quick.attacked) == (0.75, True) and quick.likely.cpu < 0.9 * quick.at_most.cpu
    steps, ask = [], predicting.run_attack
    monkeypatch.setattr(
        predicting, "run_attack", lambda bench, spec, *rest: (steps.append(spec.text), ask(bench, spec, *rest))[1]
    )
    monkeypatch.setattr(predicting, "_PROBE_SECONDS", 1.6)  # the first eight images are right
    for each, attack in (
        (0.028, "steps=5"),
        (0.029, "steps=2"),
        (0.05, "steps=2"),
        (0.051, "steps=1"),
        (0.066, "steps=1"),
    ):
        assert found(each).attacked and steps.pop() == f"apgd-margin:{attack}"
    slow = found(0.09)
    assert (slow.standing, slow.attacked) == (15 / 17, False)
    assert found(0.21).likely is None is found(0.21).standing
    assert found(1e-3, noise="fresh", eot=1, resubmissions=2).attacked is False
    alone, second = (found(1e-3, attacks=(*text, "square:queries=40")) for text in ((), ("pgd-ce",)))
    assert (alone.standing, alone.attacked) == (
        0.75,
        False,
    ) and second.attacked  # nothing that follows gradients tells of Square


def test_words():
    given = {
        5: "5 s",
        0.2: "1 s",
        99: "99 s",
        100: "2 min",
        5950: "99 min",
        6300: "1 h 45 min",
        7200: "2 h",
        50_400: "14 h",
    }
    given |= {400_000: "5 days"}
    assert {seconds: about(seconds) for seconds in given} == given
    settings = EvaluationSettings("m", "d", n=512)
    long = Prediction(Seconds(50_400, 50_400), None, None, 10)
    assert forecast_line(long, settings) == "about 14 h on this device at most; --n 64 takes 1 h 45 min"
    clean = dataclasses.replace(long, likely=Seconds(40_000, 1), standing=0.8, attacked=False)
    assert "likely 11 h (of the first images 80 % are right when clean)" in forecast_line(clean, settings)
    part = dataclasses.replace(long, at_most=Seconds(500, 500), likely=Seconds(100, 100), standing=0.25)
    assert forecast_line(part, settings) == (
        "about 8 min on this device at most, likely 2 min (of the first images 25 % stand after a short attack)"
    )


def test_the_plan_names_the_preset_and_what_differs():
    settings = EvaluationSettings("m", "d", n=8, attacks="pgd-ce", preset="paper-v2", noise="all")
    text = plan_text(Prediction(Seconds(9, 9), None, None, 1234), settings, gaussian_classifier())
    assert "paper-v2, but for\n" in text and "noise: all in place of fresh" in text
    assert "1,234 at most" in text and text.endswith("Nothing was run (--dry-run).\n")


def test_batches_of_a_folder_are_counted(tmp_path):
    assert finished_batches(tmp_path / "none") == 0
    data = labelled_by(gaussian_classifier(), n=9)
    settings = EvaluationSettings("m", "d", n=9, batch=4, attacks="none")
    evaluate(gaussian_classifier(), data, settings, tmp_path / "run", progress=False)
    assert finished_batches(tmp_path / "run") == 3
    (tmp_path / "run" / "results.9-of-9.jsonl").mkdir()
    assert finished_batches(tmp_path / "run") == 3


HALF = [1.0, 0.5, 0.25]  # half of those that stand falls at every step


@pytest.mark.parametrize(("norm", "curve", "steps", "mean"), [
    ("linf", HALF, 100, 0.25), ("linf", [0.75], 100, 0.75), ("flow", [0.75], 100, 0.75), ("flow", [1.0, 1.0, 1.0], 60, 1.0),
    ("flow", HALF, 2, 0.75), ("flow", HALF, 1, 1.0), ("flow", HALF, 4, (1.5 + 0.25 * 0.75 / np.log(2)) / 4),
    ("flow", HALF, 5000, (1.5 + 0.25 / np.log(2)) / 5000), ("flow", [1.0, 0.5, 0.5, 0.5, 0.5], 40, (2.5 + 0.5 * 36) / 40),
    ("flow", [0.8, 0.0, 0.0], 10, 0.08),
])  # fmt: skip
def test_images_that_go_on_falling_are_fewer_on_average(norm, curve, steps, mean):
    settings = settings_of(["stadv" if norm == "flow" else "pgd-ce"], norm, steps=steps)
    assert abs(predicting._mean_share(curve, settings) - mean) < FLOAT32_ROUNDING


def test_in_a_flow_some_images_are_followed_as_far_as_there_is_time(monkeypatch):
    """Images go on falling there: 32 of them, for as many steps as a tenth of the run allows, and no more than it has."""
    data = labelled_by(gaussian_classifier(), n=64)
    settings = EvaluationSettings(
        "m", "d", n=64, batch=64, attacks="stadv", norm="flow", eps="0.0001", steps=40, sanity=0
    )
    asked, ask = [], predicting.run_attack
    monkeypatch.setattr(
        predicting, "run_attack", lambda *given: (asked.append((given[1].text, len(given[2]))), ask(*given))[1]
    )
    monkeypatch.setattr(CallTimes, "seconds", lambda self, call: Seconds(0.01 * call.images, 0.01 * call.images))
    for allowed, expected in (
        (4.2, ("stadv:steps=11", 32)),
        (100.0, ("stadv:steps=40", 64)),
        (0.75, ("stadv:steps=5", 10)),
    ):
        monkeypatch.setattr(predicting, "_PROBE_SECONDS", allowed)
        monkeypatch.setattr(predicting, "_PROBE_PART", 10.0)
        assert predict(gaussian_classifier(), data, settings).attacked
        assert asked.pop() == expected and not asked
