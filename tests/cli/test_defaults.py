"""Defaults stand once: the options of a command, its help and the settings it makes of them agree, and help waits for no torch."""

import argparse
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rdc.arguments.defaults import EvaluationDefaults, GradientDefaults, LikelihoodDefaults
from rdc.cli import evaluate, gradients, likelihood
from rdc.cli.evaluation_request import read_request
from rdc.cli.options import model_choice
from rdc.errors import RdcError
from rdc.evaluation import EvaluationSettings
from rdc.execution.devices import chosen_device
from rdc.gradient_analysis import GradientSettings
from rdc.method.likelihood import LikelihoodSettings
from rdc.method.probability_flow import FlowSettings
from rdc.models.choice import ModelChoice

ROOT = Path(__file__).resolve().parents[2]


def parsed(module, *words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args([*words])), argv=[*words])


def test_the_options_of_evaluate_make_the_settings_of_python():
    request = read_request(parsed(evaluate))
    assert request.settings == EvaluationSettings(model="fashion-mnist", dataset="fashion-mnist")
    assert request.attacks == ("apgd-ce", "apgd-dlr") and not request.batch_given
    fresh = read_request(parsed(evaluate, "--noise", "fresh")).settings
    assert fresh.eot == EvaluationSettings(model="m", dataset="d", noise="fresh").eot == EvaluationDefaults().eot


def test_the_options_of_gradients_make_the_settings_of_python():
    args = parsed(gradients)
    for field in dataclasses.fields(GradientSettings):
        if field.name != "dataset":
            assert getattr(args, field.name) == field.default == getattr(GradientDefaults(), field.name), field.name


def test_the_options_of_likelihood_make_the_settings_of_python():
    args = parsed(likelihood)
    for field in dataclasses.fields(LikelihoodDefaults):
        assert getattr(args, field.name) == field.default, field.name
    flow = {field.name: field.default for field in dataclasses.fields(FlowSettings)}
    assert flow.items() <= vars(args).items() and LikelihoodSettings().levels == args.elbo_levels


def test_every_option_arrives_in_the_request():
    words = {
        "--model": "m", "--data": "d", "--n": "3", "--start": "2", "--split": "train", "--norm": "l2", "--eps": "0.25", "--steps": "7",
        "--restarts": "2", "--gradient": "bpda", "--noise": "all", "--eot": "6", "--resubmissions": "4", "--sanity": "0", "--seed": "5",
        "--batch": "9", "--levels": "fast", "--lm": "none", "--precision": "bfloat16", "--attacks": "pgd-ce", "--memory-mb": "8",
        "--device": "cpu", "--threads": "2", "--data-root": "r", "--out": "o", "--format": "json", "--attack-precision": "bfloat16",
    }  # fmt: skip
    flat = [word for pair in words.items() for word in pair]
    request = read_request(parsed(evaluate, *flat, "--overwrite", "--quiet"))
    own = {"levels": "fast", "lm": "none", "precision": "bfloat16"}
    numbers = {
        "n": 3,
        "start": 2,
        "steps": 7,
        "restarts": 2,
        "eot": 6,
        "resubmissions": 4,
        "sanity": 0,
        "seed": 5,
        "batch": 9,
    }
    texts = {
        "attack_precision": "bfloat16",
        "split": "train",
        "norm": "l2",
        "eps": "0.25",
        "gradient": "bpda",
        "noise": "all",
        "attacks": ("pgd-ce",),
    }
    assert request.settings == EvaluationSettings(model="m", dataset="d", **numbers, **texts, **own)
    assert request.model == ModelChoice("m", **own, memory_budget_mb=8.0, device="cpu", threads=2)
    assert (request.data_root, request.out, request.form) == ("r", Path("o"), "json")
    assert request.batch_given and request.overwrite and request.quiet
    assert "--overwrite" not in request.again and "--quiet" in request.again
    assert "--overwrite" not in request.command and "--quiet" not in request.command


@pytest.mark.parametrize("command", ["evaluate", "gradients"])
def test_help_waits_for_nothing_heavy(command):
    program = (
        f"import sys, rdc.cli; code = rdc.cli.main(['{command}', '--help']); "
        "heavy = [name for name in ('torch', 'numpy', 'matplotlib', 'PIL') if name in sys.modules]; "
        "sys.exit(f'{code} {heavy}')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd="/")
    assert child.stderr.strip() == "0 []"


def test_one_process_joins_nobody(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    choice = model_choice(parsed(evaluate, "--device", "cpu"))
    assert choice.joined() == (choice, True)


def test_what_a_choice_refuses():
    for choice, message in (
        (
            ModelChoice("json:loads", lm="none", memory_budget_mb=3.0),
            r"lm and --memory-mb: a model given as a function",
        ),
        (ModelChoice("json:loads"), "--model json:loads: this command takes presets and checkpoint paths only"),
        (ModelChoice("fashion-mnist", device="tpu"), "device: expected auto, cpu, cuda, cuda:N or mps; got 'tpu'"),
        (ModelChoice("no-such-model"), "no-such-model"),
    ):
        with pytest.raises(RdcError, match=message):
            choice.load()
    assert chosen_device("cpu").type == "cpu"


def test_a_preset_sets_what_was_not_given_and_says_so(capsys):
    request = read_request(parsed(evaluate, "--preset", "paper-v2"))
    own = {"levels": "edm", "lm": "paper-v2"}
    assert request.settings == EvaluationSettings(
        "fashion-mnist", "fashion-mnist", noise="fresh", preset="paper-v2", **own
    )
    assert request.model == ModelChoice("fashion-mnist", **own)
    assert capsys.readouterr().err == (
        "rdc: preset paper-v2 (arXiv version 2, ICML 2024) sets --levels edm --lm paper-v2 --noise fresh\n"
    )


def test_what_is_given_wins_over_the_preset(capsys):
    words = ["--preset", "released", "--lm", "none", "--noise", "all"]
    request = read_request(parsed(evaluate, *words))
    assert (request.settings.levels, request.settings.lm, request.settings.noise) == ("rdc-released", "none", "all")
    assert request.model == ModelChoice("fashion-mnist", levels="rdc-released", lm="none")
    assert capsys.readouterr().err.endswith("sets --levels rdc-released; as given: --lm none --noise all\n")


def test_other_commands_take_levels_and_likelihood_maximisation_of_a_preset(capsys):
    for module in (gradients, likelihood):
        args = parsed(module, "--preset", "paper-v1", "--levels", "fast")
        expected = ModelChoice("m", levels="fast", lm="paper-v1")
        assert model_choice(args, "m") == expected == model_choice(args, "m")  # several models, said once
        assert capsys.readouterr().err.endswith("sets --lm paper-v1; as given: --levels fast\n")
    assert model_choice(parsed(likelihood, "--preset", "paper-v1", "--quiet")).lm == "paper-v1"
    assert capsys.readouterr().err == ""
    with pytest.raises(RdcError, match="preset: expected one of paper-v1, paper-v2, released; got 'v2'"):
        model_choice(parsed(likelihood, "--preset", "v2"))
