"""Smoothed APGD: the average it steps along, a ripple that stops plain APGD and not this, budgets, batches, options."""

from __future__ import annotations

import pytest
import torch

from rdc.attacks import ThreatModel, apgd
from rdc.attacks.registry import parse_attack, suite
from rdc.attacks.smoothed import smoothed
from rdc.errors import ConfigError, InputError
from rdc.norm_balls import check_budget
from tests.tolerances import CUBE_MEAN, FLOAT32_ROUNDING


class Rippled:
    """Linear, with a ripple whose slope is eight times steeper, and small beside what the budget can win."""

    def __init__(self, size: int = 6, offset: float = 0.75) -> None:
        self.offset = offset
        self.weight = torch.sign(torch.randn(1, size, size, generator=torch.Generator().manual_seed(0)))
        self.pace = 1000.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        line = (self.weight * (x - 0.5)).flatten(1).sum(1)
        ripple = (torch.sin(self.pace * x) * 8 / self.pace).flatten(1).sum(1)
        margin = line + ripple - self.offset
        return torch.stack([-margin, margin], dim=1)


def images(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((count, 1, 6, 6), 0.5), torch.zeros(count, dtype=torch.int64)


def test_a_ripple_misleads_apgd_and_not_the_average() -> None:
    """As many gradients for both. (In l_2, where steps keep the gradient's proportions, plain APGD copes.)"""
    model, (x, y), threat = Rippled(offset=5), images(), ThreatModel("linf", 0.04)  # out of reach: nobody leaves early
    common = {"seed": 0, "image_ids": range(3), "loss": "margin"}
    plain = apgd(model, x, y, threat, steps=160, **common)
    found = smoothed(model, x, y, threat, steps=40, **common)
    won, usual = found.best_loss + 10, plain.best_loss + 10
    assert (won > 1.25 * usual).all() and won.mean() > 1.8 * usual.mean(), (won, usual)
    assert found.name == "smoothed-margin" and found.gradient_evaluations == plain.gradient_evaluations


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.2), ("l1", 2.0)])
def test_budgets_hold_and_the_model_itself_decides(norm: str, eps: float) -> None:
    model, (x, y) = Rippled(), images()
    found = smoothed(model, x, y, ThreatModel(norm, eps), steps=5, samples=3, seed=0, image_ids=range(3))
    check_budget(found.x_adv, x, eps, norm)
    assert (model(found.x_adv).argmax(1) == y).tolist() == found.correct.tolist()


def test_one_sample_is_apgd() -> None:
    model, (x, y), threat = Rippled(), images(), ThreatModel("linf", 0.02)
    common = {"seed": 3, "image_ids": range(3), "steps": 10}
    assert torch.equal(
        smoothed(model, x, y, threat, samples=1, **common).x_adv, apgd(model, x, y, threat, **common).x_adv
    )


def test_an_images_result_does_not_depend_on_the_batch() -> None:
    model, (x, y), threat = Rippled(), images(4), ThreatModel("linf", 0.02)
    common = {"steps": 6, "samples": 3, "seed": 1, "restarts": 2}
    together = smoothed(model, x, y, threat, image_ids=[7, 3, 9, 4], **common)
    alone = smoothed(model, x[2:3], y[2:3], threat, image_ids=[9], **common)
    assert torch.equal(together.x_adv[2], alone.x_adv[0])
    assert not torch.equal(together.x_adv[0], together.x_adv[2])


def test_the_gradient_is_the_mean_over_the_neighbourhood() -> None:
    """Of a quadratic, the mean gradient of points around x tends to the gradient at x."""
    seen: list[torch.Tensor] = []

    def quadratic(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        value = 0.5 * (x - 0.2).square().flatten(1).sum(1)
        return torch.stack([100 - value, value - 100], dim=1)

    x, y = images(1)
    smoothed(quadratic, x, y, ThreatModel("linf", 0.1), steps=1, samples=64, reach=0.5, seed=0, image_ids=[0])
    near = torch.cat([point for point in seen if point.shape == x.shape])
    start = near[1]  # the first evaluation is of the clean image
    around = near[2:65] - start
    assert around.abs().max() <= 0.05 + FLOAT32_ROUNDING and around.abs().max() > 0.045
    assert around.mean().abs() < CUBE_MEAN


def test_in_lists_of_attacks() -> None:
    spec = parse_attack("smoothed:samples=8:reach=0.5:steps=20")
    assert dict(spec.options) == {"samples": 8, "reach": 0.5, "steps": 20}
    assert "smoothed" in suite("adaptive", "linf")


def test_refusals() -> None:
    x, y = images(1)
    with pytest.raises(InputError, match="samples must be an integer >= 1"):
        smoothed(Rippled(), x, y, ThreatModel("linf", 0.1), seed=0, image_ids=[0], samples=0)
    with pytest.raises(ConfigError, match="reach must be a number > 0"):
        smoothed(Rippled(), x, y, ThreatModel("linf", 0.1), seed=0, image_ids=[0], reach=0)
