"""The networks answer as the public references do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rdc.method.preconditioning import Preconditioning
from rdc.networks.diffusers_unet import DiffusersUNet
from rdc.networks.unet import DhariwalUNet, SongUNet
from tests.networks.cases import (
    CLASSES,
    DIFFUSERS_CASES,
    EDM_CASES,
    RECORDED,
    STEPS,
    edm_network,
    edm_output,
    inputs,
)
from tests.networks.formula import fill
from tests.tolerances import EDM_PARITY, FLOAT64_OP

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "edm"
FIXTURE_NAMES = ("adm_cond", "ddpmpp_cond", "ddpmpp_uncond", "ncsnpp_cond")


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", FIXTURE_NAMES)
def test_public_reference(name):
    path = FIXTURES / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not here; the recorded cases below cover the same networks")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    size, channels = config.pop("img_resolution"), config.pop("img_channels")
    precondition = Preconditioning(config.pop("sigma_data"))
    assert config.pop("precond") == "EDMPrecond"
    kinds = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
    net = kinds[config.pop("model_type")](size, channels, channels, **config).eval()
    net.load_state_dict({k.removeprefix("state.model."): v for k, v in tensors.items() if k.startswith("state.")})
    x, sigma = tensors["x"], tensors["sigma"].reshape(-1)
    scaled = precondition.c_in(sigma)[:, None, None, None] * x
    for output, labels in (("denoised", tensors.get("label_onehot")), ("denoised_null_label", None)):
        with torch.no_grad():
            f = net(scaled, precondition.c_noise(sigma), labels)
        assert relative(precondition.denoised(f, x, sigma[:, None, None, None]), tensors[output]) < EDM_PARITY
    if "label_onehot" in tensors:  # the label must matter, or the comparison proves nothing about it
        assert relative(tensors["denoised"], tensors["denoised_null_label"]) > 100 * EDM_PARITY


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EDM_CASES)
def test_recorded_edm(name, dtype):
    assert relative(edm_output(name, dtype).double(), load_file(RECORDED)[f"edm.{name}"].double()) < EDM_PARITY


def test_channels_last_gives_the_same():
    net, (x, c_noise, labels) = edm_network("ddpmpp"), inputs()
    with torch.no_grad():
        expected = net(x, c_noise, labels)
        net.to(memory_format=torch.channels_last)
        assert relative(net(x.contiguous(memory_format=torch.channels_last), c_noise, labels), expected) < FLOAT64_OP


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_zero_row_is_the_null_label(name):
    net, (x, c_noise, labels) = edm_network(name), inputs()
    with torch.no_grad():
        assert torch.equal(net(x, c_noise, None), net(x, c_noise, torch.zeros_like(labels)))
        assert relative(net(x, c_noise, labels)[:2], net(x, c_noise, None)[:2]) > 0.01


@pytest.mark.parametrize("name", DIFFUSERS_CASES)
def test_recorded_diffusers(name):
    options = dict(DIFFUSERS_CASES[name])
    with torch.random.fork_rng():
        net = DiffusersUNet(8, 3, options.pop("out_channels", 3), options.pop("num_class_embeds"), **options)
    fill(net).double().eval()
    with torch.no_grad():
        found = net(inputs()[0], STEPS, torch.eye(CLASSES, dtype=torch.float64)[[0, 2, 3]])
    assert relative(found, load_file(RECORDED)[f"diffusers.{name}"].double()) < EDM_PARITY
