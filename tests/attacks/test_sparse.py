"""l_0: sparse PGD and Sparse-RS find what exhaustive search finds, budgets, batches, schedules, lists of attacks, verification."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rdc.attacks import ThreatModel, apgd, parse_attack
from rdc.attacks.hop_skip_jump import hop_skip_jump
from rdc.attacks.per_image import LocatedEvaluation
from rdc.attacks.registry import applies, suite
from rdc.attacks.sparse_pgd import _SparseRule, sparse_pgd
from rdc.attacks.sparse_rs import _Places, exchanged_share, sparse_rs
from rdc.attacks.square import square
from rdc.errors import ConfigError, InputError
from rdc.evaluation.threats import attacks_within, parse_threats
from rdc.norm_balls import check_budget
from tests.evaluation_models import gaussian_classifier
from tests.tolerances import FLOAT32_SUM

ATTACKS = {
    "sparse-pgd": (sparse_pgd, {"steps": 20}),
    "projected": (sparse_pgd, {"steps": 20, "gradients": "projected", "restarts": 2}),
    "sparse-rs": (sparse_rs, {"queries": 150}),
}


NEAR = {"sparse-pgd": 0.85, "projected": 0.6, "sparse-rs": 0.85}


class Linear(torch.nn.Module):
    """Two classes, linear in the pixels: the largest margin that K pixels can reach is known by sorting."""

    def __init__(self, offset: float = 0.0, channels: int = 2, size: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(channels, size, size, generator=generator)
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = torch.stack([(self.weight * image).sum() for image in x]) - self.offset
        return torch.stack([-margin, margin], dim=1)


def images(count: int = 3, channels: int = 2, size: int = 5) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def within_reach(pixels: int) -> tuple[Linear, torch.Tensor, torch.Tensor]:
    """One image three times, and a model that falls to 70 % of what so many pixels can gain."""
    model, x = Linear(), images(1)
    here, best = float((model.weight * x[0]).sum()), best_margin(model, x, pixels)[0]
    model.offset = here + 0.7 * (best - here)
    return model, x.expand(3, -1, -1, -1).clone(), torch.zeros(3, dtype=torch.int64)


def best_margin(model: Linear, x: torch.Tensor, pixels: int) -> list[float]:
    """By enumeration of places: the largest margin with so many pixels, every channel at its better end."""
    found = []
    for image in x:
        gains = [
            sum(
                max(float(w) * (1 - float(v)), -float(w) * float(v))
                for w, v in zip(model.weight[:, i, j], image[:, i, j], strict=True)
            )
            for i in range(x.shape[2])
            for j in range(x.shape[3])
        ]
        here = float((model.weight * image).sum()) - model.offset
        found.append(here + max(sum(group) for group in itertools.combinations(gains, pixels)))
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_come_near_the_best_that_enumeration_finds(name: str) -> None:
    """Out of reach, so that nobody leaves early: the loss of the image kept is compared with the best of all 300 pairs of pixels."""
    attack, options = ATTACKS[name]
    model, x, y = Linear(offset=50.0), images(), torch.zeros(3, dtype=torch.int64)
    loss = {} if name == "sparse-rs" else {"loss": "margin"}
    result = attack(model, x, y, ThreatModel("l0", 2), seed=0, **loss, **options)
    best = torch.tensor(best_margin(model, x, 2), dtype=torch.float64)
    start = 2 * (torch.stack([(model.weight * image).sum() for image in x]).double() - 50)
    share = (result.best_loss - start) / (2 * best - start)  # the loss is a difference of logits, twice the margin
    assert (share > NEAR[name]).all() and (share <= 1 + FLOAT32_SUM).all(), share


@pytest.mark.parametrize("name", ATTACKS)
def test_budgets_hold_and_the_model_decides(name: str) -> None:
    attack, options = ATTACKS[name]
    model, x, y = within_reach(3)
    result = attack(model, x, y, ThreatModel("l0", 3), seed=0, **options)
    check_budget(result.x_adv, x, 3, "l0")
    changed = (result.x_adv != x).any(1).flatten(1).sum(1)
    assert (changed <= 3).all() and (changed > 0).all()
    assert (model(result.x_adv).argmax(1) == y).tolist() == result.correct.tolist() and result.verify_mismatches == 0
    assert result.accuracy == 0.0 and result.name.startswith("sparse-")
    none = attack(model, x, y, ThreatModel("l0", 0), seed=0, **options)
    assert torch.equal(none.x_adv, x) and none.accuracy == 1.0


@pytest.mark.parametrize("name", ATTACKS)
def test_an_images_result_does_not_depend_on_the_batch(name: str) -> None:
    attack, options = ATTACKS[name]
    model, x, y = Linear(offset=50.0), images(4), torch.zeros(4, dtype=torch.int64)
    together = attack(model, x, y, ThreatModel("l0", 3), seed=1, image_ids=[7, 3, 9, 4], **options)
    alone = attack(model, x[2:3], y[2:3], ThreatModel("l0", 3), seed=1, image_ids=[9], **options)
    assert torch.equal(together.x_adv[2], alone.x_adv[0]) and not torch.equal(together.x_adv[0], together.x_adv[2])


def test_sparse_pgd_begins_where_it_is_told() -> None:
    model, x, y = within_reach(3)
    found = sparse_pgd(model, x, y, ThreatModel("l0", 3), steps=20, seed=0).x_adv
    again = sparse_pgd(model, x, y, ThreatModel("l0", 3), steps=1, seed=0, start=found)
    assert (again.broken_at == 0).all() and torch.equal(again.x_adv, found)


def test_projected_steps_change_the_colours_of_shown_pixels_alone() -> None:
    """A mask that shows one pixel: after a step others have another colour only where steps are unprojected."""
    for everywhere in (False, True):
        clean = images(1)
        rule = _SparseRule(
            clean, 1, lambda rows, step: [np.random.default_rng(step) for _ in rows], everywhere=everywhere
        )
        start = clean.clone()
        start[0, :, 2, 2] = 0.5
        nothing = torch.zeros(1, dtype=torch.float64)
        slope = torch.ones_like(clean, dtype=torch.float64)
        right = torch.ones(1, dtype=torch.bool)
        seen = LocatedEvaluation(nothing, right, slope, ~right, ~right, ids=torch.tensor([0]), ascent=nothing)
        drawn = np.random.default_rng(2**32 - 1).random(50).reshape(clean.shape)
        rule.next(start, seen)
        expected = torch.from_numpy(drawn) + (0.25 if everywhere else 0.0)
        expected[0, :, 2, 2] = 0.75
        assert torch.allclose(rule.colours, expected.clamp(0, 1))


def test_proposals_exchange_places_and_keep_the_others() -> None:
    x = torch.full((2, 3, 6, 6), 0.5)
    places = _Places(x, 10, 5, [3, 8], 0)
    start = places.start()
    assert ((start != x).any(1).flatten(1).sum(1) == 10).all() and set(start[start != 0.5].tolist()) == {0.0, 1.0}
    assert not torch.equal(start[0], start[1])
    places.took(torch.tensor([True, True]))
    point = places.next(start, 0.3, 1)  # 3 of 10
    was, now = ((image != x).any(1).flatten(1) for image in (start, point))
    assert ((was & ~now).sum(1) == 3).all() and ((now & ~was).sum(1) == 3).all()
    both = (was & now).view(2, 1, 6, 6).expand_as(x)
    assert torch.equal(start[both], point[both])
    places.took(torch.tensor([True, False]))
    after = places.next(point, 0.1, 2)
    left = [
        int(((after[row] != x[row]).any(0) & ~(image != x[row]).any(0)).sum())
        for row, image in enumerate((point[0], start[1]))
    ]
    assert left == [1, 1]  # one place away from what was kept
    places.keep(torch.tensor([1]))
    assert places.next(start[1:], 0.1, 3).shape == (1, 3, 6, 6)
    whole = _Places(x, 99, 5, [3, 8], 0)
    first = whole.start()
    whole.took(torch.tensor([True, True]))
    assert ((first != x).all(1)).all() and not torch.equal(whole.next(first, 0.5, 1), first)  # colours alone


def test_schedule() -> None:
    """The published divisors at 10,000 queries, and the same places of 100."""
    expected = {1: 2, 50: 2, 51: 4, 200: 4, 201: 5, 500: 5, 1000: 6, 1001: 8, 4000: 10, 6000: 12, 8000: 15, 8001: 20}
    assert {query: round(1 / exchanged_share(query, 10_000, 1.0)) for query in expected} == expected
    assert exchanged_share(81, 100, 0.3) == 0.3 / 20


def test_other_norms_and_options_are_refused() -> None:
    model, x, y = Linear(offset=50.0), images(), torch.zeros(3, dtype=torch.int64)
    for attack in (sparse_pgd, sparse_rs):
        with pytest.raises(ConfigError, match="attacks in l0, got linf"):
            attack(model, x, y, ThreatModel("linf", 0.1))
    for attack in (apgd, square, hop_skip_jump):
        with pytest.raises(ConfigError, match="l0"):
            attack(model, x, y, ThreatModel("l0", 2))
    with pytest.raises(ConfigError, match="whole one such as 10; got 2.5"):
        ThreatModel("l0", 2.5)
    with pytest.raises(ConfigError, match="gradients"):
        sparse_pgd(model, x, y, ThreatModel("l0", 2), gradients="both")
    with pytest.raises(InputError, match="p_init"):
        sparse_rs(model, x, y, ThreatModel("l0", 2), p_init=0)


def test_lists_of_attacks_know_l0() -> None:
    sparse = ("sparse-pgd", "sparse-pgd:gradients=projected", "sparse-rs:queries=5000")
    assert suite("autoattack", "l0") == sparse and suite("adaptive", "l0") == sparse
    assert suite("autoattack-rand", "l0") == tuple(f"{name}:eot=20" for name in sparse[:2])
    assert attacks_within("l0", ["apgd-ce"]) == ("sparse-pgd", "sparse-rs")
    assert attacks_within("l0", ["apgd-ce", "sparse-rs:queries=10"]) == ("sparse-rs:queries=10",)
    assert [threat.folder for threat in parse_threats("linf:8/255,l0:10")] == ["linf-8-255", "l0-10"]
    assert "not in linf" in str(applies(parse_attack("sparse-pgd"), gaussian_classifier(), "linf", "known"))


def test_a_smaller_count_is_never_better_for_the_attacker() -> None:
    """The best of K pixels is among those of K + 1: losses of sparse PGD rise with the budget."""
    model, x, y = Linear(offset=50.0), images(), torch.zeros(3, dtype=torch.int64)
    losses = [
        float(sparse_pgd(model, x, y, ThreatModel("l0", pixels), steps=25, seed=0).best_loss.mean())
        for pixels in (1, 4, 12)
    ]
    assert losses == sorted(losses) and np.diff(losses).min() > 0
