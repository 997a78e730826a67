"""Losses against their definitions; no vanishing gradients; EOT and redraw; models an attack must refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.attacks.losses import Objective, auto_logit_scale, dlr, log_odds, margin
from rdc.errors import ConfigError, InputError
from tests.tolerances import FLOAT32_NETWORK, FLOAT32_ROUNDING, FLOAT64_FORMULA, RECORDED_DIGITS

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(50, 7, generator=GENERATOR, dtype=torch.float64) * 3
LABELS = torch.randint(0, 7, (50,), generator=GENERATOR)
ONES = torch.ones(4, dtype=torch.float64)


def test_log_odds_is_cross_entropy_without_its_saturation() -> None:
    expected = torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(torch.nn.functional.softplus(log_odds(LOGITS, LABELS)), expected)
    scaled = torch.nn.functional.cross_entropy(LOGITS * 0.3, LABELS, reduction="none")
    torch.testing.assert_close(torch.nn.functional.softplus(log_odds(LOGITS, LABELS, torch.full((50,), 0.3))), scaled)


def test_gradients_of_log_odds_and_cross_entropy_are_parallel() -> None:
    a, b = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    log_odds(a, LABELS).sum().backward()
    torch.nn.functional.cross_entropy(b, LABELS, reduction="sum").backward()
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(a.grad, b.grad), torch.ones(50, dtype=torch.float64)
    )


def test_confident_logits_keep_their_gradient() -> None:
    logits = torch.tensor([[300.0, 0.0, -5.0]], requires_grad=True)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
    assert not logits.grad[0, 0].abs() > 0  # the trap: float32 cross-entropy has no gradient here
    logits.grad = None
    log_odds(logits, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0, 0.9933, 0.0067]]), atol=RECORDED_DIGITS, rtol=0)


def test_margin_and_dlr_by_loops() -> None:
    for z, y, m, d in zip(
        LOGITS.tolist(), LABELS.tolist(), margin(LOGITS, LABELS).tolist(), dlr(LOGITS, LABELS).tolist(), strict=True
    ):
        expected = max(v for k, v in enumerate(z) if k != y) - z[y]
        ranked = sorted(z, reverse=True)
        assert m == pytest.approx(expected) and d == pytest.approx(expected / (ranked[0] - ranked[2]))
        assert (m > 0) == (d > 0) == (z.index(ranked[0]) != y)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-12, 1e12), st.floats(-5, 5))
def test_shift_and_scale_change_nothing(factor: float, shift: float) -> None:
    torch.testing.assert_close(dlr(LOGITS * factor, LABELS), dlr(LOGITS, LABELS))
    z = (LOGITS + shift) * factor
    torch.testing.assert_close(
        log_odds(z, LABELS, auto_logit_scale(z)),
        log_odds(LOGITS, LABELS, auto_logit_scale(LOGITS)),
        rtol=FLOAT32_ROUNDING,
        atol=FLOAT64_FORMULA,
    )


def test_auto_scale_spreads_to_ten_and_survives_ties() -> None:
    z = LOGITS * auto_logit_scale(LOGITS)[:, None]
    others = (z.sum(1) - z.amax(1)) / 6
    torch.testing.assert_close(z.amax(1) - others, torch.full((50,), 10.0, dtype=torch.float64))
    odd = torch.tensor([[1.0, 1.0, 1.0], [0.0, -float("inf"), -1.0], [float("nan"), 0.0, 1.0]])
    assert auto_logit_scale(odd).tolist() == [1.0, 1.0, 1.0]
    assert torch.isfinite(dlr(odd[:1], torch.tensor([0]))).all()


def test_dlr_needs_three_classes_and_falls_back_to_the_margin() -> None:
    with pytest.raises(ConfigError, match="3 classes"):
        dlr(LOGITS[:, :2], LABELS.clamp(max=1))
    objective = Objective(lambda x: x.flatten(1)[:, :2], "dlr")
    objective.start(torch.rand(4, 1, 2, 2, generator=GENERATOR), torch.zeros(4, dtype=torch.int64))
    assert objective.loss == "margin"


class Drawn:
    """logits = noise[d] * (x_0, x_1) where d is the draw."""

    def __init__(self) -> None:
        self.draw, self.redraws, self.noise = 0, 0, [1.0, -3.0, 8.0]

    def redraw(self) -> None:
        self.redraws += 1
        self.draw = self.redraws % 3

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) * self.noise[self.draw]


def test_eot_averages_loss_gradient_and_logits_over_fresh_draws() -> None:
    model = Drawn()
    objective = Objective(model, "margin", eot=3, redraw=model.redraw)
    x = torch.tensor([[0.2, 0.9], [0.9, 0.2]]).view(2, 1, 1, 2)
    seen = objective.evaluate(x, torch.tensor([0, 0]), ONES[:2], gradient=True)
    assert model.redraws == 3 and objective.gradient_evaluations == 6 and objective.forward_evaluations == 0
    torch.testing.assert_close(seen.loss, torch.tensor([0.7, -0.7], dtype=torch.float64) * 2.0)  # mean of 1, -3, 8
    torch.testing.assert_close(seen.gradient.flatten(1), torch.tensor([[-2.0, 2.0], [-2.0, 2.0]], dtype=torch.float64))
    assert seen.correct.tolist() == [False, True]


def test_gradient_is_that_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 9, generator=generator, dtype=torch.float64)

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.double().flatten(1) @ weight.T)

    x, y = torch.rand(4, 1, 3, 3, generator=generator), torch.tensor([0, 1, 2, 3])
    for loss in ("ce", "dlr", "margin"):
        objective = Objective(model, loss)
        gradient = objective.evaluate(x, y, ONES, gradient=True).gradient.float()
        for pixel in range(9):
            moved = torch.zeros_like(x).view(4, 9)
            moved[:, pixel] = 1e-3
            up, down = x + moved.view_as(x), x - moved.view_as(x)
            slope = (
                objective.evaluate(up, y, ONES, gradient=False).loss
                - objective.evaluate(down, y, ONES, gradient=False).loss
            ) / 2e-3
            torch.testing.assert_close(
                gradient.flatten(1)[:, pixel], slope.float(), rtol=FLOAT32_NETWORK, atol=FLOAT32_NETWORK
            )


def test_gradient_works_inside_no_grad_and_inference_mode() -> None:
    x, y = torch.rand(4, 1, 2, 2, generator=GENERATOR), torch.tensor([0, 1, 2, 3])
    objective = Objective(lambda x: x.flatten(1) ** 2, "ce")
    plain = objective.evaluate(x, y, ONES, gradient=True).gradient
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(objective.evaluate(x.clone(), y.clone(), ONES, gradient=True).gradient, plain)


def test_bad_gradients_and_logits_are_flagged() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        flat, one = x.flatten(1), torch.tensor([0.0, 1.0])
        zero, infinite, good, nan = (
            flat[0] * 0 + one,
            (flat[1] - 0.5).sqrt() + one,
            flat[2] + one,
            flat[3] * float("nan"),
        )
        return torch.stack([zero, infinite, good, nan])

    x, y = torch.full((4, 1, 1, 2), 0.5), torch.ones(4, dtype=torch.int64)
    seen = Objective(model, "margin").evaluate(x, y, ONES, gradient=True)
    assert seen.unusable.tolist() == [True, True, False, True]
    assert seen.non_finite.tolist() == [False, False, False, True]
    assert seen.correct.tolist() == [True, True, True, False]
    assert torch.isfinite(seen.gradient).all() and seen.loss[3] == -float("inf")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda x: x.detach().flatten(1), "differentiably"),
        (lambda x: torch.zeros(len(x), 3, requires_grad=True), "differentiably"),
        (lambda x: x.flatten(1)[:, 0], r"expected logits \[4, K\]"),
        (lambda x: x.flatten(1)[:, :1], "K >= 2"),
        (lambda x: x.flatten(1)[:2], "expected logits"),
        (lambda x: (x, x), "tuple"),
        (lambda x: x.flatten(1).long(), "floating"),
    ],
)
def test_models_refused(model, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Objective(model, "ce").evaluate(torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64), ONES, gradient=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "l2"},
        {"loss": "ce", "logit_scale": 0.0},
        {"loss": "ce", "logit_scale": "mean"},
        {"loss": "ce", "logit_scale": float("nan")},
    ],
)
def test_settings_refused(settings: dict) -> None:
    with pytest.raises(ConfigError):
        Objective(lambda x: x, **settings)


@pytest.mark.parametrize("eot", [0, -1, 1.5, True])
def test_eot_refused(eot: object) -> None:
    with pytest.raises(InputError, match="eot"):
        Objective(lambda x: x, "ce", eot=eot)  # type: ignore[arg-type]
