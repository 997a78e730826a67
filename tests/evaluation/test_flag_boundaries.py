"""Every flag on both sides of its condition, from records made by hand: which is raised, and with what evidence."""

import dataclasses

import pytest

from rdc.evaluation.flags import FLAGS, raise_flags
from rdc.evaluation.network_records import NetworkRecord
from rdc.evaluation.records import AttackTotals, Identity, OutputChecks, SettingsRecord
from rdc.evaluation.report import Rate, RobustRate, ScoreRates
from rdc.evaluation.sanity_records import GradientPath, GradientShape, GradientShares, NoiseShares, Sanity, ShortAttack
from rdc.evaluation.totals import RunTotals, SummedAttack

NARROW = Rate(0.05, (0.0, 0.1))  # exactly a tenth is not wider than a tenth
SETTINGS = SettingsRecord(
    model="m", dataset="d", n=1000, split="test", start=0, attacks=("apgd-ce",), norm="linf", eps="8/255", steps=20,
    restarts=1, gradient="exact", noise="known", eot=1, resubmissions=1, sanity=8, seed=0, batch=100,
)  # fmt: skip
IDENTITY = Identity(
    schema=3, settings=SETTINGS, radius=0.03, classifier={"lm": None, "weighting": "flat"}, purifies=False, weights="w",
    images="i",
)  # fmt: skip
ATTACK = AttackTotals(
    name="apgd-ce", policy="known", steps=20, restarts=1, gradient="exact", loss="ce", attacked=900, survivors=500,
    right=500.0, blind_images=0, non_finite_images=0, verify_mismatches=0, evaluations=1, seconds=1.0,
)  # fmt: skip
SANITY = Sanity(
    n=8, budgets=(ShortAttack(0.03, 20, 0.5, 1.0), ShortAttack(0.06, 20, 0.25, 2.0)),
    steps=(ShortAttack(0.03, 5, 0.75, 0.5), ShortAttack(0.03, 20, 0.5, 1.0)), large_eps=ShortAttack(0.5, 40, 0.0, 9.0),
    path=GradientPath(falls=0.3, gain=1.0, used=0.8, steps=12), gradient=GradientShape(0.5, 0.9999),
    bpda=GradientShares(0.5, 0.5), fresh=NoiseShares(0.5, 0.5),
)  # fmt: skip
TOTALS = RunTotals(
    n=1000, clean=NARROW, robust=RobustRate(0.5, NARROW.ci95), scores=ScoreRates(), attacks=(SummedAttack(ATTACK, 400),),
    late={}, checks=OutputChecks(1e-4, 1.0, 0, 1e-3, False, 0), mismatches=0, non_finite=0, network_evaluations=1,
    seconds=1.0, sanity=SANITY,
)  # fmt: skip


def identity(**changes):
    """Settings by their names, parts of the identity by theirs."""
    own = {name: changes.pop(name) for name in ("classifier", "purifies", "networks") if name in changes}
    return dataclasses.replace(IDENTITY, settings=dataclasses.replace(SETTINGS, **changes), **own)


def network(null_label, name="models/m"):
    """An identity with one network."""
    why = None if null_label is None else "because"
    return {"networks": (NetworkRecord("likelihood maximisation", name, "conditional", 1, "w", null_label, why),)}


def scaled(logit_scale):
    """The identity of a diffusion classifier with this logit scale."""
    return {"classifier": {"lm": None, "weighting": "flat", "logit_scale": logit_scale}}


def checks(**changes):
    return {"checks": dataclasses.replace(TOTALS.checks, **changes)}


def sanity(**changes):
    return {"sanity": dataclasses.replace(SANITY, **changes)}


def attacks(*changes):
    """One attack for each dictionary; ``broken`` is beside its totals."""
    made = []
    for change in changes:
        change = dict(change)
        broken = change.pop("broken", 0)
        made.append(SummedAttack(dataclasses.replace(ATTACK, **change), broken))
    return {"attacks": tuple(made)}


def budgets(first, last):
    return sanity(budgets=(ShortAttack(0.03, 20, *first), ShortAttack(0.06, 20, *last)))


def raised(about, totals):
    return {flag.name: flag.evidence for flag in raise_flags(about, dataclasses.replace(TOTALS, **totals))}


def test_the_run_that_all_others_differ_from_raises_nothing():
    assert raised(IDENTITY, {}) == {}


LM = {"sign": True, "optimizer": "momentum", "steps": 5}
SQUARE = {"name": "square:queries=60", "gradient": None, "loss": "margin", "attacked": 500}
#: flag, changes of the identity, changes of the totals, evidence (None: not raised)
CASES = [
    ("no-attack", {"attacks": ()}, {}, "attacks: none"),
    ("training-images", {"split": "train"}, {}, "split: train"),
    ("training-images", {"split": "validation"}, {}, None),
    ("zero-gradients", {}, attacks({"blind_images": 1}), "apgd-ce: 1 of 900 images"),
    (
        "zero-gradients", {}, attacks({"blind_images": 2}, {}, {"name": "pgd-ce", "blind_images": 3, "attacked": 7}),
        "apgd-ce: 2 of 900 images; pgd-ce: 3 of 7 images",
    ),
    ("vanishing-gradient", {}, sanity(gradient=GradientShape(0.51, 0.5)), "51 % of the entries of clean gradients are exactly 0"),
    ("vanishing-gradient", {}, sanity(gradient=GradientShape(None, None)), None),
    (
        "constant-gradient", {}, sanity(gradient=GradientShape(0.0, 0.99995)),
        "cosine similarity along a path of 12 steps: 0.999950",
    ),
    (
        "randomised-output", {}, checks(repeat_difference=1.1e-4),
        "logits moved by up to 0.00011 (their spread is 1); 0 decisions changed",
    ),
    ("randomised-output", {}, checks(repeat_difference=1.9e-4, logit_spread=2.0), None),
    (
        "randomised-output", {}, checks(repeat_difference=0.0, repeat_decisions_changed=1),
        "logits moved by up to 0 (their spread is 1); 1 decisions changed",
    ),
    ("randomised-output", {"noise": "fresh", "eot": 20}, checks(repeat_difference=1.0), None),
    ("randomised-output", {}, checks(repeat_difference=None, repeat_decisions_changed=1), None),
    ("not-random", {"noise": "fresh", "eot": 20}, checks(repeat_difference=0), "two calls gave the same logits"),
    ("not-random", {"noise": "fresh", "eot": 20}, checks(repeat_difference=1e-9), None),
    ("not-random", {"noise": "all", "eot": 20}, checks(repeat_difference=0), None),
    ("not-log-probabilities", {}, checks(log_sum_exp=2e-3), "the largest |log-sum-exp| is 0.002; it should be 0"),
    ("not-log-probabilities", {}, checks(log_sum_exp=None), "some log-sum-exp is not finite"),
    ("not-log-probabilities", {"classifier": {"lm": None}}, checks(log_sum_exp=5.0), None),
    ("softmax-output", {}, checks(probabilities=True), "every output is >= 0 and each row sums to 1"),
    ("test-time-optimisation", {}, checks(gradients_inside=1), "1 calls of autograd inside one call of the model"),
    ("unstable-decisions", {}, {"mismatches": 1}, "1 decisions"),
    ("unstable-decisions", {}, {"mismatches": 1, **attacks({"verify_mismatches": 2}, {"verify_mismatches": 4})}, "7 decisions"),
    ("non-finite-logits", {}, {"non_finite": 1, **attacks({"non_finite_images": 2}, {"non_finite_images": 4})}, "7 images"),
    (
        "bpda-gradient", {"purifies": True}, attacks({"gradient": "bpda"}, SQUARE),
        "no attack had exact gradients, and the input is purified first",
    ),
    ("bpda-gradient", {"purifies": False}, attacks({"gradient": "bpda"}), None),
    ("bpda-gradient", {"purifies": True}, attacks({"gradient": "bpda"}, {"gradient": "exact"}), None),
    (
        "bpda-gradient", {"purifies": True}, attacks({"gradient": "bpda"}, {"gradient": "exact", "attacked": 0}),
        "no attack had exact gradients, and the input is purified first",
    ),
    (
        "bpda-above-exact", {}, sanity(bpda=GradientShares(exact=0.25, bpda=0.375)),
        "short attack on 8 images: BPDA leaves 38 %, exact 25 %",
    ),
    ("bpda-above-exact", {}, sanity(bpda=GradientShares(exact=0.0, bpda=0.1)), None),
    ("bpda-above-exact", {}, sanity(bpda=GradientShares(exact=0.375, bpda=0.25)), None),
    (
        "known-below-fresh", {}, sanity(fresh=NoiseShares(known=0.25, fresh=0.5)),
        "on 8 images: 25 % against its own noise, 50 % on average against fresh noise",
    ),
    ("known-below-fresh", {}, sanity(fresh=NoiseShares(known=0.0, fresh=0.1)), None),
    (
        "known-below-fresh", {"noise": "all", "eot": 20},
        {"scores": ScoreRates(known=Rate(0.25, (0, 1)), average=Rate(0.5, (0, 1)))},
        "on 1000 images: 25 % against its own noise, 50 % on average against fresh noise",
    ),
    (
        "known-below-fresh", {"noise": "all", "eot": 20},
        {"scores": ScoreRates(known=Rate(0.5, (0, 1)), average=Rate(0.5, (0, 1))), **sanity(fresh=NoiseShares(0.0, 0.9))}, None,
    ),
    (
        "anytime-decisions", {"classifier": {"lm": None, "anytime": {"error_rate": 0.01, "levels": 8, "mean_levels": 2.25}}},
        checks(log_sum_exp=0.0),
        "stated rate of decisions that differ from the full ones: 1 %, 2.2 of 8 levels on average on clean images",
    ),
    (
        "anytime-decisions", {"classifier": {"lm": None, "anytime": {"error_rate": 0.005}}}, {},
        "stated rate of decisions that differ from the full ones: 0.5 % on clean images",
    ),
    (
        "class-elimination",
        {"classifier": {"lm": None, "elimination": {"schedule": "quick", "passes": 4450, "full_passes": 100_000, "under_attack": True}}},
        {}, "4,450 of 100,000 passes (4.5 %), schedule quick, in every call",
    ),
    ("class-elimination", {"classifier": {"lm": None, "elimination": {"under_attack": False}}}, {}, None),
    ("straight-through", {"classifier": {"lm": LM}}, {}, "LM steps take the sign of a gradient"),
    ("straight-through", {"classifier": {"lm": {"sign": True}}}, {}, "LM steps take the sign of a gradient"),
    ("straight-through", {"classifier": {"lm": LM | {"steps": 0}}}, {}, None),
    ("straight-through", {"classifier": {"lm": LM | {"sign": False}}}, {}, None),
    ("straight-through", {"classifier": {"lm": LM | {"optimizer": "adam"}}}, {}, None),
    ("straight-through", {"classifier": {"lm": LM}, "gradient": "bpda"}, {}, None),
    ("straight-through", {"classifier": {"lm": "none"}}, {}, None),
    ("square-beats-white-box", {}, attacks({}, SQUARE | {"broken": 2}), "it broke 2 of the 500 images that white-box attacks had left"),
    ("square-beats-white-box", {}, attacks({}, SQUARE | {"broken": 1}), None),
    (
        "square-beats-white-box", {}, {"n": 100, **attacks({}, SQUARE | {"broken": 1})},
        "it broke 1 of the 500 images that white-box attacks had left",
    ),
    ("square-beats-white-box", {}, {"n": 100, **attacks({}, SQUARE | {"broken": 0})}, None),
    ("square-beats-white-box", {}, attacks(SQUARE | {"broken": 9}, {}), None),
    ("square-beats-white-box", {}, attacks({"attacked": 0}, SQUARE | {"broken": 9}), None),
    ("square-beats-white-box", {}, attacks(SQUARE, SQUARE | {"broken": 9}), None),
    (
        "budget-without-effect", {}, budgets((0.5, 1.0), (0.5, 1.001)),
        "radius 0.03 and 0.06: accuracy 50 % and 50 %, mean loss 1 and 1; 5 and 20 steps: accuracy 75 % and 50 %",
    ),
    ("budget-without-effect", {}, budgets((0.5, 1.0), (0.5, 1.002)), None),
    (
        "budget-without-effect", {}, budgets((0.5, -2.0), (0.5, -1.999)),
        "radius 0.03 and 0.06: accuracy 50 % and 50 %, mean loss -2 and -2; 5 and 20 steps: accuracy 75 % and 50 %",
    ),
    ("budget-without-effect", {}, budgets((0.5, 1.0), (0.49, 1.0)), None),
    ("budget-without-effect", {}, budgets((0.0, 1.0), (0.0, 1.0)), None),
    ("budget-without-effect", {}, budgets((0.5, None), (0.5, 1.0)), None),
    ("budget-without-effect", {}, budgets((0.5, 1.0), (0.5, None)), None),
    ("large-eps-not-zero", {}, sanity(large_eps=ShortAttack(0.5, 40, 0.125, 1.0)), "radius 0.5, 40 steps: 12 % still right"),
    ("loss-not-monotone", {}, sanity(path=GradientPath(0.31, 1.0, 1.0, 12)), "the loss fell in 31 % of the steps along the gradient"),
    ("loss-not-monotone", {}, sanity(path=GradientPath(0.0, None, 1.0, 12)), "the loss along the gradient is not finite"),
    ("loss-not-monotone", {}, sanity(path=GradientPath(None, 1.0, 1.0, 12)), None),
    ("budget-not-used", {}, sanity(path=GradientPath(0.0, 1.0, 0.79, 12)), "after 12 steps of eps/8 images have moved 79 % of eps"),
    ("budget-not-used", {}, sanity(path=GradientPath(0.0, 1.0, None, 12)), None),
    ("sanity-not-checked", {}, sanity(error="out of memory"), "out of memory"),
    ("sanity-not-checked", {}, {"sanity": Sanity()}, "no sanity checks were made (sanity 0, no image right, or another threat model)"),
    ("sanity-not-checked", {}, sanity(n=0), "no sanity checks were made (sanity 0, no image right, or another threat model)"),
    ("sanity-not-checked", {}, sanity(n=1), None),
    ("sanity-not-checked", {"attacks": ()}, {"sanity": Sanity()}, None),
    ("untrained-null-label", network("never trained"), {}, "models/m, likelihood maximisation: because"),
    ("untrained-null-label", network("unknown"), {}, None),
    ("untrained-null-label", network("trained"), {}, None),
    ("untrained-null-label", network(None), {}, None),
    ("null-label-unknown", network("unknown"), {}, "models/m, likelihood maximisation: because"),
    ("null-label-unknown", network("unknown", name=None), {}, "conditional, likelihood maximisation: because"),
    ("null-label-unknown", network("trained"), {}, None),
    ("wide-interval", {}, {"clean": Rate(0.5, (0.4, 0.51))}, "n = 1000: clean 40.0 to 51.0 %"),
    (
        "wide-interval", {}, {"clean": Rate(0.5, (0.4, 0.51)), "robust": RobustRate(0.2, (0.1, 0.3))},
        "n = 1000: clean 40.0 to 51.0 %, robust 10.0 to 30.0 %",
    ),
    ("wide-interval", {"attacks": ()}, {"robust": RobustRate(None, None)}, None),
    ("few-steps", {}, attacks({"steps": 19}), "the longest attack had 19 steps"),
    ("few-steps", {}, attacks({"steps": 19}, {"steps": 20}), None),
    ("few-steps", {}, attacks({"steps": 19}, SQUARE | {"steps": 500}), "the longest attack had 19 steps"),
    ("few-steps", {}, attacks({"steps": 0, "attacked": 0}), None),
    ("few-draws", {"noise": "fresh", "eot": 19}, {}, "eot: 19"),
    ("few-draws", {"noise": "all", "eot": 19}, {}, "eot: 19"),
    ("few-draws", {"noise": "fresh", "eot": 20}, {}, None),
    ("few-draws", {"noise": "fresh", "eot": 19, "attacks": ()}, {}, None),
    (
        "still-falling", {}, {"late": {"apgd-ce": 2, "pgd-ce": 0, "fab": 1}},
        "apgd-ce broke 2 in its last tenth of steps; fab broke 1 in its last tenth of steps",
    ),
    ("loss-replaced", {}, attacks({"name": "apgd-dlr", "loss": "margin"}), "apgd-dlr maximised margin"),
    ("loss-replaced", {}, attacks({"name": "pgd-margin", "loss": "margin"}), None),
    ("loss-replaced", {}, attacks({"name": "apgd-dlr", "loss": "dlr"}), None),
    ("loss-replaced", {}, attacks({"name": "apgd-dlr", "loss": "other"}), None),
    ("uncalibrated-confidence", scaled("mean"), {}, "its logit scale is 'mean', which no held-out image has set"),
    ("uncalibrated-confidence", scaled(0.7), {}, None),
    (
        "uncalibrated-confidence", scaled(0.7) | {"levels": "log:4:0.1:1:flat"}, {},
        "its logit scale was fitted with other noise levels or likelihood maximisation",
    ),
    ("uncalibrated-confidence", {}, {}, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "about", "totals", "evidence"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_flag_is_raised_where_it_says_and_not_beside_it(name, about, totals, evidence):
    found = raised(identity(**about), totals)
    assert found.pop(name, None) == evidence
    changed = {
        "untrained-null-label",
        "null-label-unknown",
        "no-attack",
        "anytime-decisions",
        "class-elimination",
        "straight-through",
        "few-draws",
        "not-random",
        "budget-not-used",
    }
    assert set(found) <= changed | {"sanity-not-checked", "loss-not-monotone", "few-steps", "bpda-gradient"}


def test_every_flag_has_a_case():
    assert {case[0] for case in CASES if case[3] is not None} == {flag.name for flag in FLAGS}


def test_warnings_come_first():
    flags = raise_flags(identity(split="train"), dataclasses.replace(TOTALS, non_finite=1, clean=Rate(0.5, (0.4, 0.6))))
    severities = [flag.severity for flag in flags]
    assert severities == sorted(severities, key=lambda word: word != "warning")
    assert set(severities) == {"warning", "note"}
