"""Lagrange and objective attacks: defences that only they break, the search rule, the gradient, the budget."""

from __future__ import annotations

import math

import pytest
import torch

from rdc.attacks import ThreatModel, apgd
from rdc.attacks.lagrange import LagrangeOptions, _Lagrangian, _Search, lagrange, objective_attack
from rdc.attacks.transfer import transfer
from rdc.errors import ConfigError, InputError
from rdc.norm_balls import check_budget
from tests.tolerances import FLOAT32_DIFFERENCE, LATTICE_PENALTY

EPS = 0.1
THREAT = ThreatModel("linf", EPS)
WEIGHT = torch.cat([torch.full((18,), 3.0), torch.full((18,), 1.0)])  # the first half is what the purifier watches
WEIGHT = WEIGHT * torch.tensor([1.0, -1.0]).repeat(18)


def penalty(x: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the watched half to the lattice of quarters (the clean images lie on it)."""
    watched = x.flatten(1)[:, :18]
    return torch.stack([((row - 0.5) ** 2).mean() for row in watched])


def plain(x: torch.Tensor) -> torch.Tensor:
    """Class 0 unless a move of 1 unit along WEIGHT's signs: the other half alone offers 1.8, both 7.2."""
    margin = torch.stack([(WEIGHT * (row - 0.5)).sum() for row in x.flatten(1)])
    return torch.stack([1.0 - margin, margin - 1.0], dim=1)


def purified(x: torch.Tensor) -> torch.Tensor:
    """Whatever has a penalty goes back to the lattice, all of it, before it is classified."""
    suspicious = penalty(x.detach()) > 4e-4
    return plain(torch.where(suspicious.view(-1, 1, 1, 1), (4.0 * x).round() / 4.0, x))


def lattice_images(count: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    return torch.full((count, 1, 6, 6), 0.5), torch.zeros(count, dtype=torch.int64), list(range(count))


def test_lagrange_breaks_a_purifier_that_apgd_and_transfer_do_not() -> None:
    x, y, ids = lattice_images(4)
    common = {"seed": 0, "image_ids": ids, "steps": 50}
    assert apgd(purified, x, y, THREAT, **common, restarts=3).accuracy == 1.0
    assert transfer(purified, x, y, THREAT, **common, surrogate=plain, restarts=3).accuracy == 1.0
    result = lagrange(purified, x, y, THREAT, **common, penalty=penalty, surrogate=plain)
    assert result.accuracy == 0.0
    assert (plain(result.x_adv).argmax(1) == 1).all() and (purified(result.x_adv).argmax(1) == 1).all()
    assert (
        (result.penalty <= LATTICE_PENALTY).all()
        and (result.clean_penalty == 0).all()
        and (result.multiplier > 0).all()
    )
    check_budget(result.x_adv, x, EPS, "linf")
    # without the search (c = 0: plain APGD on the surrogate) the purifier holds
    assert lagrange(purified, x, y, THREAT, **common, penalty=penalty, surrogate=plain, multipliers=[0.0]).accuracy == 1


def test_one_multiplier_is_not_enough() -> None:
    """Too small: the purifier wakes up. Too large: the class is never lost. The search finds its way from either."""
    x, y, ids = lattice_images(3)
    common = {"seed": 0, "image_ids": ids, "steps": 50, "penalty": penalty, "surrogate": plain}
    assert lagrange(purified, x, y, THREAT, **common, multipliers=[1e-3]).accuracy == 1.0
    assert lagrange(purified, x, y, THREAT, **common, multipliers=[1e-3, 10.0]).accuracy == 0.0

    def everywhere(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([((image - 0.5) ** 2).mean() for image in x])

    def tolerant(x: torch.Tensor) -> torch.Tensor:
        back = everywhere(x.detach()) > 2e-3
        return plain(torch.where(back.view(-1, 1, 1, 1), (4.0 * x).round() / 4.0, x))

    common = {**common, "penalty": everywhere}
    assert lagrange(tolerant, x, y, THREAT, **common, multipliers=[1e-3]).accuracy == 1.0
    assert lagrange(tolerant, x, y, THREAT, **common, multipliers=[1e4]).accuracy == 1.0
    assert lagrange(tolerant, x, y, THREAT, **common).accuracy == 0.0


def test_search_rule_step_by_step() -> None:
    """Doc string of the module: growth by 4, then bisection in log c, each image for itself."""
    search = _Search(torch.zeros(2, dtype=torch.float64), None, 10)
    ids, seen = torch.arange(2), []
    gradient, slope = torch.ones(2, 1, 1, 4, dtype=torch.float64), torch.full((2, 1, 1, 4), 0.5, dtype=torch.float64)
    first = torch.tensor([1.0, 1.0], dtype=torch.float64)
    for at_best in ([1.0, 0.01], [1.0, 0.01], [0.05, 1.0], [0.5, 0.0]):
        search.next_round()
        seen.append(search.multiplier(ids, gradient, slope, first).tolist())
        value = torch.tensor(at_best, dtype=torch.float64)
        search.observe(ids, torch.tensor([1.0, 1.0], dtype=torch.float64), value)
        search.observe(ids, torch.tensor([0.0, 0.0], dtype=torch.float64), value + 100)  # lower L - c P: not the best
    search.next_round()
    seen.append(search.multiplier(ids, gradient, slope, first).tolist())
    high_high_low_high = [2.0, 8.0, 32.0, 16.0, 2.0 * math.sqrt(8 * 16)]
    low_low_high_low = [2.0, 0.5, 0.125, 0.25, 2.0 * math.sqrt(0.0625 * 0.125)]
    assert torch.allclose(torch.tensor(seen).T, torch.tensor([high_high_low_high, low_low_high_low]))


def test_zero_gradient_of_the_penalty_leaves_c_at_zero_for_that_round_only() -> None:
    search = _Search(torch.zeros(1, dtype=torch.float64), None, 3)
    one, ids, value = torch.ones(1, 1, 1, 4, dtype=torch.float64), torch.arange(1), torch.ones(1, dtype=torch.float64)
    search.next_round()
    assert search.multiplier(ids, one, 0 * one, value) == 0 and search.multiplier(ids, one, 0.25 * one, value) == 0
    search.observe(ids, value, value)
    search.next_round()
    assert search.multiplier(ids, one, one, value) == 4.0


@pytest.mark.parametrize("with_surrogate", [False, True])
def test_gradient_is_that_of_the_lagrangian(with_surrogate: bool) -> None:
    """Central differences of L - c P on a smooth model in float64."""
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x.double().flatten(1) @ weight.T)

    def smooth(x: torch.Tensor) -> torch.Tensor:
        return (x.double() ** 3).flatten(1).sum(1)

    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    surrogate = model if with_surrogate else None
    about = {"seed": 0, "image_ids": range(len(x)), "surrogate": surrogate}
    objective = _Lagrangian(model, LagrangeOptions(penalty=smooth, multipliers=[2.0], **about))
    place = objective.start(x, y)[2]
    objective.search.next_round()
    found = objective.evaluate(x, y, place, gradient=True)
    assert (objective.search.c > 0).all()
    for pixel in range(0, 16, 3):
        step = torch.zeros(16)
        step[pixel] = 2.0**-9
        ahead, behind = (objective.evaluate(x + s * step.view(1, 4, 4), y, place, gradient=False) for s in (1, -1))
        slope = (ahead.ascent - behind.ascent) / 2.0**-8
        assert torch.allclose(
            found.gradient.flatten(1)[:, pixel], slope, rtol=FLOAT32_DIFFERENCE, atol=FLOAT32_DIFFERENCE
        )


def test_objective_attack_maximises_then_minimises() -> None:
    """Wrong where the penalty is out of the ordinary, with no gradient at all from there to the logits."""
    x, y, ids = torch.full((4, 1, 6, 6), 0.55), torch.zeros(4, dtype=torch.int64), range(4)

    def breaks_above(x: torch.Tensor) -> torch.Tensor:
        wrong = (penalty(x.detach()) > 0.012).to(x)
        return torch.stack([1.0 - 2 * wrong, 0 * x.flatten(1).sum(1)], dim=1)

    def breaks_below(x: torch.Tensor) -> torch.Tensor:
        wrong = (penalty(x.detach()) < 2e-4).to(x)
        return torch.stack([1.0 - 2 * wrong, 0 * x.flatten(1).sum(1)], dim=1)

    common = {"seed": 0, "image_ids": ids, "steps": 30}
    for model, sides in ((breaks_above, "max"), (breaks_below, "min")):
        blind = apgd(model, x, y, THREAT, **common)
        assert blind.accuracy == 1.0 and blind.zero_gradient_images == 4
        calls = []
        result = objective_attack(model, x, y, THREAT, penalty=penalty, progress=calls.append, **common)
        assert result.accuracy == 0.0 and result.gradient_evaluations == 0 and result.penalty_evaluations > 0
        assert {call["restart"] for call in calls} == ({0} if sides == "max" else {0, 1})
        assert set(calls[0]) == {"attack", "step", "steps", "restart", "restarts", "active", "robust", "total"}
        assert result.name == "lm-objective-ce"
        check_budget(result.x_adv, x, EPS, "linf")


@pytest.mark.parametrize("norm,eps", [("linf", 0.05), ("l2", 0.3), ("l1", 2.0)])
def test_the_batch_does_not_matter_and_runs_repeat(models, norm: str, eps: float) -> None:
    model = models.random_linear(4, 36)
    x = models.random_images(5)
    y = model(x).argmax(1)
    for attack in (lagrange, objective_attack):
        common = {"seed": 3, "steps": 8, "penalty": penalty}
        whole = attack(model, x, y, ThreatModel(norm, eps), image_ids=range(5), **common)
        again = attack(model, x, y, ThreatModel(norm, eps), image_ids=range(5), **common)
        part = attack(model, x[2:4], y[2:4], ThreatModel(norm, eps), image_ids=[2, 3], **common)
        assert torch.equal(whole.x_adv, again.x_adv) and torch.equal(whole.x_adv[2:4], part.x_adv)
        assert torch.equal(whole.correct[2:4], part.correct) and torch.equal(whole.best_loss[2:4], part.best_loss)
        assert torch.equal(whole.penalty[2:4], part.penalty)


def test_broken_images_leave(models) -> None:
    model = models.two_class(torch.ones(36), 0.5)
    x = torch.full((2, 1, 6, 6), 0.5)
    x[1] += 0.2  # margin 7.7: out of reach
    result = lagrange(
        model, x, torch.zeros(2, dtype=torch.int64), THREAT, seed=0, image_ids=[0, 1], steps=5, penalty=penalty
    )
    assert result.correct.tolist() == [False, True]
    assert model.batches[-2] == (1, False) and model.batches[-1] == (2, False)  # last step; verification
    assert result.gradient_evaluations == sum(rows for rows, gradient in model.batches if gradient)
    assert result.forward_evaluations == sum(rows for rows, gradient in model.batches if not gradient)


def test_errors() -> None:
    x, y, ids = lattice_images(2)
    common = {"seed": 0, "image_ids": ids, "steps": 2}
    with pytest.raises(ConfigError, match="multipliers"):
        lagrange(plain, x, y, THREAT, penalty=penalty, multipliers=[math.nan], **common)
    with pytest.raises(ConfigError, match="at least one"):
        lagrange(plain, x, y, THREAT, penalty=penalty, multipliers=[], **common)
    with pytest.raises(InputError, match="searches"):
        lagrange(plain, x, y, THREAT, penalty=penalty, searches=0, **common)
    with pytest.raises(InputError, match="one floating number"):
        lagrange(plain, x, y, THREAT, penalty=lambda x: x.sum(), **common)
    with pytest.raises(InputError, match="differentiably"):
        objective_attack(plain, x, y, THREAT, penalty=lambda x: penalty(x.detach()), **common)
    with pytest.raises(InputError, match="function"):
        objective_attack(plain, x, y, THREAT, penalty=None, **common)
