"""Small models of diffusers' classes, trained by a study: saved, read, classified with, continued to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import rdc
from rdc.cli import main as rdc_main
from rdc.training.trainer import Trainer

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

train_diffusers = pytest.importorskip("benchmarks.studies.train_diffusers")

TINY = "--images 24 --vae-images 16 --batch 8 --width 32 --depth 1 --unet-widths 8 --vae-widths 8 8 8 8 --latents 2 --text-width 8"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    labels = np.arange(40) % 4
    bright = 40 * labels[:, None, None].astype(np.uint8)
    np.savez(path, images=rng.integers(0, 64, (40, 28, 28), dtype=np.uint8) + bright, labels=labels)
    return path


def trained(kind, out, images):
    train_diffusers.main([*f"--kind {kind} --out {out} --data {images} --checkpoint-seconds 0".split(), *TINY.split()])
    return out / "pipeline"


def weights(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def name_of(kind, folder):
    more = {"dit": "", "latent": ",image=1x28x28", "prompts": f",image=1x28x28,prompts={folder.parent / 'prompts.csv'}"}
    return f"diffusers:{folder}{more[kind]}"


@pytest.mark.parametrize(
    "kind", ["dit", pytest.param("latent", marks=pytest.mark.slow), pytest.param("prompts", marks=pytest.mark.slow)]
)
def test_three_steps_are_saved_read_and_evaluated_and_continue_to_the_bit(kind, images, tmp_path, monkeypatch, capsys):
    folder = trained(kind, tmp_path / "whole", images)
    step, done = Trainer.train_step, []

    def killed(self):
        if "denoiser" in str(self.folder.path) and len(done) == 2:
            raise ZeroDivisionError
        done.append("denoiser" in str(self.folder.path))
        if not done[-1]:
            done.pop()
        return step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", killed)
        with pytest.raises(ZeroDivisionError):
            trained(kind, tmp_path / "parts", images)
    assert weights(tmp_path / "parts" / "pipeline") != weights(folder)
    assert weights(trained(kind, tmp_path / "parts", images)) == weights(folder)
    name = name_of(kind, folder)
    run = f"evaluate --data {images} --split train --n 8 --levels log:1:0.5:1:flat --attacks none --quiet --out {tmp_path / 'run'}"
    assert rdc_main([*run.split(), "--model", name]) == 0
    assert (tmp_path / "run" / "report.json").exists()
    classifier = rdc.load(name, levels="log:1:0.5:1:flat")
    assert len(classifier.class_names) == 4
    pixels = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.class_losses(pixels)[0, 0], pixels)
    assert gradient.abs().sum() > 0


def test_classes_that_are_confused_are_drawn_more_often():
    objective = train_diffusers.Confusable(
        4, train_diffusers.NoiseDistribution(), posterior_weight=1.0, wrong_classes=1
    )
    net = torch.nn.Module()
    net.register_buffer("confusion", torch.full((4, 4), 0.01))
    labels = torch.zeros(64, dtype=torch.int64)
    for _ in range(20):
        wrong = objective.wrong_for(net, labels, torch.Generator().manual_seed(0))
        assert wrong.shape == (64, 1) and (wrong != 0).all()
        objective.learn(net, labels, wrong, torch.stack([torch.zeros(64), torch.where(wrong[:, 0] == 2, 3.0, -9.0)], 1))
    counts = objective.wrong_for(net, labels, torch.Generator().manual_seed(1)).flatten().bincount(minlength=4)
    assert counts[2] > 48 and net.confusion[0, 2] > 0.5 > net.confusion[0, 1]


def test_the_table_is_written_between_its_marks_and_unfinished_runs_are_counted(tmp_path):
    evaluate_diffusers = pytest.importorskip("benchmarks.studies.evaluate_diffusers")
    (tmp_path / "clean").mkdir()
    lines = [{"rdc": 1}, *({"image": i, "clean": {"right": float(i != 0)}} for i in range(4))]
    (tmp_path / "clean" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = evaluate_diffusers.so_far(tmp_path)
    assert (found["n"], found["clean"]["accuracy"]) == (4, 0.75)
    stage = {"images": 1000, "seconds": 120, "weights": [5, 6]}
    rows = {"dit": {"levels": "log:1:1:2:flat", "trained": [stage, stage], "clean": found}}
    page = f"before\n{evaluate_diffusers.BEGIN}\nold\n{evaluate_diffusers.END}\nafter\n"
    again = evaluate_diffusers.written(page, rows)
    assert again == evaluate_diffusers.written(again, rows) and "old" not in again
    assert again.startswith("before\n") and again.endswith("\nafter\n")
    assert (
        "| `dit` | 5 + 6 | 1,000 + 1,000 | 2 + 2 | `log:1:1:2:flat` | 75.0 % [30.1, 95.4] | 4 | not measured | - |"
        in again
    )
