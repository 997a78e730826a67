"""The front door of every attack: numbers of any kind, inference mode, models that change their input, pixels off by rounding."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from rdc.attacks import ThreatModel, parse_eps
from rdc.attacks.apgd import apgd, apgd_targeted
from rdc.attacks.autoattack import autoattack
from rdc.attacks.fab import fab
from rdc.attacks.hop_skip_jump import hop_skip_jump
from rdc.attacks.lagrange import lagrange, objective_attack
from rdc.attacks.low_frequency import low_frequency
from rdc.attacks.pgd import pgd
from rdc.attacks.selective import selective
from rdc.attacks.smoothed import smoothed
from rdc.attacks.square import square
from rdc.attacks.stadv import FlowThreat, stadv
from rdc.attacks.transfer import transfer
from rdc.errors import RdcError
from tests.tiny_models import CLASSES, SHAPE, pixels, tiny_classifier

WEIGHT = torch.randn(2 * 64, CLASSES, generator=torch.Generator().manual_seed(0))
LINF, FLOW = ThreatModel("linf", 0.05), FlowThreat(0.05)


def linear(x):
    return (x.flatten(1) - 0.5) @ WEIGHT


def changes_its_input(x):
    return x.sub_(0.5).flatten(1) @ WEIGHT


def smooth(x):
    return x.square().mean((1, 2, 3))


def changes_and_squares(x):
    return x.mul_(1).square().mean((1, 2, 3))


#: attack -> (function, threat, its own arguments)
ATTACKS = {
    "pgd": (pgd, LINF, {"steps": 3, "restarts": 2}),
    "apgd": (apgd, LINF, {"steps": 3}),
    "apgd-t": (apgd_targeted, LINF, {"steps": 3, "targets": 2}),
    "fab": (fab, LINF, {"steps": 2, "targets": 2}),
    "square": (square, LINF, {"queries": 8, "p_init": 0.5}),
    "hop-skip-jump": (hop_skip_jump, LINF, {"queries": 60, "draws": 5}),
    "stadv": (stadv, FLOW, {"steps": 3, "tau": 0.05}),
    "low-frequency": (low_frequency, LINF, {"steps": 3, "cutoff": 0.5}),
    "smoothed": (smoothed, LINF, {"steps": 3, "samples": 2, "reach": 0.5}),
    "lagrange": (lagrange, LINF, {"steps": 3, "penalty": smooth, "searches": 2}),
    "objective": (objective_attack, LINF, {"steps": 3, "penalty": smooth}),
    "transfer": (transfer, LINF, {"steps": 3, "surrogate": linear, "check_every": 1, "surrogate_eot": 1}),
    "selective": (selective, LINF, {"steps": 3, "redraw": lambda: None, "draws": 2, "eot": 2, "temperature": 1.0}),
    "autoattack": (autoattack, LINF, {"steps": 2, "queries": 4}),
}


def images():
    x = pixels(6)
    return x, linear(x).argmax(1)


def run(name, model=linear, x=None, y=None, threat=None, **changes):
    function, own, settings = ATTACKS[name]
    clean, labels = images()
    given = {"seed": 3, "image_ids": range(6), **settings, **changes}
    return function(model, clean if x is None else x, labels if y is None else y, threat or own, **given)


def same(one, other):
    assert torch.equal(one.x_adv, other.x_adv) and torch.equal(one.correct, other.correct)
    assert torch.equal(one.best_loss, other.best_loss)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_may_change_its_input(name):
    """It did not break the images' budget: the attack hands out copies."""
    x, y = images()
    kept = x.clone()
    mutable = {"lagrange": {"penalty": changes_and_squares}, "objective": {"penalty": changes_and_squares}}
    settings = {"transfer": {"surrogate": changes_its_input}, **mutable}.get(name, {})
    same(run(name, changes_its_input, x, y, **settings), run(name))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", ATTACKS)
def test_numpy_scalars_and_tensors_are_numbers(name):
    settings = ATTACKS[name][2]
    integers = {key: np.int64(value) for key, value in settings.items() if type(value) is int}
    numbers = {key: np.float64(value) for key, value in settings.items() if type(value) is float}
    same(run(name, seed=np.int64(3), image_ids=np.arange(6), **integers, **numbers), run(name))
    tensors = {key: torch.tensor(value) for key, value in settings.items() if type(value) is int}
    same(run(name, seed=torch.tensor(3), image_ids=torch.arange(6), **tensors), run(name))


@pytest.mark.parametrize("name", ATTACKS)
def test_inside_inference_mode_as_outside(name):
    with torch.inference_mode():
        x, y = images()
        found = run(name, x=x, y=y)
    same(found, run(name))
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        assert not (isinstance(value, torch.Tensor) and value.is_inference()), field.name


@pytest.mark.parametrize("start", [torch.full((6, *SHAPE), 0.4), [torch.full((6, *SHAPE), 0.4)]])
def test_starts_made_inside_inference_mode(start):
    with torch.inference_mode():
        inside = start.clone() if isinstance(start, torch.Tensor) else [one.clone() for one in start]
        found = run("apgd", start=inside)
    same(found, run("apgd", start=start))
    same(run("apgd", start=inside), found)  # and used outside


def test_a_diffusion_classifier_is_attacked_inside_inference_mode():
    x = pixels(2)
    plain, inside = tiny_classifier(lm="paper-v2,steps=1"), tiny_classifier(lm="paper-v2,steps=1")
    y = plain(x).argmax(1)
    about = {"seed": 0, "image_ids": [0, 1], "steps": 1}
    expected = apgd(plain, x, y, LINF, **about)
    with torch.inference_mode():
        found = apgd(inside, x.clone(), y.clone(), LINF, **about)
    same(found, expected)
    same(apgd(inside, x, y, LINF, **about), expected)


def test_a_model_made_inside_inference_mode_is_named():
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(128, CLASSES))
    x, y = images()
    for inside in (True, False):
        with (
            torch.inference_mode(inside),
            pytest.raises(RdcError, match=r"the model holds tensors .*inference_mode\(\)") as raised,
        ):
            run("apgd", model, x=x, y=model(x).argmax(1).clone())
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ATTACKS)
def test_rounding_beyond_the_box_is_the_box(name):
    x, y = images()
    x[:, 0, 0] = 1.0
    x[:, 1, 0] = 0.0
    off = x.clone()
    off[:, 0, 0] = 1 + 1.2e-7
    off[:, 1, 0] = -1e-7
    y = linear(x).argmax(1)
    same(run(name, x=off, y=y), run(name, x=x, y=y))
    off[0, 0, 0, 0] = 1.000002
    with pytest.raises(RdcError, match=r"1\.000002"):
        run(name, x=off, y=y)


WRONG = {
    "seed": [True, 1.5, "1", None, -1, 2**64, np.bool_(True), np.float32(3), torch.tensor(True)],
    "steps": [True, 1.5, "1", None, 0, np.float64(3)],
    "restarts": [False, "2", 0, None],
    "eot": [True, 0, 1.5, None],
    "image_ids": [3, [True] * 6, [1.0] * 6, [-1] * 6, "abcdef", range(5)],
    "step_size": ["a", True, 0, float("nan"), float("inf")],
    "logit_scale": ["a", True, None, float("nan"), 0],
    "loss": [None, 3, [], "mse"],
    "start": [3, "x", [1], torch.zeros(1, 1)],
    "targets": [True, 0, 1.5],
    "queries": [True, 0, 1.5, None],
    "p_init": [True, "a", 0, 2, None],
    "tau": [True, "a", -1, float("inf")],
    "cutoff": [True, "a", 0, [], [True], None, 2, "0.5"],
    "samples": [True, 0, None],
    "reach": [True, "a", 0],
    "searches": [True, 0, "a"],
    "multipliers": [3, "ab", [True], ["a"], [], [float("nan")]],
    "penalty": [None, 3],
    "check_every": [True, 0],
    "draws": [True, 0, 1.5, "ab", [True], [-1], [1, 1], None],
    "temperature": [True, "a", 0, float("inf")],
    "threat": [0.1, "linf", ...],
    "model": [3, "net"],
}  # fmt: skip
OF = {
    "step_size": "pgd", "targets": "apgd-t", "queries": "square", "p_init": "square", "tau": "stadv", "cutoff": "low-frequency",
    "samples": "smoothed", "reach": "smoothed", "searches": "lagrange", "multipliers": "lagrange", "penalty": "lagrange",
    "check_every": "transfer", "draws": "selective", "temperature": "selective",
}  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=repr
)
def test_wrong_arguments_are_refused_in_one_line(argument, value):
    with pytest.raises(RdcError) as raised:
        run(OF.get(argument, "apgd"), **{argument: value})
    assert "\n" not in str(raised.value) and 10 < len(str(raised.value)) < 400


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, torch.tensor, np.array, np.int64, int])
def test_budgets_of_any_kind(kind):
    eps = kind(1) if kind in (np.int64, int) else kind(0.25)
    assert ThreatModel("linf", eps) == ThreatModel("linf", float(eps)) and parse_eps(eps) == float(eps)
    assert type(ThreatModel("l2", eps).eps) is float and FlowThreat(eps).bound == float(eps)


@pytest.mark.parametrize(
    "eps",
    [True, np.bool_(True), None, "a", [0.1], np.array([0.1]), 1j, 10**400, float("nan"), -0.1, torch.tensor(True)],
)
def test_what_is_no_budget(eps):
    for use in (parse_eps, lambda eps: ThreatModel("linf", eps), FlowThreat):
        with pytest.raises(RdcError) as raised:
            use(eps)
        assert "\n" not in str(raised.value)
