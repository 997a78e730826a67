"""A recorded step makes the same run: its plumbing anywhere, the recording itself on a GPU."""

import dataclasses

import pytest
import torch

from rdc.cli import main
from rdc.data import Dataset, save_npz
from rdc.errors import ConfigError
from rdc.method.denoiser import make_denoiser
from rdc.networks.presets import build_network
from rdc.training.cuda_graph import GraphedStep
from rdc.training.distillation import DistillationObjective, Secant
from rdc.training.objective import NoiseDistribution
from rdc.training.time_box import images_per_second
from rdc.training.trainer import TrainConfig, Trainer
from tests.tiny_models import CONFIG, SHAPE, randomize
from tests.tolerances import FLOAT32_ROUNDING

SETTINGS = TrainConfig(images=96, batch_size=12, learning_rate=2e-3, warmup_images=24, ema_images=24, flip=True)


def gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


def trainer(out, device="cpu", dropout=0.0, **changes):
    config = {**CONFIG, "kind": "multihead", "wide_channels": 12}
    config["unet"] = {**config["unet"], "dropout": dropout, "middle_attention": False, "attn_resolutions": []}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = randomize(build_network(config), scale=0.1).to(device)
    objective = DistillationObjective(
        make_denoiser(net, config),
        NoiseDistribution(-1.0, 0.7),
        classes_per_image=0,
        posterior_weight=1.0,
        posterior_scale=0.1,
        secant=Secant(8 / 255),
    )
    make = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, *SHAPE), generator=make, dtype=torch.uint8)
    data = Dataset(pixels, torch.arange(40) % 3, ("a", "b", "c"), "noise", "train")
    return Trainer(net, objective, data, dataclasses.replace(SETTINGS, **changes), out, {}, progress=False)


class Called(GraphedStep):
    """No recording: every call is one of the function, after which gradients lie where a replay would leave them."""

    calls = 0

    def __call__(self, x0, labels):
        self.calls += 1
        self._forget()
        return self.function(x0, labels, self.generator)


def test_the_trainer_gives_a_graph_what_a_step_takes(tmp_path):
    plain, graphed = trainer(tmp_path / "a", dropout=0.2), trainer(tmp_path / "b", dropout=0.2)
    graphed.graphed = Called(graphed._gradients, graphed.net.parameters(), torch.Generator())
    expected = plain.run()
    found = graphed.run()
    assert graphed.graphed.calls == 8
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_graph_needs_a_gpu(tmp_path, capsys):
    with pytest.raises(ConfigError, match="cuda_graph: expected a GPU and one process; got a network on cpu"):
        trainer(tmp_path, cuda_graph=True)
    pixels = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
    save_npz(Dataset(pixels, torch.arange(64) % 2, ("a", "b"), "zeros", "train"), tmp_path / "train.npz")
    words = ["--data", str(tmp_path), "--images", "64", "--device", "cpu", "--quiet", "--holdout", "2"]
    assert main(["train", *words, "--cuda-graph", "--out", str(tmp_path / "run")]) == 2
    assert "Leave --cuda-graph out" in capsys.readouterr().err


@gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_recorded_run_is_the_run(precision, tmp_path):
    """Same images, noise and dropout in every step: after eight steps the weights differ by rounding alone."""
    plain = trainer(tmp_path / "a", "cuda", 0.2, precision=precision).run()
    graphed = trainer(tmp_path / "b", "cuda", 0.2, precision=precision, cuda_graph=True)
    assert images_per_second(graphed, 0.0, warm=2, least=2) > 0  # recorded, measured, taken back
    found = graphed.run()
    assert graphed.graphed is not None and graphed.graphed.graph is not None
    begun = trainer(tmp_path / "c", "cuda", 0.2).ema
    for name, value in plain.items():
        moved = (
            (value - begun[name]).abs().mean().item()
        )  # Adam makes whole steps of what rounding leaves of small gradients
        most = 0.01 if precision == "float32" else 0.1
        assert (found[name] - value).abs().mean().item() <= most * moved + FLOAT32_ROUNDING, name


@gpu
def test_what_cannot_be_recorded_is_said(tmp_path):
    made = trainer(tmp_path, "cuda", cuda_graph=True)
    objective = made.objective

    def waits(*given):
        loss, values = objective(*given)
        return loss * float(loss.detach() > 0), values

    made.objective = waits
    with pytest.raises(ConfigError, match="--cuda-graph: this step cannot be recorded"):
        made.run()
