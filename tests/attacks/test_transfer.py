"""Transfer: a defence with shattered gradients and a smooth surrogate; which images the real model is asked about."""

from __future__ import annotations

import pytest
import torch

from rdc.attacks import ThreatModel, apgd
from rdc.attacks.transfer import transfer
from rdc.errors import InputError
from rdc.norm_balls import check_budget

THREAT = ThreatModel("linf", 0.15)


def quantised(model):
    """The model behind a quantisation to 8 grey levels: its gradient is zero everywhere."""
    return lambda x: model(x + ((8.0 * x).round() / 8.0 - x).detach() - (x - x.detach()))


def setting(models, count: int = 6):
    model = models.random_linear(3, 36, scale=0.3)
    x = models.random_images(count)
    return model, quantised(model), x, quantised(model)(x).argmax(1)


def test_a_shattered_defence_falls_to_its_smooth_relative(models) -> None:
    smooth, defence, x, y = setting(models)
    common = {"seed": 0, "image_ids": range(6), "steps": 40}
    blind = apgd(defence, x, y, THREAT, **common)
    assert blind.accuracy >= 5 / 6 and blind.zero_gradient_images >= 5
    result = transfer(defence, x, y, THREAT, surrogate=smooth, **common)
    assert result.accuracy == 0.0 and (defence(result.x_adv).argmax(1) != y).all()
    check_budget(result.x_adv, x, 0.15, "linf")
    rare = transfer(defence, x, y, THREAT, surrogate=smooth, check_every=100, **common)
    assert rare.accuracy == 0.0


def test_the_real_model_sees_every_kth_iterate_the_last_and_the_best() -> None:
    """A surrogate with a narrow peak: the best point is not the last one, and is asked about at the end."""
    real, path = [], []

    def surrogate(x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            path.append(x.detach().clone())
        value = torch.sin(130.0 * x).sum((1, 2, 3))
        return torch.stack([torch.full_like(value, 9.0), value], dim=1)

    def model(x: torch.Tensor) -> torch.Tensor:
        real.append(x.clone())
        return torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)

    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    result = transfer(
        model, x, y, THREAT, surrogate=surrogate, seed=2, image_ids=[0], steps=11, check_every=4, verify=False
    )
    assert (
        len(path) == 10
    )  # iterates 0 .. 9; iterate 10 is asked about but followed by the best point, without gradient
    values = torch.stack([torch.sin(130.0 * point).sum() for point in path])
    assert len(real) == 1 + 3 + 1 + 1  # clean; 0, 4, 8; last of APGD; best
    assert torch.equal(real[0], x) and all(torch.equal(real[1 + k], path[4 * k]) for k in range(3))
    last = real[4]
    best = path[int(values.argmax())]
    assert values.max() > torch.sin(130.0 * last).sum() + 0.1 and int(values.argmax()) % 4 != 0  # not seen before
    assert torch.equal(real[5], best) and torch.equal(result.x_adv, best)
    assert result.correct.all() and result.gradient_evaluations == 10
    assert result.forward_evaluations == 6 + 1 + 2  # real; surrogate: clean and the last two


def test_images_between_checks_are_not_counted_as_broken(models) -> None:
    """Broken at a step that is no multiple of check_every shows at the next check."""
    smooth, defence, x, y = setting(models)
    often = transfer(defence, x, y, THREAT, surrogate=smooth, seed=0, image_ids=range(6), steps=20)
    rarely = transfer(defence, x, y, THREAT, surrogate=smooth, seed=0, image_ids=range(6), steps=20, check_every=7)
    assert rarely.forward_evaluations < often.forward_evaluations or often.accuracy == 0
    assert all(step % 7 == 0 or step >= 19 for step in rarely.broken_at.tolist() if step >= 0)
    assert (rarely.broken_at >= often.broken_at)[~often.correct & ~rarely.correct].all()


@pytest.mark.parametrize("norm,eps", [("linf", 0.05), ("l2", 0.3), ("l1", 2.0)])
def test_the_batch_does_not_matter_and_runs_repeat(models, norm: str, eps: float) -> None:
    smooth, defence, x, y = setting(models)
    threat, common = ThreatModel(norm, eps), {"surrogate": smooth, "seed": 3, "steps": 9, "check_every": 4}
    whole = transfer(defence, x, y, threat, image_ids=range(6), restarts=2, **common)
    again = transfer(defence, x, y, threat, image_ids=range(6), restarts=2, **common)
    part = transfer(defence, x[2:4], y[2:4], threat, image_ids=[2, 3], restarts=2, **common)
    assert torch.equal(whole.x_adv, again.x_adv) and torch.equal(whole.x_adv[2:4], part.x_adv)
    assert torch.equal(whole.correct[2:4], part.correct) and torch.equal(whole.broken_at[2:4], part.broken_at)


def test_random_surrogate_and_random_model(models) -> None:
    smooth, defence, x, y = setting(models)
    drawn = []
    result = transfer(
        defence,
        x,
        y,
        THREAT,
        surrogate=smooth,
        surrogate_redraw=lambda: drawn.append(1),
        surrogate_eot=3,
        seed=0,
        image_ids=range(6),
        steps=5,
    )
    assert result.gradient_evaluations % 3 == 0 and len(drawn) % 3 == 0 and result.verify_mismatches is not None
    asked = []
    result = transfer(
        defence, x, y, THREAT, surrogate=smooth, redraw=lambda: asked.append(1), eot=2, seed=0, image_ids=range(6),
        steps=5,
    )  # fmt: skip
    assert result.verify_mismatches is None and result.gradient_evaluations == 6 * 4  # nobody leaves
    assert len(asked) == 2 * (1 + 6)  # clean, iterates 0 .. 5


def test_errors(models) -> None:
    smooth, defence, x, y = setting(models)
    common = {"seed": 0, "image_ids": range(6)}
    with pytest.raises(InputError, match="check_every"):
        transfer(defence, x, y, THREAT, surrogate=smooth, check_every=0, **common)
    with pytest.raises(InputError, match="steps >= 2"):
        transfer(defence, x, y, THREAT, surrogate=smooth, steps=1, **common)
    with pytest.raises(InputError, match="differentiably"):
        transfer(defence, x, y, THREAT, surrogate=lambda x: smooth(x.detach()), **common)
