"""What a run of ``rdc evaluate`` claims: every rule with a run that breaks it, and one that breaks none."""

import dataclasses
import shutil

import pytest
import torch

import rdc
from rdc.audits import RULES, AuditSettings
from rdc.audits.claims import measure_claims
from rdc.defences import PlainClassifier
from rdc.errors import ConfigError
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.storage.json_files import write_json
from tests.audits import offenders as made
from tests.audits.test_audits import shown
from tests.evaluation_models import CLASSES, NAMES, SHAPE, gaussian_classifier, labelled_by

CLAIMS = [rule.name for rule in RULES if "claims" in rule.of]
QUICK = AuditSettings(sanity=0)


def plain(function):
    return PlainClassifier(function, image_shape=SHAPE, num_classes=CLASSES, class_names=NAMES)


def finished(folder, model, data=made.DATA, **changes):
    """The folder of a finished run, without pages and pictures."""
    values = {"model": "m", "dataset": "blobs", "n": 16, "attacks": ("apgd-ce",), "steps": 5, "sanity": 0, **changes}
    evaluation = evaluate(model, data, EvaluationSettings(**values), folder, progress=False)
    write_json(folder / "report.json", evaluation.report)
    return str(folder)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("claims") / "short", plain(made.smooth()))


def names(run, model=None, data=made.DATA):
    report = rdc.audit(model or plain(made.smooth()), data, run=run, settings=QUICK)
    assert report.run == run
    return report


def test_a_short_attack_on_few_images_is_no_autoattack(short):
    report = names(short)
    assert set(report.names) == {"not-autoattack", "short-attacks", "few-images", "run-warned", "run-noted"}
    found = {finding.name: finding for finding in report.findings}
    assert found["not-autoattack"].found == "attacks: apgd-ce; missing of AutoAttack: apgd-t, fab-t, square"
    assert found["short-attacks"].found == "apgd-ce: 5 steps of 100"
    assert "few-steps: the longest attack had 5 steps" in found["run-warned"].found
    for finding in report.findings:
        printed = shown(finding.command, model=plain(made.smooth()), x=made.DATA)
        assert printed.startswith("True"), finding.command
    assert names(short).fine["run-decides-otherwise"] == (
        "0 of 16 clean decisions of the run are others today; of its adversarial images 0 said to hold are wrong, 0 said to break are right"
    )
    assert report.fine["run-images"].startswith(
        "16 of 16 stored images keep budget and range; the largest distance is 0.0313725"
    )


def test_a_run_of_all_of_autoattack_breaks_no_rule(tmp_path):
    """On a linear model of two pixels' worth, so that 100 steps and 5,000 queries are quick: all are broken at once."""
    weak = plain(lambda x: 1e-3 * made.logits(x))
    run = finished(tmp_path / "whole", weak, n=32, eps="0.5", attacks=("autoattack",), steps=100)
    claims = measure_claims(run, None, None)
    assert claims.missing == () and claims.short == () and claims.width < 0.2 and not claims.unfinished


def test_queries_and_targets_are_counted(tmp_path):
    run = finished(
        tmp_path / "run", plain(made.smooth()), attacks=("apgd-t:targets=1", "square:queries=10"), eps="1/255"
    )
    report = names(run)
    text = report.findings[report.names.index("short-attacks")].found
    assert text == "apgd-t: 5 steps of 100; apgd-t: 1 targets of 3; square: 10 queries of 5,000"


def test_another_model_and_other_decisions(short):
    network = made.small_network()
    report = names(short, network)
    assert {"run-of-another-model", "run-decides-otherwise"} <= set(report.names)
    assert report.findings[0].name == "run-of-another-model" and "weights" in report.findings[0].found
    model, x, y = rdc.audits.subject(network, made.DATA)
    for finding in report.findings:
        if finding.name in ("run-of-another-model", "run-decides-otherwise"):
            assert shown(finding.command, model=network, x=made.DATA).startswith("True")
    same = names(short, plain(made.other_order()))
    assert (
        "run-decides-otherwise" in same.names and "run-of-another-model" not in same.names
    )  # functions have no weights


def test_adversarial_images_of_other_images_break_the_budget(short):
    """The same positions and labels, pixels two levels away; and a model that is right about what broke the run's."""
    moved = (made.DATA.images.int() + 2).clamp(max=255).to(torch.uint8)
    report = names(short, data=dataclasses.replace(made.DATA, images=moved))
    found = report.findings[report.names.index("run-images")]
    assert found.severity == "error" and found.evidence["allowed"] < 16 and found.evidence["largest"] > 8 / 255
    shifted = dataclasses.replace(made.DATA, images=moved)
    assert shown(found.command, model=plain(made.smooth()), x=shifted).startswith("True"), found.command


def test_stored_images_are_judged_again(tmp_path):
    weak = finished(tmp_path / "weak", plain(made.smooth()), eps="0.2", steps=10)
    known = made.nearest()  # classifies the clean image beside it
    report = names(weak, plain(known))
    found = report.findings[report.names.index("run-decides-otherwise")]
    assert found.evidence["other"] == 0 and found.evidence["hold no more"] == 0 and found.evidence["break no more"] > 0
    assert shown(found.command, model=plain(known), x=made.DATA).startswith("True"), found.command


def test_a_folder_of_several_threats_names_those_in_it(tmp_path):
    (tmp_path / "linf-8-255").mkdir()
    (tmp_path / "threats.json").write_text("{}")
    (tmp_path / "linf-8-255" / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a run for each of several threats; expected one of them: linf-8-255"):
        names(str(tmp_path))


def test_a_run_that_was_stopped(tmp_path, short):
    shutil.copytree(short, tmp_path / "stopped")
    (tmp_path / "stopped" / "report.json").unlink()
    report = names(str(tmp_path / "stopped"))
    assert report.findings[0].name == "run-unfinished" and report.findings[0].severity == "error"
    assert "this run is not finished" in report.findings[0].found
    assert shown(report.findings[0].command, model=plain(made.smooth()), x=made.DATA).startswith("True")
    with pytest.raises(ConfigError, match=r"there is no run.json"):
        names(str(tmp_path))


def test_a_model_that_draws_wants_adaptive_attacks(tmp_path):
    model = gaussian_classifier()
    data = labelled_by(model, 32, 0)
    run = finished(tmp_path / "run", model, data, attacks=("apgd-ce", "square:queries=5"), eps="1/255")
    report = names(run, model, data)
    finding = report.findings[report.names.index("not-adaptive")]
    assert finding.found == "the model draws noise; adaptive attacks that ran: none"
    assert shown(finding.command, model=model, x=data).startswith("True")
    adapted = finished(tmp_path / "adapted", model, data, attacks=("apgd-ce", "smoothed"), eps="1/255")
    assert "not-adaptive" in names(adapted, model, data).fine
    assert not names(run, model, data).unchecked.keys() & set(CLAIMS)


def test_without_a_run_nothing_is_said_of_claims():
    report = rdc.audit(made.smooth(), made.DATA, settings=QUICK)
    assert not {*report.fine, *report.unchecked, *report.names} & set(CLAIMS)
    assert dataclasses.asdict(QUICK)["n"] == 32 and torch.equal(made.LABELS, made.DATA.labels)


@pytest.mark.parametrize(
    ("norm", "eps", "attacks"), [("l0", "5", ("sparse-pgd",)), ("corruption", "2", ("corruptions",))]
)
def test_runs_in_other_norms_are_read(tmp_path, norm, eps, attacks):
    """No AutoAttack is asked for there; images of l_0 are checked against their budget, corruptions show none."""
    run = finished(tmp_path / "run", plain(made.smooth()), norm=norm, eps=eps, attacks=attacks, steps=3)
    report = names(run)
    assert "not-autoattack" not in report.names and "run-images" not in report.names
    assert ("no stored images" in report.fine["run-images"]) is (norm == "corruption")
    stored = measure_claims(run, None, None)
    assert not stored.standard and stored.attacks == attacks
