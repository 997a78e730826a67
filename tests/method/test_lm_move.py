"""The projection's derivative in likelihood maximisation: exact, softened, straight through; images never change."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rdc.attacks import ThreatModel, parse_attack
from rdc.attacks.transfer import transfer
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.likelihood_maximization import LM_PRESETS, LikelihoodMaximization, maximize_likelihood
from rdc.method.lm_move import SOFTENED, lm_move, lm_surrogates
from tests.tiny_models import pixels, tiny_denoiser
from tests.tolerances import FLOAT64_ORDER

SETTINGS = LikelihoodMaximization(steps=2, step_size=0.2, sign=False, normalize="mean_abs", eta=0.05)
ANCHOR = torch.tensor([[[[-0.95, -0.3, 0.0, 0.4, 0.97]]]], dtype=torch.float64)
DIRECTION = torch.tensor([[[[-1.0, 0.1, 2.0, -0.7, 0.6]]]], dtype=torch.float64)


def derivatives(softness: float, **changes: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    anchor, x = ANCHOR.clone().requires_grad_(), ANCHOR.clone().requires_grad_()
    settings = dataclasses.replace(SETTINGS, softness=softness, **changes)
    y = lm_move(anchor, x, DIRECTION, settings)
    return y.detach(), *torch.autograd.grad(y.sum(), (anchor, x), allow_unused=True)


@pytest.mark.parametrize("softness", [0.25, 1.0, math.inf])
@pytest.mark.parametrize("changes", [{}, {"eta": None}, {"clamp": False}])
def test_the_image_is_the_same_to_the_last_bit(softness: float, changes: dict) -> None:
    assert torch.equal(derivatives(softness, **changes)[0], derivatives(0.0, **changes)[0])


@pytest.mark.parametrize("softness", [0.0, 0.25, 1.0, math.inf])
def test_derivatives_are_those_of_the_formula(softness: float) -> None:
    """By hand, pixel by pixel: what the ball cut off, then what the box cut off."""
    _, of_anchor, of_x = derivatives(softness)
    for place, (a, d) in enumerate(zip(ANCHOR.flatten().tolist(), DIRECTION.flatten().tolist(), strict=True)):
        there = a + 2 * 0.2 * d
        ball = min(max(there, a - 0.1), a + 0.1)
        box = min(max(ball, -1.0), 1.0)

        def share(cut: float) -> float:
            if cut == 0:
                return 1.0
            return 0.0 if softness == 0 else math.exp(-cut / 0.1 / softness)

        first, second = share(abs(there - ball)), share(abs(ball - box))
        assert float(of_x.flatten()[place]) == pytest.approx(first * second, rel=FLOAT64_ORDER)
        assert float(of_anchor.flatten()[place]) == pytest.approx((1 - first) * second, rel=FLOAT64_ORDER)


def test_surrogates_of_likelihood_maximisation() -> None:
    assert set(lm_surrogates(SETTINGS)) == {"one-step", *SOFTENED, "straight-through", "unclipped"}
    assert set(lm_surrogates(LM_PRESETS["released"])) == {"one-step", *SOFTENED, "straight-through"}
    assert set(lm_surrogates(dataclasses.replace(SETTINGS, eta=None, clamp=False))) == {"one-step"}
    assert lm_surrogates(SETTINGS)["unclipped"].eta is None and lm_surrogates(SETTINGS)["softened"].eta == 0.05


def test_gradients_through_all_of_it_differ_and_images_do_not() -> None:
    """Where every pixel is cut off, exact gradients do not see likelihood maximisation: they are BPDA's. The others do see it."""
    denoiser, x0 = tiny_denoiser("multihead", torch.float64), 2 * pixels(2, dtype=torch.float64) - 1
    weight = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tight = dataclasses.replace(SETTINGS, eta=1e-6, clamp=False)
    found = {}
    for name, lm in {"exact": tight, **lm_surrogates(tight)}.items():
        leaf = x0.clone().requires_grad_()
        moved = maximize_likelihood(denoiser, leaf, lm)
        found[name] = moved.detach(), torch.autograd.grad((weight * moved).sum(), leaf)[0]
    exact, gradient = found["exact"]
    torch.testing.assert_close(gradient, weight, rtol=FLOAT64_ORDER, atol=FLOAT64_ORDER)  # BPDA's
    for name in (*SOFTENED, "straight-through"):
        assert torch.equal(found[name][0], exact)
    assert (found["straight-through"][1] - gradient).abs().max() > 0.01 * gradient.abs().max()
    assert not torch.equal(found["unclipped"][0], exact)


def test_an_attack_asks_for_them() -> None:
    model = DiffusionClassifier(tiny_denoiser("multihead"), "log:2:0.3:1:flat", lm=SETTINGS)
    x, labels = pixels(2), torch.tensor([0, 1])
    for name in (*SOFTENED, "straight-through", "unclipped"):
        assert parse_attack(f"transfer:surrogate={name}:steps=2") is not None
        found = transfer(
            model,
            x,
            labels,
            ThreatModel("linf", 0.1),
            surrogate=model.surrogates()[name],
            steps=2,
            seed=0,
            image_ids=[0, 1],
        )
        assert found.x_adv.shape == x.shape
    assert parse_attack("lagrange:surrogate=softened") is not None


@pytest.mark.parametrize("wrong", [-1.0, math.nan, "soft"])
def test_softness_out_of_range(wrong: object) -> None:
    with pytest.raises(ConfigError, match="softness: expected a number >= 0, or infinity"):
        dataclasses.replace(SETTINGS, softness=wrong)


def test_it_is_described_where_it_is_used_alone() -> None:
    said = {name: lm.describe().get("softness") for name, lm in lm_surrogates(SETTINGS).items()}
    assert said == {"one-step": None, **SOFTENED, "straight-through": "infinity", "unclipped": None}
    assert "softness" not in SETTINGS.describe()
