import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import rdc.evaluation.run
from rdc.attacks import ATTACKS, ConfiguredAttack
from rdc.cli import main
from rdc.data import Dataset
from rdc.defences import BaseDefence
from rdc.errors import ConfigError, DataError, RdcError
from rdc.evaluation import EvaluationSettings, accuracy_per_class, accuracy_per_step, evaluate, parse_attacks
from rdc.evaluation import batch as batch_module
from rdc.evaluation.summary import Curve
from rdc.statistics.proportions import wilson_interval
from tests.evaluation_models import CLASSES, NAMES, gaussian_classifier, images, labelled_by, save_tiny
from tests.oracles import wilson
from tests.tolerances import FLOAT64_OP, NORMAL_QUANTILE

KEYS = [
    "schema", "model", "dataset", "n", "seed", "classifier", "clean", "robust", "scores", "attacks", "sanity",
    "flags", "network_evaluations", "seconds", "command", "commit", "versions", "networks",
]  # fmt: skip
ATTACK_KEYS = {"name", "norm", "eps", "steps", "restarts", "gradient", "noise", "eot", "accuracy", "ci95", "seconds"}


def settings(**changes):
    return EvaluationSettings(
        **{
            "model": "gaussian",
            "dataset": "blobs",
            "n": 40,
            "eps": "4/255",
            "steps": 10,
            "batch": 16,
            "sanity": 0,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def classifier():
    return gaussian_classifier()


@pytest.fixture(scope="module")
def dataset(classifier):
    return labelled_by(classifier)


def run(classifier, dataset, out, overwrite=False, on_batch=None, **changes):
    return evaluate(
        classifier, dataset, settings(**changes), out, overwrite=overwrite, progress=False, on_batch=on_batch
    )


def same(one: dict, other: dict) -> bool:
    def plain(report):
        report = json.loads(json.dumps(report))
        for part in (report, *report["attacks"]):
            part["seconds"] = None
        return report | {"commit": None}

    return plain(one) == plain(other)


class Stub(BaseDefence):
    """A defence made of any function pixels -> logits."""

    def __init__(self, function, lm=None):
        super().__init__((1, 8, 8), CLASSES, NAMES)
        self.function, self.lm = function, lm

    def forward(self, pixels):
        self.network_evaluations += len(pixels)
        return self.function(pixels)


WEIGHT = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))


def linear(pixels):
    return torch.log_softmax(3 * (pixels.flatten(1) - 0.5) @ WEIGHT, 1)


def names_of(report):
    return {flag["name"] for flag in report["flags"]}


# --- statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (1, 2), (182, 256), (9100, 10000)])
def test_wilson_interval(right, n):
    low, high = wilson_interval(right, n)
    assert (low, high) == pytest.approx(wilson(right, n), abs=FLOAT64_OP)
    assert 0 <= low <= right / n <= high <= 1


def test_wilson_interval_solves_its_equation():
    for end in wilson_interval(37, 100):
        assert abs(0.37 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 100), rel=NORMAL_QUANTILE)


@pytest.mark.parametrize(("right", "n"), [(1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_wilson_interval_refuses(right, n):
    with pytest.raises(RdcError):
        wilson_interval(right, n)


# --- figures ------------------------------------------------------------------------------------------------------


def test_report_and_what_it_rests_on(classifier, dataset, tmp_path):
    result = run(classifier, dataset, tmp_path / "run")
    report = result.report
    assert list(report) == KEYS
    assert all(ATTACK_KEYS <= set(attack) for attack in report["attacks"])
    assert {"levels", "weighting", "lm", "noise", "head", "precision"} == set(report["classifier"])
    assert report["clean"] == {"accuracy": 0.9, "ci95": [round(end, 6) for end in wilson(36, 40)]}
    # adversarial images, classified anew by the classifier itself, give the figure; no budget is exceeded
    x_adv, clean = torch.from_numpy(result.x_adv), dataset.pixels()
    with torch.no_grad():
        right = classifier(x_adv).argmax(1) == dataset.labels
    assert report["robust"]["accuracy"] == pytest.approx(right.double().mean().item())
    assert 0 < report["robust"]["accuracy"] < report["clean"]["accuracy"]
    assert [record["robust"] for record in result.images] == right.tolist()
    assert (x_adv.double() - clean.double()).abs().max() <= 4 / 255 and x_adv.min() >= 0 and x_adv.max() <= 1
    accuracies = [
        report["clean"]["accuracy"],
        *(attack["accuracy"] for attack in report["attacks"]),
        report["robust"]["accuracy"],
    ]
    assert accuracies == sorted(accuracies, reverse=True)
    assert report["attacks"][1]["attacked"] == report["attacks"][0]["survivors"]
    json.dumps(report, allow_nan=False)


def test_network_evaluations_are_counted(classifier, dataset, tmp_path):
    stub = Stub(linear)
    report = run(stub, labelled_by_linear(40), tmp_path / "a", attacks=()).report
    assert report["network_evaluations"] == 40 + 2 * 8  # once each, and the two checks on the first batch
    assert stub.network_evaluations == 0  # the caller's own counter is left alone


def labelled_by_linear(n):
    pixels = images(n, seed=5)
    return Dataset(pixels, linear(pixels.float() / 255).argmax(1), NAMES, "blobs", "test")


def test_next_attack_sees_survivors_only(classifier, dataset, tmp_path, monkeypatch):
    calls = []
    real = batch_module.run_attack

    def spy(bench, spec, pixels, labels, ids, *rest):
        result = real(bench, spec, pixels, labels, ids, *rest)
        calls.append((spec.text, ids.tolist(), result.correct.tolist()))
        return result

    monkeypatch.setattr(batch_module, "run_attack", spy)
    run(classifier, dataset, tmp_path / "run", batch=40, attacks=("apgd-ce", "apgd-dlr", "pgd-ce"))
    assert [call[0] for call in calls] == ["apgd-ce", "apgd-dlr", "pgd-ce"]
    assert calls[0][1] == list(range(36))  # the four misclassified ones are not attacked
    for before, after in zip(calls, calls[1:], strict=False):
        assert after[1] == [image for image, survives in zip(before[1], before[2], strict=True) if survives]


def test_batch_size_changes_no_decision(classifier, dataset, tmp_path):
    one, two = (run(classifier, dataset, tmp_path / str(size), batch=size) for size in (7, 40))
    assert [record["robust"] for record in one.images] == [record["robust"] for record in two.images]
    assert one.report["robust"] == two.report["robust"]


def test_start_picks_images_and_their_ids(classifier, dataset, tmp_path):
    part = run(classifier, dataset, tmp_path / "part", start=10, n=20)
    whole = run(classifier, dataset, tmp_path / "whole")
    assert [record["image"] for record in part.images] == list(range(10, 30))
    assert [record["robust"] for record in part.images] == [record["robust"] for record in whole.images[10:30]]


def test_no_attack(classifier, dataset, tmp_path):
    report = run(classifier, dataset, tmp_path / "run", attacks=()).report
    assert report["clean"]["accuracy"] == 0.9
    assert report["robust"] == {"accuracy": None, "ci95": None} and report["attacks"] == []
    assert "no-attack" in names_of(report)


def test_bpda_is_flagged_and_exact_is_not(dataset, tmp_path):
    classifier = gaussian_classifier(lm="paper-v2")
    bpda = run(classifier, dataset, tmp_path / "bpda", gradient="bpda", n=8, steps=3).report
    exact = run(classifier, dataset, tmp_path / "exact", gradient="exact", n=8, steps=3).report
    assert "bpda-gradient" in names_of(bpda) and "bpda-gradient" not in names_of(exact)
    assert bpda["attacks"][0]["gradient"] == "bpda" and bpda["classifier"]["lm"]["name"] == "paper-v2"


# --- fresh noise --------------------------------------------------------------------------------------------------


def test_fresh_noise(dataset, tmp_path):
    classifier = gaussian_classifier(levels="log:1:2:4:flat")
    options = {"noise": "fresh", "n": 24, "steps": 5, "eot": 3, "resubmissions": 6, "eps": "6/255"}
    result = run(classifier, dataset, tmp_path / "one", **options)
    report = result.report
    shares = [record["adversarial"]["right"] for record in result.images]
    assert all(share in [right / 6 for right in range(7)] for share in shares)
    assert 0 < len([share for share in shares if 0 < share < 1])  # really random
    assert report["robust"]["average"]["accuracy"] == round(float(np.mean(shares)), 6)
    assert report["robust"]["accuracy"] == round(float(np.mean([share == 1 for share in shares])), 6)
    assert report["robust"]["accuracy"] < report["robust"]["average"]["accuracy"] and report["robust"]["worst_of"] == 6
    assert "few-draws" in names_of(report) and "randomised-output" not in names_of(report)
    assert same(report, run(classifier, dataset, tmp_path / "two", **options).report)
    assert not same(report, run(classifier, dataset, tmp_path / "three", **options, seed=1).report)


def test_fresh_draws_differ_between_batches_and_seeds(classifier, dataset, tmp_path, monkeypatch):
    seeds = []
    real = type(classifier).with_

    def spy(self, **changes):
        seeds.append(changes.get("noise_seed"))
        return real(self, **changes)

    monkeypatch.setattr(type(classifier), "with_", spy)
    for seed in (0, 1):
        run(classifier, dataset, tmp_path / str(seed), noise="fresh", attacks=(), seed=seed)
    assert None not in seeds and len(set(seeds)) == len(seeds) == 8  # a judge's for each batch, one for the checks


def test_fresh_defaults_to_averaging():
    assert settings(noise="fresh").eot == 20 and settings().eot == 1
    assert settings(noise="fresh").resubmissions == 10 and settings(attacks=()).resubmissions == 1


# --- flags --------------------------------------------------------------------------------------------------------


def test_nothing_to_flag(tmp_path):
    report = run(
        Stub(linear), labelled_by_linear(512), tmp_path / "run", n=512, batch=256, eps="1/255", steps=40, sanity=8
    ).report
    assert names_of(report) <= {"still-falling", "constant-gradient"}  # it is linear


def test_flags_carry_their_reasons(tmp_path):
    report = run(Stub(linear), labelled_by_linear(12), tmp_path / "run", n=12, steps=5).report
    assert {"wide-interval", "few-steps"} <= names_of(report)
    for flag in report["flags"]:
        assert set(flag) == {"name", "severity", "raised_if", "explanation", "what_to_do", "evidence"}
        assert all(flag.values())


def test_zero_gradients_are_flagged(tmp_path):
    flat = Stub(lambda x: linear(x.detach()) + 0 * x.flatten(1)[:, :1])
    report = run(flat, labelled_by_linear(12), tmp_path / "run", n=12).report
    assert "zero-gradients" in names_of(report)


@pytest.mark.parametrize("size", [0.05, 1e-3])  # the smaller one changes logits, hardly a decision
def test_hidden_randomness_is_flagged(tmp_path, size):
    generator = torch.Generator().manual_seed(0)
    noisy = Stub(lambda x: linear(x + size * torch.randn(x.shape, generator=generator)))
    report = run(noisy, labelled_by_linear(12), tmp_path / "run", n=12).report
    assert "randomised-output" in names_of(report)


def test_a_diffusion_classifier_whose_outputs_are_no_log_probabilities_is_flagged(dataset, tmp_path, monkeypatch):
    shifted = gaussian_classifier()
    real = type(shifted).forward
    monkeypatch.setattr(type(shifted), "forward", lambda self, x: real(self, x) + 1)
    assert "not-log-probabilities" in names_of(run(shifted, dataset, tmp_path / "run", n=12).report)
    plain = run(Stub(lambda x: linear(x) + 1), labelled_by_linear(12), tmp_path / "plain", n=12).report
    assert "not-log-probabilities" not in names_of(plain)  # logits are all that others promise


def test_nan_counts_as_wrong_and_is_flagged(tmp_path):
    broken = Stub(lambda x: torch.where(x.flatten(1)[:, 27:28] > 0.5, torch.nan, linear(x)))
    data = labelled_by_linear(12)
    report = run(broken, data, tmp_path / "run", n=12, steps=3).report
    nan = (data.pixels().flatten(1)[:, 27] > 0.5).double().mean().item()
    assert 0 < nan < 1 and report["clean"]["accuracy"] == round(1 - nan, 6)
    assert "non-finite-logits" in names_of(report)


# --- going on -----------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def interrupted(classifier, dataset, out, after, **changes):
    def stop(finished, total):
        if finished >= after:
            raise Stop

    with pytest.raises(Stop):
        run(classifier, dataset, out, on_batch=stop, **changes)


def counting(monkeypatch):
    seen = []
    real = rdc.evaluation.run.evaluate_batch

    def count(classifier, pixels, labels, ids, settings, index, progress=None):
        seen.append(index)
        return real(classifier, pixels, labels, ids, settings, index, progress)

    monkeypatch.setattr(rdc.evaluation.run, "evaluate_batch", count)
    return seen


@pytest.mark.parametrize("damage", ["none", "torn line", "whole lines", "arrays"])
def test_goes_on_where_it_stopped(classifier, dataset, tmp_path, damage, monkeypatch):
    whole = run(classifier, dataset, tmp_path / "whole")
    out = tmp_path / "run"
    interrupted(classifier, dataset, out, after=32)
    lines = (out / "results.jsonl").read_bytes()
    first = {"none": 2, "torn line": 2, "whole lines": 2, "arrays": 1}[damage]
    if damage == "torn line":
        (out / "results.jsonl").write_bytes(lines + b'{"image": 32, "lab')
    if damage == "whole lines":
        (out / "results.jsonl").write_bytes(lines + lines.splitlines(keepends=True)[0])
    if damage == "arrays":
        content = (out / "batches" / "00001.npz").read_bytes()
        (out / "batches" / "00001.npz").write_bytes(content[: len(content) // 2])
    seen = counting(monkeypatch)
    again = run(classifier, dataset, out)
    assert seen == list(range(first, 3))
    assert same(again.report, whole.report) and again.images == whole.images
    assert np.array_equal(again.x_adv, whole.x_adv)
    finished = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [record["image"] for record in finished if "image" in record] == list(range(40))
    seen.clear()
    assert run(classifier, dataset, out).report == again.report and not seen  # nothing left to do


def test_damage_in_the_middle_is_no_reason_to_guess(classifier, dataset, tmp_path):
    out = tmp_path / "run"
    interrupted(classifier, dataset, out, after=32)
    lines = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], lines[1][:20] + b"\n", *lines[2:]])
    (out / "results.jsonl").write_bytes(damaged)
    with pytest.raises(DataError, match="line 2 is damaged"):
        run(classifier, dataset, out)
    assert (out / "results.jsonl").read_bytes() == damaged


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": "8/255"}, 'eps: "4/255" there, "8/255" now'),
        ({"steps": 21}, "steps: 10 there, 21 now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"attacks": ("apgd-ce",)}, "attacks"),
        ({"n": 39}, "n: 40 there, 39 now"),
        ({"batch": 8}, "batch: 16 there, 8 now"),
    ],
)
def test_folder_of_another_command(classifier, dataset, tmp_path, changes, words):
    out = tmp_path / "run"
    interrupted(classifier, dataset, out, after=16)
    before = contents(out)
    with pytest.raises(ConfigError, match="another command") as error:
        run(classifier, dataset, out, **changes)
    assert words in str(error.value) and contents(out) == before
    assert run(classifier, dataset, out, overwrite=True, **changes).report["n"] == changes.get("n", 40)


def test_folder_of_other_weights_images_or_levels(classifier, dataset, tmp_path):
    out = tmp_path / "run"
    interrupted(classifier, dataset, out, after=16)
    before = contents(out)
    moved = gaussian_classifier()
    with torch.no_grad():
        moved.denoiser.network.means[0, 0, 0, 0] += 1e-3
    other = Dataset(dataset.images.flip(0), dataset.labels.flip(0), NAMES, "blobs", "test")
    for what, arguments in {
        "weights": (moved, dataset),
        "images": (classifier, other),
        "levels": (gaussian_classifier(levels="log:3:0.5:4:flat"), dataset),
    }.items():
        with pytest.raises(ConfigError, match=what):
            run(*arguments, out)
    assert contents(out) == before


def test_a_folder_that_is_not_ours_is_left_alone(classifier, dataset, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not empty"):
            run(classifier, dataset, tmp_path, overwrite=overwrite)
    with pytest.raises(ConfigError, match="this is a file"):
        run(classifier, dataset, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_at_once(classifier, dataset, tmp_path):
    pytest.importorskip("fcntl")
    out = tmp_path / "run"

    def second(finished, total):
        with pytest.raises(ConfigError, match="another rdc evaluate"):
            run(classifier, dataset, out)
        raise Stop

    with pytest.raises(Stop):
        run(classifier, dataset, out, on_batch=second)
    assert run(classifier, dataset, out).report["n"] == 40


def test_disk_full_loses_nothing(classifier, dataset, tmp_path, monkeypatch):
    whole = run(classifier, dataset, tmp_path / "whole")
    out = tmp_path / "run"
    interrupted(classifier, dataset, out, after=16)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", full)
        with pytest.raises(OSError, match="No space"):
            run(classifier, dataset, out)
    assert same(run(classifier, dataset, out).report, whole.report)


# --- settings and curves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 0}, {"n": True}, {"start": -1}, {"seed": -1}, {"seed": 2**64}, {"batch": 0}, {"steps": 0},
        {"restarts": 0}, {"eot": 0}, {"norm": "l7"}, {"eps": "8"}, {"eps": "x"}, {"eps": "-1/255"},
        {"gradient": "approximate"}, {"noise": "loud"}, {"split": "validation"},
        {"attacks": ("fub",)}, {"attacks": ("apgd-ce", "apgd-ce")}, {"attacks": ("apgd-ce:eot=x",)}, {"sanity": -1},
        {"attacks": ("apgd-ce:targets=2",)}, {"attacks": ("apgd-ce:gradient=none",)}, {"attacks": ("square:queries=0",)},
        {"eot": 5, "noise": "known"},
    ],
)  # fmt: skip
def test_settings_refuse(changes):
    with pytest.raises(RdcError):
        settings(**changes)


@pytest.mark.parametrize(("n", "start"), [(41, 0), (40, 1), (1, 100)])
def test_more_images_than_there_are(classifier, dataset, tmp_path, n, start):
    with pytest.raises(ConfigError, match="has 40 images"):
        run(classifier, dataset, tmp_path / "run", n=n, start=start)
    assert not (tmp_path / "run").exists()


def test_images_the_model_does_not_know(classifier, tmp_path):
    wide = Dataset(
        torch.zeros(4, 1, 9, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("a",), "wide", "test"
    )
    with pytest.raises(ConfigError, match="takes images"):
        run(classifier, wide, tmp_path / "run", n=4)
    more = Dataset(images(4), torch.tensor([0, 1, 2, 7]), tuple("abcdefgh"), "more", "test")
    with pytest.raises(ConfigError, match="label 7"):
        run(classifier, more, tmp_path / "run", n=4)


def test_parse_attacks():
    assert parse_attacks("apgd-ce, APGD-DLR") == ("apgd-ce", "apgd-dlr")
    assert parse_attacks("none") == () and parse_attacks("pgd,apgd") == ("pgd-ce", "apgd-ce")
    for text in ("", ",", "none,pgd", "fub", "pgd,pgd-ce"):
        with pytest.raises(ConfigError):
            parse_attacks(text)


def record(image, clean, *attacks, robust=False):
    named = [
        {"name": name, "noise": "known", "right": float(right), "step": step, "restart": restart, "blind_steps": 0}
        for name, right, step, restart in attacks
    ]
    return {
        "image": image,
        "label": image % 2,
        "clean": {"predicted": 0, "right": clean},
        "attacks": named,
        "adversarial": {"predicted": 0, "right": float(robust)},
        "robust": robust,
    }


def test_accuracy_per_step_and_class():
    records = [
        record(0, 0.0),
        record(1, 1.0, ("a", 0, 0, 0)),
        record(2, 1.0, ("a", 0, 2, 1)),
        record(3, 1.0, ("a", 1, -1, -1), ("b", 0, 1, 0)),
        record(4, 1.0, ("a", 1, -1, -1), ("b", 1, -1, -1), robust=True),
    ]
    shape = {"noise": "known", "steps": 2, "restarts": 2}
    curves = accuracy_per_step([{"name": "a", **shape}, {"name": "b", **shape}], records)
    assert curves[0] == Curve("a", "known", 2, 2, [0.0, 5 / 6, 1.0], pytest.approx([0.6, 0.4, 0.4]))
    assert curves[1] == Curve("b", "known", 2, 2, [0.0, 1 / 6, 1.0], pytest.approx([0.4, 0.2, 0.2]))
    assert accuracy_per_class(records, 3) == [
        {"label": 0, "n": 3, "clean": 2, "robust": 1},
        {"label": 1, "n": 2, "clean": 2, "robust": 0},
        {"label": 2, "n": 0, "clean": 0, "robust": 0},
    ]


def test_every_source_tree_that_made_figures_is_named(classifier, dataset, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(rdc.evaluation.run, "commit", lambda: "one")
    interrupted(classifier, dataset, out, after=16)
    monkeypatch.setattr(rdc.evaluation.run, "commit", lambda: "two")
    assert run(classifier, dataset, out).report["commit"] == "one, two"
    monkeypatch.setattr(rdc.evaluation.run, "commit", lambda: "three")  # finished: nothing comes from this one
    assert run(classifier, dataset, out).report["commit"] == "one, two"


# --- several processes, several interruptions ---------------------------------------------------------------------


def plain(report):
    """A report without times and without what names the start."""
    report = json.loads(json.dumps(report))
    for part in (report, *report["attacks"]):
        part["seconds"] = None
    return {**report, "commit": None, "command": None, "versions": None}


def test_interrupted_five_times_is_uninterrupted(classifier, dataset, tmp_path):
    options = {
        "batch": 6,
        "sanity": 4,
        "attacks": ("apgd-ce", "square:queries=30"),
        "noise": "all",
        "eot": 2,
        "steps": 4,
    }
    whole = run(classifier, dataset, tmp_path / "whole", **options)
    out = tmp_path / "run"
    for stop in (6, 12, 18, 24, 36):
        interrupted(classifier, dataset, out, after=stop, **options)
    again = run(classifier, dataset, out, **options)
    assert json.dumps(plain(again.report)) == json.dumps(plain(whole.report))
    assert again.images == whole.images and np.array_equal(again.x_adv, whole.x_adv)


def test_two_processes_give_the_report_of_one(tmp_path):
    """Batches shared out by torchrun; one of the processes' files is cut short and the run continued by one process."""
    model, data = save_tiny(tmp_path)
    words = ["evaluate", "--model", model, "--data", data, "--n", "40", "--batch", "7", "--steps", "3", "--quiet"]
    words += ["--attacks", "apgd-ce,apgd-dlr", "--threads", "1", "--sanity", "4"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = [*launch, "-m", "--", "rdc", *words, "--out", str(tmp_path / "two")]
    done = subprocess.run(two, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert json.dumps(plain(one)) == json.dumps(plain(two))
    lines = [
        [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [record for record in lines[0] if "image" in record] == [record for record in lines[1] if "image" in record]
    assert not list((tmp_path / "two").glob("results.*-of-*"))
    # as if process 1 of 2 had been killed in its last batch
    (tmp_path / "two" / "results.jsonl").rename(tmp_path / "all.jsonl")
    content = (tmp_path / "all.jsonl").read_text().splitlines(keepends=True)
    ends = [place + 1 for place, line in enumerate(content) if "end_of_batch" in line]
    parts = [content[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    (tmp_path / "two" / "results.0-of-2.jsonl").write_text("".join(line for part in parts[0::2] for line in part))
    (tmp_path / "two" / "results.1-of-2.jsonl").write_text("".join(parts[1] + parts[3]) + parts[5][0][:20])
    (tmp_path / "two" / "report.json").unlink()
    assert main([*words, "--out", str(tmp_path / "two")]) == 0
    again = json.loads((tmp_path / "two" / "report.json").read_text())
    assert json.dumps(plain(again)) == json.dumps(plain(one))


def test_known_and_fresh_noise_together(dataset, tmp_path):
    classifier = gaussian_classifier(levels="log:1:2:4:flat")
    options = {"n": 24, "steps": 5, "eot": 3, "resubmissions": 6, "eps": "6/255"}
    both = run(classifier, dataset, tmp_path / "all", noise="all", **options).report
    known = run(classifier, dataset, tmp_path / "known", **{**options, "eot": 1}).report
    assert both["scores"]["known"] == known["scores"]["known"]
    assert {attack["noise"] for attack in both["attacks"]} == {"known", "fresh"}
    lowest = min(both["scores"][name]["accuracy"] for name in ("known", "average", "majority", "worst"))
    assert both["robust"]["accuracy"] <= lowest
    assert known["robust"]["accuracy"] == known["scores"]["known"]["accuracy"]
    scores = both["scores"]
    assert scores["worst"]["accuracy"] <= scores["majority"]["accuracy"]
    assert scores["worst"]["accuracy"] <= scores["average"]["accuracy"]


def test_suites_leave_out_what_a_model_does_not_offer():
    dc, lm = gaussian_classifier(), gaussian_classifier(lm="paper-v2")
    chosen = settings(attacks=("autoattack", "adaptive"))
    kept = chosen.for_defence(dc, ("autoattack", "adaptive")).attacks
    assert "lagrange" not in kept and "transfer:surrogate=fresh" in kept and "square:queries=5000" in kept
    assert {"lagrange", "objective", "transfer:surrogate=plain", "apgd-ce:gradient=bpda"} <= set(
        chosen.for_defence(lm, ("autoattack", "adaptive")).attacks
    )
    assert settings(norm="l1", attacks=("autoattack",)).attacks[:2] == ("apgd-ce:restarts=5", "apgd-t:targets=5")
    assert settings(attacks=("autoattack",)).attacks[:2] == ("apgd-ce", "apgd-t:targets=9")
    assert settings(attacks=("autoattack", "apgd-ce")).attacks.count("apgd-ce") == 1
    with pytest.raises(ConfigError, match="objective of its own"):
        settings(attacks=("lagrange",)).for_defence(dc, ("lagrange",))
    with pytest.raises(ConfigError, match="none of lagrange can be run on this model in linf"):
        settings(attacks=("lagrange",)).for_defence(dc, ())
    with pytest.raises(ConfigError, match="not in linf"):
        settings(attacks=("stadv",)).for_defence(dc, ("stadv",))


ALL = {
    "linf": [name for name, kind in ATTACKS.items() if "linf" in kind.norms],
    "l2": ["apgd-ce", "apgd-t", "fab-t", "square", "pgd-ce", "low-frequency", "lagrange", "transfer", "endpoints-ce"],
    "l1": ["apgd-ce", "apgd-t", "fab-t", "square"],
    "l0": ["sparse-pgd", "sparse-pgd:gradients=projected", "sparse-rs"],
    "flow": ["stadv"],
    "corruption": ["corruptions", "corruptions:kind=contrast"],
}
EPS = {"linf": "4/255", "l2": "0.3", "l1": "1", "l0": "5", "flow": "0.1", "corruption": "2"}


@pytest.mark.parametrize("norm", list(ALL))
def test_every_attack_runs_in_an_evaluation(dataset, tmp_path, norm):
    """Each once, a few steps, on a classifier that maximises likelihood: budgets hold, figures fall from one to the next."""
    classifier = gaussian_classifier(lm="paper-v2,steps=2", levels="log:2:1:3:flat")
    names = tuple(f"{name}:queries=5" if name in ("square", "sparse-rs") else name for name in ALL[norm])
    noise = "all" if norm == "linf" else "known"
    options = {"norm": norm, "eps": EPS[norm], "steps": 2, "n": 6, "noise": noise, "resubmissions": 2}
    if noise == "all":
        options["eot"] = 2
    report = run(classifier, dataset, tmp_path / "run", attacks=names, **options).report
    known = [attack for attack in report["attacks"] if attack["noise"] == "known"]
    assert [attack["name"] for attack in known] == [name for name in names if name != "selective"]
    if norm == "linf":
        assert "selective" in {attack["name"] for attack in report["attacks"] if attack["noise"] == "fresh"}
    left = [attack["accuracy"] for attack in known]
    assert left == sorted(left, reverse=True) and report["scores"]["known"]["accuracy"] <= left[-1]
    assert all(attack["network_evaluations"] > 0 for attack in known if attack["attacked"])
    json.dumps(report, allow_nan=False)


def test_endpoints_go_on_from_every_attack_before(dataset, tmp_path, monkeypatch):
    starts, real = [], ConfiguredAttack.__call__

    def spy(self, *arguments):
        if self.options.start is not None:
            starts.append(self.options.start)
        return real(self, *arguments)

    monkeypatch.setattr(ConfiguredAttack, "__call__", spy)
    attacks = ("pgd-ce", "pgd-margin", "endpoints-ce")
    result = run(gaussian_classifier(), dataset, tmp_path / "run", attacks=attacks, n=16, steps=3)
    ((first, second),) = starts
    assert first.shape == second.shape and not torch.equal(first, second)
    assert result.report["attacks"][-1]["restarts"] == 2


def test_versions_say_what_a_gpu_makes_of_float32(monkeypatch):
    from rdc.provenance.run import versions

    assert "float32_convolutions" not in versions(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    for allowed, words in ((True, "TF32"), (False, "float32")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        found = versions(torch.device("cuda"))
        assert found["float32_convolutions"] == words and found["device"] == "cuda (a GPU)"
