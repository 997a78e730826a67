"""Exact likelihoods and ELBOs against closed forms: Gaussian classes, and a linear network that is nobody's score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rdc.errors import ConfigError
from rdc.method.denoiser import ConditionalDenoiser
from rdc.method.likelihood import (
    PROBE_STREAM,
    LikelihoodSettings,
    bits_per_dimension,
    dequantised,
    elbo,
    flow_log_density,
    log_likelihood,
)
from rdc.method.noise import NoisePlan
from rdc.method.probability_flow import EXACT, FlowSettings, follow, rademacher
from tests.oracles import (
    GaussianNetwork,
    LinearNetwork,
    gaussian_log_density,
    linear_elbo,
    linear_log_likelihood,
)
from tests.tiny_models import pixels, tiny_denoiser
from tests.tolerances import FLOAT32_NETWORK, FLOAT32_ROUNDING, FLOAT64_FORMULA, LIKELIHOOD, LIKELIHOOD_GRADIENT

SHAPE, LOW, HIGH, VARIANCE = (1, 2, 4), 0.01, 3000.0, 0.1
GENERATOR = torch.Generator().manual_seed(0)
MEANS = 0.6 * torch.randn(3, *SHAPE, generator=GENERATOR, dtype=torch.float64)
X = 0.6 * torch.randn(4, *SHAPE, generator=GENERATOR, dtype=torch.float64)
TENTH_OF_A_PERCENT = 1e-3


def gaussian():
    return ConditionalDenoiser(GaussianNetwork(MEANS, VARIANCE).double(), 3, SHAPE).requires_grad_(False)


def linear(alpha):
    return ConditionalDenoiser(LinearNetwork(alpha), 2, SHAPE).requires_grad_(False)


def settings(levels=32, **flow):
    return LikelihoodSettings(
        FlowSettings(**{"steps": 10, "probes": EXACT, "sigma_min": LOW, "sigma_max": HIGH, **flow}), levels
    )


def closed_form(low=LOW):
    return torch.from_numpy(np.stack([gaussian_log_density(X.numpy(), m, VARIANCE, low) for m in MEANS.numpy()], 1))


# --- against closed forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [LOW, 0.3])
def test_ode_on_gaussian_classes(low):
    found, true = log_likelihood(gaussian(), X, settings(sigma_min=low), range(4)), closed_form(low)
    assert found.shape == (4, 3) and (found - true).abs().max() <= TENTH_OF_A_PERCENT * true.abs().min()


@pytest.mark.parametrize("low", [LOW, 0.3])
def test_elbo_on_gaussian_classes_is_the_log_likelihood(low):
    found, true = elbo(gaussian(), X, settings(64, sigma_min=low), range(4)), closed_form(low)
    assert (found - true).abs().max() <= TENTH_OF_A_PERCENT * true.abs().min()  # one draw: lengths are fixed


@pytest.mark.parametrize("alpha", [-0.4, 0.3])
def test_both_where_they_differ(alpha):
    exact = log_likelihood(linear(alpha), X, settings(sigma_max=80.0), range(4))
    bound = elbo(linear(alpha), X, settings(64, sigma_max=80.0), range(4))
    true, below = (f(X.numpy(), alpha, LOW, 80.0) for f in (linear_log_likelihood, linear_elbo))
    assert (
        np.abs(exact[:, 1].numpy() / true - 1).max() < LIKELIHOOD
        and np.abs(bound[:, 1].numpy() / below - 1).max() < LIKELIHOOD
    )
    assert np.abs(true - below).min() > 0.1  # nats: the gap is there to be found
    assert torch.equal(exact[:, 0], exact[:, 1])


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("rk4", 4)])
def test_order_of_the_solvers(solver, order):
    true = torch.from_numpy(linear_log_likelihood(X.numpy(), 0.9, LOW, 80.0))
    errors = [
        (log_likelihood(linear(0.9), X, settings(steps=n, solver=solver, sigma_max=80.0), range(4))[:, 0] - true)
        .abs()
        .max()
        for n in (8, 16)
    ]
    assert 2 ** (order - 0.5) < errors[0] / errors[1] < 2 ** (order + 0.7)


def test_the_error_of_the_prior_is_as_stated():
    """|mean| / b standard deviations: with a small b the mean of a class is missing in the prior."""
    errors = [
        (log_likelihood(gaussian(), X, settings(steps=20, probes=1, sigma_max=high), range(4)) - closed_form())
        .abs()
        .max()
        for high in (20.0, 200.0)
    ]
    assert 5 < errors[0] / errors[1] < 20
    assert errors[0] < 4 * math.sqrt(8) * MEANS.flatten(1).norm(dim=1).max() / 20


# --- Hutchinson -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hutchinson_is_within_its_standard_error():
    denoiser, x = tiny_denoiser(dtype=torch.float64).requires_grad_(False), 2 * pixels(1, dtype=torch.float64) - 1
    one = FlowSettings(steps=1, solver="heun", sigma_min=0.2, sigma_max=2.0)
    label = torch.zeros(1, dtype=torch.long)
    _, exact = follow(denoiser, x, label, one, None)
    signs = rademacher(NoisePlan(3), 0, 100, denoiser.image_shape).double()
    _, each = follow(denoiser, x.expand(100, -1, -1, -1), label.expand(100), one, signs[:, None])
    error = each.std() / 10
    assert abs(each.mean() - exact) < 3.5 * error and error > 1e-3 * exact.abs()
    _, together = follow(denoiser, x, label, one, signs)
    assert torch.allclose(together, each.mean(), rtol=FLOAT64_FORMULA)


def test_signs_are_counter_based():
    plan = NoisePlan(5, stream=PROBE_STREAM)
    found = rademacher(plan, 2, 3, SHAPE)
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(rademacher(plan, 2, 5, SHAPE)[:3], found)
    assert not torch.equal(rademacher(plan, 3, 3, SHAPE), found)


def test_exact_divergence_is_the_limit_of_many_signs_on_a_diagonal_jacobian():
    one = settings(probes=1)
    assert torch.allclose(
        log_likelihood(gaussian(), X, one, range(4)), log_likelihood(gaussian(), X, settings(), range(4))
    )


# --- batches, draws, gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [log_likelihood, elbo])
def test_batches_and_budgets_change_nothing_but_rounding(function):
    denoiser, x = tiny_denoiser().requires_grad_(False), 2 * pixels(3) - 1
    how = LikelihoodSettings(FlowSettings(steps=1, sigma_min=0.1), levels=2)
    whole = function(denoiser, x, how, [7, 8, 9])
    alone = function(denoiser, x[1:2], how, [8], memory_budget_mb=1.0)
    assert torch.allclose(whole[1:2], alone, rtol=FLOAT32_NETWORK)
    assert not torch.allclose(whole[1:2], function(denoiser, x[1:2], how, [7]), rtol=FLOAT32_ROUNDING)
    assert not whole.requires_grad and torch.equal(function(denoiser, x, how, [7, 8, 9]), whole)


def test_gradient_of_the_log_density():
    x, label = X[:2].clone().requires_grad_(), torch.tensor([0, 2])
    signs = torch.ones(1, *SHAPE)  # exact: the Jacobian is diagonal
    found = flow_log_density(gaussian(), x, label, settings(steps=6).flow, signs)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert torch.allclose(grad, (MEANS[label] - X[:2]) / (VARIANCE + LOW**2), rtol=LIKELIHOOD_GRADIENT)


# --- units --------------------------------------------------------------------------------------------------------------


def test_bits_per_dimension():
    uniform = torch.tensor(-SHAPE[1] * SHAPE[2] * math.log(2))  # density 1/2 on [-1, 1]: eight bits for every pixel
    assert torch.isclose(bits_per_dimension(uniform, 8), torch.tensor(8.0))


def test_dequantisation():
    images = torch.tensor([0, 255, 127, 128], dtype=torch.uint8).view(1, 1, 2, 2).repeat(500, 1, 1, 1)
    x = dequantised(images, 0, range(500))
    grey = (x + 1) * 128 - images
    assert (grey >= 0).all() and (grey <= 1).all() and abs(grey.mean() - 0.5) < 0.02
    assert torch.equal(dequantised(images[:1], 0, [3]), x[3:4]) and not torch.equal(
        dequantised(images[:1], 1, [3]), x[3:4]
    )
    with pytest.raises(ConfigError, match="uint8"):
        dequantised(images.float(), 0, range(500))


# --- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps"), ({"steps": 1.5}, "steps"), ({"probes": 0}, "probes"), ({"probes": "many"}, "probes"),
        ({"sigma_min": 0.0}, "sigma"), ({"sigma_min": 90.0}, "sigma"), ({"sigma_max": math.inf}, "sigma"),
        ({"rho": 0}, "rho"), ({"solver": "euler"}, "solver"), ({"solver": 4}, "solver"),
    ],
)  # fmt: skip
def test_other_settings_are_refused(changes, words):
    with pytest.raises(ConfigError, match=f"^{words}: expected"):
        FlowSettings(**changes)


@pytest.mark.parametrize("changes", [{"levels": 0}, {"levels": 10**9}, {"seed": "x"}, {"flow": 3}])
def test_other_likelihood_settings_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        LikelihoodSettings(**changes)


def test_settings_are_plain_json():
    assert FlowSettings(steps=np.int64(3), probes=np.int32(2), sigma_min=np.float32(0.5)).describe() == {
        "steps": 3, "probes": 2, "sigma_min": 0.5, "sigma_max": 80.0, "rho": 3.0, "solver": "rk4",
    }  # fmt: skip
    assert FlowSettings(steps=3).evaluations == 12 and FlowSettings(steps=3, solver="heun").evaluations == 6
