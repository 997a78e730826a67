"""EPNDC and APNDC against their equations in loops, and against Gaussian classes in closed form."""

import math

import numpy as np
import pytest
import torch

from rdc.certification import NoisedDiffusion, SmoothedPlain, base_classifier
from rdc.certification.noised import noised_weights
from rdc.defences import as_defence
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import ConditionalDenoiser
from tests.oracles import GaussianNetwork, gaussian_denoised
from tests.tiny_models import SHAPE as TINY
from tests.tiny_models import tiny_classifier
from tests.tolerances import FLOAT64_FORMULA, FLOAT64_NETWORK, MANY_LEVELS

SHAPE, CLASSES, VARIANCE = (1, 2, 3), 3, 0.3
MEANS = 0.5 * torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gaussian(**settings):
    denoiser = ConditionalDenoiser(GaussianNetwork(MEANS, VARIANCE), CLASSES, SHAPE)
    return DiffusionClassifier(denoiser.double(), **{"levels": "log:3:0.1:4:flat", **settings})


def mixture_denoised(x, s):
    """E[x0 | x] over all classes."""
    share = np.array([-((x - m) ** 2).sum() / (2 * (VARIANCE + s**2)) for m in MEANS.numpy()])
    share = np.exp(share - share.max())
    return sum(
        p / share.sum() * gaussian_denoised(x, s, m, VARIANCE) for p, m in zip(share, MEANS.numpy(), strict=True)
    )


def epndc(x_tau, s_tau, sigma, draws, denoised):
    """-f_y from KL divergences of Gaussians, means and variances as they are written, one after another."""
    total, before = 0.0, s_tau
    for s, e in zip(sigma, draws, strict=True):
        x = x_tau + math.sqrt(s**2 - s_tau**2) * e
        d = denoised(x, s)
        m_p = ((s**2 - before**2) * d + before**2 * x) / s**2
        if before == s_tau:  # -log p(x_tau | x): q is the point x_tau
            m_q, variance = x_tau, s_tau**2 * (s**2 - s_tau**2) / s**2
        else:
            m_q = ((s**2 - before**2) * x_tau + (before**2 - s_tau**2) * x) / (s**2 - s_tau**2)
            variance = (before**2 - s_tau**2) * (s**2 - before**2) / (s**2 - s_tau**2)
        total += ((m_p - m_q) ** 2).sum() / (2 * variance)
        before = s
    return total


def apndc(x_tau, s_tau, sigma, draws, denoised):
    total, before, wanted = 0.0, s_tau, mixture_denoised(x_tau, s_tau)
    for s, e in zip(sigma, draws, strict=True):
        d = denoised(x_tau + math.sqrt(s**2 - s_tau**2) * e, s)
        total += (1 / before**2 - 1 / s**2) / 2 * ((d - wanted) ** 2).sum()
        before = s
    return total


@pytest.mark.parametrize("method", ["epndc", "apndc"])
@pytest.mark.parametrize("levels", [1, 4])
def test_scores_are_the_equations(method, levels):
    base = base_classifier(gaussian(), 0.15, method, levels)
    draw = torch.Generator().manual_seed(2)
    noisy = torch.rand(5, *SHAPE, generator=draw, dtype=torch.float64)
    draws = torch.randn(5, levels, *SHAPE, generator=draw, dtype=torch.float64)
    assert base.sigma[-1] == pytest.approx(4) and base.s_tau == 0.3
    found = base.scores(noisy, draws)
    rule = {"epndc": epndc, "apndc": apndc}[method]
    for row in range(5):
        for label, mean in enumerate(MEANS.numpy()):
            expected = rule(
                2 * noisy[row].numpy() - 1,
                0.3,
                base.sigma,
                draws[row].numpy(),
                lambda x, s, mean=mean: gaussian_denoised(x, s, mean, VARIANCE),
            )
            assert float(found[row, label]) == pytest.approx(-expected, rel=FLOAT64_NETWORK)


@pytest.mark.parametrize("method", ["epndc", "apndc"])
def test_weights_are_the_elbos(method):
    """On Gaussian classes E(l_y - l_z) of EPNDC is sum_i w_i (s_i^2 / (v + s_i^2))^2 times a difference of squared distances; with many
    levels that factor must be 1 / (2 (v + s_tau^2)), the exact log-likelihood ratio's. APNDC's weights have the same limit."""
    s_tau, top = 0.5, 1e3
    factors = []
    for count in (200, 2000, 20_000):
        sigma = [s_tau * (top / s_tau) ** (number / count) for number in range(1, count + 1)]
        weights = noised_weights(method, s_tau, sigma)
        factors.append(sum(w * (s**2 / (VARIANCE + s**2)) ** 2 for w, s in zip(weights, sigma, strict=True)))
    exact = 1 / (2 * (VARIANCE + s_tau**2))
    errors = [abs(factor / exact - 1) for factor in factors]
    assert errors[0] > errors[1] > errors[2] and errors[2] < MANY_LEVELS


def test_the_mean_difference_of_scores_is_the_factor():
    """The factor of the test above, from the classifier itself: a mean over antithetic draws is exact in a linear denoiser."""
    base = base_classifier(gaussian(), 0.25, "epndc", 5)
    noisy = torch.full((1, *SHAPE), 0.6, dtype=torch.float64)
    draws = torch.randn(400, 5, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    draws = torch.cat([draws, -draws])
    mean = base.scores(noisy.expand(800, -1, -1, -1), draws).mean(0)
    factor = sum(w * (s**2 / (VARIANCE + s**2)) ** 2 for w, s in zip(base.weight, base.sigma, strict=True))
    squared = ((2 * noisy - 1 - MEANS) ** 2).flatten(1).sum(1)
    assert torch.allclose(mean - mean[0], -factor * (squared - squared[0]), rtol=FLOAT64_FORMULA)


def test_a_multi_head_network_needs_one_pass_a_level():
    classifier = tiny_classifier("multihead", torch.float64)
    base = base_classifier(classifier, 0.5, "apndc", 3)
    assert base.passes == 4
    draw = torch.Generator().manual_seed(4)
    noisy = torch.rand(2, *TINY, generator=draw, dtype=torch.float64)
    draws = torch.randn(2, 3, *TINY, generator=draw, dtype=torch.float64)
    found = base.scores(noisy, draws)
    x_tau, denoiser = 2 * noisy - 1, classifier.denoiser
    level = torch.full((2,), 1.0, dtype=torch.float64)
    wanted = denoiser.denoise(x_tau, level, torch.full((2,), classifier.num_classes))
    for label in range(classifier.num_classes):
        loss = torch.zeros(2, dtype=torch.float64)
        for i, (s, w) in enumerate(zip(base.sigma, base.weight, strict=True)):
            x = x_tau + math.sqrt(s**2 - 1) * draws[:, i]
            d = denoiser.denoise(x, torch.full((2,), s, dtype=torch.float64), torch.full((2,), label))
            loss += w * (d - wanted).square().flatten(1).sum(1)
        assert torch.allclose(found[:, label], -loss, rtol=FLOAT64_FORMULA)


def test_a_plain_classifier_sees_clipped_pixels():
    seen = []

    def model(pixels):
        seen.append(pixels)
        return pixels.flatten(1)[:, :2]

    defence = as_defence(model, torch.rand(2, *SHAPE))
    base = base_classifier(defence, 0.25, "plain", 4)
    assert isinstance(base, SmoothedPlain) and (base.levels, base.passes) == (0, 1)
    base.scores(torch.tensor([-0.5, 0.25, 2, 1, 0, 0.5]).reshape(1, *SHAPE), torch.empty(1, 0, *SHAPE))
    assert seen[-1].flatten().tolist() == [0, 0.25, 1, 1, 0, 0.5]


def test_what_is_refused():
    plain = as_defence(lambda x: x.flatten(1)[:, :2], torch.rand(2, *SHAPE))
    for model, sigma, method, message in (
        (gaussian(), 2.0, "epndc", "s_tau = 4 in .* levels go from 0.1 to 4; expected sigma >= 0.05 and < 2"),
        (gaussian(), 0.01, "apndc", "s_tau = 0.02"),
        (gaussian(lm="paper-v2"), 0.25, "epndc", "without likelihood maximisation"),
        (plain, 0.25, "epndc", "expected a diffusion classifier.*Use method plain"),
        (plain, 0.25, "apndc", "expected a diffusion classifier"),
        (plain, 0.25, "smooth", "method: expected epndc, apndc, plain; got 'smooth'"),
        (gaussian(noise="fresh"), 0.25, "plain", "fixed noise"),
    ):
        with pytest.raises(ConfigError, match=message):
            base_classifier(model, sigma, method, 2)
    assert isinstance(base_classifier(gaussian(), 0.05, "epndc", 2), NoisedDiffusion)
