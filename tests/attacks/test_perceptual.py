"""Perceptual attacks: the distance by loops, the ball, the inverse by dense algebra, and what neither attack may do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rdc.attacks import ThreatModel, attack_named
from rdc.attacks.perceptual import LpaOptions, _Jacobian, _LpaRule, lpa, ppgd
from rdc.attacks.perceptual_distance import FeatureDistance, PerceptualThreat, back_into_ball
from rdc.errors import ConfigError, InputError
from rdc.networks.activations import Activations
from rdc.networks.resnet import ResNet
from tests.tolerances import FLOAT32_NETWORK, FLOAT32_ROUNDING, FLOAT32_ROUNDINGS, FLOAT64_NETWORK

ATTACKS = [pytest.param(ppgd, {"steps": 12}, id="ppgd"), pytest.param(lpa, {"steps": 20, "rounds": 4}, id="lpa")]


def network() -> nn.Sequential:
    """Two layers of features: 3 channels of 6 x 6, then 4 of 3 x 3; smooth, so that derivatives are exact."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Softplus(), nn.Conv2d(3, 4, 2, stride=2), nn.Softplus())


def distance() -> FeatureDistance:
    return FeatureDistance(Activations(network()), "two layers")


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def classifier(x: torch.Tensor) -> torch.Tensor:
    """Class 0 while the left half is brighter than the right; images of these tests are not far from the border."""
    gap = x[..., :3].mean((1, 2, 3)) - x[..., 3:].mean((1, 2, 3))
    return torch.stack([gap, -gap, -9 + 0 * gap], dim=1)


def labels(x: torch.Tensor) -> torch.Tensor:
    return classifier(x).argmax(1)


def by_loops(x: torch.Tensor, other: torch.Tensor) -> float:
    """d of two images [C, H, W], one place at a time, from the layers that the network's own modules give."""
    net, total = network().double(), 0.0
    first = [net[:2](image[None].double())[0] for image in (x, other)]
    second = [net[2:](layer[None])[0] for layer in first]
    for one, two in (first, second):
        _, rows, columns = one.shape
        for row in range(rows):
            for column in range(columns):
                a, b = one[:, row, column].tolist(), two[:, row, column].tolist()
                lengths = [math.sqrt(sum(v * v for v in values)) for values in (a, b)]
                total += sum((u / lengths[0] - v / lengths[1]) ** 2 for u, v in zip(a, b, strict=True)) / (
                    rows * columns
                )
    return math.sqrt(total)


def test_distance_is_that_of_unit_channels_place_by_place() -> None:
    x, other = images(3), images(6)[3:]
    expected = torch.tensor([by_loops(a, b) for a, b in zip(x, other, strict=True)], dtype=torch.float64)
    assert torch.allclose(distance()(x, other), expected, rtol=FLOAT64_NETWORK, atol=0)
    assert distance()(x, x).tolist() == [0, 0, 0]
    assert bool((distance()(x, 1 - x) <= 2 * math.sqrt(2)).all())  # two layers of unit vectors


def test_a_lent_network_stays_as_it_is_and_its_copy_follows_nothing() -> None:
    net = network().train()
    measured = FeatureDistance(Activations(net), "lent")
    before = measured(images(2), images(4)[2:])
    assert net.training and net[0].weight.dtype == torch.float32 and net[0].weight.requires_grad
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(measured(images(2), images(4)[2:]), before)
    assert not net._forward_hooks and not net[1]._forward_hooks


def test_activations_are_those_behind_each_rectifier_also_in_place() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(3, 4), nn.ReLU(),
    )  # fmt: skip
    x = images(2)
    first = net[0](x).clamp(min=0)
    second = net[3](net[2](first)).clamp(min=0)
    found = Activations(net)(x)
    assert [layer.shape for layer in found] == [first.shape, second.shape]  # the last rectifier has no places
    assert torch.equal(found[0], first) and torch.equal(found[1], second)
    with pytest.raises(InputError, match=r"Linear: expected layers of rectified images .* activations\(pixels\)"):
        Activations(nn.Linear(6, 2))(x)


def test_activations_of_a_resnet_end_in_what_its_head_reads() -> None:
    torch.manual_seed(4)
    net = ResNet((1, 8, 8), 5, width=8, blocks=(1, 2), patch_size=2)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    found = Activations(net)(x)
    assert [tuple(layer.shape[1:]) for layer in found] == [(8, 4, 4), (8, 4, 4), (16, 2, 2), (16, 2, 2)]
    assert torch.equal(net.head(found[-1].mean((2, 3))), net(x)) and all(float(layer.min()) == 0 for layer in found)


def test_back_into_ball_is_on_the_segment_within_the_bound_and_near_it() -> None:
    x, far, measured = images(), 1 - images(), distance()
    threat = PerceptualThreat(0.05, measured)
    found = back_into_ball(far, x, threat)
    assert bool((measured(found, x) <= 0.05).all()) and bool((measured(found, x) > 0.989 * 0.05).all())
    share = ((found - x) / (far - x)).flatten(1)
    assert bool((share.amax(1) - share.amin(1) < FLOAT32_NETWORK).all())
    assert torch.equal(back_into_ball(x, x, threat), x)
    inside = back_into_ball(found, x, threat)
    assert torch.equal(inside, found)  # what is within stays
    assert torch.equal(back_into_ball(far, x, PerceptualThreat(0, measured)), x)


def test_solved_is_the_inverse_of_the_features_gram_matrix() -> None:
    x, measured = images(2), distance()
    jacobian = _Jacobian(measured, x)
    wanted = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for row in range(2):
        dense = torch.autograd.functional.jacobian(measured.features, x[row : row + 1].double()).reshape(-1, 36)
        along = wanted[row].flatten()
        assert torch.allclose(jacobian.times(wanted)[row], dense @ along, rtol=0, atol=FLOAT32_ROUNDINGS)
        assert torch.allclose(
            jacobian.transposed(jacobian.times(wanted))[row].flatten(),
            dense.T @ dense @ along,
            rtol=0,
            atol=FLOAT32_ROUNDINGS,
        )
    # in the span of few eigenvectors conjugate gradients end after as many steps
    values, vectors = torch.linalg.eigh(dense.T @ dense)
    chosen = vectors[:, -3:] @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    given = torch.stack([torch.zeros(36, dtype=torch.float64), chosen]).view(2, 1, 6, 6)
    expected = vectors[:, -3:] @ ((vectors[:, -3:].T @ chosen) / values[-3:]) / chosen.norm()
    found = jacobian.solved(given, 3)
    assert torch.allclose(found[1].flatten(), expected, rtol=FLOAT32_NETWORK, atol=FLOAT32_NETWORK)
    assert not found[0].any()  # no gradient, no step


@pytest.mark.parametrize(("attack", "options"), ATTACKS)
def test_an_attack_keeps_bound_and_box_breaks_more_in_larger_balls_and_repeats(attack, options) -> None:
    x, measured = images(12), distance()
    y, broken = labels(x), []
    for bound in (0.0, 0.005, 0.2):
        threat = PerceptualThreat(bound, measured)
        found = attack(classifier, x, y, threat, restarts=2, **options)
        assert bool((measured(found.x_adv, x) <= bound).all())
        assert torch.equal(found.perceptual_distance, measured(found.x_adv, x))
        assert float(found.x_adv.min()) >= 0 and float(found.x_adv.max()) <= 1
        assert found.threat is threat and found.threat.norm == "lpips"
        assert torch.equal(found.correct, labels(found.x_adv) == y)
        broken.append(int((~found.correct).sum()))
    assert broken[0] == 0 < broken[1] < broken[2]
    again = attack(classifier, x, y, threat, restarts=2, **options)
    assert torch.equal(again.x_adv, found.x_adv)


@pytest.mark.parametrize(("attack", "options"), ATTACKS)
def test_an_image_is_attacked_alike_alone_and_restarts_are_its_own(attack, options) -> None:
    x, threat = images(8), PerceptualThreat(0.02, distance())
    whole = attack(classifier, x, labels(x), threat, restarts=3, image_ids=range(10, 18), **options)
    alone = attack(classifier, x[5:6], labels(x)[5:6], threat, restarts=3, image_ids=[15], **options)
    assert torch.allclose(alone.x_adv, whole.x_adv[5:6], rtol=0, atol=FLOAT32_ROUNDING)
    assert alone.broken_at.item() == whole.broken_at[5].item()


@pytest.mark.parametrize(("attack", "options"), ATTACKS)
def test_nothing_outside_the_ball_counts(attack, options) -> None:
    """A model that is wrong about whatever is farther than 0.1, and pulls there as soon as an image has moved at all."""
    x, measured = images(4), distance()

    def trap(z: torch.Tensor) -> torch.Tensor:
        home = measured.features(x[: len(z)])
        far = (measured.features(z) - home).square().sum(1).clamp_min(1e-30).sqrt()
        return torch.stack([0.1 - far, far - 0.1], dim=1).float()

    found = attack(
        trap, x, torch.zeros(4, dtype=torch.int64), PerceptualThreat(0.1, measured), verify=False, restarts=2, **options
    )
    assert found.correct.all()
    start = back_into_ball(1 - x, x, PerceptualThreat(0.3, measured))
    given = attack(trap, x, torch.zeros(4, dtype=torch.int64), PerceptualThreat(0.1, measured), start=start, **options)
    assert given.correct.all() and bool((given.perceptual_distance <= 0.1).all())
    wider = PerceptualThreat(0.2, measured)
    assert not attack(trap, x, torch.zeros(4, dtype=torch.int64), wider, restarts=2, **options).correct.any()


def test_the_penalty_grows_tenfold_after_a_round_that_ends_outside() -> None:
    x, threat = images(2), PerceptualThreat(0.1, distance())
    rule = _LpaRule(x, threat, LpaOptions(steps=4, rounds=2))
    out = torch.where(
        torch.tensor([True, False]).view(-1, 1, 1, 1), 1 - x, x
    )  # the second has not moved, and has no gradient
    pull = torch.where(torch.tensor([True, False]).view(-1, 1, 1, 1), (1 - 2 * x).double(), 0.0)
    assert [w.tolist() for w in (rule.weight, (rule.moved(out, pull), rule.weight)[1])] == [[0.01, 0.01]] * 2
    rule.step = 1  # the last of the first round
    ended = rule.moved(out, pull)
    assert rule.weight.tolist() == [0.1, 0.01]
    assert bool((threat.distance(ended, x) <= threat.bound).all()) and torch.equal(ended[1], x[1])
    rule.keep(torch.tensor([0]))
    assert rule.weight.tolist() == [0.1]


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_the_penalty_weighs_the_same_whatever_the_loss_and_the_scale_of_logits(loss) -> None:
    x, threat = images(8), PerceptualThreat(0.02, distance())
    found = [
        lpa(lambda z, by=by: by * classifier(z), x, labels(x), threat, steps=20, loss=loss).x_adv
        for by in (1.0, 1024.0)
    ]
    assert torch.equal(*found)


def test_what_does_not_fit_is_refused() -> None:
    x, measured = images(2), distance()
    y = labels(x)
    with pytest.raises(ConfigError, match=r"ppgd: expected PerceptualThreat\(bound, distance\) as threat, got"):
        ppgd(classifier, x, y, ThreatModel("linf", 0.1))
    for bound in (-1, math.nan, "wide", True):
        with pytest.raises(ConfigError, match=r"bound must be a finite number >= 0 \(LPIPS\)"):
            PerceptualThreat(bound, measured)
    with pytest.raises(ConfigError, match="distance: expected a FeatureDistance; got"):
        PerceptualThreat(0.1, network())
    with pytest.raises(InputError, match=r"flat: expected layers \[2, c, h, w\] as features; got \[2, 36\]"):
        lpa(classifier, x, y, PerceptualThreat(0.1, FeatureDistance(lambda z: [z.flatten(1)], "flat")))
    with pytest.raises(InputError, match="none: expected a list of layers"):
        lpa(classifier, x, y, PerceptualThreat(0.1, FeatureDistance(lambda z: [], "none")))
    assert attack_named("lpa").rule is lpa.rule
