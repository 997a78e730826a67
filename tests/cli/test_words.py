"""What somebody types who has not read the manual, and what it says: the right page of help, what may have been meant, what to do."""

import dataclasses
import json
import re

import pytest
import torch

from rdc.attacks.registry import ATTACKS, SUITES
from rdc.cli import main, predict
from rdc.cli.evaluate import EXAMPLES
from rdc.data import load_dataset, save_npz
from tests.evaluation_models import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def few(tiny, tmp_path):
    """--data of a few training images."""
    data = dataclasses.replace(load_dataset(tiny[1]), split="train")
    save_npz(data, tmp_path / "few.npz")
    return str(tmp_path / "few.npz")


def said(capsys, *words):
    """The one line of an error."""
    assert main([*words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("rdc: error: ") and printed.err.count("\n") == 1 and printed.out == ""
    return printed.err


# --- slips --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evalute"], r"invalid choice: 'evalute'.*\(did you mean 'evaluate'\?\) \(see `rdc --help`\)"),
        (
            ["evaluate", "--nn", "3"],
            r"unrecognized arguments: --nn 3 \(did you mean --n\?\) \(see `rdc evaluate --help`\)",
        ),
        (["evaluate", "--stpes=3"], r"did you mean --steps\?\) \(see `rdc evaluate --help`"),
        (["classify", "--mdoel", "x", "a.png"], r"did you mean --model\?\) \(see `rdc classify --help`"),
        (["train", "--out", "o", "--learning-rate", "1"], r"unrecognized arguments: .* \(see `rdc train --help`\)"),
        (
            ["evaluate", "--precision", "bfloat"],
            r"invalid choice: 'bfloat' .*did you mean 'bfloat16'\?.*rdc evaluate --help",
        ),
        (["evaluate", "--format", "jsn"], "did you mean 'json'"),
        (["train", "--method", "trade"], "did you mean 'trades'"),
        (["bench", "cost", "--modle", "x"], r"did you mean --model\?\) \(see `rdc bench cost --help`\)"),
        (["info", "extra"], r"unrecognized arguments: extra \(see `rdc info --help`\)"),
        (["evaluate", "--attacks", "fub"], r"got 'fub' \(did you mean 'fab'\?\)"),
        (["evaluate", "--attacks", "apgd-ce:step=5"], r"got 'step=5' \(did you mean 'steps'\?\)"),
        (["evaluate", "--attacks", "apgd-ce:gradient=bdpa"], r"got 'bdpa' \(did you mean 'bpda'\?\)"),
        (["evaluate", "--attacks", "auto-attack"], r"did you mean 'autoattack'\?"),
        (["evaluate", "--norm", "Linf"], r"did you mean 'linf'\?"),
        (["evaluate", "--gradient", "exakt"], r"did you mean 'exact'\?"),
        (["evaluate", "--noise", "know"], r"did you mean 'known'\?"),
        (["evaluate", "--model", "fashion_mnist"], r"did you mean 'fashion-mnist'\?"),
        (["evaluate", "--model", "fashion-mnist-trade"], r"did you mean 'fashion-mnist-trades'\?"),
        (["evaluate", "--levels", "edn"], r"did you mean 'edm'\?"),
        (["evaluate", "--levels", "accurat"], r"did you mean 'accurate'\?"),
        (["evaluate", "--levels", "logg:3:1:2:flat"], r"noise-level scheme: .*did you mean 'log'\?"),
        (["evaluate", "--lm", "paper-v3"], r"did you mean 'paper-v[12]'\?"),
        (["evaluate", "--lm", "paper-v2,step=3"], r"did you mean 'steps'\?"),
        (["evaluate", "--preset", "papr-v1"], r"preset: .*did you mean 'paper-v1'\?"),
        (["evaluate", "--device", "gpu"], r"did you mean 'cuda'\?"),
        (["gradients", "--model", "fashion-mnist@level=edm"], r"unknown setting 'level' \(did you mean 'levels'\?\)"),
        (["certify", "--method", "epdnc"], r"did you mean 'epndc'\?"),
        (["certify", "--n", "all"], "The number of images is --n-images"),
        (["evaluate", "--n", "many"], "argument --n: expected an integer, or all; got 'many'"),
        (["convert", "a.pt", "b", "--kind", "state-dicts"], r"did you mean 'state-dict'\?"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if words[0] in ("evaluate", "certify", "gradients"):
        words = [*words, "--data", "fashion-mnist-sample", "--out", "run"]
    assert re.search(expected, said(capsys, *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["train", "--network", "smal-28"], ["train", "--network", "small28"]])
def test_networks(words, tmp_path, few, capsys):
    assert "did you mean 'small-28'?" in said(capsys, *words, "--data", few, "--out", str(tmp_path / "run"))


def test_recipes(tmp_path, few, capsys):
    (tmp_path / "r.toml").write_text('method = "diffusion"\n[train]\nlearning_rat = 1.0\n')
    words = ["train", "--config", str(tmp_path / "r.toml"), "--data", few, "--out", str(tmp_path / "run")]
    assert "there is no such setting (did you mean 'learning_rate'?)" in said(capsys, *words)


def test_help_lists_every_attack():
    listed = set(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", EXAMPLES.partition("attacks: ")[2]))
    assert {*ATTACKS, *SUITES, "pgd", "apgd"} <= listed


# --- a model of one's own -----------------------------------------------------------------------------------------
MYNET = """
import torch
from beside import classes

def cnn():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 36, classes))

def colour():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.LazyLinear(classes))

def _private():
    return None
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with mynet.py, which imports a file beside it, and weights."""
    (tmp_path / "mynet.py").write_text(MYNET)
    (tmp_path / "beside.py").write_text("classes = 4\n")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "cnn.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluation(model, data, *more):
    small = ["--n", "4", "--steps", "1", "--sanity", "0", "--attacks", "apgd-ce", "--device", "cpu", "--out", "run"]
    return ["evaluate", "--model", model, "--data", data, *small, *more]


@pytest.mark.parametrize("folder", ["", "./", "HERE/"])
def test_a_file_and_a_function(mine, tiny, folder, capsys):
    name = f"{folder.replace('HERE', str(mine))}mynet.py:cnn"
    assert main(evaluation(name, tiny[1], "--quiet")) == 0
    assert json.loads((mine / "run" / "report.json").read_text())["model"] == name
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mynet.cnn", r"did you mean 'mynet:cnn'\?"),
        (
            "mynet.py",
            r"Name a function in it, without arguments, that returns the model: mynet\.py:cnn, mynet\.py:colour$",
        ),
        ("mynet.py:cn", r"has no cn \(did you mean 'cnn'\?\); it has torch, classes, cnn, colour"),
        ("mynt.py:cnn", r"mynt\.py cannot be imported \(FileNotFoundError: .*did you mean 'mynet\.py'\?"),
        ("mynt:cnn", r"mynt cannot be imported \(ModuleNotFoundError: .*did you mean 'mynet\.py'\?"),
        ("mynet", r"did you mean 'mynet\.py'\?"),
        ("cnn.pt", r"rdc convert cnn\.pt DESTINATION; for a network of your own: --model FILE\.py:FUNCTION"),
        ("nowhere.pt", r"no such file exists\. If it is a diffusion model's: rdc convert .*--model FILE\.py:FUNCTION"),
        ("absent.py", r"no such file exists\. Name a function .*: absent\.py:FUNCTION$"),
        ("rdc.onnx", r"rdc predict --onnx rdc\.onnx"),
    ],
)
def test_a_model_that_is_named_otherwise(mine, tiny, name, expected, capsys):
    error = said(capsys, *evaluation(name, tiny[1]))
    assert re.search(expected, error.strip()), error
    assert not (mine / "run").exists()


def test_only_a_named_file_is_run(mine, tiny, capsys):
    """A file is looked into to list its functions; it is run where a function of it is named."""
    (mine / "bad.py").write_text("open('ran', 'w').close()\ndef make(): return None\n")
    said(capsys, *evaluation("bad.py", tiny[1]))
    said(capsys, *evaluation("bad", tiny[1]))
    assert not (mine / "ran").exists()
    said(capsys, *evaluation("bad.py:make", tiny[1]))
    assert (mine / "ran").exists()


def test_a_checkpoint_beside_it(mine, tiny, capsys):
    (mine / "runs" / "student").mkdir(parents=True)
    assert "did you mean 'runs/student'?" in said(capsys, *evaluation("runs/studnet", tiny[1]))


def test_model_and_data_that_do_not_fit(mine, tiny, capsys):
    """Said before anything is computed, with the data's name: that of --data, or the one that was taken without it."""
    error = said(capsys, *evaluation("mynet.py:colour", tiny[1]))
    assert (
        "raised RuntimeError on images of blobs, [1, 8, 8] (channels, height, width)" in error
        and "with --data" in error
    )
    words = [word for word in evaluation("mynet.py:cnn", "X") if word not in ("--data", "X")]
    assert main([*words, "--data-root", str(mine)]) == 2  # where no data are, so that nothing depends on this machine
    assert "Fashion-MNIST" in capsys.readouterr().err
    error = said(capsys, *evaluation("fashion-mnist-standard", tiny[1]))
    assert "takes images [1, 28, 28]" in error and "or other data with --data" in error
    assert not (mine / "run").exists()


def test_data_that_nobody_named_is_said(mine, monkeypatch, capsys):
    import rdc.data
    from rdc.data import load_dataset

    sample = load_dataset("fashion-mnist-sample")
    monkeypatch.setattr(rdc.data, "load_dataset", lambda *names, **options: sample)
    (mine / "flat.py").write_text(
        "import torch\ndef make(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 12))\n"
    )
    words = [word for word in evaluation("flat.py:make", "X", "--quiet") if word not in ("--data", "X")]
    assert main(words) == 0
    error = capsys.readouterr().err
    assert "rdc: --data was not given: the images of fashion-mnist are taken\n" in error
    assert "flat.py:make has 12 classes, fashion-mnist-sample has 10: were they made for each other?\n" in error


# --- words that work everywhere -----------------------------------------------------------------------------------
def test_all_images(tiny, tmp_path, capsys):
    small = ["--model", tiny[0], "--data", tiny[1], "--device", "auto", "--quiet", "--json"]
    words = ["evaluate", *small, "--attacks", "none", "--start", "30", "--out", str(tmp_path / "run")]
    assert main([*words, "--n", "all"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 10
    assert main([*words, "--n", "10"]) == 0  # the same run
    certify = ["certify", *small, "--sigma", "0.25", "--n0", "2", "--n", "4", "--noised-levels", "1", "--start", "38"]
    assert main([*certify, "--n-images", "all", "--out", str(tmp_path / "certify")]) == 0
    likelihood = ["likelihood", *small, "--steps", "1", "--elbo-levels", "1", "--start", "38"]
    assert main([*likelihood, "--n", "ALL", "--out", str(tmp_path / "likelihood")]) == 0
    gradients = ["gradients", *small, "--draws", "0", "--samples", "1", "--ascent-steps", "1", "--steps", "1"]
    assert main([*gradients, "--slices", "0", "--start", "38", "--n", "all", "--out", str(tmp_path / "gradients")]) == 0
    for name in ("certify", "likelihood"):
        rows = (tmp_path / name / "results.jsonl").read_text().splitlines()
        assert len(rows) == 2, name
    assert json.loads((tmp_path / "gradients" / "gradients.json").read_text())["settings"]["n"] == 2


@pytest.mark.parametrize("option", [["--json"], ["--format", "json"]])
def test_json_has_two_names(option, place, capsys):
    from tests.cli.conftest import commands

    some = commands(place)
    for name in ("info", "run", "compare", "gradients", "likelihood", "convert", "bench", "sample"):
        assert main([*some[name], *option]) == 0, name
        json.loads(capsys.readouterr().out)
    image = str(place / "image.png")
    assert main(["classify", "--model", str(place / "tiny"), image, *option]) == 0
    assert json.loads(capsys.readouterr().out)[0]["class"]
    assert main(["predict", "--device", "cpu", "--onnx", str(place / "tiny.onnx"), image, *option]) == 0
    assert json.loads(capsys.readouterr().out)["class"]


def test_predict_in_words(place, capsys):
    words = ["predict", "--onnx", str(place / "tiny.onnx"), str(place / "image.png"), "--quiet", "--format", "text"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert re.search(r"image\.png  \w+  \S+ %$", out.strip()) and out.count("\n") == 1
    answer = {
        "file": "a.png",
        "class": "bag",
        "confidence": 0.4,
        "abstain": True,
        "notices": ["inverted"],
        "unlike": [],
    }
    assert predict._line(answer) == "a.png  bag, abstains  40.0 %  (inverted)"
    answer["unlike"] = ["colour"]
    assert predict._line(answer).endswith("(inverted)  (of another kind? colour)")


def test_classify_and_sample_take_auto(tiny, place, capsys):
    assert main(["classify", "--model", tiny[0], "--device", "auto", str(place / "image.png")]) == 0
    words = [
        "sample",
        str(place / "tiny"),
        "--out",
        str(place / "s.png"),
        "--per-class",
        "1",
        "--steps",
        "1",
        "--quiet",
    ]
    assert main([*words, "--device", "auto"]) == 0
    if not torch.backends.mps.is_available():
        assert main([*words, "--device", "mps"]) == 2
        assert "mps asked for, but PyTorch finds no GPU of Apple's here" in capsys.readouterr().err
