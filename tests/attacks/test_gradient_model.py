"""Gradients of one model, decisions of another: what decides is the model, whatever the gradient's model says."""

import pytest
import torch

from rdc.attacks import ThreatModel, parse_attack
from rdc.attacks.autoattack import autoattack
from rdc.attacks.stadv import FlowThreat
from rdc.errors import InputError

EPS = 0.1
ASCENTS = (
    "pgd-ce",
    "apgd-ce:restarts=2",
    "apgd-t:targets=2",
    "fab-t:targets=2",
    "smoothed:samples=2",
    "low-frequency",
    "stadv",
)


def linear(points):
    weight = torch.randn(4, 36, generator=torch.Generator().manual_seed(3))
    return (points - 0.5).flatten(1) @ weight.T.to(points.dtype)


def rounded(points):
    """The same decisions to rounding, and no gradient."""
    logits = linear(points)
    return (400 * logits).round() / 400 + 0 * points.flatten(1).sum(1, keepdim=True)


def images():
    x = torch.rand(10, 1, 6, 6, generator=torch.Generator().manual_seed(5)) * 0.8 + 0.1
    return x, linear(x).argmax(1)


def attacked(name, model, **more):
    spec = parse_attack(name)
    threat = FlowThreat(0.5) if name == "stadv" else ThreatModel("linf", EPS)
    return spec.kind.attack(model, *images(), threat, **{"steps": 5, **dict(spec.options), **more})


@pytest.mark.parametrize("name", ASCENTS)
def test_the_same_model_twice_is_the_model(name):
    alone, both = attacked(name, linear), attacked(name, linear, gradient_model=linear)
    assert torch.equal(alone.x_adv, both.x_adv) and torch.equal(alone.broken_at, both.broken_at)
    assert torch.equal(alone.zero_gradient_steps, both.zero_gradient_steps) and not alone.correct.all()
    assert both.forward_evaluations > alone.forward_evaluations or name.startswith(
        "fab"
    )  # what was misclassified was asked once more


@pytest.mark.parametrize("name", ASCENTS)
def test_gradients_are_those_of_the_other_model(name):
    """A model without slopes is broken with the slopes of its smooth twin, and every decision is its own."""
    blind, seeing = attacked(name, rounded), attacked(name, rounded, gradient_model=linear)
    assert blind.zero_gradient_images > 0 and seeing.zero_gradient_images == 0
    assert int(seeing.correct.sum()) < int(blind.correct.sum())
    assert torch.equal(rounded(seeing.x_adv).argmax(1) == images()[1], seeing.correct) and seeing.verify_mismatches == 0


@pytest.mark.parametrize("name", ["pgd-ce", "apgd-t:targets=2", "fab-t:targets=2", "smoothed:samples=2"])
def test_what_the_other_model_misclassifies_is_not_broken(name):
    """The other model has every image wrong; without the model's word all would leave at once."""
    found = attacked(name, linear, gradient_model=lambda points: -linear(points))
    assert torch.equal(linear(found.x_adv).argmax(1) == images()[1], found.correct)
    assert found.clean_correct.all() and (found.correct.any() or name.startswith("fab"))


def test_each_draw_of_the_mean_is_asked_again():
    """Under randomness, too: the gradient's model is wrong in every draw, and the model never is."""
    y = images()[1]
    sure = torch.nn.functional.one_hot(y, 4).double()

    def certain(points):
        return sure[: len(points)] + 0 * points.flatten(1).sum(1, keepdim=True)

    found = attacked("pgd-ce", certain, gradient_model=lambda points: -linear(points), eot=3)
    assert found.correct.all() and not found.wrong_on_the_way.any()


def test_weights_of_sixteen_bits_and_what_is_no_model():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(4, 36, generator=torch.Generator().manual_seed(3)))
        net[1].bias.copy_(-0.5 * net[1].weight.sum(1))
    half = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4)).to(torch.bfloat16)
    half.load_state_dict(net.state_dict())
    for name in ("apgd-ce", "stadv"):
        found = attacked(name, net, gradient_model=half)
        assert not found.correct.all() and torch.equal(net(found.x_adv).argmax(1) == images()[1], found.correct)
    whole = autoattack(net, *images(), ThreatModel("linf", EPS), steps=4, queries=20, gradient_model=half)
    assert torch.equal(net(whole.x_adv).argmax(1) == images()[1], whole.correct)
    with pytest.raises(InputError, match="gradient_model: expected a function pixels -> logits, got str"):
        attacked("apgd-ce", linear, gradient_model="bfloat16")
