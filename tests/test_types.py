"""A user's type checker sees the options: what is right passes ``mypy --strict``, what is misspelt does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from rdc.method.classifier import DiffusionClassifier
from rdc.models.settings import Settings

ROOT = Path(__file__).resolve().parent.parent

HEAD = """
import torch
import rdc
from rdc.attacks import AttackOptions, ThreatModel, apgd, pgd
from rdc.attacks.pgd import PgdOptions
from rdc.data import Dataset
from rdc.decisions.anytime import AnytimeClassifier
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.front import Options
from rdc.method.denoiser import Denoiser
from rdc.training.config import TrainConfig

def use(denoiser: Denoiser, data: Dataset) -> None:
    model, threat = rdc.load("fashion-mnist"), ThreatModel("linf", 8 / 255)
    x, y, ids = data.pixels(slice(0, 4)), data.labels[:4], data.indices[:4]
"""
RIGHT = """
    classifier = rdc.load("fashion-mnist", device="cpu", levels="edm", lm=None, noise="fresh", memory_budget_mb=None)
    shape: tuple[int, int, int] = classifier.image_shape
    bare: Dataset = rdc.load_dataset("fashion-mnist-sample", split="test", progress=False)
    own = Dataset(bare.images, bare.labels, ("shirt", "shoe"), "mine", "test")
    share: float = apgd(classifier, x, y, threat, seed=0, image_ids=ids, steps=5, loss="margin", eot=2).accuracy
    x_adv: torch.Tensor = pgd.configured(threat, seed=0, image_ids=range(4), step_size=0.1)(model, x, y).x_adv
    options: AttackOptions = PgdOptions(seed=0, image_ids=[0], step_size=None)
    lm = rdc.LikelihoodMaximization(steps=2, step_size=0.1)
    made = rdc.DiffusionClassifier(denoiser, rdc.parse_levels("edm"), lm=lm, class_names=["shirt", "shoe"])
    weak = AnytimeClassifier(made, error_rate=0.02).with_(gradient="bpda")
    config = TrainConfig(images=100, batch_size=10, learning_rate=1e-3, flip=True)
    run = evaluate(model, own, EvaluationSettings("fashion-mnist", "mine", n=4, eps="8/255"), "out", progress=False)
    result: rdc.EvaluationResult = rdc.attack(model, x, y, eps="8/255", norm="linf", attacks="apgd-ce,square", seed=0)
    several: list[rdc.EvaluationResult] = rdc.attack(model, x, y, eps=["1/255", 0.5], steps=5, image_ids=ids)
    kept = rdc.evaluate(torch.nn.Linear(3, 2), x.numpy(), [0, 1], attacks=("pgd",), eps=8 / 255, out="out", sanity=4, device=None)
    same: rdc.EvaluationResult = rdc.evaluate("fashion-mnist", own, n=4, progress=False)
    options2: Options = {"norm": "l2", "batch": 8}
    again = rdc.attack(lambda pixels: pixels.flatten(1), own, **options2)
    table: str = result.summary() + kept.summary() + same.summary() + again.summary() + repr(several[0].interval)
    trained = rdc.train(rdc.training.Recipe(method="standard"), own, "out")
    names: list[str] = rdc.list_models("fashion*")
    folder = rdc.save_pretrained(rdc.from_pretrained("user/model", device="cpu", levels="edm"), "folder", dtype=torch.float16)
    address: str = rdc.push_to_hub(model, "user/model", private=True)
    figure = rdc.plots.plot_adversarial(result.clean, result.adversarial, captions=names, n=4, axes=None)
    figure = rdc.plots.plot_reliability({"before": x}, y, bins=10, title="mine")
    figure = rdc.plots.plot_likelihood_path(made.maximize_likelihood(x, return_path=True), axes=figure.axes[0])
    defaults = apgd(classifier, x, y, threat).accuracy + rdc.attacks.pgd(classifier, x, y, threat, steps=3).accuracy
    print(table, trained.images, folder.name, address, figure, defaults, PgdOptions())
    print(classifier(x), shape, share, x_adv, options, weak, config, run.report["clean"], len(run.records))
"""
WRONG = """
    rdc.laod("fashion-mnist")  # attr-defined
    rdc.load("fashion-mnist", devise="cpu")  # call-arg
    rdc.load("fashion-mnist", level="edm")  # call-arg
    rdc.load("fashion-mnist", noise_seed="0")  # arg-type
    rdc.load_dataset("fashion-mnist", splitt="test")  # call-arg
    apgd(model, x, y, threat, seed=0, image_ids=ids, step=5)  # call-arg
    apgd(model, x, y, threat, image_id=ids)  # call-arg
    rdc.attack(model, x, y, epsilon="8/255")  # call-overload
    rdc.attack(model, x, y, step=5)  # call-overload
    rdc.attack(model, x, y, seed="0")  # call-overload
    rdc.evaluate(model, x, y, attack="pgd")  # call-overload
    rdc.evaluate(model, x, y, "out")  # call-overload
    rdc.attack(model, x, y).adversarials  # attr-defined
    rdc.list_models(3)  # arg-type
    rdc.from_pretrained("user/model", level="edm")  # call-arg
    rdc.save_pretrained(model, "out", infos={})  # call-arg
    rdc.plots.plot_adversarial(x, x, m=3)  # call-arg
    rdc.attack_s  # attr-defined
    apgd(model, x, y, threat, seed=0, image_ids=ids, steps="5")  # arg-type
    pgd.configured(threat, seed=0, image_ids=ids, stepsize=0.1)  # call-arg
    PgdOptions(seed=0, image_ids=ids, stepsize=0.1)  # call-arg
    ThreatModel("linf", "8/255")  # arg-type
    rdc.LikelihoodMaximization(step=2)  # call-arg
    rdc.DiffusionClassifier(denoiser, "edm", prior=None)  # call-arg
    AnytimeClassifier(model)  # arg-type
    EvaluationSettings("fashion-mnist", "mine", epsilon="8/255")  # call-arg
    TrainConfig(images=100, batchsize=10)  # call-arg
    evaluate(model, data, "settings", "out")  # arg-type
"""


@pytest.mark.slow
def test_a_type_checker_tells_right_options_from_misspelt_ones(tmp_path):
    pytest.importorskip("mypy")
    path = tmp_path / "snippet.py"
    path.write_text(HEAD + RIGHT + WRONG, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary",
         "--cache-dir", str(tmp_path / "cache"), str(path)],
        cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    said = re.findall(r"snippet\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    lines = path.read_text(encoding="utf-8").splitlines()
    expected = {(str(at), line.rpartition("# ")[2]) for at, line in enumerate(lines, 1) if "  # " in line}
    assert set(said) == expected, done.stdout + done.stderr


def test_what_load_takes_is_what_a_classifier_takes():
    takes = typing.get_type_hints(DiffusionClassifier.__init__)
    assert set(Settings.__annotations__) == set(takes) - {"denoiser", "return"}
    hints = typing.get_type_hints(Settings)
    assert (
        hints["lm_denoiser"] == takes["lm_denoiser"] | DiffusionClassifier | str | os.PathLike[str]
    )  # load knows names
    del hints["lm_denoiser"]
    assert {name: hints[name] for name in hints} == {name: takes[name] for name in hints}
