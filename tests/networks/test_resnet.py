"""The ResNet of the baselines: its formula, its gradients, its description."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.errors import CheckpointError, ConfigError
from rdc.method.denoiser import make_denoiser
from rdc.models.checkpoints import load_model, save_model
from rdc.networks.presets import NETWORK_PRESETS, build_network, network_preset
from rdc.networks.resnet import ResNet
from tests.tolerances import BFLOAT16_LOGITS, FLOAT64_OP

CONFIG = {
    "kind": "resnet",
    "image_shape": [2, 8, 8],
    "num_classes": 3,
    "patch_size": 2,
    "width": 8,
    "blocks": [1, 2],
}


def tiny(seed: int = 0, **change) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network({**CONFIG, **change})


def pixels(count: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 2, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_the_network_is_its_formula() -> None:
    """Written out once more: stem, three blocks (the second halves the side), pooling; float64."""
    net = tiny().double()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=torch.float64)
    state = net.state_dict()

    def normed(x: Tensor, name: str) -> Tensor:
        groups = x.shape[1] // 4  # eight at most; here two and four
        grouped = x.reshape(len(x), groups, -1)
        grouped = (grouped - grouped.mean(2, keepdim=True)) / (
            grouped.var(2, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        return grouped.reshape(x.shape) * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    x = pixels(dtype=torch.float64)
    blocks = x.reshape(5, 2, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(5, 8, 4, 4)
    h = F.conv2d(2 * blocks - 1, state["stem.weight"], state["stem.bias"], padding=1)
    for number, stride in enumerate((1, 2, 1)):
        name = f"blocks.{number}"
        active = normed(h, f"{name}.norm0").relu()
        inner = F.conv2d(active, state[f"{name}.conv0.weight"], stride=stride, padding=1)
        branch = F.conv2d(normed(inner, f"{name}.norm1").relu(), state[f"{name}.conv1.weight"], padding=1)
        h = branch + (F.conv2d(active, state[f"{name}.skip.weight"], stride=2) if stride == 2 else h)
    assert h.shape == (5, 16, 2, 2)
    expected = normed(h, "norm").relu().mean((2, 3)) @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(net(x), expected, rtol=FLOAT64_OP, atol=FLOAT64_OP)


def test_without_norms_and_with_leaky_relus() -> None:
    """What an energy-based model takes: one block and the end written out."""
    net, x = tiny(norm="none", activation="leaky-relu", blocks=[1]).double(), pixels(dtype=torch.float64)
    state = net.state_dict()
    assert sorted(state) == [
        "blocks.0.conv0.weight",
        "blocks.0.conv1.weight",
        "head.bias",
        "head.weight",
        "stem.bias",
        "stem.weight",
    ]

    def rectified(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    h = F.conv2d(F.pixel_unshuffle(2 * x - 1, 2), state["stem.weight"], state["stem.bias"], padding=1)
    inner = F.conv2d(rectified(h), state["blocks.0.conv0.weight"], padding=1)
    h = h + F.conv2d(rectified(inner), state["blocks.0.conv1.weight"], padding=1)
    torch.testing.assert_close(net(x), rectified(h).mean((2, 3)) @ state["head.weight"].T + state["head.bias"])


def test_gradients_reach_every_weight_and_every_pixel() -> None:
    net, x = tiny(), pixels().requires_grad_(True)
    F.cross_entropy(net(x), torch.tensor([0, 1, 2, 0, 1])).backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in net.parameters())
    assert float((x.grad != 0).float().mean()) > 0.99


def test_an_image_does_not_depend_on_its_batch_nor_on_training() -> None:
    net, x = tiny().double(), pixels(dtype=torch.float64)
    together = net.train()(x)
    alone = torch.cat([net.eval()(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=FLOAT64_OP, atol=FLOAT64_OP)
    assert not list(net.buffers())


def test_autocast_keeps_pixels_and_logits_in_float32() -> None:
    net = tiny()
    x = (1 + (64 + 63 * pixels()).round() / 128) / 2  # 2 x - 1 is a bfloat16 number between 1/2 and 1
    with torch.autocast("cpu", torch.bfloat16):
        half, moved = net(x), net(x + 2.0**-11)  # a quarter of bfloat16's distance between neighbours
    assert half.dtype == torch.float32 and not torch.equal(half, moved)
    assert not torch.equal(half, net(x)) and torch.allclose(half, net(x), atol=BFLOAT16_LOGITS)


@pytest.mark.parametrize("name", ["resnet-small-28", "resnet-small-32"])
def test_presets_are_small_and_fit_their_images(name: str) -> None:
    config = network_preset(name, 10)
    net = build_network(config)
    assert isinstance(net, ResNet) and config == {**NETWORK_PRESETS[name], "num_classes": 10}
    assert net(torch.rand(2, *config["image_shape"])).shape == (2, 10)
    assert sum(p.numel() for p in net.parameters()) <= 1_300_000
    if name.endswith("28"):
        assert sum(p.numel() for p in net.parameters()) <= 1_000_000


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"width": None}, 'kind "resnet": expected whole numbers >= 1.*got width None'),
        ({"width": 0}, "got width 0"),
        ({"blocks": []}, r"blocks a list of numbers >= 1; got width 8, blocks \[\]"),
        ({"blocks": [1, 0]}, r"got blocks \[1, 0\]"),
        ({"blocks": 3}, "got blocks 3"),
        ({"image_shape": [8, 8]}, r"image_shape \[C, H, W\] and blocks; got image_shape \[8, 8\]"),
        ({"image_shape": [2, 8, 0]}, r"lists of them for image_shape \[C, H, W\]"),
        ({"num_classes": 1}, "num_classes: expected at least 2 for a resnet; got 1"),
        ({"num_classes": True}, "got num_classes True"),
        ({"unet": {}}, "missing none, unknown unet"),
        ({"norm": "batch"}, "norm: expected one of group, none for a resnet; got 'batch'"),
        ({"activation": 3}, "activation: expected one of relu, leaky-relu for a resnet; got 3"),
        ({"kind": "resent"}, "expected kind, image_shape"),
    ],
)
def test_descriptions_are_checked(change: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build_network({**CONFIG, **change})


def test_a_description_that_lacks_something_says_what() -> None:
    with pytest.raises(ConfigError, match="missing num_classes, blocks, unknown none"):
        build_network({"kind": "resnet", "image_shape": [1, 8, 8], "width": 8})
    with pytest.raises(ConfigError, match='"conditional", "multihead", "resnet" or "vit"; got \'other\''):
        unet = {"architecture": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
        build_network({"kind": "other", "image_shape": [1, 8, 8], "num_classes": 2, "unet": unet})


def test_checkpoints_hold_resnets(tmp_path: Path) -> None:
    net = tiny()
    save_model(tmp_path / "model", net, CONFIG, {"method": "trades"})
    loaded, config, info = load_model(tmp_path)
    assert (config, info) == (CONFIG, {"method": "trades"}) and not loaded.training
    assert torch.equal(loaded(pixels()), net(pixels()))
    described = json.loads((tmp_path / "model.json").read_text())
    del described["digest"]
    for change, expected in (({"width": 16}, "wrong shapes: stem.weight"), ({"blocks": "no"}, "got blocks 'no'")):
        (tmp_path / "model.json").write_text(json.dumps({**described, "config": {**CONFIG, **change}}))
        with pytest.raises(CheckpointError, match=expected):
            load_model(tmp_path)


def test_is_no_denoiser():
    config = network_preset("resnet-small-28", 10)
    with pytest.raises(ConfigError, match="diffusion model"):
        make_denoiser(build_network(config), config)
