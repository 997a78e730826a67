"""Hostile command lines: each is answered by exit status 2 and one line on stderr, in less than two seconds."""

import os
import threading
import time

import pytest
import torch

from rdc.cli import COMMANDS, main
from rdc.data import Dataset, save_npz
from rdc.models.checkpoints import save_model
from rdc.networks.presets import build_network
from tests.cli.conftest import commands
from tests.tiny_models import CONFIG, randomize

SECONDS = 2
LONG = "x" * 2**20
MANY = ",".join(f"apgd-ce:steps={step}" for step in range(1, 100_001))
RAW = os.fsdecode(b"\xff\xfe\n\x1b[2J")  # bytes that are no text, a line break, the sequence that clears a terminal
DIGITS = "9" * 2**20

#: command (of ``place``) -> [(more arguments, what the line says)]
EVALUATE = [
    (["--n", "1000000000000000"], "has 40 images"),
    (["--n", DIGITS], "--n"),
    (["--start", "1000000000000000"], "has 40 images"),
    (["--steps", "1000000000000"], "steps: expected an integer >= 1, at most 1,000,000"),
    (["--restarts", "1000000000"], "restarts: expected an integer >= 1, at most 10,000"),
    (["--batch", "1000000000000"], "batch: expected an integer >= 1, at most 1,000,000"),
    (["--noise", "fresh", "--eot", "1000000000"], "eot: expected an integer >= 1, at most 100,000"),
    (["--noise", "fresh", "--resubmissions", "1000000000"], "resubmissions: expected an integer >= 1, at most 100,000"),
    (["--sanity", "-1"], "sanity: expected an integer >= 0"),
    (["--threads", "1000000000"], "expected an integer >= 1, at most 4,096"),
    (["--threads", DIGITS], "expected an integer >= 1, at most 4,096"),
    (["--memory-mb", "1e30"], "expected a number > 0, at most 16,777,216"),
    (["--memory-mb", "nan"], "expected a number > 0"),
    (["--memory-mb", "-1"], "expected a number > 0"),
    (["--memory-mb", DIGITS], "expected a number > 0"),
    (["--seed", "-1"], "seed: expected an integer >= 0"),
    (["--seed", "1" + "0" * 30], "seed: expected less than 2^64"),
    (["--eps", "nan"], "eps: expected a budget such as"),
    (["--eps", "inf"], "expected a budget such as"),
    (["--eps", "-1"], "expected a budget such as"),
    (["--eps", "1e400"], "expected a budget such as"),
    (["--eps", "2"], "eps"),
    (["--eps", "1/0"], "zero"),
    (["--eps", LONG], "expected a budget such as"),
    (["--lm", "paper-v2,steps=1000000000"], "steps"),
    (["--lm", "paper-v2,steps=" + DIGITS], "steps"),
    (["--lm", "paper-v2,levels_per_step=1000000000"], "levels_per_step"),
    (["--lm", "paper-v2,eta=nan"], "eta"),
    (["--lm", LONG], "lm"),
    (["--levels", "log:100000000:0.1:1:flat"], "levels"),
    (["--levels", LONG], "levels"),
    (["--levels", RAW], "levels"),
    (["--attacks", "apgd-ce:steps=1000000000000"], "steps is a number > 0, at most 1,000,000"),
    (["--attacks", "apgd-ce:steps=" + DIGITS], "steps is a number"),
    (["--attacks", "square:p_init=inf"], "p_init is a number > 0, at most 1.0"),
    (["--attacks", "smoothed:reach=nan"], "reach is a number > 0"),
    (["--attacks", "square:queries=1e9"], "queries is a number"),
    (["--attacks", LONG], "attacks: expected pgd-ce"),
    (["--attacks", "," * 2**20], "attacks: expected names separated by commas"),
    (["--attacks", MANY], "attacks: expected at most 1,000 names; got 100,000"),
    (["--attacks", ":" * 2**18], "attacks"),
    (["--model", RAW], "\\udcff\\udcfe\\n\\x1b[2J"),
    (["--model", LONG], "xxx"),
    (["--model", "/dev/null"], "/dev/null"),
    (["--data", RAW], "\\udcff\\udcfe\\n\\x1b[2J"),
    (["--data", LONG], "xxx"),
    (["--data", "x.npz", "--data-root", RAW], "\\udcff\\udcfe\\n\\x1b[2J"),
    (["--out", LONG], "File name too long"),
    (["--out", "/dev/null/run"], "/dev/null"),
    (["--device", LONG], "device"),
    (["--device", "cuda:99999999999999999999"], "device"),
    (["--norm", RAW], "norm: expected one of"),
    (["--format", LONG], "invalid choice"),
    ([LONG], "unrecognized arguments"),
    ([RAW, "a\nb"], "unrecognized arguments: \\udcff"),
]
OTHERS = [
    ("gradients", ["--n", "1000000000000000"], "n"),
    ("gradients", ["--draws", "1000000000000"], "draws"),
    ("gradients", ["--grid", "1000000000001"], "grid"),
    ("gradients", ["--eps", "nan"], "expected a budget"),
    ("gradients", ["--eps-l2", "1e400"], "eps_l2: expected a budget"),
    ("gradients", ["--logit-scale", "inf"], "logit_scale"),
    ("gradients", ["--model", RAW + "@lm"], "\\udcff"),
    ("gradients", ["--model", LONG], "xxx"),
    ("likelihood", ["--n", "1000000000000000"], "n: expected 1 to 40 images"),
    ("likelihood", ["--steps", "1000000000000"], "steps: expected an integer of 1 to 10,000"),
    ("likelihood", ["--probes", DIGITS], "--probes"),
    ("likelihood", ["--probes", RAW], "--probes"),
    ("likelihood", ["--sigma-min", "nan"], "sigma: expected"),
    ("likelihood", ["--rho", "inf"], "rho: expected"),
    ("likelihood", ["--elbo-levels", "1000000000000"], "levels: expected"),
    ("likelihood", ["--model", RAW], "\\udcff"),
    ("likelihood", ["--out", LONG], "File name too long"),
    ("classify", ["--batch", "1000000000000"], "expected an integer >= 1, at most 1,000,000"),
    ("classify", ["--model", RAW], "\\udcff"),
    ("classify", ["--anytime", "nan"], "expected"),
    ("classify", ["--anytime", "0.01", "--anytime-data", LONG], "xxx"),
    ("compare", ["--draws", "1000000000000000"], "draws"),
    ("compare", ["--seed", LONG], "--seed"),
    ("sample", ["--per-class", "1000000000000"], "per"),
    ("sample", ["--steps", "1000000000000"], "steps"),
    ("sample", ["--sigma-max", "inf"], "sigma"),
    ("sample", ["--sigma-min", "nan"], "sigma"),
    ("export", ["--max-lm-steps", "3", "--quiet"], "the classifier has no likelihood maximisation"),
    ("export", ["--lm", "paper-v2", "--max-lm-steps", "1000000000000"], "at most 4,096"),
    ("export", ["--threshold", "nan", "--quiet"], "threshold"),
    ("export", ["--logit-scale", "inf", "--quiet"], "scale"),
    ("export", ["--quiet", "--precision", LONG], "precision"),
    ("predict", ["--memory-mb", "inf"], "expected a number > 0"),
    ("predict", ["--threads", "1000000000"], "at most 4,096"),
    ("predict", ["--quiet", "--lm-steps", "1000000000000"], "lm_steps"),
    ("predict", ["--quiet", "--threshold", "nan"], "threshold"),
    ("predict", ["--quiet", "--provider", RAW], "provider"),
    ("convert", ["--network", "small-28", "--classes", "1000000000000"], "classes"),
    ("convert", ["--kind", RAW], "kind"),
    ("convert", ["--network", LONG], "xxx"),
    ("bench", ["--threshold", "nan"], "threshold"),
]
WHOLE = [
    (["info", LONG], "unrecognized arguments"),
    ([RAW], "invalid choice"),
    ([LONG], "invalid choice"),
    (["bench", "compare", "/dev/zero", "/dev/zero"], "/dev/zero"),
    (["bench", RAW, "a", "b"], "invalid choice"),
    (["predict", "--onnx", "/dev/zero", "x.png"], "/dev/zero"),
    (["predict", "--onnx", RAW, "x.png"], "\\udcff"),
    (["compare", "/dev/zero", LONG], "/dev/zero"),
    (["convert", "/dev/zero", "made"], "/dev/zero"),
    (["merge", "/dev/zero", "--out", "x"], "expected the folder of a part"),
    (["merge", RAW, "--out", LONG], "\\udcff"),
    (["verify", LONG], "expected a name that ends in .npz or .pt"),
    (["verify", f"{RAW}.npz"], "\\udcff"),
    (["verify", "x.pt", "--eps", "1e400"], "--eps: expected a budget"),
    (["convert", RAW, RAW], "\\udcff"),
    (["sample", LONG], "xxx"),
    (["data", "info", "/dev/zero"], "/dev/zero"),
    (["data", "info", RAW], "\\udcff"),
    (["data", "info", LONG], "xxx"),
    (
        ["data", "convert", "fashion-mnist-sample", "x.npz", "--size", "1" + "0" * 12, "8"],
        "size: expected height and width",
    ),
    (["calibrate", "--out", "x", "--bins", "1" + "0" * 12], "expected an integer >= 1, at most 10,000"),
    (["calibrate", "--out", "x", "--risk", "nan"], "risk: expected a number between 0 and 1"),
    (["calibrate", "--data", RAW, "--out", "x"], "\\udcff"),
    (["calibrate", "--out", "x", "--ood", "x.npz", "--ood-steps", "1" + "0" * 12], "at most 1,000,000"),
    (["certify", "--data", RAW, "--out", "x"], "\\udcff"),
    (["certify", "--n", "1" + "0" * 12, "--out", "x"], "n: expected an integer of 1 to 100,000,000"),
    (["certify", "--n", DIGITS, "--out", "x"], "--n"),
    (["audit", "--n", "1000000000000000"], "n: expected an integer from 8 to 10,000"),
    (["audit", "--eps", "nan"], "expected a budget"),
    (["audit", "--norm", LONG], "norm: expected one of linf, l2"),
    (["audit", "--run", RAW], "\\udcff"),
    (["certify", "--alpha", "nan", "--out", "x"], "alpha: expected a number above 0 and below 1"),
    (["certify", "--sigma", "inf", "--out", "x"], "sigma: expected a number above 0"),
    (["certify", "--batch", "1" + "0" * 12, "--out", "x"], "batch: expected an integer of 1 to 1,000,000"),
    (["certify", "--method", LONG, "--out", "x"], "method: expected epndc or apndc or plain"),
    (["certify", "--attack-radii", "," * 2**20, "--out", "x"], "attack_radii: expected numbers separated by commas"),
    (["certify", "--attack-radii", "nan", "--out", "x"], "attack_radii: expected at most 100 rising numbers"),
    (["train", "--data", RAW, "--out", "x"], "\\udcff"),
    (["train", "--out", "x", "--threads", "1000000000"], "at most 4,096"),
    (["distill", "--out", "x", "--margin-eps", "inf"], "--margin-eps: expected a budget such as"),
    (["distill", "--out", "x", "--secant-eps", "8/255", "--secant-steps", "1" + "0" * 12], "steps"),
]
TRAINING = [
    ("train", ["--images", "1" + "0" * 30], "images"),
    ("train", ["--batch-size", "1" + "0" * 30], "batch_size"),
    ("train", ["--minutes", "inf"], "minutes"),
    ("train", ["--minutes", "-1"], "minutes"),
    ("train", ["--network", LONG], "network"),
    ("train", ["--holdout", "1" + "0" * 15], "hold"),
    ("train", ["--lr", "nan"], "learning_rate"),
    ("train", ["--noise-std", "inf"], "noise"),
    ("train", ["--seed", "1" + "0" * 30], "seed"),
    ("train", ["--init", RAW], "\\udcff"),
    ("train", ["--out", "/dev/null/x"], "/dev/null/x"),
    ("distill", ["--teacher", RAW], "\\udcff"),
    ("distill", ["--wide-channels", "1" + "0" * 12], "wide"),
    ("distill", ["--classes-per-image", "1" + "0" * 12], "classes"),
    ("distill", ["--shift", "1" + "0" * 12], "shift"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eight grey images of 28 x 28 pixels, two classes."""
    path, labels = tmp_path_factory.mktemp("pictures") / "28.npz", torch.arange(8) % 2
    images = torch.arange(8).reshape(8, 1, 1, 1).expand(8, 1, 28, 28).byte()
    save_npz(Dataset(images, labels, ("a", "b"), "b", "train"), path)
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher"
    config = {**CONFIG, "image_shape": [1, 28, 28], "num_classes": 2}
    save_model(path, randomize(build_network(config)), config, {"class_names": ["a", "b"]})
    return str(path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What is written by mistake lands in an empty folder, which stays empty."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def name_of(value):
    return (
        value[:24]
        if isinstance(value, str)
        else " ".join(word[:24] for word in value).encode("ascii", "replace").decode()
    )


def expect_one_line(words, expected, capsys):
    begun = time.monotonic()
    status = main(words)
    seconds = time.monotonic() - begun
    printed = capsys.readouterr()
    assert status == 2, printed.err[:2000]
    assert printed.err.startswith("rdc: error: ") and printed.err.count("\n") == 1 and printed.err.endswith("\n"), (
        printed.err
    )
    assert expected in printed.err and len(printed.err) < 2500, printed.err[:3000]
    assert "Traceback" not in printed.err and printed.err[:-1].isprintable() and printed.out == ""
    assert seconds < SECONDS


@pytest.mark.parametrize(("more", "expected"), EVALUATE, ids=name_of)
def test_evaluate(place, capsys, more, expected):
    expect_one_line([*commands(place, "unused")["run"], "--quiet", *more], expected, capsys)
    assert not (place / "unused").exists()


@pytest.mark.parametrize(("command", "more", "expected"), OTHERS, ids=name_of)
def test_other_commands(place, capsys, command, more, expected):
    expect_one_line([*commands(place, "unused")[command], *more], expected, capsys)


@pytest.mark.parametrize(("command", "more", "expected"), TRAINING, ids=name_of)
def test_training(pictures, teacher, capsys, command, more, expected):
    words = [command, "--data", pictures, "--out", "x", "--quiet", "--device", "cpu", "--images", "64"]
    words += ["--teacher", teacher] if command == "distill" else []
    expect_one_line([*words, *more], expected, capsys)


@pytest.mark.parametrize(("words", "expected"), WHOLE, ids=name_of)
def test_whole_lines(capsys, words, expected):
    expect_one_line(words, expected, capsys)


def test_every_command_is_here():
    assert {
        *(row[0] for row in OTHERS),
        *(words[0] for words, _ in WHOLE),
        *(row[0] for row in TRAINING),
        "evaluate",
    } >= set(COMMANDS)
    assert threading.active_count() < 50
