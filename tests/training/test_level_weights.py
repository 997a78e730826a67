import itertools

import pytest
import torch

from rdc.errors import ConfigError
from rdc.training.level_weights import fit_weights, level_margins, worst_margins
from tests.tiny_models import pixels, tiny_classifier

LABELS = torch.tensor([1, 0, 2])


@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_margins_and_gradients_are_the_classifiers(kind):
    classifier, images = tiny_classifier(kind, torch.float64, lm="paper-v2"), pixels(3, dtype=torch.float64)
    losses, margins, gradients = level_margins(classifier, images, LABELS, rivals=2)
    weight = torch.tensor(classifier.levels.weight, dtype=torch.float64)
    leaf = images.clone().requires_grad_()
    total = classifier.with_(lm=None).class_losses(leaf)
    torch.testing.assert_close(torch.einsum("ntk,t->nk", losses, weight), total.detach())
    for image in range(3):
        others = sorted((k for k in range(3) if k != LABELS[image]), key=lambda k: total[image, k].item())
        for place, k in enumerate(others):
            margin = total[image, k] - total[image, LABELS[image]]
            torch.testing.assert_close(margins[image, :, place] @ weight, margin.detach())
            (slope,) = torch.autograd.grad(margin, leaf, retain_graph=True)
            torch.testing.assert_close(weight @ gradients[image, :, place], slope[image].flatten())


def test_worst_margin_is_that_of_the_worst_corner():
    generator = torch.Generator().manual_seed(0)
    margins = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64)
    gradients = torch.randn(5, 3, 2, 4, generator=generator, dtype=torch.float64)
    weight = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    images = torch.tensor([0.5, 0.05, 1.0, 0.0], dtype=torch.float64).expand(5, 1, 1, 4)
    corners = torch.tensor(list(itertools.product((-0.1, 0.1), repeat=4)), dtype=torch.float64)
    corners = (images[0].flatten() + corners).clamp(0, 1) - images[0].flatten()  # the box cuts the ball
    moved = margins[None] + torch.einsum("ntrp,cp->cntr", gradients, corners)
    expected = torch.einsum("cntr,t->cnr", moved, weight).amin((0, 2))
    torch.testing.assert_close(worst_margins(weight, margins, gradients, 0.1, images), expected)


def test_fit_finds_the_level_that_holds():
    """Level 0 has the larger margins, level 1 those that survive, level 2 is wrong."""
    margins = torch.tensor([[[2.0], [1.0], [-1.0]]]).repeat(20, 1, 1)
    gradients = torch.tensor([[[[30.0, -30.0]], [[3.0, 3.0]], [[0.0, 0.0]]]]).repeat(20, 1, 1, 1)
    start, images = torch.tensor([1.0, 1.0, 1.0]), torch.full((20, 1, 1, 2), 0.5)
    assert worst_margins(start / 3, margins, gradients, 0.1, images).max() < 0
    weight = fit_weights(margins, gradients, 0.1, images, [start])
    torch.testing.assert_close(weight.sum(), torch.tensor(1.0))
    assert weight[1] > 0.8 and worst_margins(weight, margins, gradients, 0.1, images).min() > 0
    assert fit_weights(margins, gradients, 0.0, images, [start])[0] > 0.8


def test_fit_keeps_the_best_start():
    margins, gradients = torch.tensor([[[1.0], [-1.0]]]).repeat(4, 1, 1), torch.zeros(4, 2, 1, 3)
    good, bad = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])
    images = torch.full((4, 1, 1, 3), 0.5)
    torch.testing.assert_close(fit_weights(margins, gradients, 0.1, images, [bad, good], steps=0), good / 4)


def test_too_many_rivals_are_refused():
    with pytest.raises(ConfigError, match="rivals: expected 1 to 2; got 3"):
        level_margins(tiny_classifier(), pixels(3), LABELS, rivals=3)
