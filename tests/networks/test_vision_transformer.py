"""The vision transformer of HybViT: its formula, its derivatives, its description."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.errors import ConfigError
from rdc.models.checkpoints import load_model, save_model
from rdc.networks.bounds import least_size
from rdc.networks.presets import build_network, network_preset
from tests.tolerances import BFLOAT16_TRANSFORMER, FLOAT32_ROUNDING, FLOAT32_SUM

CONFIG = {
    "kind": "vit", "image_shape": [2, 4, 6], "num_classes": 3, "patch_size": 2, "width": 8, "depth": 2, "heads": 2,
}  # fmt: skip


def tiny(**change) -> nn.Module:
    """Of float64, with weights of order one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build_network({**CONFIG, **change}).double()
        for p in net.parameters():
            p.data += 0.3 * torch.randn(p.shape, dtype=torch.float64)
    return net


def pixels(count: int = 3) -> Tensor:
    return torch.rand(count, 2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def by_loops(net: nn.Module, image: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """Logits [K] and noise [C, H, W] of one image, token by token."""
    s, width = net.state_dict(), 8

    def linear(x: Tensor, name: str) -> Tensor:
        return s[f"{name}.weight"] @ x + s[f"{name}.bias"]

    def normed(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        return x * s[f"{name}.weight"] + s[f"{name}.bias"]

    rates = [1000 * time * 10000.0 ** (-k / (width // 2)) for k in range(width // 2)]
    at = torch.tensor([math.cos(v) for v in rates] + [math.sin(v) for v in rates], dtype=torch.float64)
    hidden = linear(at, "time0")
    at = linear(hidden * hidden.sigmoid(), "time1")
    tokens = [s["class_token"][0, 0] + at]
    for row in range(2):
        for column in range(3):
            patch = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(
                -1
            )  # colour, then row, then column
            tokens.append(linear(2 * patch - 1, "stem") + s["places"][0, 3 * row + column] + at)
    for block in ("blocks.0", "blocks.1"):
        parts = [linear(normed(t, f"{block}.norm0"), f"{block}.qkv").chunk(3) for t in tokens]
        mixed = []
        for q, _, _ in parts:
            heads = []
            for head in (slice(0, 4), slice(4, 8)):
                scores = torch.stack([q[head] @ k[head] / 2 for _, k, _ in parts])
                share = scores.exp() / scores.exp().sum()
                heads.append(sum(w * v[head] for w, (_, _, v) in zip(share, parts, strict=True)))
            mixed.append(linear(torch.cat(heads), f"{block}.project"))
        tokens = [t + m for t, m in zip(tokens, mixed, strict=True)]
        for place, t in enumerate(tokens):
            h = linear(normed(t, f"{block}.norm1"), f"{block}.widen")
            h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
            tokens[place] = t + linear(h, f"{block}.narrow")
    tokens = [normed(t, "norm") for t in tokens]
    noise = torch.empty(2, 4, 6, dtype=torch.float64)
    for place, t in enumerate(tokens[1:]):
        row, column = divmod(place, 3)
        noise[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = linear(t, "noise_head").reshape(2, 2, 2)
    return linear(tokens[0], "class_head"), noise


def test_the_network_is_its_formula() -> None:
    net, x = tiny(), pixels()
    times = torch.tensor([0.001, 0.3, 1.0], dtype=torch.float64)
    logits, noise = net(x), net(x, times)
    assert logits.shape == (3, 3) and noise.shape == x.shape
    for row in range(3):
        torch.testing.assert_close(
            logits[row], by_loops(net, x[row], 0.0)[0], rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING
        )
        torch.testing.assert_close(
            noise[row], by_loops(net, x[row], float(times[row]))[1], rtol=FLOAT32_SUM, atol=FLOAT32_SUM
        )


def test_it_can_be_differentiated_twice() -> None:
    net, x = tiny(depth=1), pixels(1)
    assert torch.autograd.gradgradcheck(lambda x: net(x).logsumexp(1), x.requires_grad_(True))
    assert torch.autograd.gradcheck(lambda x: net(x, torch.tensor([0.5], dtype=torch.float64)), x)


def test_gradients_reach_every_weight() -> None:
    net, x = tiny(), pixels()
    loss = (
        F.cross_entropy(net(x), torch.tensor([0, 1, 2]))
        + net(x, torch.full((3,), 0.4, dtype=torch.float64)).square().sum()
    )
    loss.backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in net.parameters())


def test_autocast_keeps_pixels_and_logits_in_float32() -> None:
    net, x = tiny().float(), pixels().float()
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x)
    assert (
        half.dtype == torch.float32
        and not torch.equal(half, net(x))
        and torch.allclose(half, net(x), atol=BFLOAT16_TRANSFORMER)
    )


def test_the_preset_is_small_and_is_kept(tmp_path: Path) -> None:
    config = network_preset("vit-small-28", 10)
    net = build_network(config).eval()
    count = sum(p.numel() for p in net.parameters())
    assert count < 500_000
    tensors, weights = least_size(config)
    assert tensors <= len(net.state_dict()) and 0.5 * count < weights <= count
    save_model(tmp_path / "m", net, config)
    loaded, found, _ = load_model(tmp_path / "m")
    x = torch.rand(2, 1, 28, 28)
    assert found == config and torch.equal(loaded(x), net(x))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"width": 9}, "an even width divisible by heads; got depth 2, heads 2, width 9"),
        ({"width": 10, "heads": 4}, "divisible by heads"),
        (
            {"depth": 0},
            'kind "vit": expected whole numbers >= 1 for num_classes, width, depth, heads and patch_size.*depth 0',
        ),
        ({"depth": 65}, "depth: expected a whole number from 1 to 64; got 65"),
        ({"width": 65_536, "depth": 64}, "weights: expected 8,589,934,592 at most"),
        ({"patch_size": 65}, "patch_size: expected a whole number from 1 to 64; got 65"),
        ({"num_classes": 1}, "num_classes: expected at least 2 for a vit; got 1"),
        ({"heads": True}, "got heads True"),
        ({"blocks": [1]}, "unknown blocks"),
        ({"image_shape": [4, 6]}, r"lists of them for image_shape \[C, H, W\]; got image_shape"),
    ],
)
def test_descriptions_are_checked(change: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build_network({**CONFIG, **change})
