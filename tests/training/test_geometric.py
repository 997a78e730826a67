"""EDM's augmentation: every transformation is what its label says, and the network is told."""

from __future__ import annotations

import math

import pytest
import torch

from rdc.errors import ConfigError
from rdc.method.denoiser import make_denoiser
from rdc.networks.presets import build_network, with_augmentation_label
from rdc.training.augmentation import AUGMENTATION_LABEL, Augmented, Shifted, geometric
from rdc.training.batches import BatchGenerator
from rdc.training.distillation import DistillationObjective, Secant
from rdc.training.objective import ConditionalObjective, NoiseDistribution
from tests.tolerances import WARPED_CENTRE, WARPED_PIXELS

SIDE = 33


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(column: float, row: float) -> torch.Tensor:
    """[1, S, S]: a smooth spot at (column, row) in -1..1, low everywhere else."""
    places = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    far = (places[None] - column) ** 2 + (places[:, None] - row) ** 2
    return 2 * torch.exp(-far / (2 * 0.08**2))[None] - 1


def centre(image: torch.Tensor) -> torch.Tensor:
    """(column, row) of a spot."""
    places = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    mass = (image[0] + 1).clamp(min=0) ** 2
    return torch.stack([(mass.sum(0) * places).sum(), (mass.sum(1) * places).sum()]) / mass.sum()


def said(label: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Where the label says that a place goes: table 6 of Karras et al. 2022, written afresh, rows counted downwards."""
    mirrored, upside_down, scale, cos, sin, along, across, right, down = label.tolist()
    column, row = place.tolist()
    column, row = column * (1 - 2 * mirrored), row * (1 - 2 * upside_down)
    column, row = column * 2 ** (0.2 * scale), row * 2 ** (0.2 * scale)
    b = math.atan2(sin, cos + 1)
    column, row = math.cos(b) * column + math.sin(b) * row, -math.sin(b) * column + math.cos(b) * row
    c, d = math.hypot(along, across), math.atan2(across, along) / 2
    u, v = math.cos(d) * column + math.sin(d) * row, -math.sin(d) * column + math.cos(d) * row
    u, v = u * 2 ** (0.2 * c), v * 2 ** (-0.2 * c)
    column, row = math.cos(d) * u - math.sin(d) * v, math.sin(d) * u + math.cos(d) * v
    return torch.tensor([column + right / 4, row + down / 4])


@pytest.mark.parametrize("only", [2, 3, 5, 7], ids=["scaled", "rotated", "stretched", "moved"])
def test_a_spot_goes_where_the_label_says(only: int) -> None:
    x = blob(0.3, -0.2)[None].repeat(600, 1, 1, 1)
    made, labels = geometric(x, 0.25, generator())
    checked = 0
    for image, label in zip(made, labels, strict=True):
        changed = {i for i, group in {2: [2], 3: [3, 4], 5: [5, 6], 7: [7, 8]}.items() if label[group].any()}
        expected = said(label, torch.tensor([0.3, -0.2]))
        inside = expected.abs().max() < 0.6 and label[2].abs() < 2 and label[5:7].norm() < 2
        if inside and changed == {only}:
            torch.testing.assert_close(centre(image), expected, atol=WARPED_CENTRE, rtol=0)
            checked += 1
    assert checked >= 30


def test_all_at_once_go_where_the_label_says() -> None:
    """Most spots leave the image, and mirrored ones may enter it: those that stay are looked for where they should be."""
    x = blob(0.3, -0.2)[None].repeat(1000, 1, 1, 1)
    checked = 0
    for image, label in zip(*geometric(x, 1.0, generator()), strict=True):
        expected = said(label, torch.tensor([0.3, -0.2]))
        if expected.abs().max() < 0.9 and label[2].abs() < 1.5 and label[5:7].norm() < 1.5:
            column, row = ((expected + 1) / 2 * SIDE).long().tolist()
            assert image[0, row, column] > 0, label  # 1 in the middle, -1 outside
            checked += 1
    assert checked > 400


@pytest.mark.parametrize("only", [2, 3, 5, 7], ids=["scaled", "rotated", "stretched", "moved"])
def test_a_spot_in_an_oblong_image_goes_where_the_label_says(only: int) -> None:
    """Turned and stretched in pixels, not in shares of the sides; moved by shares of them."""
    tall, wide = SIDE, 2 * SIDE - 1
    rows, columns = ((torch.arange(side) - (side - 1) / 2) for side in (tall, wide))
    spot = torch.tensor([6.0, -4.0])  # pixels right of the centre, and below
    far = (columns[None] - spot[0]) ** 2 + (rows[:, None] - spot[1]) ** 2
    x = (2 * torch.exp(-far / (2 * 1.3**2)) - 1)[None, None].repeat(400, 1, 1, 1)
    made, labels = geometric(x, 0.25, generator())
    checked = 0
    for image, label in zip(made, labels, strict=True):
        changed = {i for i, group in {2: [2], 3: [3, 4], 5: [5, 6], 7: [7, 8]}.items() if label[group].any()}
        still = label.clone()
        still[7:] = 0
        expected = said(still, spot) + label[7:] / 8 * torch.tensor([float(wide), float(tall)])
        inside = (
            (expected.abs() < torch.tensor([wide / 4, tall / 4])).all() and label[2].abs() < 2 and label[5:7].norm() < 2
        )
        if inside and changed == {only}:
            near = (
                (columns[None] - expected[0]) ** 2 + (rows[:, None] - expected[1]) ** 2
            ) < 8**2  # mirrored spots are farther
            mass = (image[0] + 1).clamp(min=0) ** 2 * near
            found = torch.stack([(mass.sum(0) * columns).sum(), (mass.sum(1) * rows).sum()]) / mass.sum()
            torch.testing.assert_close(found, expected, atol=WARPED_PIXELS, rtol=0)
            checked += 1
    assert checked >= 20


def test_quarter_turns_and_whole_pixels_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    import rdc.training.augmentation as module

    x = torch.rand(2, 3, 8, 8, generator=generator()) * 2 - 1
    draws = {"uniform": [], "normal": []}
    monkeypatch.setattr(module, "uniform", lambda shape, g: draws["uniform"].pop(0))
    monkeypatch.setattr(module, "normal", lambda shape, g: draws["normal"].pop(0))

    def made(chance: list[float], angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
        draws["uniform"] = [torch.tensor([chance] * 2), torch.full((2, 2), angle / (2 * math.pi) + 0.5)]
        draws["normal"] = [torch.tensor([[0.0, 0.0, *shift]] * 2)]
        return geometric(x, 0.5, generator())[0]

    off = [0.9] * 7
    assert torch.equal(made(off), x)
    assert torch.equal(made([*off[:5], 0.1, 0.9]), x.flip(3))
    assert torch.equal(made([0.1, *off[1:6], 0.1]), x.flip(2))
    torch.testing.assert_close(made([0.9, 0.9, 0.1, *off[3:]], math.pi / 2), torch.rot90(x, 1, (2, 3)))
    moved = made([*off[:4], 0.1, 0.9, 0.9], shift=(2.0, -1.0))  # two pixels right, one up; what comes in is mirrored
    torch.testing.assert_close(moved[:, :, :-1, 2:], x[:, :, 1:, :-2])
    torch.testing.assert_close(moved[:, :, :-1, :2], x[:, :, 1:, :2].flip(3))


def test_probability_zero_leaves_mirrored_copies_with_their_label() -> None:
    x = torch.rand(400, 3, 6, 6, generator=generator()) * 2 - 1
    made, label = geometric(x, 0.0, generator())
    assert label.shape == (400, AUGMENTATION_LABEL) and not label[:, 1:].any()
    mirrored = label[:, 0] == 1
    assert 150 < mirrored.sum() < 250
    assert torch.equal(made, torch.where(mirrored[:, None, None, None], x.flip(3), x))


def test_each_transformation_has_its_chance_and_pixels_stay_in_range() -> None:
    x = torch.rand(4000, 1, 8, 8, generator=generator()).round() * 2 - 1
    made, label = geometric(x, 0.12, generator())
    for group, rate in (([1], 0.06), ([2], 0.12), ([3, 4], 0.12), ([5, 6], 0.12), ([7, 8], 0.12)):
        assert abs(label[:, group].any(1).float().mean() - rate) < 0.025
    untouched = ~label[:, 2:].any(1)
    assert torch.equal(made[untouched].abs(), x[untouched].abs())
    assert made.abs().max() == 1


def test_autocast_of_a_training_step_changes_nothing() -> None:
    x = torch.rand(8, 3, 16, 16, generator=generator()) * 2 - 1
    plain = geometric(x, 1.0, generator())
    with torch.autocast("cpu", torch.bfloat16):
        same = geometric(x, 1.0, generator())
    assert torch.equal(plain[0], same[0]) and torch.equal(plain[1], same[1])


def test_two_processes_and_the_memory_format() -> None:
    x = torch.rand(8, 3, 6, 6, generator=generator()).contiguous(memory_format=torch.channels_last)
    whole = geometric(x, 0.5, BatchGenerator("cpu", 8).manual_seed(4))
    parts = [geometric(x[4 * r : 4 * r + 4], 0.5, BatchGenerator("cpu", 4, r, 2).manual_seed(4)) for r in (0, 1)]
    assert whole[0].is_contiguous(memory_format=torch.channels_last)
    for i in range(2):
        torch.testing.assert_close(whole[i], torch.cat([part[i] for part in parts]))


# --- The network is told ----------------------------------------------------------------------------------------------
def small(kind: str) -> dict:
    unet = {
        "architecture": "SongUNet",
        "model_channels": 8,
        "channel_mult": [1],
        "num_blocks": 1,
        "attn_resolutions": [],
        "middle_attention": False,
    }
    config = {"kind": kind, "image_shape": [3, 8, 8], "num_classes": 4, "patch_size": 2, "unet": unet}
    return config | ({"wide_channels": 16} if kind == "multihead" else {})


@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_a_label_is_added_without_changing_anything_and_then_reaches_the_output(kind: str) -> None:
    torch.manual_seed(0)
    config = small(kind)
    network = build_network(config).eval()
    for p in network.parameters():
        p.data.normal_(std=0.2)
    x, noise = torch.randn(3, 3, 8, 8), torch.randn(3)
    rest = (torch.eye(4)[:3],) if kind == "conditional" else ()
    before = network(x, noise, *rest)
    made = with_augmentation_label(network, config, AUGMENTATION_LABEL)
    assert made["unet"]["augment_dim"] == 9 and "augment_dim" not in config["unet"]
    label = torch.randn(3, 9)
    assert torch.equal(network(x, noise, *rest), before)
    assert torch.equal(network(x, noise, *rest, augment_labels=label), before)  # zeros so far
    assert with_augmentation_label(network, made, AUGMENTATION_LABEL) is made
    network.unet.map_augment.weight.data.normal_()
    told = network(x, noise, *rest, augment_labels=label)
    assert not torch.allclose(told, before) and torch.equal(network(x, noise, *rest), before)
    build_network(made).load_state_dict(network.state_dict())


@pytest.mark.parametrize("architecture", ["SongUNet", "DhariwalUNet"])
def test_networks_without_patches_get_a_label_as_well(architecture: str) -> None:
    torch.manual_seed(0)
    unet = {
        "architecture": architecture,
        "model_channels": 32,
        "channel_mult": [1],
        "num_blocks": 1,
        "attn_resolutions": [],
    }
    config = {"kind": "conditional", "image_shape": [3, 8, 8], "num_classes": 4, "unet": unet}
    network = build_network(config).eval()
    for p in network.parameters():
        p.data.normal_(std=0.2)
    inputs = torch.randn(3, 3, 8, 8), torch.randn(3), torch.eye(4)[:3]
    before, label = network(*inputs), torch.randn(3, 9)
    made = with_augmentation_label(network, config, AUGMENTATION_LABEL)
    assert torch.equal(network(*inputs, augment_labels=label), before)
    network.map_augment.weight.data.normal_()
    assert not torch.allclose(network(*inputs, augment_labels=label), before)
    build_network(made).load_state_dict(network.state_dict())


def test_the_objectives_tell_it_in_every_pass() -> None:
    torch.manual_seed(0)
    x, labels, noise = torch.rand(4, 3, 8, 8) * 2 - 1, torch.arange(4), NoiseDistribution()
    _, expected = geometric(x, 0.5, generator())
    for kind in ("conditional", "multihead"):
        config = small(kind)
        network = build_network(config)
        config = with_augmentation_label(network, config, AUGMENTATION_LABEL)
        passes: list[torch.Tensor] = []
        network.register_forward_pre_hook(
            lambda _, args, kwargs, seen=passes: seen.append(kwargs["augment_labels"]), with_kwargs=True
        )
        if kind == "conditional":
            objective, rows, count = ConditionalObjective(4, noise, posterior_weight=0.3), 3, 1
        else:
            threat = {"posterior_weight": 1.0, "secant": Secant(8 / 255, steps=3)}
            objective, rows, count = DistillationObjective(make_denoiser(network, config), noise, 0, **threat), 1, 4
        loss, _ = Augmented(Shifted(objective, 1), 0.5)(network, x, labels, generator())
        loss.backward()
        assert len(passes) == count
        for seen in passes:
            assert torch.equal(seen, expected.repeat_interleave(rows, 0))
        gradient = network.unet.map_augment.weight.grad
        assert gradient is not None and (kind == "conditional" or gradient.abs().sum() > 0)


def test_the_wrapper_passes_on_what_the_trainer_asks() -> None:
    class Twice:
        differentiates_twice = True

    assert Augmented(Twice(), 0.1).differentiates_twice
    assert not Augmented(lambda *_: None, 0.1).differentiates_twice


def test_refusals() -> None:
    for probability in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="augment: expected a probability in 0..1"):
            Augmented(lambda *_: None, probability)
    resnet = {"kind": "resnet", "image_shape": [3, 8, 8], "num_classes": 2, "width": 4, "blocks": [1]}
    with pytest.raises(ConfigError, match="resnet takes no augmentation label"):
        with_augmentation_label(build_network(resnet), resnet, 9)
    config = small("conditional")
    config["unet"]["augment_dim"] = 3
    with pytest.raises(ConfigError, match="labels of length 9; this one has 3"):
        with_augmentation_label(build_network(config), config, 9)
