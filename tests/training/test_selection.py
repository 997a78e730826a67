"""Selected weights: those that held-out images stand best by, the same after a stop, exported with their score."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("matplotlib")

import rdc
from rdc.attacks import ThreatModel, apgd
from rdc.attacks.stadv import FlowThreat, stadv
from rdc.data import Dataset, train_holdout
from rdc.errors import CheckpointError, ConfigError
from rdc.models.checkpoints import load_model
from rdc.storage.json_files import read_json
from rdc.training import Recipe, run
from rdc.training.adversarial import InnerAttack
from rdc.training.confidence import attacked_as
from rdc.training.config import TrainConfig
from rdc.training.distillation import DistillationTerms
from rdc.training.secant import Secant
from rdc.training.selection import SelectionTerms
from rdc.training.trainer import Trainer

TRAIN = TrainConfig(images=96, batch_size=8, warmup_images=8, ema_images=16, learning_rate=2e-2)
TERMS = SelectionTerms(24, "linf:0.05..0.15,flow:0.1", images=20, steps=3)


def data() -> Dataset:
    labels = torch.arange(200) % 2
    pixels = torch.randint(0, 120, (200, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[labels == 1, :, :4] += 60
    return Dataset(pixels, labels, ("a", "b"), "halves", "train")


def recipe(**changes: object) -> Recipe:
    attack = InnerAttack(threats="linf:0.1,flow:0.1", steps=2)
    made = Recipe("pgd-at", network="tiny", attack=attack, train=TRAIN, selection=TERMS)
    return dataclasses.replace(made, **changes)


def trained(out: Path, **changes: object):
    return run(recipe(**changes), data(), out, device="cpu", progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "robust"
    trained(out)
    return out


def test_the_best_weights_are_exported(finished: Path) -> None:
    rows = read_json(finished / "selection.json", kind=list)
    assert [row["images"] for row in rows] == [24, 48, 72, 96]
    best = max(rows, key=lambda row: (row["score"], row["step"]))
    assert load_model(finished)[2]["selected"] == best and read_json(finished / "config.json")["holdout"] == 20
    model, held = rdc.load(finished), train_holdout(data(), 20)[1]
    options = {"steps": 3, "seed": 0, "image_ids": held.indices}
    images = (model, held.pixels(), held.labels)
    for name, attack, threat in (("linf:0.15", apgd, ThreatModel("linf", 0.15)), ("flow:0.1", stadv, FlowThreat(0.1))):
        found = attack(*images, threat, **options)
        assert best["robust"][name] == float(found.correct.double().mean())
        assert best["clean"] == float(found.clean_correct.double().mean())
    assert best["score"] == pytest.approx(sum(best["robust"].values()) / 2)


def test_a_stopped_run_keeps_the_same(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after a trial and before the next checkpoint: the trial is made again, with the same end."""
    step, steps = Trainer.train_step, []

    def killed(self: Trainer) -> dict[str, float]:
        if len(steps) == 7:
            raise KeyboardInterrupt
        steps.append(1)
        if len(steps) == 6:
            self.save()  # a checkpoint after five steps; the trial after six is lost
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    monkeypatch.setattr(Trainer, "train_step", step)
    assert [row["step"] for row in read_json(tmp_path / "selection.json", kind=list)] == [3, 6]
    trained(tmp_path)
    for name in ("selection.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    mine, theirs = (load_file(folder / "selected.safetensors") for folder in (tmp_path, finished))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert load_model(tmp_path)[2]["selected"] == load_model(finished)[2]["selected"]
    trained(tmp_path)  # nothing is left to do, and the best stays the best
    assert (tmp_path / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


@pytest.mark.parametrize("killed", [False, True])
def test_weights_get_worse_and_the_earlier_ones_stay(killed: bool, tmp_path: Path, monkeypatch) -> None:
    """Also where the run was stopped between."""
    scores = {3: 0.5, 6: 0.7, 9: 0.6, 12: 0.2}
    averages, kept = {}, Trainer._select

    def noted(self: Trainer, line, last: bool) -> None:
        averages[self.step] = {name: value.clone() for name, value in self.ema.items()}
        row = {"clean": 1.0, "robust": {"linf:0.15": scores.get(self.step, 0.0)}, "score": scores.get(self.step, 0.0)}
        monkeypatch.setattr("rdc.training.selection.Selector._accuracies", lambda self, network: row)
        kept(self, line, last)
        if killed and self.step == 7 and not (tmp_path / "state.safetensors").exists():
            self.save()
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_select", noted)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
    trained(tmp_path)
    network, _, info = load_model(tmp_path)
    assert info["selected"]["score"] == 0.7 and info["selected"]["step"] == 6 and info["step"] == 12
    for name, value in network.named_parameters():
        assert torch.equal(value, averages[6][name])
    assert any(not torch.equal(averages[12][name], averages[6][name]) for name in averages[6])


def test_without_selection_nothing_changes(tmp_path: Path) -> None:
    trained(tmp_path, selection=None, holdout=20)
    assert not (tmp_path / "selection.json").exists() and "selected" not in load_model(tmp_path)[2]
    assert "selection" not in read_json(tmp_path / "config.json", kind=dict)


def test_a_student_is_asked_at_its_levels(tmp_path: Path) -> None:
    """Selection, calibration and the recorded levels are those of the recipe."""
    levels = "log:2:0.3:1:flat"
    terms = SelectionTerms(8, "l2:0.2", images=20, steps=1)
    train = TrainConfig(images=16, batch_size=4, warmup_images=4, learning_rate=3e-3)
    made = Recipe("diffusion", network="tiny", train=train, selection=terms, levels=levels)
    run(made, data(), tmp_path, device="cpu", progress=False)
    info = load_model(tmp_path)[2]
    assert info["classifier"]["levels"] == levels and len(read_json(tmp_path / "selection.json", kind=list)) == 2
    model, held = rdc.load(tmp_path), train_holdout(data(), 20)[1]
    assert len(model.levels) == 2
    network, config, _ = load_model(tmp_path)
    assert len(attacked_as(config, made)(network).levels) == 2
    found = apgd(model, held.pixels(), held.labels, ThreatModel("l2", 0.2), steps=1, seed=0, image_ids=held.indices)
    assert info["selected"]["robust"] == {"l2:0.2": float(found.correct.double().mean())}
    plain = dataclasses.replace(made, calibrate=False, selection=None)
    run(plain, data(), tmp_path / "plain", device="cpu", progress=False)
    assert load_model(tmp_path / "plain")[2]["classifier"] == {"levels": levels}


@pytest.mark.parametrize("method", ["standard", "jem", "hybvit", "distill"])
def test_every_method_has_it(method: str, tmp_path: Path) -> None:
    """What is exported stands as its own trial says, under the model as it is loaded."""
    terms = SelectionTerms(16, "linf:0.05", images=20, steps=1)
    made = Recipe("diffusion", network="tiny", train=dataclasses.replace(TRAIN, images=16))
    if method == "distill":
        run(made, data(), tmp_path / "teacher", device="cpu", progress=False)
        made = Recipe("distill", teacher=str(tmp_path / "teacher"), levels="log:2:0.3:1:flat", train=made.train)
        terms_of = DistillationTerms(
            2, posterior_weight=1.0, secant=Secant(threats="linf:0.1,flow:0.1"), label_smoothing=0.1
        )
        made = dataclasses.replace(made, distillation=terms_of)
    else:
        made = Recipe(method, network="tiny", train=made.train)
    run(dataclasses.replace(made, selection=terms), data(), tmp_path / "run", device="cpu", progress=False)
    model, held = rdc.load(tmp_path / "run"), train_holdout(data(), 20)[1]
    options = {"steps": 1, "seed": 0, "image_ids": held.indices}
    found = apgd(model, held.pixels(), held.labels, ThreatModel("linf", 0.05), **options)
    row = load_model(tmp_path / "run")[2]["selected"]
    assert row["images"] == 16 and row["robust"] == {"linf:0.05": float(found.correct.double().mean())}


@pytest.mark.parametrize("damage", ["score", "weights", "other"])
def test_damage_is_refused(damage: str, finished: Path, tmp_path: Path) -> None:
    for file in finished.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if damage == "score":
        (tmp_path / "selection.json").write_text("[]")
    if damage == "weights":
        (tmp_path / "selected.safetensors").write_bytes(b"\0" * 64)
    changes = {"selection": dataclasses.replace(TERMS, steps=4)} if damage == "other" else {}
    words = {"score": "expected the score of step", "weights": "selected", "other": "selection.steps: 3 there, 4 here"}
    with pytest.raises(CheckpointError, match=words[damage]):
        trained(tmp_path, **changes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SelectionTerms(), "every: expected 1 or more images of training between trials; got 0"),
        (lambda: SelectionTerms(8, steps=0), "steps: expected 1 or more"),
        (lambda: SelectionTerms(8, "linf"), "expected NORM:RADIUS"),
        (lambda: recipe(holdout=10), "holdout: expected at least the 20 images"),
        (lambda: Recipe("pgd-at", levels="log:4:0.1:1:flat"), "levels: has no meaning for method pgd-at"),
        (lambda: Recipe("diffusion", levels="log:4"), "log"),
    ],
)
def test_settings(make, words: str) -> None:
    with pytest.raises((ConfigError), match=words):
        make()
