"""``rdc evaluate --save-adversarial`` and ``rdc verify``."""

import json

import numpy as np
import pytest

from rdc.cli import main
from tests.evaluation_models import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def test_what_a_run_saved_is_verified(tiny, tmp_path, capsys):
    model, data = tiny
    words = [
        "evaluate",
        "--model",
        model,
        "--data",
        data,
        "--n",
        "8",
        "--start",
        "3",
        "--steps",
        "2",
        "--sanity",
        "0",
        "--quiet",
    ]
    words += ["--attacks", "apgd-ce", "--threats", "linf:8/255,l2:0.5", "--out", str(tmp_path / "run")]
    assert main([*words, "--save-adversarial", str(tmp_path / "adv.npz")]) == 0
    assert main([*words, "--save-adversarial"]) == 0  # finished: it is written from what the run kept
    files = [tmp_path / "adv-linf-8-255.npz", tmp_path / "adv-l2-0.5.npz"]
    for file, folder in zip(files, ("linf-8-255", "l2-0.5"), strict=True):
        kept = np.load(tmp_path / "run" / folder / "batches" / "00000.npz")["x_adv"]
        assert np.array_equal(np.load(file)["x_adv"], kept)
        assert np.array_equal(np.load(file)["images"], np.arange(3, 11))
    assert (tmp_path / "run" / "adversarial-l2-0.5.npz").read_bytes()
    capsys.readouterr()
    check = ["verify", str(files[0]), "--model", model, "--data", data, "--quiet"]
    assert main([*check, "--eps", "8/255", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = json.loads((tmp_path / "run" / "linf-8-255" / "report.json").read_text())
    assert found["robust"]["accuracy"] == run["robust"]["accuracy"] and found["n"] == found["allowed"] == 8
    assert main([*check, "--eps", "1/255"]) == 1
    printed = capsys.readouterr()
    assert "within the budget" in printed.out and "image 3: distance 0.03" in printed.out
    assert "are outside of what the threat allows" in printed.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--save-adversarial", "x.pkl"], "ends in .npz or .pt"),
        (["--save-adversarial", "--attacks", "none"], "nothing attacks"),
    ],
)
def test_what_cannot_be_saved_is_said_before_anything_runs(tiny, tmp_path, capsys, given, said):
    assert main(["evaluate", "--model", tiny[0], "--data", tiny[1], "--out", str(tmp_path / "run"), *given]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
