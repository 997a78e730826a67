"""Variance-preserving models behind the EDM interface, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rdc.errors import InputError
from rdc.method.denoiser import ConditionalDenoiser
from rdc.method.preconditioning import Preconditioning
from rdc.networks.vp import VPNetwork, vp_sigmas
from tests.networks.formula import noise_like
from tests.tolerances import FLOAT64_OP, FLOAT64_ORDER, RECORDED_SCHEDULE

SIGMAS = vp_sigmas({})
MEANS = torch.tensor([-0.4, 0.1, 0.7], dtype=torch.float64)
SPREAD = 0.3


class GaussianVP(nn.Module):
    """The exact VP model of classes ``N(mean_y, SPREAD^2 I)``, written in VP terms (abar, x_vp), not in sigma."""

    def __init__(self, prediction: str) -> None:
        super().__init__()
        self.prediction, self.seen = prediction, None
        abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
        self.abar = abar

    def forward(self, x_vp, step, class_weights):
        self.seen = (x_vp, step, class_weights)
        abar = self.abar[step].reshape(-1, 1, 1, 1)
        mean = (class_weights.double() @ MEANS).reshape(-1, 1, 1, 1)
        gain = abar.sqrt() * SPREAD**2 / (abar * SPREAD**2 + 1 - abar)
        x0 = mean + gain * (x_vp.double() - abar.sqrt() * mean)  # E[x0 | x_vp]
        eps = (x_vp - abar.sqrt() * x0) / (1 - abar).sqrt()
        return {"sample": x0, "epsilon": eps, "v_prediction": abar.sqrt() * eps - (1 - abar).sqrt() * x0}[
            self.prediction
        ]


def network(prediction: str = "epsilon", null_label=None, classes: int = 3) -> VPNetwork:
    net = VPNetwork(GaussianVP(prediction), SIGMAS, prediction, classes, null_label)
    net.log_sigmas = SIGMAS.log()
    return net


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_closed_form_denoiser(prediction):
    """At the model's own noise levels D is the posterior mean of a Gaussian, for every class."""
    sigma = SIGMAS[[0, 100, 400, 999]]
    labels = torch.tensor([0, 1, 2, 1])
    x_t = sigma.reshape(-1, 1, 1, 1) * noise_like("n", (4, 1, 5, 5)) + MEANS[labels].reshape(-1, 1, 1, 1)
    found = ConditionalDenoiser(network(prediction), 3, (1, 5, 5)).denoise(x_t, sigma, labels)
    s2, mean = sigma.reshape(-1, 1, 1, 1) ** 2, MEANS[labels].reshape(-1, 1, 1, 1)
    expected = (SPREAD**2 * x_t + s2 * mean) / (SPREAD**2 + s2)
    assert (found - expected).abs().max() < FLOAT64_OP * sigma.max() ** 2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_f_is_the_definition(prediction):
    """F = (D - c_skip x_t) / c_out between the model's levels too, with D from the model's raw answer."""
    net, precondition = network(prediction), Preconditioning(0.5)
    sigma = torch.tensor([0.02, 0.5, 3.3, 40.0], dtype=torch.float64)
    s, x_t = sigma.reshape(-1, 1, 1, 1), noise_like("x", (4, 1, 5, 5))
    onehot = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    f = net(precondition.c_in(s) * x_t, precondition.c_noise(sigma), onehot)
    x_vp, step, weights = net.unet.seen
    assert torch.allclose(x_vp, x_t / (1 + s**2).sqrt())  # x_t = x_vp / sqrt(abar), abar = 1 / (1 + s^2)
    out = net.unet(x_vp, step, weights)
    abar = 1 / (1 + s**2)
    d = {"epsilon": x_t - s * out, "sample": out, "v_prediction": abar.sqrt() * x_vp - (1 - abar).sqrt() * out}[
        prediction
    ]
    assert torch.allclose(
        f, (d - precondition.c_skip(s) * x_t) / precondition.c_out(s), rtol=FLOAT64_ORDER, atol=FLOAT64_ORDER
    )


def test_nearest_step_in_log_sigma():
    net = network()
    assert net.step(SIGMAS.log() / 4).tolist() == list(range(1000))
    assert net.step(torch.tensor([1e-9, 1e9]).log() / 4).tolist() == [0, 999]
    between = SIGMAS[300].log() * 0.51 + SIGMAS[301].log() * 0.49
    assert net.step(between[None] / 4).item() == 300
    between = SIGMAS[300].log() * 0.49 + SIGMAS[301].log() * 0.51
    assert net.step(between[None] / 4).item() == 301


def test_null_label():
    x, onehot = torch.zeros(3, 1, 2, 2, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    onehot[2] = 0
    with pytest.raises(InputError, match="no null label"):
        network().class_weights(x, onehot)
    with pytest.raises(InputError, match="no null label"):
        network().class_weights(x, None)
    assert torch.equal(network().class_weights(x, torch.eye(3)), torch.eye(3))
    mean = network(null_label="mean").class_weights(x, onehot)
    assert torch.allclose(mean[2], torch.full((3,), 1 / 3, dtype=torch.float64)) and torch.equal(mean[:2], onehot[:2])
    first = network(null_label=0).class_weights(x, onehot)
    assert first.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    last = network(null_label=3).class_weights(x, onehot)
    assert last.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_learned_variance_is_left_out():
    net = VPNetwork(lambda x, t, w: torch.cat([x, x + 100], dim=1), SIGMAS, "epsilon", 3)
    x, onehot = noise_like("x", (2, 3, 4, 4)), torch.eye(3, dtype=torch.float64)[:2]
    plain = VPNetwork(lambda x, t, w: x, SIGMAS, "epsilon", 3)
    at = torch.tensor([-0.5, 0.1], dtype=torch.float64)
    assert torch.equal(net(x, at, onehot), plain(x, at, onehot))


#: sigma of the first, a middle and the last step as diffusers' DDPMScheduler 0.42.1 has them (betas in float32 there)
@pytest.mark.parametrize(
    ("schedule", "recorded"),
    [
        ({}, [0.0100013, 3.44297, 157.407]),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, [0.0291675, 1.61828, 14.6146]),
        ({"beta_schedule": "squaredcos_cap_v2"}, [0.00642711, 1.01555, 20291.3]),
        ({"beta_schedule": "sigmoid"}, [0.0122153, 1.53158, 158.743]),
        ({"rescale_betas_zero_snr": True}, [0.0100013, 3.4861, 15406]),
        ({"num_train_timesteps": 200, "beta_end": 0.05}, [0.0100013, 1.61958, 12.7415]),
        ({"trained_betas": [0.1, 0.2, 0.3]}, [0.333333, 0.62361, 0.992032]),
    ],
)
def test_schedules(schedule, recorded):
    sigmas = vp_sigmas(schedule)
    found = sigmas[[0, len(sigmas) // 2, len(sigmas) - 1]]
    assert ((found / torch.tensor(recorded, dtype=torch.float64)) - 1).abs().max() < RECORDED_SCHEDULE
    assert (sigmas.diff() > 0).all()


@pytest.mark.parametrize(
    "schedule",
    [
        {"beta_schedule": "laplace"},
        {"trained_betas": [0.1, 1.5]},
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": "many"},
        {"beta_start": -1.0},
        {"beta_end": 1.0},
        {"beta_end": "0.02"},
        {"beta_start": float("nan")},
        {"trained_betas": [0.1] * 100_001},
        {"trained_betas": "0.1 0.2"},
        {"trained_betas": [[0.1, 0.2]]},
        {"trained_betas": [0.1]},
        {"trained_betas": [0.1, None]},
        {"trained_betas": [0.999] * 50},  # sigma beyond 1e9
        {"trained_betas": [1e-18, 0.1]},  # sigma 0
        {"trained_betas": [0.9] * 2000},  # abar is zero in float64
        {"beta_schedule": ["linear"]},
    ],
)
def test_bad_schedule(schedule):
    with pytest.raises(ValueError, match="expected"):
        vp_sigmas(schedule)
