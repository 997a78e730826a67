"""Every rule of the audit: a model built to break it, which is caught, and clean models, which raise nothing."""

import contextlib
import io
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import rdc
from rdc.audits import RULES, AuditSettings
from rdc.audits.gradient_rules import SETTING_RULES
from rdc.audits.short_attacks import ShortAttacks
from rdc.errors import ConfigError, DataError, InputError
from rdc.evaluation.report import RaisedFlag
from rdc.evaluation.sanity_records import GradientShares, NoiseShares, Sanity
from tests.audits import offenders as made
from tests.evaluation_models import gaussian_classifier, labelled_by, save_tiny
from tests.tolerances import FLOAT32_SUM

#: rule -> the model that breaks it; several rules may be broken by one
OFFENDERS = {
    "no-logits": made.decisions,
    "other-classes": made.five_classes,
    "non-finite-output": made.standardised,
    "constant-output": made.constant,
    "chance-accuracy": made.other_order,
    "tied-logits": made.rounded_logits,
    "half-precision": made.bfloat16,
    "probabilities": made.softmax,
    "random-output": made.own_noise,
    "test-time-optimisation": made.optimising,
    "repeated-network": made.voting,
    "global-generator": made.global_noise,
    "seeds-generator": made.reseeded,
    "stateful": made.counting,
    "batch-dependence": made.batch_mean,
    "order-leakage": made.by_place,
    "training-mode": made.hidden_dropout,
    "changes-weights": made.Adapting,
    "modifies-input": made.in_place,
    "holds-the-answers": made.labels_inside,
    "other-range": made.of_another_scale,
    "quantised-input": made.rounding,
    "clamped-input": made.clamping,
    "memorised-images": made.remembering,
    "off-grid-images": made.detecting,
    "no-gradient": made.detached,
    "zero-gradient": made.nearest,
    "non-finite-gradient": made.root,
    "wrong-gradient": made.reversed_gradient,
    "saturated-softmax": made.hot,
    "vanishing-gradient": made.partly_rounded,
    "constant-gradient": made.linear,
    "budget-without-effect": made.nearest,
    "large-eps-not-zero": made.nearest,
    "budget-not-used": made.nearest,
    "loss-not-monotone": made.rippled,
}
#: rules of which a model breaks no other: what else is broken there would be a false alarm
ALONE = {
    "other-classes", "chance-accuracy", "half-precision", "probabilities", "test-time-optimisation", "changes-weights",
    "modifies-input", "holds-the-answers", "quantised-input", "clamped-input", "memorised-images", "off-grid-images",
    "batch-dependence", "saturated-softmax", "constant-gradient",
}  # fmt: skip


KNOWN = made.LABELS.clone()


def audited(factory, **options):
    return rdc.audit(factory(), made.DATA, settings=AuditSettings(**options))


def shown(command, **names):
    """What a command of a report prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), torch.random.fork_rng():
        exec(command, dict(names))
    return out.getvalue()


@pytest.fixture(scope="module")
def reports():
    kept = {}

    def report(factory):
        if factory not in kept:
            kept[factory] = audited(factory)
        return kept[factory]

    return report


@pytest.mark.parametrize("rule", OFFENDERS)
def test_an_offender_is_caught_by_its_rule_and_its_command_shows_it(reports, rule):
    factory = OFFENDERS[rule]
    report = reports(factory)
    assert rule in report.names, report.text()
    if rule in ALONE:
        assert report.names == (rule,)
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    finding = report.findings[report.names.index(rule)]
    text = " ".join(report.text().split())
    assert all(
        part in text for part in (finding.found, finding.why, finding.what_to_do, " ".join(finding.command.split()))
    )
    as_given = (
        made.PIXELS if rule == "no-logits" else made.DATA
    )  # a model that does not answer with logits is asked by itself
    assert shown(finding.command, model=factory(), x=as_given, y=made.LABELS).startswith("True"), finding.command


def test_every_rule_about_a_model_has_an_offender_here():
    elsewhere = {"images-normalised", "bpda-above-exact", "known-below-fresh", *(rule.name for rule in SETTING_RULES)}
    assert {rule.name for rule in RULES if "claims" not in rule.of} == {*OFFENDERS, *elsewhere}
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_a_smooth_model_raises_nothing_and_every_command_says_so(reports):
    report = reports(made.smooth)
    assert report.findings == () and not report.unchecked and not report.warns
    assert set(report.fine) == {rule.name for rule in RULES if "claims" not in rule.of}
    model, x, y = rdc.audits.subject(made.smooth(), made.PIXELS, made.LABELS)
    for rule in {rule.line: rule for rule in RULES if "claims" not in rule.of}.values():
        assert shown(f"import torch, rdc; {rule.line}", model=model, x=x, y=y).startswith("False"), rule.name


def test_small_networks_and_diffusion_classifiers_raise_nothing(tmp_path):
    network = made.small_network(
        torch.nn.BatchNorm2d(8), torch.nn.Dropout(0.5)
    )  # handed over in training mode, and lent
    with torch.no_grad():
        labels = network.eval()(made.PIXELS).argmax(1)
    network.train()
    report = rdc.audit(network, made.PIXELS, labels)
    assert report.findings == () and network.training, report.text()
    multihead = rdc.load(save_tiny(tmp_path)[0])
    assert rdc.audit(multihead, labelled_by(multihead, 32, 0)).findings == ()
    purified = rdc.load(save_tiny(tmp_path)[0], lm="paper-v2")
    report = rdc.audit(purified, labelled_by(purified, 8, 0), settings=AuditSettings(n=8, sanity=0))
    assert report.names == ("test-time-optimisation", "repeated-network", "null-label-unknown"), report.text()
    gaussian = gaussian_classifier()  # of one covariance, so that its margins are linear, which is said
    assert rdc.audit(gaussian, labelled_by(gaussian, 32, 0)).names == ("constant-gradient",)


def test_images_on_another_scale_are_a_finding_with_the_budget_in_pixels():
    x = 2 * made.PIXELS - 1
    report = rdc.audit(made.of_another_scale(), x, made.LABELS)
    assert report.names == ("images-normalised",) and report.findings[0].severity == "error"
    assert "eps 8/255 is 4/255 in pixels" in report.findings[0].found
    assert shown(report.findings[0].command, model=made.smooth(), x=x, y=made.LABELS).startswith("True")
    mean, deviation = made.PIXELS.mean(), made.PIXELS.std()
    other = rdc.audit(lambda x: made.logits(x * deviation + mean), (made.PIXELS - mean) / deviation, made.LABELS)
    assert other.names == ("images-normalised",)
    expected = 8 / 255 * float(deviation / (made.PIXELS.max() - made.PIXELS.min()))
    assert other.findings[0].evidence["eps there in pixels"] == pytest.approx(expected, rel=FLOAT32_SUM)
    assert "[0, 255]" in rdc.audit(lambda x: made.logits(x / 255), 255 * made.PIXELS, made.LABELS).findings[0].found


def test_flags_of_an_evaluation_are_rules_here(monkeypatch):
    report = rdc.audit(made.Mirror(), made.PIXELS, made.LABELS, settings=AuditSettings(eps="24/255"))
    assert "bpda-above-exact" in report.names
    data = labelled_by(gaussian_classifier(), 16, 0)
    signs = rdc.audit(gaussian_classifier(lm="paper-v1"), data, settings=AuditSettings(sanity=0))
    assert {"straight-through", "test-time-optimisation"} <= set(signs.names)
    assert signs.unchecked["large-eps-not-zero"] == "sanity is 0"


@pytest.mark.parametrize(("n", "raised"), [(4, False), (8, True)])
def test_shares_of_few_images_differ_by_two_images_or_by_chance(n, raised):
    """31 points on four images are little more than one of them."""
    rules = {rule.name: rule for rule in RULES}
    pair = Sanity(n=n, fresh=NoiseShares(known=0.5, fresh=0.8125), bpda=GradientShares(exact=0.5, bpda=0.8125))
    raising = {name: RaisedFlag(name, "warning", "if", "why", "do", "50 % and 81 %") for name in rules}
    found = ShortAttacks(pair, raising, n)
    for name in ("known-below-fresh", "bpda-above-exact"):
        outcome = rules[name].check(found)
        assert outcome.raised is raised and ("which is chance" in outcome.words) is not raised
    assert rules["large-eps-not-zero"].check(found).raised


def test_what_a_rule_must_not_say(reports):
    """One fault is not told as another."""
    noisy = reports(made.own_noise)
    assert not {"stateful", "batch-dependence", "global-generator", "seeds-generator", "order-leakage"} & set(
        noisy.names
    )
    assert "see random-output" in noisy.fine["stateful"] and "see random-output" in noisy.fine["batch-dependence"]
    assert (
        "global-generator" not in reports(made.reseeded).names and "random-output" not in reports(made.reseeded).names
    )
    assert (
        "memorised-images" not in reports(made.detecting).names
        and "off-grid-images" not in reports(made.remembering).names
    )
    turned = reports(made.reversed_gradient)
    evidence = turned.findings[turned.names.index("wrong-gradient")].evidence
    assert (evidence["wrong"], evidence["reversed"], evidence["compared"]) == (8, 8, 8) and evidence["ratio"] < -0.5
    broken = reports(made.standardised)
    assert broken.names == ("non-finite-output",) and broken.unchecked["stateful"] == "answers are not finite"
    silent = reports(made.detached)
    assert silent.unchecked["wrong-gradient"].startswith("the model's logits do not depend differentiably")
    assert {"zero-gradient", "large-eps-not-zero"} <= set(silent.unchecked)


def test_training_mode_is_told_where_it_changes_the_answer():
    for layers, expected in (
        ([torch.nn.InstanceNorm2d(8), torch.nn.Dropout(0.0)], {}),
        ([torch.nn.InstanceNorm2d(8, track_running_stats=True)], {"InstanceNorm2d": 1}),
        (
            [torch.nn.BatchNorm2d(8), torch.nn.RReLU(), torch.nn.Dropout2d(0.1)],
            {"BatchNorm2d": 1, "RReLU": 1, "Dropout2d": 1},
        ),
    ):
        network = made.small_network(*layers)
        assert rdc.audits.modules_in_training(network, made.PIXELS[:4]) == expected
        assert rdc.audits.modules_in_training(network.eval(), made.PIXELS[:4]) == {}


def test_black_images_are_not_told_from_near_copies_by_their_brightness():
    """Near copies of a black background could only be brighter, all alike; the model hears nothing but the sum."""
    black = torch.where(made.DATA.images > 140, made.DATA.images, 0)
    bright = torch.ones(64, 1) @ torch.tensor([[1.0, -1.0, 0.5, 0.0]])

    def model(x):
        if not (x.min() >= 0 and x.max() <= 1):
            raise ValueError("no pixels")
        return torch.tanh(made.logits(x) / 8) + x.flatten(1) @ bright

    report = rdc.audit(model, black, model(black / 255).argmax(1), settings=AuditSettings(sanity=0))
    assert {"memorised-images", "off-grid-images"} <= set(report.fine), report.text()
    assert "2 x - 1: refused" in report.fine["other-range"]


def test_labels_and_images_are_found_wherever_they_are_kept():
    x, y = made.PIXELS, made.LABELS

    def by_global(pixels):
        return made.logits(pixels) + 0 * KNOWN[0]

    class Kept:
        def __init__(self, value):
            self.deep = {"a": [value]}

        def __call__(self, pixels):
            return made.logits(pixels)

    padded = torch.cat([torch.zeros(3, dtype=torch.int64), y, torch.zeros(2, dtype=torch.int64)])
    for model in (by_global, Kept(y), Kept(y.numpy()), Kept(y.tolist()), Kept(padded), Kept(y.to(torch.uint8))):
        assert len(rdc.audits.answers_inside(model, x, y).labels) == 1, model
    for images in (x, made.DATA.images, (2 * x - 1).flatten(1), x.numpy()[2:]):
        assert len(rdc.audits.answers_inside(Kept(images), x, y).images) == 1
    other = rdc.audits.answers_inside(Kept([y.flip(0), x.flip(3), x[:, :, :4], y[:20], y.double()]), x, y)
    assert other.labels == other.images == () and other.looked >= 5


def test_labels_that_are_only_counted_may_lack_the_last_class():
    model, some = made.smooth(), (made.LABELS != 3).nonzero()[:, 0]
    assert rdc.audit(model, made.PIXELS[some], made.LABELS[some], settings=AuditSettings(sanity=0)).findings == ()
    fewer = rdc.audit(lambda x: made.logits(x)[:, :3], made.PIXELS, made.LABELS, settings=AuditSettings(sanity=0))
    assert "other-classes" in fewer.names


def test_two_audits_say_the_same_and_leave_the_generators_alone(tmp_path):
    before, of_numpy, of_python = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, again = (audited(made.global_noise, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == of_python
    assert np.array_equal(np.random.get_state()[1], of_numpy)
    assert first == again and first.text() == again.text()
    first.write(tmp_path / "audit.json")
    kept = json.loads((tmp_path / "audit.json").read_text())
    assert kept["schema"] == "rdc-audit-1" and [one["name"] for one in kept["findings"]] == list(first.names)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="n: expected an integer from 8"):
        AuditSettings(n=7)
    with pytest.raises(ConfigError, match="norm: expected one of linf, l2"):
        AuditSettings(norm="l1")
    with pytest.raises(ConfigError, match="at least 8 images"):
        rdc.audit(made.smooth(), made.PIXELS[:4], made.LABELS[:4])
    with pytest.raises(InputError, match="raised RuntimeError"):
        rdc.audit(lambda x: x.flatten(1) @ torch.zeros(3, 2), made.PIXELS, made.LABELS)
    with pytest.raises(DataError):
        rdc.audit(made.smooth(), made.PIXELS)


def test_the_page_of_rules_is_true():
    page = (Path(__file__).resolve().parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    words = " ".join(page.split())  # wherever its lines end
    rows = re.findall(r"^\| `([\w-]+)` \| (error|warning|note) \| .{5,}\|$", page, re.MULTILINE)
    assert rows == [(rule.name, rule.severity) for rule in RULES]
    for rule in RULES:
        assert f"**`{rule.name}`**. Broken if {rule.raised_if}." in words
