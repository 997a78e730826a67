"""JEM: Langevin steps and energies against closed forms, the loss, a buffer that resumes, and going back after a divergence."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import rdc
from rdc.cli import main
from rdc.data import Dataset, save_npz
from rdc.errors import CheckpointError, ConfigError
from rdc.training import recovery
from rdc.training.batches import BatchGenerator
from rdc.training.config import TrainConfig
from rdc.training.energy import EnergyObjective, EnergyTerms, energy, langevin
from rdc.training.trainer import Trainer, TrainingStopped
from tests.tolerances import (
    BUFFER_SPREAD,
    CLASSIFIER_DIFFERENCE,
    FLOAT32_ROUNDING,
    FLOAT32_SUM,
    FLOAT32_ULP,
    FLOAT64_HIGHER,
    THOUSANDS,
)
from tests.training.pictures import fresh_network, images

NET = {
    "kind": "resnet", "image_shape": [1, 8, 8], "num_classes": 3, "width": 8, "blocks": [1, 1], "norm": "none",
    "activation": "leaky-relu",
}  # fmt: skip
CONFIG = TrainConfig(images=240, batch_size=12, learning_rate=5e-3, warmup_images=60, ema_images=40, seed=3, flip=True)
TERMS = EnergyTerms(steps=3, buffer=40, restart=0.2)


def network() -> nn.Module:
    return fresh_network(NET)


def trainer(out: Path, terms: EnergyTerms = TERMS, config: TrainConfig = CONFIG) -> Trainer:
    return Trainer(network(), EnergyObjective((1, 8, 8), terms, config.seed), images(), config, out, {}, progress=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Langevin steps and energies --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("scale", "step_size", "noise"), [(1.0, 0.1, 0.3), (2.0, 1.0, 0.5), (1.0, 1.5, 0.01)])
def test_langevin_on_a_parabola_has_its_closed_form_variance(scale: float, step_size: float, noise: float) -> None:
    """E = |x - m|^2 / (2 s^2): an AR(1) process of coefficient r = 1 - a / s^2, variance b^2 / (1 - r^2), mean m."""
    coefficient = 1 - step_size / scale**2
    start = torch.zeros(20_000, 1, 1, 1)
    found = langevin(
        lambda x: ((x - 0.7) ** 2).flatten(1).sum(1) / (2 * scale**2), start, 80, step_size, noise, generator()
    )
    expected = noise**2 / (1 - coefficient**2)
    assert float(found.var()) == pytest.approx(expected, rel=4 * math.sqrt(2 / len(start)))
    assert float(found.mean()) == pytest.approx(0.7, abs=4 * math.sqrt(expected / len(start)) + 0.7 * coefficient**80)
    assert not found.requires_grad


def test_langevin_steps_are_those_of_a_loop() -> None:
    start, seeds = torch.rand(4, 1, 2, 2, generator=generator(1)), generator(2)
    found = langevin(lambda x: (x**4).flatten(1).sum(1) / 4, start, 3, 0.1, 0.05, seeds)
    again, x = generator(2), start.clone()
    for _ in range(3):
        x = x - 0.1 * x**3 + 0.05 * torch.randn(x.shape, generator=again)
    torch.testing.assert_close(found, x)


def test_bounded_chains_stay_among_images() -> None:
    """E = -x has no minimum: a bounded chain ends at the wall, another does not."""
    start = torch.zeros(3, 1, 2, 2)
    found = [langevin(lambda x: -x.flatten(1).sum(1), start, 4, 0.4, 0.01, generator(), b) for b in (True, False)]
    assert float(found[0].max()) == 1.0 and float(found[1].min()) > 1.4


def test_the_energys_gradient_is_the_central_difference() -> None:
    net, x = network().double(), torch.rand(2, 1, 8, 8, generator=generator(), dtype=torch.float64).requires_grad_(True)

    def energies(x: Tensor) -> Tensor:
        return -(net(x).exp().sum(1).log())  # written once more; energy() itself answers in float32

    torch.testing.assert_close(energy(net(x)).double(), energies(x), rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING)
    (found,) = torch.autograd.grad(energies(x).sum(), x)
    (ours,) = torch.autograd.grad(energy(net(x)).sum(), x)
    torch.testing.assert_close(ours, found, rtol=FLOAT32_SUM, atol=FLOAT32_ULP)
    step = 1e-6
    for place in range(0, 64, 5):
        moved = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
        moved.view(-1)[place] = step
        slope = (energies(x.detach() + moved) - energies(x.detach() - moved)) / (2 * step)
        torch.testing.assert_close(found.flatten(1)[:, place], slope, rtol=CLASSIFIER_DIFFERENCE, atol=FLOAT64_HIGHER)


# --- the objective ----------------------------------------------------------------------------------------------------
def test_the_loss_is_cross_entropy_and_contrast() -> None:
    """Without SGLD's and the inputs' noise, and chains that all go on: everything can be written out."""
    terms = EnergyTerms(steps=2, step_size=0.5, noise=0.0, buffer=6, restart=0.0, input_noise=0.0, weight=0.7)
    objective, net = EnergyObjective((1, 8, 8), terms, seed=5), network()
    x0, labels = torch.rand(6, 1, 8, 8, generator=generator(3)) * 2 - 1, torch.arange(6) % 3
    x = objective.buffer.clone()
    loss, values = objective(net, x0, labels, BatchGenerator("cpu", 6))
    for _ in range(2):
        x = x.requires_grad_(True)
        (slope,) = torch.autograd.grad(net((x + 1) / 2).logsumexp(1).sum(), x)
        x = (x + 0.5 * slope).detach()
    torch.testing.assert_close(objective.buffer, x)  # all six chains were drawn, each once
    logits, own = net((x0 + 1) / 2), net((x + 1) / 2)
    gap = own.logsumexp(1).mean() - logits.logsumexp(1).mean()
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels) + 0.7 * gap)
    assert float(values["gap"]) == pytest.approx(float(gap.detach()), abs=FLOAT32_ROUNDING)
    loss.backward()
    assert all(bool(p.grad.abs().sum() > 0) for name, p in net.named_parameters())


def test_chains_start_anew_and_the_buffer_keeps_the_others() -> None:
    objective = EnergyObjective((1, 8, 8), EnergyTerms(steps=1, step_size=1e-9, noise=0.0, buffer=50, restart=1.0))
    before = objective.buffer.clone()
    objective(network(), torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.long), BatchGenerator("cpu", 8))
    changed = (objective.buffer != before).flatten(1).any(1)
    assert int(changed.sum()) == 8 and objective.buffer[changed].abs().max() <= 1
    assert float(objective.buffer.mean()) == pytest.approx(0, abs=THOUSANDS)
    assert float(objective.buffer.std()) == pytest.approx(1 / math.sqrt(3), abs=BUFFER_SPREAD)  # uniform in -1..1


def test_one_process_and_a_buffer_of_a_batch() -> None:
    objective, x0 = EnergyObjective((1, 8, 8), EnergyTerms(buffer=4)), torch.zeros(8, 1, 8, 8)
    with pytest.raises(ConfigError, match="method jem: expected one process"):
        objective(network(), x0, torch.zeros(8, dtype=torch.long), BatchGenerator("cpu", 8, 0, 2))
    with pytest.raises(ConfigError, match=r"buffer: expected at least the batch \(8 images\); got 4"):
        objective(network(), x0, torch.zeros(8, dtype=torch.long), BatchGenerator("cpu", 8))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 0}, "steps: expected a whole number from 1 to 1,000,000; got 0"),
        ({"buffer": 1.5}, "buffer: expected a whole number"),
        ({"step_size": 0.0}, "step_size: expected a positive number"),
        ({"largest_gap": math.inf}, "largest_gap: expected a positive number"),
        ({"noise": -1.0}, "noise: expected 0 or more"),
        ({"input_noise": math.nan}, "input_noise: expected 0 or more"),
        ({"restart": 1.5}, "restart: expected a share in 0..1; got 1.5"),
    ],
)
def test_settings_are_checked(settings: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        EnergyTerms(**settings)


# --- resuming, and going back -----------------------------------------------------------------------------------------
def states(*folders: Path) -> list[dict[str, Tensor]]:
    return [load_file(folder / "state.safetensors") for folder in folders]


def test_a_resumed_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A divergence on the way (step 5) and two kept states: weights, buffer, rate and returns are the same to the bit."""
    monkeypatch.setattr(recovery, "EVERY", 4)

    def run(out: Path, stop: int | None) -> None:
        one = trainer(out)
        step, diverged = one.train_step, one.objective.diverged
        one.objective.diverged = lambda values: one.step == 5 or diverged(values)

        def counted() -> dict[str, float]:
            values = step()
            if one.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return values

        one.train_step = counted
        one.run()

    run(tmp_path / "whole", None)
    for stop in (3, 6, 11):
        with pytest.raises(TrainingStopped):
            run(tmp_path / "stopped", stop)
    run(tmp_path / "stopped", None)
    left, right = states(tmp_path / "whole", tmp_path / "stopped")
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    assert left["recovery.numbers"].tolist() == [0.5, 1] and left["recovery.steps"].tolist() == [12, 16]
    assert left["objective.buffer"].shape == (40, 1, 8, 8)
    rows = [json.loads(line) for line in (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()]
    assert rows[0]["returns"] == 0 and rows[-1]["returns"] == 1


def test_a_divergence_goes_back_and_says_so(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "EVERY", 2)
    run = trainer(tmp_path)
    for _ in range(5):
        run.train_step()
    assert [step for step, _ in run.recovery.kept] == [2, 4]
    kept = {name: value.clone() for name, value in run.recovery.kept[0][1].items()}
    with torch.no_grad():
        run.net.head.weight.fill_(math.nan)
    values = run.train_step()
    assert math.isnan(values["gap"]) and values["returns"] == 1 and run.step == 6
    assert all(torch.equal(value, kept[name]) for name, value in run._weights().items())
    assert run.objective.buffer.abs().max() <= 1  # noise again
    assert {float(state["step"]) for state in run.optimizer.state.values()} == {6.0}
    error = capsys.readouterr().err
    assert re.search(r"step 5 ran away \(.*gap nan.*\); back to the weights of step 2, learning rate times 0.5", error)
    after = run.train_step()
    assert math.isfinite(after["loss"]) and after["lr"] == CONFIG.rate(6) / 2


def test_a_gap_beyond_the_largest_is_a_divergence_and_too_many_end_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, EnergyTerms(steps=1, buffer=40, largest_gap=1e-6))
    for number in range(10):
        assert run.train_step()["returns"] == number + 1
    with pytest.raises(ConfigError, match="step 10: training ran away for the 11th time"):
        run.train_step()
    assert run.recovery.factor == 2.0**-10


def test_a_state_of_another_buffer_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    with pytest.raises(ValueError, match=r"expected a replay buffer of \[40, 1, 8, 8\]"):
        run.objective.load_state({"buffer": torch.zeros(3, 1, 8, 8)})
    run.resume()
    run.train_step()
    run.save()
    state = run.folder.load()
    del state.tensors["objective.buffer"]
    with pytest.raises(CheckpointError, match="the state lacks what this method keeps"):
        run._restore(state)


def test_it_learns_to_classify_and_its_samples_get_the_datas_energy(tmp_path: Path) -> None:
    config = TrainConfig(images=4800, batch_size=24, learning_rate=5e-3, warmup_images=200, ema_images=200)
    run = trainer(tmp_path, EnergyTerms(steps=10, buffer=100), config)
    first = [run.train_step() for _ in range(20)]
    run.run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["clean"] > 0.9 > first[0]["clean"]
    assert abs(rows[-1]["gap"]) < 1


# --- the command ------------------------------------------------------------------------------------------------------
FAST = ["--images", "48", "--batch-size", "8", "--warmup-images", "16", "--quiet", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = torch.randint(256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = tmp_path_factory.mktemp("data") / "halves.npz"
    save_npz(Dataset(pixels, torch.arange(20) % 2, ("above", "below"), "halves", "train"), path)
    return path


def test_train_makes_a_classifier(data: Path, tmp_path: Path) -> None:
    options = [
        "--sgld-steps",
        "2",
        "--replay-buffer",
        "30",
        "--sgld-noise",
        "0.02",
        "--sgld-bounded",
        "--precision",
        "bfloat16",
    ]
    assert main(["train", "--method", "jem", "--data", str(data), "--out", str(tmp_path), *options, *FAST]) == 0
    info = json.loads((tmp_path / "model.json").read_text())["info"]
    assert info["method"] == "jem" and info["energy"]["steps"] == 2 and info["energy"]["noise"] == 0.02
    assert info["energy"]["bounded"] is True
    classifier = rdc.load(tmp_path)
    assert classifier.describe()["head"] == "resnet (jem)" or "resnet (jem)" in json.dumps(classifier.describe())
    assert classifier(torch.rand(3, 1, 28, 28)).shape == (3, 2)
    with pytest.raises(ConfigError, match=r"a discriminative network \(jem\) has no levels"):
        rdc.load(tmp_path, levels="edm")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            ["--method", "trades", "--sgld-steps", "3"],
            "--sgld-steps: has no meaning for --method trades; it goes with jem",
        ),
        (["--method", "jem", "--eps", "8/255"], "--eps: has no meaning for --method jem; it goes with pgd-at"),
        (["--method", "jem", "--shift", "1"], "--shift: has no meaning for --method jem"),
        (["--method", "jem", "--network", "small-28"], "--method jem trains a classifier such as resnet-small-28"),
        (["--method", "jem", "--restart", "2"], "restart: expected a share in 0..1; got 2"),
        (["--method", "jem", "--replay-buffer", "4"], r"buffer: expected at least the batch \(8 images\); got 4"),
    ],
)
def test_mistakes_are_answered_in_one_line(command: list, expected: str, data: Path, tmp_path: Path, capsys) -> None:
    assert main(["train", *command, "--data", str(data), "--out", str(tmp_path / "run"), *FAST]) == 2
    error = capsys.readouterr().err
    assert re.search(expected, error) and error.count("\n") == 1, error
