"""What an evaluation tells an attack: settings, what its text sets, and what it asks of the defence."""

from types import SimpleNamespace

import pytest
import torch

from rdc.attacks import parse_attack
from rdc.evaluation import EvaluationSettings
from rdc.evaluation.attacking import Bench, run_attack
from tests.evaluation_models import SHAPE, gaussian_classifier

IDS = torch.tensor([7, 9])


def asked(text, policy="known", endpoints=(), progress=None, start=None):
    """(what the attack is called with, the bench), without running it."""
    spec, seen = parse_attack(text), {}
    settings = EvaluationSettings(
        model="m", dataset="d", n=2, attacks=("apgd-ce",), eps="8/255", steps=17, restarts=3, seed=11, sanity=0,
        noise="known" if policy == "known" else "fresh", eot=1 if policy == "known" else 24,
    )  # fmt: skip

    def configured(threat, **arguments):
        seen.update(arguments, threat=threat)
        return lambda model, pixels, labels: seen.update(model=model)

    kind = SimpleNamespace(
        white_box=spec.kind.white_box,
        needs=spec.kind.needs,
        attack=SimpleNamespace(configured=configured, options=spec.kind.attack.options),
    )
    watched = SimpleNamespace(kind=kind, text=spec.text, options=spec.options, get=spec.get)
    bench = Bench(gaussian_classifier(lm="paper-v2,steps=2"), settings, 0, policy)
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    run_attack(bench, watched, images, torch.tensor([0, 1]), IDS, settings, list(endpoints), progress, start)
    return seen, bench


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("apgd-ce", True),
        ("pgd-ce", True),
        ("apgd-t", True),
        ("transfer", True),
        ("fab", False),
        ("square", False),
        ("lagrange", False),
    ],
)
def test_attacks_that_take_a_start_begin_where_a_smaller_radius_ended(text, begins):
    start = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    assert ("start" in asked(text)[0]) is False
    assert (asked(text, start=start)[0].get("start") is start) is begins
    ends = [start + 1]
    assert (
        asked("endpoints-ce", endpoints=ends, start=start)[0]["start"] == ends
    )  # which has that of the smaller radius, too


def test_settings_fill_what_the_text_leaves_open():
    seen, bench = asked("apgd-ce")
    assert (seen["steps"], seen["restarts"], seen["eot"], seen["seed"]) == (17, 3, 1, 11)
    assert seen["image_ids"] is IDS and seen["threat"].eps == 8 / 255 and seen["progress"] is None
    assert seen["model"] is bench.model("exact") and "redraw" not in seen and "gradient" not in seen
    seen, bench = asked("apgd-ce:steps=5:restarts=2:gradient=bpda")
    assert (seen["steps"], seen["restarts"]) == (5, 2)
    assert seen["model"] is bench.model("bpda") and seen["model"].gradient == "bpda" and "gradient" not in seen


def test_fresh_noise_is_averaged_over_and_drawn_anew():
    seen, bench = asked("apgd-ce", "fresh")
    assert seen["eot"] == 24 and seen["redraw"] == bench.model("exact").redraw
    assert bench.model().noise.policy == "fresh" and asked("apgd-ce")[1].model().noise.policy == "fixed"
    assert asked("apgd-ce:eot=2", "fresh")[0]["eot"] == 2


def test_an_attack_without_gradients_gets_no_steps_and_no_average():
    seen, _ = asked("square:queries=5", "fresh")
    assert seen["queries"] == 5 and not {"steps", "eot"} & set(seen)


@pytest.mark.parametrize(("text", "eot"), [("selective", 6), ("selective:eot=3", 3)])
def test_draws_are_chosen_from(text, eot):
    """A quarter of the draws that it looks at get a gradient, unless the text says how many."""
    seen, bench = asked(text, "fresh")
    assert seen["eot"] == eot and seen["set_draw"] == bench.model("exact").set_draw


@pytest.mark.parametrize(
    ("text", "policy", "redrawn"),
    [("transfer", "known", False), ("transfer:surrogate=fresh", "known", True), ("transfer", "fresh", True)],
)
def test_surrogates_are_averaged_where_something_is_drawn(text, policy, redrawn):
    seen, bench = asked(text, policy)
    surrogate = seen["surrogate"]
    assert surrogate.noise.policy == ("fresh" if redrawn else "fixed")
    assert (surrogate.lm is None) is (text == "transfer")
    if redrawn:
        assert seen["surrogate_redraw"] == surrogate.redraw and seen["surrogate_eot"] == 5
    else:
        assert not {"surrogate_redraw", "surrogate_eot"} & set(seen)
    before = bench.evaluations
    surrogate(torch.rand(2, *SHAPE))
    assert bench.evaluations > before  # counted with the defence's own


def test_penalties_are_the_defences():
    seen, bench = asked("lagrange")
    assert seen["penalty"] == bench.model("exact").penalty and "surrogate" not in seen


def test_paths_are_the_defences():
    seen, bench = asked("per-step:looks=2:measure=deviation", "fresh")
    assert seen["path"] == bench.model("exact").purification_path and seen["redraw"] == bench.model("exact").redraw
    assert (seen["looks"], seen["measure"]) == (2, "deviation")


def test_endpoints_are_what_came_before():
    before = [torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE)]
    seen, _ = asked("endpoints-ce", endpoints=before)
    assert seen["start"] == before and seen["restarts"] == 2
    seen, _ = asked("apgd-ce", endpoints=before)
    assert "start" not in seen and seen["restarts"] == 3
    seen, _ = asked("endpoints-ce")
    assert "start" not in seen and seen["restarts"] == 3


def test_progress_is_told_the_full_text():
    told = []
    seen, _ = asked("apgd-ce:steps=5", progress=told.append)
    seen["progress"]({"attack": "apgd-ce", "step": 1})
    assert told == [{"attack": "apgd-ce:steps=5", "step": 1}]
