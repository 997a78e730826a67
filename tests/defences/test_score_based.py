"""SBGC: the right posterior on Gaussian classes, gradients of both kinds, memory budgets, its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rdc
from rdc.defences import ScoreBasedClassifier
from rdc.errors import ConfigError, RdcError
from rdc.method.probability_flow import EXACT, FlowSettings
from tests.evaluation_models import gaussian_classifier, images
from tests.oracles import gaussian_log_posterior
from tests.tiny_models import pixels, tiny_denoiser
from tests.tolerances import LIKELIHOOD_FEW_STEPS, PROBABILITIES

SHORT = FlowSettings(steps=2, solver="heun", sigma_min=0.3, sigma_max=3.0)


def tiny(**settings):
    return ScoreBasedClassifier(tiny_denoiser(dtype=torch.float64), **{"flow": SHORT, **settings})


def gradient(model, x):
    leaf = x.clone().requires_grad_()
    weights = torch.randn(len(x), model.num_classes, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    return torch.autograd.grad((model(leaf) * weights).sum(), leaf)[0]


def test_the_posterior_of_gaussian_classes():
    denoiser = gaussian_classifier().denoiser.double()
    flow = FlowSettings(steps=8, sigma_min=0.01, sigma_max=2000.0)
    x = images(3).double() / 255
    found = ScoreBasedClassifier(denoiser, flow)(x)
    true = gaussian_log_posterior((2 * x - 1).numpy(), denoiser.network.means.detach().numpy(), 0.2 + 0.01**2)
    assert np.abs(found.numpy() - true).max() < LIKELIHOOD_FEW_STEPS * np.abs(true).max()


def test_a_prior_is_added():
    model, prior = tiny(), [0.2, 0.3, 0.5]
    x = pixels(2, dtype=torch.float64)
    expected = torch.log_softmax(model.log_likelihoods(x) + torch.tensor(prior).log(), 1)
    assert torch.allclose(model.with_(class_prior=prior)(x), expected, atol=PROBABILITIES)


def test_the_checkpointed_gradient_is_that_of_what_is_computed():
    x = pixels(1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(tiny(), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(tiny(flow=FlowSettings(1, 1, 0.3, 3.0, 3.0, "heun")), x, fast_mode=True)


def test_the_adjoint_is_that_of_the_solution_and_wrong_by_the_step():
    x, errors = pixels(1, dtype=torch.float64), []
    for steps in (1, 4):
        flow = FlowSettings(steps=steps, sigma_min=0.3, sigma_max=3.0)
        exact, adjoint = (gradient(tiny(flow=flow, solver_gradient=how), x) for how in ("checkpoint", "adjoint"))
        errors.append(((exact - adjoint).norm() / exact.norm()).item())
    assert errors[0] > 10 * errors[1] and errors[1] < 0.02


def test_budgets_change_nothing_but_rounding():
    x = pixels(2, dtype=torch.float64)
    with pytest.warns(UserWarning, match="do not hold one class of one image"):
        small = tiny(memory_budget_mb=0.01)
        logits, grad = small(x), gradient(small, x)
    assert torch.allclose(logits, tiny()(x)) and torch.allclose(grad, gradient(tiny(), x))


def test_only_classes_that_carry_gradient_are_taken_again():
    model, rows = tiny(), []
    plain = model.denoiser.f
    model.denoiser.f = lambda x, sigma, labels: rows.append(labels.tolist()) or plain(x, sigma, labels)
    leaf = pixels(2, dtype=torch.float64).requires_grad_()
    found = model.log_likelihoods(leaf)
    rows.clear()
    torch.autograd.grad(found[0, 1] + found[1, 2], leaf)
    assert all(labels == [1, 2] for labels in rows) and len(rows) == 2 * SHORT.evaluations  # steps, and steps rebuilt


def test_exact_divergence_draws_nothing():
    model = tiny(flow=FlowSettings(1, EXACT, 0.3, 3.0, 3.0, "heun"))
    assert not model.stochastic and model.describe()["noise"] == "none" and model.surrogates() == {}


def test_the_name():
    model = rdc.load("sbgc:fashion-mnist-teacher,steps=2,probes=3,sigma_min=0.1,gradient=adjoint", noise_seed=4)
    assert isinstance(model, ScoreBasedClassifier) and model.class_names[0] == "T-shirt/top" and model.noise_seed == 4
    assert (model.flow.steps, model.flow.probes, model.flow.sigma_min) == (2, 3, 0.1)
    assert model.solver_gradient == "adjoint" and model.describe()["flow"]["gradient"] == "adjoint"
    assert model.evaluations_per_image == 10 * 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sbgc:nothing", "nothing"), ("sbgc:fashion-mnist-standard", "diffusion model"), ("sbgc:fashion-mnist,steps=0", "steps"),
        ("sbgc:fashion-mnist,steps=x", "steps"), ("sbgc:fashion-mnist,colour=red", "colour"),
        ("sbgc:fashion-mnist,gradient=none", "gradient"), ("sbgc:fashion-mnist,solver=euler", "solver"),
    ],
)  # fmt: skip
def test_wrong_names(name, words):
    with pytest.raises(RdcError, match=words):
        rdc.load(name)


def test_wrong_settings():
    with pytest.raises(ConfigError, match="lm"):
        rdc.load("sbgc:fashion-mnist", lm="paper-v2")
    with pytest.raises(ConfigError, match="denoiser"):
        ScoreBasedClassifier(torch.nn.Flatten())
    with pytest.raises(ConfigError, match="flow"):
        tiny(flow=3)
    with pytest.raises(ConfigError, match="class_prior"):
        tiny(class_prior=[1, 2])
