"""Attacks as configured objects: every option declared once, read the same by Python, by a list of attacks and by the command line."""

import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch

from rdc.attacks import ATTACKS, AttackOptions, ThreatModel, apgd, attack_named, parse_attack
from rdc.attacks.autoattack import autoattack
from rdc.attacks.fab import fab
from rdc.attacks.options import AscentOptions
from rdc.attacks.pgd import pgd
from rdc.attacks.square import SquareOptions, square
from rdc.attacks.stadv import stadv
from rdc.errors import ConfigError, InputError
from tests.attacks.test_entry import ATTACKS as CALLS
from tests.attacks.test_entry import images, linear, run, same

LINF = ThreatModel("linf", 0.05)
ABOUT = {"seed": 3, "image_ids": range(6)}

#: what a list of attacks may set, by attack: neither more nor less
LISTED = {
    **{f"{name}-{loss}": [] for name in ("pgd", "apgd") for loss in ("ce", "dlr", "margin")},
    "apgd-t": ["targets", "order"], "apgd-ce-t": ["targets", "order"], "fab": [], "fab-t": ["targets"], "stadv": ["tau"],
    "sparse-pgd": ["gradients"], "sparse-rs": ["queries", "p_init"], "corruptions": ["kind"], "ppgd": ["solves"], "lpa": ["rounds"],
    "low-frequency": ["cutoff"], "square": ["queries", "p_init"], "hop-skip-jump": ["queries", "draws"],
    "smoothed": ["samples", "reach"], "lagrange": ["searches", "surrogate"], "objective": [],
    "transfer": ["surrogate", "check_every"], "selective": ["draws", "gradients"],
    "per-step": ["measure", "weight", "looks"], "endpoints-ce": [], "endpoints-dlr": [],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_configured_attack_is_the_call(name):
    function, threat, settings = CALLS[name]
    x, y = images()
    configured = function.configured(threat, **ABOUT, **settings)
    same(configured(linear, x, y), run(name))
    same(configured(linear, x, y), run(name))  # nothing is left behind
    with pytest.raises(dataclasses.FrozenInstanceError):
        configured.options.seed = 4


@pytest.mark.parametrize("name", ATTACKS)
def test_a_list_sets_what_the_attack_declares(name):
    black_box = name in ("square", "sparse-rs", "hop-skip-jump", "corruptions")
    common = ["restarts"] if black_box else ["steps", "restarts", "eot", "gradient"]
    assert list(ATTACKS[name].takes) == common + LISTED[name]
    fields = {field.name for field in dataclasses.fields(ATTACKS[name].attack.options)}
    assert set(ATTACKS[name].takes) - {"gradient"} <= fields


def test_options_are_checked_when_the_attack_is_configured():
    for attack, options, message in (
        (apgd, {"steps": 0}, "steps must be an integer >= 1, got 0"),
        (square, {"p_init": 2}, r"p_init must be in \(0, 1\], got 2"),
        (pgd, {"random_start": False, "restarts": 2}, "2 restarts without a random start"),
        (apgd, {"seed": -1}, "seed must be an integer >= 0, got -1"),
    ):
        with pytest.raises(InputError, match=message):
            attack.configured(LINF, **{**ABOUT, **options})
    with pytest.raises(ConfigError, match="unknown version 'best' of AutoAttack"):
        autoattack.configured(LINF, **ABOUT, version="best")


def test_what_an_attack_lacks_is_named_with_it():
    for attack, options in (
        (square, {"steps": 3}),
        (fab, {"loss": "ce"}),
        (autoattack, {"restarts": 2}),
        (apgd, {"targets": 2}),
    ):
        with pytest.raises(
            TypeError, match=rf"^{attack.__name__}\(\) got an unexpected keyword argument '{next(iter(options))}'"
        ):
            attack.configured(LINF, **ABOUT, **options)
    given = apgd.configured(LINF).options
    assert given.seed == 0 and given.image_ids is None
    with pytest.raises(TypeError, match=r"apgd\(\) missing 1 required positional argument: 'threat'"):
        apgd.configured(**ABOUT)
    assert stadv.configured(**ABOUT).threat is None  # it has a bound of its own


def test_numbers_are_read_and_what_is_none_is_left_to_the_attack():
    options = SquareOptions(seed=np.int64(3), image_ids=[0], queries=torch.tensor(8), p_init=np.float32(0.5))
    assert [type(value) for value in (options.seed, options.queries, options.p_init)] == [int, int, float]
    assert AscentOptions(seed=0, image_ids=[0]).logit_scale == "auto"
    assert AscentOptions(seed=0, image_ids=[0], eot=3, logit_scale=2).scoring == {
        "eot": 3,
        "redraw": None,
        "gradient_model": None,
        "logit_scale": 2.0,
    }
    assert "logit_scale" not in AttackOptions(seed=0, image_ids=[0]).scoring


def test_a_name_sets_options_that_a_call_may_set_otherwise():
    named = attack_named("apgd-dlr")
    assert named.configured(LINF, **ABOUT).options.loss == "dlr"
    assert named.configured(LINF, **ABOUT, loss="margin").options.loss == "margin"
    assert apgd.configured(LINF, **ABOUT).options.loss == "ce"
    assert attack_named("fab").configured(LINF, **ABOUT).options.targets is None


def test_the_signature_shows_every_option_and_its_default():
    shown = inspect.signature(pgd).parameters
    assert list(shown)[:4] == ["model", "x", "y", "threat"] and shown["steps"].default == 50
    assert shown["seed"].default == 0 and shown["seed"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "restarts" not in inspect.signature(autoattack).parameters


@pytest.mark.parametrize(
    "text", ["apgd-ce:steps=1000001", "fab:targets=3", "square:eot=3", "lagrange:surrogate=best", "pgd-ce:gradient=no"]
)
def test_a_list_is_held_to_the_limits(text):
    with pytest.raises(ConfigError):
        parse_attack(text)


def test_attacks_survive_a_process_boundary():
    spec = parse_attack("transfer:surrogate=one-step:steps=3")
    assert pickle.loads(pickle.dumps(spec)) == spec
    named = pickle.loads(pickle.dumps(attack_named("apgd-dlr")))
    assert named.rule is apgd.rule and named.fixed == {"loss": "dlr"}
