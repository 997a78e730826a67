"""What a whole tells its parts, and what it takes from them: on components that compute nothing."""

from __future__ import annotations

import pytest
import torch

from rdc.contracts import Component, NetworkUse
from rdc.contracts.component import DRAWS_OF_A_CALL
from rdc.errors import ConfigError


class Leaf(Component):
    """Draws, or purifies, or neither; five passes."""

    head = "leaf"

    def __init__(self, *, draws=True, moves=False, **settings):
        super().__init__(**settings)
        self.stochastic, self.moves = draws, moves

    @property
    def purifies(self):
        return self.moves

    @property
    def evaluations_per_image(self):
        return 5

    def networks(self):
        return (NetworkUse(f"leaf {self.noise_seed}", torch.nn.Identity()),)

    def parts(self):
        return ()


class Whole(Component):
    head = "whole"

    def __init__(self, *leaves, **settings):
        super().__init__(**settings)
        self.leaves = list(leaves)
        self._rule_parts()


def test_a_whole_is_what_its_parts_are():
    still, drawing, moving = Leaf(draws=False), Leaf(), Leaf(draws=False, moves=True)
    assert not Whole(still).stochastic and not Whole(still).purifies and not Whole().stochastic
    assert Whole(still, drawing).stochastic and not Whole(drawing).purifies
    assert Whole(still, moving).purifies and not Whole(moving).stochastic
    assert Whole(still, drawing).evaluations_per_image == 10 and Whole().evaluations_per_image == 1
    assert [use.role for use in Whole(Leaf(noise_seed=3), Leaf(noise_seed=4)).networks()] == ["leaf 3", "leaf 4"]
    said = Whole(drawing)
    said.stochastic = False
    assert not said.stochastic


def test_parts_that_draw_or_purify_get_the_settings_and_nobody_elses_are_changed():
    still, drawing, moving = Leaf(draws=False), Leaf(noise_seed=3), Leaf(draws=False, moves=True)
    made = Whole(still, drawing, moving, noise="fresh", gradient="bpda")
    assert made.leaves[0] is still and still.noise_policy == "fixed"
    for place, own in ((1, drawing), (2, moving)):
        part = made.leaves[place]
        assert part is not own and (part.noise_policy, part.gradient) == ("fresh", "bpda")
        assert (own.noise_policy, own.gradient) == ("fixed", "exact")
    assert made.parts() == (still, made.leaves[1], made.leaves[2])
    other = made.with_(noise="fixed")
    assert other.leaves[1].noise_policy == "fixed" and made.leaves[1].noise_policy == "fresh"


def test_a_copy_has_tables_of_its_own():
    """A part that torch registers is put in place in the copy alone."""

    class Holding(Component):
        def __init__(self, member):
            super().__init__()
            self.member = member

    made = Holding(Leaf())
    other = made.with_(noise="fresh")
    assert made.member.noise_policy == "fixed" and other.member.noise_policy == "fresh"
    other.more = torch.nn.Linear(1, 1)
    assert not hasattr(made, "more")


def test_seeds_follow_the_seed_of_the_whole():
    made = Whole(Leaf(noise_seed=3), Leaf(noise_seed=3), noise_seed=1)
    seeds = [part.noise_seed for part in made.leaves]
    assert seeds == [3, 3]  # as they were made
    other = [part.noise_seed for part in made.with_(noise_seed=2).leaves]
    assert other[0] != other[1] and not {*other} & {*seeds}
    assert [part.noise_seed for part in made.with_(noise_seed=2).with_(noise_seed=2).leaves] == other
    assert [part.noise_seed for part in made.with_(noise_seed=2).with_(noise_seed=1).leaves] == seeds


def test_draws_of_the_whole_are_its_parts_far_apart():
    fixed, fresh = Whole(Leaf(), Leaf(draws=False)), Whole(Leaf(), noise="fresh")
    fresh.set_draw(2)
    assert fresh.leaves[0]._draw == 2 * DRAWS_OF_A_CALL
    assert [fresh._next_draw(), fresh.leaves[0]._draw, fresh._next_draw()] == [2, 2 * DRAWS_OF_A_CALL, 3]
    assert fresh.leaves[0]._draw == 3 * DRAWS_OF_A_CALL
    fresh.redraw()
    assert fresh._draw == 5 and fresh.leaves[0]._draw == 5 * DRAWS_OF_A_CALL
    fixed.redraw()
    assert [fixed._next_draw(), fixed._next_draw(), fixed._draw] == [0, 0, 0]
    fixed.set_draw(4)
    assert fixed.leaves[0]._draw == 4 * DRAWS_OF_A_CALL and fixed.leaves[1]._draw == 0
    with pytest.raises(ConfigError, match="draw: expected an integer; got 'x'"):
        fixed.set_draw("x")
    assert fresh.with_()._draw == 0


def test_what_parts_evaluate_is_counted_once():
    made = Whole(Leaf(), Leaf())
    made.leaves[0].network_evaluations = 7
    with made.counting(otherwise=100):
        made.leaves[0].network_evaluations += 2
        made.leaves[1].network_evaluations += 3
    assert made.network_evaluations == 5
    with Whole().counting() as nothing:
        assert nothing is None
    alone = Whole()
    for _ in range(2):
        with alone.counting(otherwise=4):
            pass
    assert alone.network_evaluations == 8 and alone.with_().network_evaluations == 0


def test_gradients_are_those_of_the_mode():
    x = torch.tensor([0.5, 2.0], requires_grad=True)
    for mode, slope in (("exact", [1.0, 4.0]), ("bpda", [1.0, 1.0])):
        moved = Leaf(gradient=mode)._through(lambda pixels: pixels.square(), x)
        assert moved.tolist() == [0.25, 4.0]
        assert torch.autograd.grad(moved.sum(), x)[0].tolist() == slope


def test_settings_that_there_are_not():
    words = r"expected some of gradient, noise, noise_seed; got levels, lm\. This model \(leaf\) has no such setting"
    with pytest.raises(ConfigError, match=words):
        Leaf().with_(lm=None, levels="edm")
    kept = Leaf(gradient="bpda", noise="fresh", noise_seed=9)
    assert kept.with_(noise_seed=8).settings() == {"gradient": "bpda", "noise": "fresh", "noise_seed": 8}
    assert kept.settings()["noise_seed"] == 9
