"""Attacks on the likelihood score: its differentiable twin is the score, its gradient is exact, attacks go where they are sent."""

import numpy as np
import pytest
import torch

from rdc.attacks import ThreatModel
from rdc.decisions.calibration import coded_length, fit_likelihood_score
from rdc.decisions.score_attack import attack_score, differentiable_score
from tests.tiny_models import pixels, tiny_classifier
from tests.tolerances import CENTRAL_DIFFERENCE


@pytest.fixture(scope="module")
def fitted():
    classifier = tiny_classifier("multihead", torch.float64, levels="log:2:0.5:2:flat")
    like = pixels(40, seed=3, dtype=torch.float64)
    features = classifier.losses_per_level(like).min(2).values.detach().numpy()
    return classifier, fit_likelihood_score(features, like.numpy()), like


def test_it_is_the_score(fitted):
    classifier, score, like = fitted
    x = like[:5]
    features = classifier.losses_per_level(x).min(2).values.detach().numpy()
    np.testing.assert_allclose(differentiable_score(classifier, score)(x).detach().numpy(), score(features, x.numpy()))


def test_gradient_equals_central_differences(fitted):
    """Along a direction too small to move the coded length."""
    classifier, score, like = fitted
    scores, x = differentiable_score(classifier, score), like[:2].clone().requires_grad_()
    (grad,) = torch.autograd.grad(scores(x).sum(), x)
    direction = torch.sign(torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)) * 1e-6
    above, below = x.detach() + direction, x.detach() - direction
    assert (coded_length(above.numpy()) == coded_length(below.numpy())).all()
    slope = (scores(above) - scores(below)).sum() / 2
    assert (grad * direction).sum().item() == pytest.approx(slope.item(), rel=CENTRAL_DIFFERENCE)


@pytest.mark.parametrize("lower", [True, False])
def test_the_score_goes_where_it_is_sent(fitted, lower):
    classifier, score, _ = fitted
    x = pixels(6, seed=9)
    classifier = tiny_classifier("multihead", levels="log:2:0.5:2:flat")
    before = differentiable_score(classifier, score)(x).detach().numpy()
    finished = []
    options = {"lower": lower, "steps": 8, "batch": 4, "progress": finished.append}
    after = attack_score(classifier, score, x, ThreatModel("linf", 8 / 255), **options)
    change = (before - after) if lower else (after - before)
    assert (change >= 0).all() and change.mean() > 0.05 * before.mean() and finished == [4, 2]
    again = attack_score(classifier, score, x, ThreatModel("linf", 8 / 255), **options)
    np.testing.assert_array_equal(after, again)
    tiny = attack_score(classifier, score, x, ThreatModel("linf", 1e-4), **options)
    assert np.abs(tiny - before).max() < np.abs(after - before).max()
