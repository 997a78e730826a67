"""No answer is better than one made of NaN: ``classify`` and ``predict`` look at what they print."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from rdc.cli import main
from rdc.decisions.answers import doubt
from rdc.export import export_onnx
from rdc.models.checkpoints import load_model, save_model
from rdc.models.zoo import load
from tests.evaluation_models import TINY, grey, save_tiny

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("scores", "others", "words"),
    [
        ([0.0, -1.0], [], ""),
        ([0.0], [], ""),
        ([0.0, -1e30], [np.zeros((2, 3)), np.float32(4)], ""),
        ([NAN, NAN, 1.0], [], "2 of the 3 class scores are NaN or infinite"),
        ([0.0, -INF], [], "1 of the 2 class scores"),
        ([0.0, 1.0], [np.array([1.0, INF])], "1 of the 2 losses"),
        ([-2.3, -2.3, -2.3], [], "all 3 classes get exactly the same score"),
    ],
)
def test_doubts(scores, others, words):
    found = doubt(np.array(scores, np.float32), *others)
    assert words in found and bool(found) is bool(words)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [str(folder / f"{number}.png") for number in range(2)]
    for number, path in enumerate(paths):
        Image.fromarray(grey((8, 8), number)).save(path)
    return paths


def overflowing(folder, which, size) -> str:
    """A checkpoint in which the largest of the weights whose name begins so is ``size``: 1e8 is the most that may be saved."""
    model, _ = save_tiny(folder)
    network = load_model(model)[0]
    for name, parameter in network.named_parameters():
        if name.startswith(which):
            parameter.data.mul_(size / parameter.data.abs().max().clamp(min=1e-9))
    save_model(folder / "wild", network, TINY, {"classifier": {"levels": "log:3:0.5:3:flat"}})
    return str(folder / "wild")


@pytest.mark.parametrize(
    ("which", "size", "words"),
    [
        ("", 9e7, "4 of the 4 class scores are NaN or infinite"),
        ("head", 0, "all 4 classes get exactly the same score"),
    ],
    ids=["overflow", "same"],
)
@pytest.mark.parametrize("form", ["json", "table"])
def test_classify_refuses_to_answer(tmp_path, pictures, capsys, which, size, words, form):
    model = overflowing(tmp_path, which, size)
    options = ["--json"] if form == "json" else []
    assert main(["classify", "--device", "cpu", "--model", model, *options, *pictures]) == 1
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 2 and all(f": no answer: {words}" in line for line in lines)
    assert "nan" not in printed.out.lower().replace("nan or infinite", "")
    if form == "json":
        for answer in json.loads(printed.out, parse_constant=pytest.fail):
            assert words in answer["error"] and "class" not in answer and "probabilities" not in answer
    else:
        assert printed.out == "no file could be classified\n"


def test_a_logit_scale_beyond_float32(tmp_path, pictures, capsys):
    model, _ = save_tiny(tmp_path)
    for scale in ("1e60", "1e-60"):
        description = json.loads((tmp_path / "tiny.json").read_text())
        network, config = load_model(model)[:2]
        save_model(
            tmp_path / "scaled", network, config, {**description["info"], "classifier": {"logit_scale": float(scale)}}
        )
        assert (
            main(
                [
                    "classify",
                    "--device",
                    "cpu",
                    "--model",
                    str(tmp_path / "scaled"),
                    "--levels",
                    "log:3:0.5:3:flat",
                    pictures[0],
                ]
            )
            == 1
        )
        assert "no answer: " in capsys.readouterr().err


@pytest.mark.parametrize(("which", "size"), [("", 9e7), ("head", 0)], ids=["overflow", "same"])
def test_predict_refuses_to_answer(tmp_path, pictures, capsys, which, size):
    export_onnx(load(overflowing(tmp_path, which, size)), tmp_path / "a.onnx", check=False)
    assert main(["predict", "--quiet", "--onnx", str(tmp_path / "a.onnx"), *pictures]) == 1
    printed = capsys.readouterr()
    for line in printed.out.splitlines():
        answer = json.loads(line, parse_constant=pytest.fail)
        assert set(answer) == {"file", "error", "notices"} and answer["error"].startswith("no answer: ")
    assert len(printed.out.splitlines()) == len(printed.err.splitlines()) == 2


def test_names_of_files_that_are_no_text(tmp_path, capsys):
    model, _ = save_tiny(tmp_path)
    export_onnx(load(model), tmp_path / "a.onnx", check=False)
    good, bad = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/\xff\n.png", b"/\x1b[2J"))
    Image.fromarray(grey((8, 8))).save(good, "png")
    for command in (
        ["classify", "--device", "cpu", "--model", model],
        ["predict", "--quiet", "--onnx", str(tmp_path / "a.onnx")],
    ):
        assert main([*command, good, bad]) == 1
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out + printed.err and len(printed.err.splitlines()) == 1
        assert printed.err.endswith("\\x1b[2J: no such file\n")
        assert len(printed.out.splitlines()) == 2
