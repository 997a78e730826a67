"""HybViT: its loss written out, training that resumes, and the command."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import rdc
from rdc.cli import main
from rdc.data import Dataset, save_npz
from rdc.errors import ConfigError
from rdc.method.denoiser import make_denoiser
from rdc.models.checkpoints import load_model
from rdc.training.batches import BatchGenerator
from rdc.training.config import TrainConfig
from rdc.training.hybrid import HybridObjective, HybridTerms
from rdc.training.trainer import Trainer
from tests.tolerances import FLOAT32_ROUNDING, FLOAT32_SUM
from tests.training.pictures import fresh_network, images

NET = {
    "kind": "vit", "image_shape": [1, 8, 8], "num_classes": 3, "patch_size": 2, "width": 16, "depth": 2, "heads": 2,
}  # fmt: skip


def network() -> nn.Module:
    return fresh_network(NET)


def test_the_schedule_is_ddpms() -> None:
    objective, product = HybridObjective(), 1.0
    for step in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * step / 999)
        if step in (0, 10, 500, 999):
            assert float(objective.signal[step]) == pytest.approx(math.sqrt(product), rel=FLOAT32_ROUNDING)
            assert float(objective.spread[step]) == pytest.approx(math.sqrt(1 - product), rel=FLOAT32_SUM)


def test_the_loss_is_cross_entropy_and_denoising() -> None:
    objective, net = HybridObjective(HybridTerms(0.3), label_smoothing=0.1), network()
    x0, labels = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1, torch.arange(6) % 3
    generator = BatchGenerator("cpu", 6)
    generator.manual_seed(11)
    loss, values = objective(net, x0, labels, generator)
    generator.manual_seed(11)
    step, noise = torch.randint(1000, (6,), generator=generator), torch.randn(6, 1, 8, 8, generator=generator)
    errors = []
    for row in range(6):
        signal, spread = objective.signal[step[row]], objective.spread[step[row]]
        x_t = signal * x0[row] + spread * noise[row]
        found = net((x_t[None] + 1) / 2, (step[row : row + 1] + 1) / 1000)
        errors.append(((found[0] - noise[row]) ** 2).mean())
    denoising = torch.stack(errors).mean()
    entropy = F.cross_entropy(net((x0 + 1) / 2), labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, entropy + 0.3 * denoising)
    assert float(values["denoising"]) == pytest.approx(float(denoising.detach()), rel=FLOAT32_SUM)
    loss.backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in net.parameters())
    with pytest.raises(ConfigError, match="denoising_weight: expected 0 or more; got -1"):
        HybridTerms(-1.0)


def test_it_learns_both_and_resumes(tmp_path: Path) -> None:
    config = TrainConfig(images=2400, batch_size=24, learning_rate=3e-3, warmup_images=200, ema_images=200, flip=False)
    runs = [Trainer(network(), HybridObjective(shift=1), images(), config, tmp_path / n, {}, False) for n in "ab"]
    runs[0].run()
    runs[1].resume()
    for _ in range(30):
        runs[1].train_step()
    runs[1].save()
    again = Trainer(network(), HybridObjective(shift=1), images(), config, tmp_path / "b", {}, False)
    again.run()
    left, right = (load_file(tmp_path / name / "state.safetensors") for name in "ab")
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["clean"] > 0.5 > rows[0]["clean"] and rows[-1]["denoising"] < 0.7 < rows[0]["denoising"]


def test_the_command_makes_a_classifier(tmp_path: Path, capsys) -> None:
    pixels = torch.randint(256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = tmp_path / "halves.npz"
    save_npz(Dataset(pixels, torch.arange(20) % 2, ("above", "below"), "halves", "train"), data)
    fast = ["--images", "48", "--batch-size", "8", "--warmup-images", "16", "--quiet", "--device", "cpu"]
    command = ["train", "--method", "hybvit", "--data", str(data), "--out", str(tmp_path / "run"), *fast]
    assert main([*command, "--denoising-weight", "0.5", "--shift", "1"]) == 0
    net, config, info = load_model(tmp_path / "run")
    assert config["kind"] == "vit" and info["hybrid"] == {"denoising_weight": 0.5} and info["method"] == "hybvit"
    classifier = rdc.load(tmp_path / "run")
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(classifier(x), net(x))
    with pytest.raises(ConfigError, match=r"a discriminative classifier \(kind vit\)"):
        make_denoiser(net, config)
    capsys.readouterr()
    assert main([*command[:-1], "cpu", "--network", "resnet-small-28", "--out", str(tmp_path / "other")]) == 2
    assert re.search("--method hybvit trains a transformer such as vit-small-28", capsys.readouterr().err)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "m.onnx")]) == 2
    assert "expected a diffusion classifier" in capsys.readouterr().err
