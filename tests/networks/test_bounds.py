"""Bounds of descriptions: everything that rdc makes is inside, what is beyond is named before anything is made."""

from __future__ import annotations

import copy

import pytest
import torch

from rdc.errors import ConfigError
from rdc.networks import bounds
from rdc.networks.presets import NETWORK_PRESETS, build_network, network_preset
from tests.bounds import bounded
from tests.networks.cases import DIFFUSERS_CASES, EDM_CASES

VP = {"kind": "conditional", "image_shape": [3, 8, 8], "num_classes": 4}
#: the largest networks in use
LARGE = {
    "ADM, 512 x 512": {
        "kind": "conditional",
        "image_shape": [3, 512, 512],
        "num_classes": 1000,
        "unet": {
            "architecture": "DhariwalUNet",
            "model_channels": 256,
            "channel_mult": [1, 1, 2, 2, 4, 4],
            "num_blocks": 2,
        },
    },
    "all of ImageNet-21k's classes": {**network_preset("medium-32", 21_841), "kind": "multihead"},
}


def described() -> dict[str, dict]:
    diffusers = {
        name: {**VP, "unet": {"architecture": "UNet2DModel", **unet}} for name, unet in DIFFUSERS_CASES.items()
    }
    return {
        **{name: network_preset(name, 10) for name in NETWORK_PRESETS},
        **EDM_CASES,
        **LARGE,
        **{f"diffusers {name}": config for name, config in diffusers.items()},
    }


@pytest.mark.parametrize("name", list(described()))
def test_networks_are_within_and_no_smaller_than_said(name):
    config = described()[name]
    bounds.check_description(config)
    with torch.device("meta"):
        state = build_network(copy.deepcopy(config)).state_dict()
    tensors, weights = bounds.least_size(config)
    assert tensors <= len(state) and weights <= sum(value.numel() for value in state.values())
    assert tensors > len(state) / 8 and weights > sum(value.numel() for value in state.values()) / 20


@pytest.mark.parametrize("name", [name for name in bounds.WHOLE if name.startswith("unet.")])
@pytest.mark.parametrize("place", [0, 1])
def test_whole_numbers(name, place):
    least_or_most = bounds.WHOLE[name][place]
    config = {"image_shape": [1, 8, 8], "unet": {name.removeprefix("unet."): least_or_most}}
    bounds.check_description(config)
    for wrong in (bounds.WHOLE[name][0] - 1, bounds.WHOLE[name][1] + 1, 10**400, 1.5, True, "3", [1]):
        config["unet"][name.removeprefix("unet.")] = wrong
        with pytest.raises(ConfigError, match=f"{name}: expected a whole number from") as caught:
            bounds.check_description(config)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [name for name in bounds.LISTS if name.startswith("unet.")])
def test_lists(name):
    least, most, length = bounds.LISTS[name]
    short = name.removeprefix("unet.")
    bounds.check_description({"unet": {short: [max(least, 1)] * length}})
    for wrong in ([least - 1], [most + 1], [1] * (length + 1), [1] * 20_000, 5, "12", [1.0], [None]):
        with pytest.raises(ConfigError, match=f"{name}: expected a list of at most {length} whole numbers"):
            bounds.check_description({"unet": {short: wrong}})


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"dropout": float("nan")}, "unet.dropout: expected a number from 0 to 1; got nan"),
        ({"norm_eps": 0}, "unet.norm_eps"),
        ({"adaptive_scale": "yes"}, "unet.adaptive_scale: expected true or false"),
        ({"down_block_types": ["DownBlock2D"] * 20_000}, "unet.down_block_types: expected a list of at most 16 names"),
        ({"up_block_types": [{}]}, "unet.up_block_types"),
        ({"resample_filter": [1, -1]}, "unet.resample_filter: expected a list of 1 to 16 numbers whose sum is not zero"),
        ({"resample_filter": [1] * 17}, "unet.resample_filter"),
        ({"architecture": "SongUNet", "model_channels": 60_000, "channel_mult": [2]}, "channels of a level: expected 65,536"),
        ({"architecture": "SongUNet", "num_blocks": 64, "channel_mult": [1, 1]}, "residual blocks: expected 256 at most"),
        ({"architecture": "SongUNet", "model_channels": 30_000, "channel_mult": [2]}, "weights: expected 8,589,934,592"),
        ({"block_out_channels": [8] * 16, "layers_per_block": 64}, "residual blocks: expected 256 at most"),
    ],
)  # fmt: skip
def test_other_arguments(unet, message):
    with bounded(), pytest.raises(ConfigError, match=message):
        bounds.check_description({"unet": unet})


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"model_channels": 2}, "even number of at least 4 channels"),
        ({"model_channels": 5}, "even number"),
        ({"model_channels": 3, "embedding_type": "fourier"}, "even number"),
        ({"channel_mult": []}, "one at least; got none"),
    ],
)
def test_networks_that_would_answer_nan(unet, message):
    """Two channels have no frequencies between the first and the last."""
    config = EDM_CASES["ddpmpp"]
    with pytest.raises(ConfigError, match=message):
        build_network({**config, "unet": {**config["unet"], **unet}})


def test_a_head_of_many_classes_is_made_at_once():
    """Row by row it took as many steps as classes; the weights are the same."""
    config = EDM_CASES["multihead"]
    with bounded(), torch.device("meta"):
        build_network({**config, "num_classes": 100_000})
    net = build_network(config)
    rows, folded = net.head_weight.shape[0], net.folded_channels
    expected = torch.zeros_like(net.head_weight)
    for row in range(rows):
        expected[row, 16 + row % folded, 1, 1] = 1.0
    assert torch.equal(net.head_weight, expected)
