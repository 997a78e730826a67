"""StAdv: the warp against grid_sample and finite differences, exact budgets, a model that only sees positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rdc.attacks.stadv import FlowThreat, StAdvOptions, _flow, _FlowObjective, check_flow, flow_penalty, stadv, warp
from rdc.attacks.threat_model import ThreatModel
from rdc.errors import ConfigError, InputError, RdcError
from tests.tolerances import FLOAT32_GRADIENT, FLOAT32_ROUNDING, FLOAT64_ORDER

SIZE = 16
BOUND = 0.1  # 0.8 pixels of 16


def bars(count: int) -> torch.Tensor:
    """A soft vertical bar at columns 6 .. 9, a little brighter from image to image."""
    row = torch.zeros(SIZE)
    row[5:11] = torch.tensor([0.4, 0.8, 0.9, 0.9, 0.8, 0.4])
    return torch.stack([(row * (0.9 + 0.02 * k)).expand(1, SIZE, SIZE) for k in range(count)]).contiguous()


class Position:
    """Class 0 while the bar's centre of mass is less than ``shift`` pixels right of where it was; logits times scale."""

    def __init__(self, shift: float, scale: float = 1.0) -> None:
        self.shift, self.scale, self.batches = shift, scale, []
        self.ramp = torch.arange(SIZE, dtype=torch.float32) - 7.5

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append((len(x), x.requires_grad))
        centre = torch.stack([(image * self.ramp).sum() / image.sum() for image in x])
        return torch.stack([self.shift - centre, centre - self.shift, -9.0 + 0 * centre], dim=1) * self.scale


def labels(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def test_warp_is_grid_sample_with_border_padding_and_corners_not_aligned() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 7, 9, generator=generator, dtype=torch.float64)
    flow = torch.rand(2, 2, 7, 9, generator=generator, dtype=torch.float64) - 0.5  # beyond the border too
    grid = torch.nn.functional.affine_grid(
        torch.eye(2, 3, dtype=torch.float64).repeat(2, 1, 1), [2, 3, 7, 9], align_corners=False
    )
    expected = torch.nn.functional.grid_sample(
        x, grid + flow.permute(0, 2, 3, 1), "bilinear", padding_mode="border", align_corners=False
    )
    assert torch.allclose(warp(x, flow), expected, rtol=0, atol=FLOAT64_ORDER)


def test_warp_by_whole_pixels_copies_bits() -> None:
    x = torch.rand(1, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(warp(x, torch.zeros(1, 2, 4, 8)), x)
    one = torch.zeros(1, 2, 4, 8)
    one[:, 0] = 2 / 8  # one pixel of 8: the value to the right, the last one from the border
    assert torch.equal(warp(x, one), x[..., [1, 2, 3, 4, 5, 6, 7, 7]])
    one = torch.zeros(1, 2, 4, 8)
    one[:, 1] = -2 / 4
    assert torch.equal(warp(x, one), x[:, :, [0, 0, 1, 2]])
    assert torch.equal(warp(x[:, :, :1, :1], torch.full((1, 2, 1, 1), 0.7)), x[:, :, :1, :1])


def test_gradients_of_warp_and_penalty() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 0.1 + 0.8 * torch.rand(2, 2, 4, 5, generator=generator, dtype=torch.float64)
    flow = 0.3 * torch.rand(2, 2, 4, 5, generator=generator, dtype=torch.float64) + 0.01
    flow.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: warp(x, f), flow)
    assert torch.autograd.gradcheck(flow_penalty, flow)
    zero = torch.zeros(1, 2, 3, 3, requires_grad=True)
    assert torch.autograd.grad(flow_penalty(zero).sum(), zero)[0].abs().sum() == 0  # no NaN from the square root


def test_flow_penalty_is_the_papers_sum() -> None:
    flow = np.random.Generator(np.random.Philox(key=1)).random((1, 2, 3, 4))
    total = 0.0
    for i in range(3):
        for j in range(4):
            for di, dj in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                if 0 <= i + di < 3 and 0 <= j + dj < 4:
                    total += math.dist(flow[0, :, i, j], flow[0, :, i + di, j + dj])
    assert float(flow_penalty(torch.from_numpy(flow))) == pytest.approx(total)


def test_translation_within_the_bound_is_found_and_the_budget_is_exact() -> None:
    x = bars(4)
    model = Position(shift=0.6)
    result = stadv(model, x, labels(4), bound=BOUND, seed=0, image_ids=range(4), steps=30)
    assert result.accuracy == 0.0 and (model(result.x_adv).argmax(1) == 1).all()
    assert result.threat == FlowThreat(BOUND) and result.threat.norm == "flow" and result.threat.eps == BOUND
    assert torch.equal(result.x_adv, warp(x, result.flow))
    assert (result.flow.double().abs() <= BOUND).all() and result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert torch.allclose(result.flow_penalty, flow_penalty(result.flow)) and (result.flow_penalty > 0).all()
    assert result.name == "stadv-ce" and result.clean_correct.all() and result.verify_mismatches == 0
    assert (result.broken_at > 0).all()  # restart 0 starts from the zero flow: the clean image


def test_beyond_the_bound_it_holds_and_the_whole_bound_is_used() -> None:
    """The bar's edges may move 0.8 pixels each; a centre 1.5 pixels away stays out of reach."""
    x = bars(2)
    result = stadv(Position(shift=1.5), x, labels(2), bound=BOUND, seed=0, image_ids=range(2), steps=30, restarts=2)
    assert result.accuracy == 1.0
    largest = result.flow.double().abs().amax((1, 2, 3))
    assert (largest <= BOUND).all() and (largest > BOUND * (1 - FLOAT32_ROUNDING)).all()


def test_logit_scale_does_not_matter() -> None:
    """Unscaled, logits 1e-4 apart would leave nothing but the smoothness term, and the flow at zero."""
    x = bars(2)
    common = {"bound": BOUND, "seed": 0, "image_ids": range(2), "steps": 10}
    results = [stadv(Position(0.6, scale), x, labels(2), **common) for scale in (2.0**-13, 1.0, 2.0**13)]
    assert all(result.accuracy == 0.0 for result in results)
    assert all(torch.equal(result.flow, results[0].flow) for result in results)
    for loss in ("margin", "dlr"):
        results = [stadv(Position(0.6, scale), x, labels(2), loss=loss, **common) for scale in (2.0**-13, 2.0**13)]
        assert torch.equal(results[0].flow, results[1].flow) and results[0].accuracy == 0.0
    unscaled = stadv(Position(0.6, 2.0**-13), x, labels(2), logit_scale=1.0, **{**common, "steps": 30}, tau=0.5)
    assert unscaled.accuracy == 1.0


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_gradient_is_that_of_the_penalised_loss(loss: str) -> None:
    """Central differences in u of L - tau TV, in units of rescaled logits, at a smooth model."""
    weight = torch.randn(4, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))

    def model(x: torch.Tensor) -> torch.Tensor:
        return 1e-3 * (x.double().flatten(1) @ weight.T)

    y, bound = model(x).argmax(1), 0.2
    objective = _FlowObjective(model, x, bound, StAdvOptions(seed=0, image_ids=[0, 1], tau=0.05, loss=loss))
    place = objective.start(torch.full((2, 2, 6, 6), 0.5), y)[2]
    u = 0.55 + 0.2 * torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(2))  # no kink: within one pixel
    found = objective.evaluate(u, y, place, gradient=True)
    unit = {"ce": 1.0, "margin": place[:, 0], "dlr": 10.0}[loss]
    assert torch.allclose(found.loss - found.ascent, 0.05 / unit * flow_penalty(_flow(u, bound)))
    numeric = torch.zeros(2, 72, dtype=torch.float64)
    for entry in range(72):
        step = torch.zeros(72)
        step[entry] = 2.0**-10
        ahead, behind = (objective.evaluate(u + s * step.view(2, 6, 6), y, place, gradient=False) for s in (1, -1))
        numeric[:, entry] = (ahead.ascent - behind.ascent) / 2.0**-9
    cosine = torch.nn.functional.cosine_similarity(numeric, found.gradient.flatten(1))
    assert (cosine > 0.9999).all()
    assert torch.allclose(numeric.norm(dim=1), found.gradient.flatten(1).norm(dim=1), rtol=FLOAT32_GRADIENT)


def test_later_restarts_start_from_smooth_random_flows() -> None:
    seen = []

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach().clone())
        return torch.stack([9 + x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], dim=1)

    x = bars(1)
    stadv(model, x, labels(1), bound=BOUND, seed=0, image_ids=[4], steps=3, restarts=3, verify=False)
    assert len(seen) == 1 + 3 * 4
    assert all(torch.equal(seen[1 + 4 * restart], x) for restart in range(3))
    starts = [seen[2 + 4 * restart] for restart in (1, 2)]
    assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], x)
    again = len(seen)
    stadv(model, bars(3)[:1], labels(1), bound=BOUND, seed=0, image_ids=[5], steps=3, restarts=2, verify=False)
    assert not torch.equal(seen[again + 6], starts[0])  # another image id, another start


def test_the_batch_does_not_matter_and_runs_repeat(models) -> None:
    model = models.random_linear(4, 36, scale=0.3)
    x = models.random_images(5)
    y = model(x).argmax(1)
    common = {"bound": 0.2, "seed": 3, "steps": 8, "restarts": 2}
    whole = stadv(model, x, y, image_ids=range(5), **common)
    again = stadv(model, x, y, image_ids=range(5), **common)
    part = stadv(model, x[2:4], y[2:4], image_ids=[2, 3], **common)
    for name in ("x_adv", "flow", "correct", "flow_penalty", "best_loss", "broken_at"):
        assert torch.equal(getattr(whole, name), getattr(again, name))
        assert torch.equal(getattr(whole, name)[2:4], getattr(part, name))


def test_broken_images_leave_and_evaluations_are_counted() -> None:
    x = bars(3)
    x[2] = x[2].roll(-2, -1)  # its bar is two pixels further left: out of reach
    model, calls = Position(0.6), []
    result = stadv(model, x, labels(3), FlowThreat(BOUND), seed=0, image_ids=range(3), steps=12, progress=calls.append)
    assert result.correct.tolist() == [False, False, True]
    assert model.batches[-2:] == [(1, False), (3, False)]
    assert result.gradient_evaluations == sum(rows for rows, gradient in model.batches if gradient)
    assert set(calls[0]) == {"attack", "step", "steps", "restart", "restarts", "active", "robust", "total"}
    assert calls[-1]["active"] == calls[-1]["robust"] == 1 and calls[-1]["attack"] == "stadv-ce"


def test_images_misclassified_when_clean_keep_the_zero_flow() -> None:
    x = bars(2)
    result = stadv(Position(0.6), x, torch.tensor([0, 1]), bound=BOUND, seed=0, image_ids=range(2), steps=5)
    assert result.clean_correct.tolist() == [True, False]
    assert torch.equal(result.x_adv[1], x[1]) and result.flow[1].abs().sum() == 0 and result.flow_penalty[1] == 0


@pytest.mark.parametrize("bound", [0.05, 0.1, 0.3, 0.0])
def test_the_flow_never_exceeds_a_bound_that_float32_rounds_up(bound: float) -> None:
    x = bars(1)
    result = stadv(Position(50.0), x, labels(1), bound=bound, seed=1, image_ids=[0], steps=4, tau=0.0)
    largest = float(result.flow.double().abs().max())
    assert largest <= bound and largest >= bound * (1 - FLOAT32_ROUNDING)


def test_start_is_a_flow() -> None:
    x = bars(1)
    flow = torch.zeros(1, 2, SIZE, SIZE)
    flow[:, 0] = -BOUND  # the whole image moves right by 0.8: broken at once
    result = stadv(Position(0.6), x, labels(1), bound=BOUND, seed=0, image_ids=[0], steps=3, start=flow)
    assert result.broken_at.tolist() == [0] and torch.allclose(result.flow, flow)


def test_check_flow_catches_violations() -> None:
    x, flow = bars(1), torch.full((1, 2, SIZE, SIZE), 0.01)
    check_flow(warp(x, flow), x, flow, 0.02)
    with pytest.raises(RdcError, match="bound"):
        check_flow(warp(x, flow), x, flow, 0.005)
    with pytest.raises(RdcError, match="warped"):
        check_flow(x, x, flow, 0.02)
    with pytest.raises(RdcError, match="bound"):
        check_flow(x, x, flow * math.nan, 0.02)


def test_errors() -> None:
    x, y = bars(1), labels(1)
    common = {"seed": 0, "image_ids": [0], "steps": 2}
    for bound in (-0.1, 3, math.nan, "x", True):
        with pytest.raises(ConfigError, match="bound"):
            stadv(Position(0.6), x, y, bound=bound, **common)
    with pytest.raises(ConfigError, match="FlowThreat"):
        stadv(Position(0.6), x, y, ThreatModel("linf", 0.1), **common)
    with pytest.raises(ConfigError, match="tau"):
        stadv(Position(0.6), x, y, tau=-1.0, **common)
    with pytest.raises(InputError, match="start"):
        stadv(Position(0.6), x, y, start=torch.zeros(1, 2, 3, 3), **common)
    with pytest.raises(InputError, match="float32"):
        stadv(Position(0.6), x.double(), y, **common)
    with pytest.raises(InputError, match="flow"):
        warp(x, torch.zeros(1, 2, 3, 3))
