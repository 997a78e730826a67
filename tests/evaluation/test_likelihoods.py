"""``rdc likelihood``'s run: figures, resumption after any end, refusals, damage, the command."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from rdc.cli import main
from rdc.data import Dataset
from rdc.errors import ConfigError, DataError
from rdc.evaluation import likelihoods as module
from rdc.evaluation.likelihoods import likelihoods
from rdc.method.likelihood import LikelihoodSettings, dequantised
from rdc.method.probability_flow import FlowSettings
from tests.evaluation_models import CLASSES, NAMES, SHAPE, gaussian_classifier, images, save_tiny
from tests.oracles import gaussian_log_density
from tests.tolerances import BITS, FLOAT32_NETWORK, LIKELIHOOD_FEW_STEPS

HOW = LikelihoodSettings(FlowSettings(steps=6, sigma_max=2000.0), levels=24)
QUICK = LikelihoodSettings(FlowSettings(steps=1, solver="heun"), levels=1)


def data(n=5):
    return Dataset(images(n), torch.arange(n) % CLASSES, NAMES, "blobs", "test")


def run(out, how=QUICK, n=5, **options):
    return likelihoods(gaussian_classifier(), data(), how, out, n=n, **{"batch": 2, "progress": False, **options})


def lines(folder):
    return (folder / "results.jsonl").read_text().splitlines()


def test_figures_on_gaussian_classes(tmp_path):
    report = run(tmp_path / "run", HOW)
    x = dequantised(data().images, 0, range(5)).double().numpy()
    means = gaussian_classifier().denoiser.network.means.double().numpy()
    true = np.stack([gaussian_log_density(x, mean, 0.2, HOW.flow.sigma_min) for mean in means], 1)
    records = [json.loads(line) for line in lines(tmp_path / "run")]
    for key in ("log_likelihood", "elbo"):
        assert np.abs(np.array([record[key] for record in records]) / true - 1).max() < LIKELIHOOD_FEW_STEPS
    right = 7 - true[np.arange(5), np.arange(5) % CLASSES] / (math.prod(SHAPE) * math.log(2))
    assert abs(report["bits_per_dimension"]["ode"]["mean"] - right.mean()) < BITS
    assert abs(report["gap"]["mean"]) < BITS and set(report["gap_of_class"]) == set(NAMES)
    assert report["differ"]["ode and elbo"]["count"] == 0
    assert report["decisions"]["ode"]["share"] == (true.argmax(1) == np.arange(5) % CLASSES).mean()
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report


def test_a_run_that_was_cut_short_goes_on_and_says_the_same(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    run(tmp_path / "part")
    file = tmp_path / "part" / "results.jsonl"
    content = file.read_bytes()
    second = content.index(b"\n", content.index(b"\n") + 1)
    file.write_bytes(content[: second + 30])  # two lines and a piece of the third
    asked = []
    plain = module._records
    monkeypatch.setattr(module, "_records", lambda c, part, s: asked.append(len(part)) or plain(c, part, s))
    again = run(tmp_path / "part")
    assert asked == [2, 1]
    timeless = ("seconds", "command")
    assert {k: v for k, v in again.items() if k not in timeless} == {
        k: v for k, v in whole.items() if k not in timeless
    }
    assert [json.loads(a)["elbo"] for a in lines(tmp_path / "part")] == [
        json.loads(a)["elbo"] for a in lines(tmp_path / "whole")
    ]


def test_figures_do_not_depend_on_batches(tmp_path):
    run(tmp_path / "a", batch=1)
    run(tmp_path / "b", batch=5)
    for one, other in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert np.allclose(json.loads(one)["log_likelihood"], json.loads(other)["log_likelihood"], rtol=FLOAT32_NETWORK)


def test_another_run_is_refused_and_can_be_overwritten(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(ConfigError, match="These settings differ") as error:
        run(tmp_path / "run", LikelihoodSettings(QUICK.flow, levels=2))
    assert any("levels: 1 there, 2 now" in line for line in error.value.args)
    assert len(lines(tmp_path / "run")) == 5
    run(tmp_path / "run", LikelihoodSettings(QUICK.flow, levels=2), overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match="no results of rdc likelihood"):
        run(tmp_path / "other")


@pytest.mark.parametrize("damage", ["digit", "swapped", "identity"])
def test_damage_is_told(tmp_path, damage):
    run(tmp_path / "run")
    file = tmp_path / "run" / ("run.json" if damage == "identity" else "results.jsonl")
    if damage == "swapped":
        first, second, *rest = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join([second, first, *rest]))
    else:
        content = bytearray(file.read_bytes())
        place = next(i for i, letter in enumerate(content) if chr(letter) in "123" and i > 40)
        content[place] ^= 1
        file.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged"):
        run(tmp_path / "run")


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="n: expected 1 to 5 images"):
        run(tmp_path / "run", n=6)
    with pytest.raises(ConfigError, match="batch"):
        run(tmp_path / "run", batch=0)
    with pytest.raises(ConfigError, match="expected a diffusion classifier"):
        likelihoods(torch.nn.Flatten(), data(), QUICK, tmp_path / "run")
    small = Dataset(images(4)[..., :4, :4], torch.zeros(4, dtype=torch.long), NAMES, "blobs", "test")
    with pytest.raises(ConfigError, match="takes images"):
        likelihoods(gaussian_classifier(), small, QUICK, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def command(model, blobs, levels):
    words = ["likelihood", "--model", model, "--data", blobs, "--n", "3", "--steps", "1", "--quiet"]
    return [*words, "--elbo-levels", str(levels)]


def test_the_command(tmp_path, capsys):
    model, blobs = save_tiny(tmp_path)
    words = command(model, blobs, 2)
    words += ["--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "right class, ODE" in text and "ode and elbo differ" in text and "gap, bag for all" in text
    assert main([*words, "--format", "json"]) == 0  # nothing is computed again
    report = json.loads(capsys.readouterr().out)
    assert report["n"] == 3 and report["settings"]["steps"] == 1 and report["settings"]["solver"] == "rk4"
    assert report["command"].startswith("rdc likelihood --model") and "--quiet" not in report["command"]
    assert main([*words, "--seed", "1"]) == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    model, blobs = save_tiny(tmp_path)
    plain, calls = module._records, []

    def interrupted(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return plain(*arguments)

    monkeypatch.setattr(module, "_records", interrupted)
    words = command(model, blobs, 1)
    main([*words, "--out", str(tmp_path / "run"), "--batch", "2", "--device", "cpu"])
    error = capsys.readouterr().err
    assert "2 of 3 images are finished and kept in" in error and "run the same command again" in error
