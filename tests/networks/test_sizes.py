"""Networks at any size: what a size's name gives, padded U-Nets, and descriptions in files of one's own."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from rdc.errors import ConfigError
from rdc.method.denoiser import make_denoiser
from rdc.method.draw import Draw
from rdc.networks import bounds
from rdc.networks.network_files import is_network_file, read_network_file
from rdc.networks.presets import build_network, network_preset
from rdc.networks.sizes import FAMILIES, SIZES, patch_side, scaled_network
from rdc.training.distillation import student_from_teacher
from tests.tiny_models import randomize
from tests.tolerances import FLOAT64_ORDER

SHAPES = [
    (1, 28, 28),
    (3, 32, 32),
    (3, 64, 64),
    (1, 20, 24),
    (3, 25, 31),
    (1, 7, 5),
    (3, 96, 128),
    (3, 1, 1),
    (3, 225, 300),
]
DIFFUSION = {"kind": "conditional", "num_classes": 3, "sigma_data": 0.5}
UNET = {
    "architecture": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1, 2, 2],
    "num_blocks": 1,
    "attn_resolutions": [],
}


def padded(shape: tuple[int, int, int] = (2, 5, 7), patch: int = 1, **unet: object) -> dict:
    return {**DIFFUSION, "image_shape": list(shape), "patch_size": patch, "unet": {**UNET, **unet}}


# --- sizes ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("preset", "size", "family", "shape"),
    [
        ("tiny-28", "tiny", "diffusion", (1, 28, 28)),
        ("small-28", "small", "diffusion", (1, 28, 28)),
        ("small-32", "small", "diffusion", (3, 32, 32)),
        ("medium-32", "medium", "diffusion", (3, 32, 32)),
        ("large-32", "large", "diffusion", (3, 32, 32)),
        ("resnet-small-28", "small", "resnet", (1, 28, 28)),
        ("resnet-small-32", "small", "resnet", (3, 32, 32)),
        ("resnet-energy-28", "small", "energy", (1, 28, 28)),
        ("vit-small-28", "small", "vit", (1, 28, 28)),
    ],
)
def test_a_size_is_the_preset_where_there_is_one(preset, size, family, shape):
    assert scaled_network(size, family, shape, 7) == network_preset(preset, 7)
    other = scaled_network(size, family, (shape[0], 2 * shape[1], 2 * shape[2]), 7)  # and twice as large it is like it
    assert other["kind"] == network_preset(preset, 7)["kind"] and other["image_shape"][1] == 2 * shape[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", ["tiny", "large"])
def test_every_size_can_be_built_for_every_shape(family, shape, size):
    config = scaled_network(size, family, shape, 5)
    bounds.check_description(config)
    assert config["image_shape"] == list(shape) and config["num_classes"] == 5
    with torch.device("meta"):
        network = build_network(copy.deepcopy(config))
        x, times = torch.zeros(2, *shape), torch.zeros(2)
        if family == "diffusion":
            assert network(x, times, torch.zeros(2, 5)).shape == x.shape
            student, _ = student_from_teacher(network, config, 12)
            assert student(x, times).shape == (2, 6, *shape)
    if family != "diffusion" and size == "tiny":  # they ask for autocast, which the meta device has not
        made, x = build_network(copy.deepcopy(config)), torch.zeros(2, *shape)
        assert made(x).shape == (2, 5)
        assert family != "vit" or made(x, torch.zeros(2)).shape == x.shape
    tensors, weights = bounds.least_size(config)
    state = network.state_dict()
    assert tensors <= len(state) and weights <= sum(value.numel() for value in state.values())


def test_sizes_grow():
    for family in FAMILIES:
        for shape in SHAPES[2:5]:
            with torch.device("meta"):
                counts = [
                    sum(p.numel() for p in build_network(scaled_network(size, family, shape, 5)).parameters())
                    for size in SIZES
                ]
            assert counts == sorted(counts) and counts[0] < counts[-1], (family, shape)


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [
        (28, 28, 2),
        (32, 32, 2),
        (56, 60, 4),
        (64, 64, 4),
        (64, 66, 2),
        (20, 24, 2),
        (14, 14, 1),
        (65, 64, 1),
        (48, 64, 2),
    ],
)
def test_patches_divide_both_sides(height, width, side):
    assert patch_side(height, width) == patch_side(width, height) == side


def test_sizes_and_families_have_names():
    for size, family in (("huge", "diffusion"), ("small", "unet")):
        with pytest.raises(ConfigError, match="network: expected a size"):
            scaled_network(size, family, (1, 8, 8), 2)


# --- padding ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ["SongUNet", "DhariwalUNet"])
def test_a_padded_unet_is_the_unet_on_the_padded_image(architecture):
    """The same weights on an image that was padded by hand, cut by hand."""
    unet = {"architecture": architecture, "model_channels": 64} if architecture == "DhariwalUNet" else {}
    torch.manual_seed(0)
    odd = randomize(build_network(padded(**unet))).eval()
    whole = build_network(padded((2, 8, 8), **unet)).eval()
    whole.load_state_dict(odd.state_dict())
    x = torch.randn(3, 2, 5, 7)
    level, labels = torch.tensor([-0.5, 0.0, 0.4]), torch.eye(3)
    large = torch.zeros(3, 2, 8, 8)
    large[:, :, :5, :7] = x
    answer = odd(x, level, labels)
    assert torch.equal(answer, whole(large, level, labels)[:, :, :5, :7])
    assert answer.std() > 0.01


def test_what_is_divisible_is_not_touched():
    """No operation more than before: the names of the levels, and the graph of a call."""
    network = build_network({**padded((2, 8, 8)), "patch_size": 2, "unet": {**UNET, "channel_mult": [1, 2]}})
    assert "unet.enc.4x4_conv.weight" in network.state_dict()
    x = torch.zeros(1, 2, 8, 8, requires_grad=True)
    seen, waiting = set(), [network(x, torch.zeros(1), torch.eye(3)[:1]).grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    assert not any("PadNd" in node.name() or _cuts(node) for node in seen)


def _cuts(node):
    """Whether it is a slice that leaves something out; PyTorch 2.6 records ``x[:, :, None]`` as slices of everything."""
    if "Slice" not in node.name():
        return False
    size = node._saved_self_sym_sizes[node._saved_dim]
    return node._saved_start != 0 or node._saved_end < size


def test_an_image_smaller_than_its_padding_is_refused():
    with pytest.raises(ConfigError, match="img_resolution: expected 4 or more for 3 levels, got 3"):
        build_network(padded((2, 3, 8)))
    with pytest.raises(ConfigError, match="for 16 levels"):  # a file could ask for 32,768 x 32,768 numbers
        build_network(padded((2, 8, 8), channel_mult=[1] * 16))
    with pytest.raises(ConfigError, match="expected sides divisible by patch_size 2; got 8 x 7"):
        build_network(padded((2, 8, 7), patch=2))


@pytest.mark.parametrize(("shape", "patch"), [((2, 6, 10), 2), ((1, 5, 7), 1)])
def test_losses_and_gradients_of_a_padded_student(shape, patch):
    """The fused op on a grid that the trunk pads: the sum over pixels written out, and finite differences in float64."""
    torch.manual_seed(1)
    config = padded(shape, patch, model_channels=16, channel_mult=[1, 1])
    teacher = randomize(build_network(config))
    student, made = student_from_teacher(teacher, config, 8)
    denoiser = make_denoiser(randomize(student), made).eval().requires_grad_(False).double()
    draw = Draw(torch.tensor([0.3, 1.0]).double(), torch.tensor([0.7, 0.3]).double(), torch.randn(2, *shape).double())
    x0 = torch.rand(2, *shape).double() * 2 - 1
    found = denoiser.class_losses(x0, draw)
    x_t, target = denoiser.noisy(x0, draw)
    rows = draw.sigma.repeat(2)
    for k in range(3):
        f = denoiser.f(x_t, rows, torch.full((4,), k))
        errors = (f - target).square().flatten(1).sum(1).unflatten(0, (2, 2))
        torch.testing.assert_close(found[:, k], errors @ draw.weight, rtol=FLOAT64_ORDER, atol=0)
    torch.autograd.gradcheck(lambda x: denoiser.class_losses(x, draw).sum(0), x0[:1].requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_classifiers_pad_their_patches(kind):
    more = {"width": 4, "blocks": [1, 1]} if kind == "resnet" else {"width": 8, "depth": 1, "heads": 2}
    odd = {"kind": kind, "image_shape": [2, 5, 7], "num_classes": 3, "patch_size": 4, **more}
    torch.manual_seed(0)
    network = build_network(odd).eval()
    whole = build_network({**odd, "image_shape": [2, 8, 8]}).eval()
    whole.load_state_dict(network.state_dict())
    x = torch.rand(2, 2, 5, 7)
    large = torch.full((2, 2, 8, 8), 0.5)  # 0 in [-1, 1]
    large[:, :, :5, :7] = x
    assert torch.equal(network(x), whole(large))
    if kind == "vit":
        times = torch.tensor([0.2, 0.9])
        assert network(x, times).shape == x.shape
        assert torch.equal(network(x, times), whole(large, times)[:, :, :5, :7])


# --- files ------------------------------------------------------------------------------------------------------------
TOML = """
size = "small"
[unet]
model_channels = 24
channel_mult = [1, 1]
"""


def test_a_file_changes_a_size(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    config = read_network_file(path, "diffusion", (3, 64, 48), 5)
    small = scaled_network("small", "diffusion", (3, 64, 48), 5)
    assert config == {**small, "unet": {**small["unet"], "model_channels": 24, "channel_mult": [1, 1]}}
    assert is_network_file(str(path)) and is_network_file("A.JSON") and not is_network_file("small-28")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_says_all_of_it(tmp_path, wrapped):
    """A description by itself, or the JSON of a checkpoint."""
    config = padded((1, 20, 24))
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"format": "rdc-checkpoint", "config": config, "info": {}} if wrapped else config))
    assert read_network_file(path, "diffusion", (1, 20, 24), 3) == config
    if not wrapped:
        path.write_text(json.dumps({"kind": "conditional", "unet": UNET}))
        completed = read_network_file(path, "diffusion", (1, 20, 24), 3)
        assert completed == {key: value for key, value in config.items() if key != "patch_size"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = 3", "size: expected tiny, small, medium, large; got 3"),
        ("size = 'huge'", "size: expected tiny"),
        ("image_shape = [1, 28, 28]", r"image_shape: expected \[3, 8, 8\], as the data have it, or no such entry; got"),
        ("num_classes = 4", "num_classes: expected 2, as the data have it"),
        ("", "network description: expected kind"),
        ("size = 'small'\npatch_size = 3", "expected sides divisible by patch_size 3"),
        ("size = 'small'\n[unet]\nmodel_channels = 10000000", "unet.model_channels: expected a whole number"),
        ("size = 'small'\n[unet]\nlayers = 3", "unet: .*layers"),
        ("size = 'small'\nunet = 3", "network description: expected kind"),
        ("size = [", r"not a network's description \(TOML\)"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_network_file(path, "diffusion", (3, 8, 8), 2)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="none.json"):
        read_network_file(tmp_path / "none.json", "diffusion", (3, 8, 8), 2)
