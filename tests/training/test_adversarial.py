"""Baselines: the inner attack, the losses against their formulas, training that resumes, and the command."""

from __future__ import annotations

import functools
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

from rdc.cli import main
from rdc.cli import train as train_command
from rdc.data import Dataset, save_npz
from rdc.errors import ConfigError
from rdc.models.checkpoints import load_model
from rdc.networks.presets import build_network
from rdc.norm_balls import check_budget, distance
from rdc.training.adversarial import (
    METHODS,
    ClassifierObjective,
    InnerAttack,
    gaussian_start,
    mart_loss,
    shifted,
    trades_loss,
    uniform_start,
)
from rdc.training.batches import Batches
from rdc.training.recipes import GENERATIVE
from rdc.training.trainer import TrainConfig, Trainer, TrainingStopped
from tests.tolerances import (
    BFLOAT16_TRAINING,
    FLOAT32_GRADIENT,
    FLOAT32_NETWORK,
    FLOAT32_ROUNDING,
    FLOAT32_SUM,
    FLOAT32_ULP,
    FLOAT64_ORDER,
    GAUSSIAN_START,
    INNER_ATTACK,
    THOUSANDS,
    WEIGHTS_ALIKE,
    WEIGHTS_COMPILED,
)
from tests.training.pictures import fresh_network, images

CONFIG = TrainConfig(images=240, batch_size=12, learning_rate=5e-3, warmup_images=60, ema_images=40, seed=3, flip=True)
NET = {"kind": "resnet", "image_shape": [1, 8, 8], "num_classes": 3, "patch_size": 2, "width": 8, "blocks": [1, 1]}


def network() -> nn.Module:
    return fresh_network(NET)


def objective(method: str, eps: float = 0.1, norm: str = "linf", **settings) -> ClassifierObjective:
    return ClassifierObjective(method, None if method == "standard" else InnerAttack(eps, norm, 3), **settings)


def trainer(out: Path, method: str, config: TrainConfig = CONFIG, **settings) -> Trainer:
    return Trainer(network(), objective(method, **settings), images(), config, out, {"m": method}, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A network that knows the images."""
    config = TrainConfig(images=1200, batch_size=24, learning_rate=1e-2, warmup_images=100, ema_images=100)
    run = trainer(tmp_path_factory.mktemp("trained"), "standard", config)
    run.run()
    return run.averaged_network()


def batch(rows: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return images().images[:rows].to(dtype) / 255, images().labels[:rows]


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(16, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the inner maximisation -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0)])
def test_the_inner_attack_keeps_its_budget_and_raises_the_loss(norm: str, eps: float, trained: nn.Module) -> None:
    x, labels = batch()
    net = build_network(NET)
    net.load_state_dict(trained.state_dict())
    attack = InnerAttack(eps, norm, 5)
    start = uniform_start(x, attack, torch.Generator().manual_seed(0))
    check_budget(start, x, eps, norm)

    def loss(out: Tensor) -> Tensor:
        assert not any(p.requires_grad for p in net.parameters())
        return F.cross_entropy(out, labels, reduction="sum")

    x_adv = attack(net, x, start, loss)
    check_budget(x_adv, x, eps, norm)
    assert float(distance(x_adv, x, norm).min()) > 0.9 * eps and not x_adv.requires_grad
    with torch.no_grad():
        clean, at_start, attacked = (F.cross_entropy(net(z), labels, reduction="none") for z in (x, start, x_adv))
    assert bool((attacked > clean).all()) and float(attacked.mean()) > 1.5 * float(at_start.mean())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_divergence_is_raised_from_a_start_beside_x(trained: nn.Module) -> None:
    x, _ = batch()
    attack = InnerAttack(0.1, "linf", 5)
    clean = trained(x)
    start = gaussian_start(x, attack, torch.Generator().manual_seed(0))
    check_budget(start, x, 0.1, "linf")
    assert 0 < float(distance(start, x, "linf").max()) < GAUSSIAN_START

    def divergence(out: Tensor) -> Tensor:
        return (clean.softmax(1) * (clean.log_softmax(1) - out.log_softmax(1))).sum()

    x_adv = attack(trained, x, start, divergence)
    check_budget(x_adv, x, 0.1, "linf")
    assert float(divergence(trained(x_adv))) > 100 * float(divergence(trained(start)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_inner_attack_finds_the_optimum_of_a_linear_network(norm: str) -> None:
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(2))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    net[1].weight.data = weight
    x = torch.full((3, 1, 8, 8), 0.5)
    labels = torch.tensor([0, 1, 0])
    attack = InnerAttack(0.1, norm, 10, 1.0)
    start = uniform_start(x, attack, torch.Generator().manual_seed(0))
    x_adv = attack(net, x, start, lambda out: F.cross_entropy(out, labels, reduction="sum"))
    away = (weight[1] - weight[0]) * torch.tensor([1.0, -1.0, 1.0])[:, None]
    best = 0.1 * (away.sign() if norm == "linf" else away / away.norm(dim=1, keepdim=True))
    torch.testing.assert_close(
        (x_adv - x).flatten(1), best, rtol=0, atol=FLOAT32_ROUNDING if norm == "linf" else INNER_ATTACK
    )


def test_step_sizes_scale_with_the_budget() -> None:
    assert InnerAttack(8 / 255).step_size == pytest.approx(2 / 255)
    assert InnerAttack(16 / 255).step_size == pytest.approx(4 / 255)
    assert InnerAttack(0.5, "l2", 20).step_size == pytest.approx(0.0625)
    assert InnerAttack(8 / 255, step_size=0.01).step_size == 0.01


def test_a_failing_attack_leaves_the_network_trainable() -> None:
    net, (x, _) = network(), batch()

    def broken(out: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        InnerAttack(0.1)(net, x, x, broken)
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm: str) -> None:
    x = torch.full((400, 1, 2, 2), 0.5)
    attack = InnerAttack(0.2, norm)
    far = distance(uniform_start(x, attack, torch.Generator().manual_seed(0)), x, norm) / 0.2
    assert float(far.max()) <= 1 and float((far**4).mean()) == pytest.approx(0.5, abs=THOUSANDS)  # far^4 is uniform


# --- losses -----------------------------------------------------------------------------------------------------------
def test_trades_loss_is_its_formula() -> None:
    clean, adversarial, labels = logits(0), logits(1), torch.arange(16) % 5
    p, q = clean.exp() / clean.exp().sum(1, keepdim=True), adversarial.exp() / adversarial.exp().sum(1, keepdim=True)
    total = 0.0
    for row in range(16):
        divergence = sum(float(p[row, k] * (p[row, k] / q[row, k]).log()) for k in range(5))
        total += -math.log(float(p[row, labels[row]])) + 6.0 * divergence
    assert float(trades_loss(clean, adversarial, labels, 6.0)) == pytest.approx(total / 16, rel=FLOAT64_ORDER)
    assert float(trades_loss(clean, adversarial, labels, 0.0)) == float(F.cross_entropy(clean, labels))
    smooth = trades_loss(clean, clean, labels, 6.0, label_smoothing=0.1)
    assert float(smooth) == pytest.approx(float(F.cross_entropy(clean, labels, label_smoothing=0.1)), rel=FLOAT64_ORDER)


def test_mart_loss_is_its_formula() -> None:
    clean, adversarial, labels = logits(0), logits(1), torch.arange(16) % 5
    p, q = clean.exp() / clean.exp().sum(1, keepdim=True), adversarial.exp() / adversarial.exp().sum(1, keepdim=True)
    total = 0.0
    for row, label in enumerate(labels.tolist()):
        rival = max(float(q[row, k]) for k in range(5) if k != label)
        boosted = -math.log(float(q[row, label])) - math.log(1 - rival)
        divergence = sum(float(p[row, k] * (p[row, k] / q[row, k]).log()) for k in range(5))
        total += boosted + 5.0 * divergence * (1 - float(p[row, label]))
    assert float(mart_loss(clean, adversarial, labels, 5.0)) == pytest.approx(total / 16, rel=FLOAT64_ORDER)


def test_losses_are_differentiated_through_both_networks_and_stay_finite() -> None:
    labels = torch.arange(16) % 5
    for loss in (trades_loss, mart_loss):
        clean, adversarial = (logits(seed).requires_grad_(True) for seed in (0, 1))
        assert torch.autograd.gradcheck(lambda a, b, loss=loss: loss(a, b, labels, 5.0), (clean, adversarial))
        loss(clean, adversarial, labels, 5.0).backward()
        assert bool((clean.grad != 0).any(1).all() and (adversarial.grad != 0).any(1).all())
        sure = (200 * F.one_hot((labels + 1) % 5, 5)).float().requires_grad_(True)  # sure and wrong
        value = loss(sure, -sure, labels, 5.0)
        value.backward()
        assert bool(value.isfinite()) and bool(sure.grad.isfinite().all())


# --- the objective ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_the_objective_minimises_its_loss_at_its_attack(method: str, trained: nn.Module) -> None:
    """The same numbers drawn again give x'; pixels come as [-1, 1] and the network sees [0, 1]."""
    net = build_network(NET)
    net.load_state_dict(trained.state_dict())
    x, labels = batch()
    aim = objective(method)
    loss, values = aim(net, 2 * x - 1, labels, torch.Generator().manual_seed(5))
    clean, generator = net(x), torch.Generator().manual_seed(5)
    assert float(values["clean"]) == float((clean.argmax(1) == labels).float().mean()) > 0.9
    if method == "standard":
        expected, names = F.cross_entropy(clean, labels), {"loss", "clean"}
    else:
        p = clean.detach().log_softmax(1)
        inner = {
            "trades": lambda out: (p.exp() * (p - out.log_softmax(1))).sum(),
            "pgd-at": lambda out: F.cross_entropy(out, labels, reduction="sum"),
        }
        start = (gaussian_start if method == "trades" else uniform_start)(x, aim.attack, generator)
        x_adv = aim.attack(net, x, start, inner.get(method, inner["pgd-at"]))
        adversarial, names = net(x_adv), {"loss", "clean", "robust"}
        expected = {
            "pgd-at": F.cross_entropy(adversarial, labels),
            "trades": trades_loss(clean, adversarial, labels, 6.0),
            "mart": mart_loss(clean, adversarial, labels, 5.0),
        }[method]
        assert float(values["robust"]) == float((adversarial.argmax(1) == labels).float().mean())
        assert float(values["robust"]) < float(values["clean"])
    assert (
        float(loss.detach()) == pytest.approx(float(expected.detach()), rel=FLOAT32_NETWORK) and values.keys() == names
    )
    loss.backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in net.parameters())


def test_trades_without_divergence_is_standard_training(tmp_path: Path) -> None:
    runs = [
        trainer(tmp_path / method, method, **beta) for method, beta in (("standard", {}), ("trades", {"beta": 0.0}))
    ]
    for _ in range(5):
        one, other = (run.train_step() for run in runs)
        assert one["loss"] == pytest.approx(other["loss"], rel=FLOAT32_ROUNDING) and one["clean"] == other["clean"]
    for name, p in runs[0].parameters.items():
        torch.testing.assert_close(p, runs[1].parameters[name], rtol=FLOAT32_SUM, atol=FLOAT32_ULP)
    more = trainer(tmp_path / "more", "trades", beta=1.0)
    for _ in range(5):
        more.train_step()
    assert not torch.allclose(more.parameters["stem.weight"], runs[0].parameters["stem.weight"], atol=WEIGHTS_ALIKE)


@pytest.mark.parametrize(("method", "norm"), [("pgd-at", "linf"), ("pgd-at", "l2"), ("trades", "linf")])
def test_random_numbers_belong_to_an_images_place_in_the_batch(method: str, norm: str, trained: nn.Module) -> None:
    values = []
    for world in (1, 3):
        shares = [Batches(images(), 12, 3, torch.device("cpu"), rank=rank, world=world) for rank in range(world)]
        aim = objective(method, eps=0.1 if norm == "linf" else 0.5, norm=norm, shift=1)
        drawn = [aim(trained, *share(2), share.generator(2))[1] for share in shares]
        values.append({name: sum(float(log[name]) for log in drawn) / world for name in drawn[0]})
    assert values[0] == pytest.approx(values[1], rel=FLOAT32_GRADIENT)


def test_shifts_move_whole_images() -> None:
    x = torch.rand(200, 2, 3, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    moved = shifted(x, 1, torch.Generator().manual_seed(1))
    seen = set()
    for before, after in zip(x, moved, strict=True):
        padded = F.pad(before, (1, 1, 1, 1))
        cuts = {(i, j): padded[:, i : i + 3, j : j + 4] for i in range(3) for j in range(3)}
        hits = [place for place, cut in cuts.items() if torch.equal(cut, after)]
        assert len(hits) == 1
        seen.update(hits)
    assert len(seen) == 9


@pytest.mark.parametrize("method", ["trades", "mart"])
def test_a_stopped_run_continues_exactly(method: str, tmp_path: Path) -> None:
    trainer(tmp_path / "whole", method, shift=1).run()
    stopped = trainer(tmp_path / "stopped", method, shift=1)
    aim, calls = stopped.objective, []

    def interrupted(*arguments):
        calls.append(0)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return aim(*arguments)

    stopped.objective = interrupted
    with pytest.raises(TrainingStopped, match="after step 7"):
        stopped.run()
    trainer(tmp_path / "stopped", method, shift=1).run()
    left, right = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "stopped"))
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_adversarial_training_makes_robust(trained: nn.Module, tmp_path: Path) -> None:
    config = TrainConfig(images=1800, batch_size=18, learning_rate=1e-2, warmup_images=100, ema_images=100)
    run = trainer(tmp_path, "pgd-at", config)
    run.run()
    x, labels = batch(54)
    attack, right = InnerAttack(0.1, "linf", 10), {}
    for name, net in (("standard", trained), ("pgd-at", run.averaged_network())):
        x_adv = attack(net, x, x.clone(), lambda out: F.cross_entropy(out, labels, reduction="sum"))
        right[name] = float((net(x_adv).argmax(1) == labels).float().mean())
    assert right["pgd-at"] > right["standard"] + 0.2


def test_a_compiled_network_trains_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    runs = [
        trainer(tmp_path / str(compile), "trades", TrainConfig(**{**vars(CONFIG), "compile": compile}))
        for compile in (False, True)
    ]
    for _ in range(2):
        one, other = (run.train_step() for run in runs)
        assert one["loss"] == pytest.approx(other["loss"], rel=FLOAT32_GRADIENT)
    for name, p in runs[0].parameters.items():
        torch.testing.assert_close(p, runs[1].parameters[name], rtol=0, atol=WEIGHTS_COMPILED)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_trains_every_weight(method: str, tmp_path: Path) -> None:
    """Autocast keeps cast weights; those cast without a graph must not be met again in the pass that trains."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = TrainConfig(**{**vars(CONFIG), "precision": precision})
        run = trainer(tmp_path / precision, method, config)
        losses[precision] = run.train_step()["loss"]
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in run.net.parameters())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=BFLOAT16_TRAINING)
    assert losses["bfloat16"] != losses["float32"]


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    trainer(tmp_path, "mart", shift=1).train_step()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: InnerAttack(0.0), "eps: expected a radius > 0"),
        (lambda: InnerAttack(8.0), "eps is in .0, 1. pixel units"),
        (lambda: InnerAttack(math.nan), "finite"),
        (lambda: InnerAttack(0.1, "l1"), "norm: expected linf or l2 to train against; got 'l1'"),
        (lambda: InnerAttack(0.1, steps=0), "inner steps: expected a whole number >= 1; got 0"),
        (lambda: InnerAttack(0.1, step_size=-1.0), "inner step size: expected a positive number"),
        (lambda: ClassifierObjective("free"), "method: expected one of standard, pgd-at, trades, mart; got 'free'"),
        (lambda: ClassifierObjective("standard", InnerAttack(0.1)), "an inner attack for all methods but"),
        (lambda: ClassifierObjective("trades"), "an inner attack for all methods but"),
        (lambda: objective("pgd-at", beta=1.0), "beta: method 'pgd-at' has none; only trades and mart do"),
        (lambda: objective("trades", beta=-1.0), "beta: expected 0 or more; got -1.0"),
        (lambda: objective("mart", label_smoothing=0.1), "MART's loss has no smoothed form"),
        (lambda: objective("standard", label_smoothing=1.0), "label_smoothing: expected a share"),
        (lambda: objective("standard", shift=-1), "shift: expected a whole number of pixels"),
    ],
)
def test_settings_are_checked(make, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make()


# --- the command ------------------------------------------------------------------------------------------------------
FAST = ["--images", "48", "--batch-size", "8", "--warmup-images", "16", "--quiet", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images, 28 x 28, of two classes: bright above or bright below."""
    labels = torch.arange(20) % 2
    pixels = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        pixels[row, :, 14 * label : 14 * label + 14] = 120 + 5 * row
    path = tmp_path_factory.mktemp("data") / "halves.npz"
    save_npz(Dataset(pixels, labels, ("above", "below"), "halves", "train"), path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_train_makes_a_classifier(method: str, data: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    attack = [] if method == "standard" else ["--inner-steps", "2"]
    if method == "trades":
        attack += ["--norm", "l2", "--eps", "1.5", "--beta", "3", "--inner-step-size", "1/2"]
    command = ["train", "--method", method, "--data", str(data), "--out", str(tmp_path), "--shift", "1", *attack]
    assert main([*command, *FAST, "--precision", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "model.safetensors, model.json, loss.png\n" in said
    assert (tmp_path / "loss.png").exists() and not (tmp_path / "samples.png").exists()
    net, config, info = load_model(tmp_path)
    assert (config["kind"], config["num_classes"], config["image_shape"]) == ("resnet", 2, [1, 28, 28])
    assert info["class_names"] == ["above", "below"] and info["method"] == method and info["shift"] == 1
    expected = {"eps": 8 / 255, "norm": "linf", "steps": 2, "step_size": 2.5 * 8 / 255 / 2}
    if method == "trades":
        expected = {"eps": 1.5, "norm": "l2", "steps": 2, "step_size": 0.5}
    assert info.get("attack") == (None if method == "standard" else expected)
    assert info.get("beta") == {"trades": 3.0, "mart": 5.0}.get(method)
    assert net(torch.rand(3, 1, 28, 28)).shape == (3, 2)
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert {"loss", "clean"} <= row.keys() and ("robust" in row) == (method != "standard")
    assert json.loads((tmp_path / "config.json").read_text())["train"]["learning_rate"] == 5e-3


def test_methods_are_those_of_the_module() -> None:
    assert train_command.METHODS == ("diffusion", *METHODS, *GENERATIVE)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["--eps", "8/255"], "--eps: has no meaning for --method diffusion; it goes with pgd-at, trades, mart"),
        (["--method", "standard", "--eps", "8/255"], "--eps: has no meaning for --method standard"),
        (["--method", "standard", "--norm", "l2"], "--norm: has no meaning for --method standard"),
        (["--method", "pgd-at", "--beta", "6"], "--beta: has no meaning.*goes with trades, mart"),
        (["--method", "mart", "--label-smoothing", "0.1"], "--label-smoothing: has no meaning for --method mart"),
        (["--method", "mart", "--label-dropout", "0.1"], "--label-dropout: .*it goes with diffusion"),
        (["--method", "trades", "--posterior-weight", "0"], "--posterior-weight: has no meaning"),
        (["--method", "trades", "--noise-std", "1"], "--noise-std: has no meaning for --method trades"),
        (["--shift", "1"], "--shift: has no meaning for --method diffusion"),
        (
            ["--method", "trades", "--network", "small-28"],
            "--method trades trains a classifier such as resnet-small-28",
        ),
        (["--network", "resnet-small-28"], "--method diffusion trains a diffusion network such as small-28"),
        (["--method", "trades", "--network", "resnet-small-32"], "expected images of 3x32x32.*1 x 28 x 28"),
        (["--method", "trades", "--eps", "8"], "pixel units, got 8.0"),
        (["--method", "trades", "--eps", "a"], "--eps: expected a budget such as '8/255'"),
        (["--method", "trades", "--inner-step-size", "0"], "inner step size: expected a positive number"),
        (["--method", "trades", "--inner-steps", "0"], "--inner-steps: expected an integer >= 1"),
        (["--method", "free"], "invalid choice: 'free'"),
        (
            ["--method", "trades", "--init", "fashion-mnist"],
            "--init fashion-mnist: expected a model of the same network",
        ),
    ],
)
def test_mistakes_are_answered_in_one_line(command: list, expected: str, data: Path, tmp_path: Path, capsys) -> None:
    assert main(["train", *command, "--data", str(data), "--out", str(tmp_path / "run"), *FAST]) == 2
    error = capsys.readouterr().err
    assert re.search(expected, error) and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()
