"""Selective EOT: draws that disagree, where it wins at the gradient budget of plain EOT; its weights; the pool."""

from __future__ import annotations

import math

import pytest
import torch

from rdc.attacks import ThreatModel, apgd
from rdc.attacks.registry import applies, parse_attack
from rdc.attacks.selective import FIRST_DRAW, SelectiveOptions, _Selection, selective
from rdc.contracts import PurificationPath
from rdc.errors import ConfigError, InputError
from rdc.norm_balls import check_budget
from tests.evaluation_models import gaussian_classifier
from tests.tolerances import FLOAT64_OP, QUITE_DIFFERENT_GRADIENT

PIXELS, EPS = 36, 0.1
THREAT = ThreatModel("linf", EPS)


class Disagreeing:
    """3 of 10 draws fall to a move along +v of 1.8 (3.6 is to be had); the others pull along -v, and never fall."""

    def __init__(self) -> None:
        self.direction = torch.tensor([1.0, -1.0]).repeat(PIXELS // 2)
        self.draw, self.calls = 0, []

    def set_draw(self, draw: int) -> None:
        self.draw = draw - 1  # like a counter that the call itself moves on

    def redraw(self) -> None:
        """The call itself moves on."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.draw += 1
        self.calls.append((self.draw, len(x), x.requires_grad))
        along = torch.stack([(self.direction * (image.flatten() - 0.5)).sum() for image in x])
        weak = (7 * self.draw) % 10 < 3
        margin = 1.8 - along if weak else 30.0 + 3.0 * along
        return torch.stack([margin, -margin], dim=1)


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((count, 1, 6, 6), 0.5), torch.zeros(count, dtype=torch.int64)


def survives(model: Disagreeing, x: torch.Tensor, y: torch.Tensor, times: int = 10) -> torch.Tensor:
    """Right in all resubmissions under fresh draws, [N] bool."""
    model.draw = 5000
    return torch.stack([model(x).argmax(1) == y for _ in range(times)]).all(0)


def test_selective_beats_plain_eot_at_the_same_gradient_budget() -> None:
    x, y = images(4)
    common = {"seed": 0, "image_ids": range(4)}
    model = Disagreeing()
    plain = apgd(model, x, y, THREAT, steps=20, eot=20, redraw=model.redraw, **common)
    assert survives(model, plain.x_adv, y).all()
    chosen = selective(model, x, y, THREAT, steps=50, eot=5, draws=20, set_draw=model.set_draw, **common)
    assert chosen.gradient_evaluations <= plain.gradient_evaluations
    assert not survives(model, chosen.x_adv, y).any()
    assert chosen.failures.tolist() == [6] * 4 and chosen.draws == 20 and chosen.correct.all()  # 6 of 20: no majority
    assert chosen.name == "selective-ce" and chosen.objective == "average" and chosen.verify_mismatches is None
    check_budget(chosen.x_adv, x, EPS, "linf")
    fresh = selective(model, x, y, THREAT, steps=20, eot=20, draws=20, redraw=model.redraw, **common)
    assert not survives(model, fresh.x_adv, y).any() and fresh.draws == 20
    uniform = selective(
        model, x, y, THREAT, steps=50, eot=20, draws=20, set_draw=model.set_draw, temperature=1e6, **common
    )
    assert uniform.failures.tolist() == [0] * 4  # every draw weighs the same: plain EOT again


def test_worst_needs_one_draw_of_the_pool_and_then_the_image_leaves() -> None:
    x, y = images(2)
    x[1] = 0.5 - 0.03 * Disagreeing().direction.view(1, 6, 6)  # 1.08 further away: 2.88, still in reach
    model = Disagreeing()
    result = selective(
        model, x, y, THREAT, steps=30, eot=1, draws=[3, 4, 5, 10], set_draw=model.set_draw, objective="worst",
        seed=0, image_ids=[0, 1],
    )  # fmt: skip
    assert result.accuracy == 0.0 and result.verify_mismatches == 0 and (result.failures >= 1).all()
    gradients = [rows for _, rows, gradient in model.calls if gradient]
    assert result.gradient_evaluations == sum(gradients) <= 2 * 30
    held = selective(
        model, x, y, THREAT, steps=10, eot=4, draws=[4, 5, 7, 8], set_draw=model.set_draw, objective="worst", seed=0,
        image_ids=[0, 1],
    )  # fmt: skip
    assert held.accuracy == 1.0 and held.failures.tolist() == [0, 0]


def test_draws_no_longer_right_take_no_gradients() -> None:
    """At eps 0 nothing moves: a pool of 10 with 3 broken at the clean image spends nothing on these three."""
    model = Disagreeing()
    x, y = images(1)
    x = x + 0.06 * model.direction.view(1, 6, 6)  # 2.16 > 1.8: the weak draws fail as it is
    result = selective(
        model, x, y, ThreatModel("linf", 0.0), steps=3, eot=10, draws=range(10), set_draw=model.set_draw, seed=0,
        image_ids=[0],
    )  # fmt: skip
    assert result.gradient_evaluations == 3 * 7 and result.failures.tolist() == [3]
    assert {draw for draw, _, gradient in model.calls if gradient} == {
        draw for draw in range(10) if (7 * draw) % 10 >= 3
    }


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("objective", ["average", "worst"])
def test_gradient_is_that_of_the_objective(objective: str, loss: str) -> None:
    """With every draw selected and still right, the direction is that of central differences of the ascent value."""
    weight = torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    now = [0]

    def model(x: torch.Tensor) -> torch.Tensor:
        z = torch.sin((x.double() - 0.5).flatten(1) @ weight[now[0]].T)
        return z + torch.tensor([3.0, 0.1, 0.2, 0.3], dtype=torch.float64)

    def set_draw(draw: int) -> None:
        now[0] = draw

    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4
    y = torch.zeros(3, dtype=torch.int64)
    options = {
        "loss": loss,
        "set_draw": set_draw,
        "draws": range(6),
        "eot": 6,
        "objective": objective,
        "temperature": 20.0,
    }
    chosen = _Selection(model, SelectiveOptions(seed=0, image_ids=range(3), **options))
    place = chosen.start(x, y)[2]
    found = chosen.evaluate(x, y, place, gradient=True)
    assert not chosen.clean_failures.any()
    numeric = torch.zeros(3, 16, dtype=torch.float64)
    for pixel in range(16):
        step = torch.zeros(16)
        step[pixel] = 2.0**-9
        ahead, behind = (chosen.evaluate(x + s * step.view(1, 4, 4), y, place, gradient=False) for s in (1, -1))
        numeric[:, pixel] = ahead.ascent - behind.ascent
    cosine = torch.nn.functional.cosine_similarity(numeric, found.gradient.flatten(1))
    assert (cosine > 0.9999).all()


def test_the_largest_weights_are_selected_and_sum_to_one() -> None:
    options = {"set_draw": lambda draw: None, "draws": range(4), "eot": 2}
    chosen = _Selection(lambda x: x, SelectiveOptions(seed=0, image_ids=[0], **options))
    weight = chosen._weights(torch.tensor([[-1.0, -math.inf], [-3.0, -2.0], [-2.0, -math.inf], [-9.0, -math.inf]]))
    share = 1.0 / (1.0 + math.exp(-1.0))
    assert torch.allclose(weight[:, 0], torch.tensor([share, 0.0, 1 - share, 0.0]))
    assert weight[:, 1].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert chosen._weights(torch.full((4, 1), -math.inf)).abs().sum() == 0


def test_pool_far_from_a_counter_and_never_met_again() -> None:
    model = Disagreeing()
    x, y = images(1)
    selective(model, x, y, THREAT, steps=2, eot=2, draws=4, set_draw=model.set_draw, seed=0, image_ids=[0])
    assert {draw for draw, _, _ in model.calls} == set(range(FIRST_DRAW, FIRST_DRAW + 4))
    model(x)
    assert model.draw == FIRST_DRAW + 4
    selective(model, x, y, THREAT, steps=2, eot=2, draws=[7, 3], set_draw=model.set_draw, seed=0, image_ids=[0])
    model(x)
    assert model.draw == 8


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_logit_scale_does_not_matter(loss: str) -> None:
    """Weights compare draws in units of the clean spread, so that c z is attacked as z is."""
    weight = torch.randn(8, 4, PIXELS, generator=torch.Generator().manual_seed(0))
    now, found = [0], []
    x, y = images(2)
    for scale in (2.0**-13, 1.0, 2.0**13):

        def model(x: torch.Tensor, scale: float = scale) -> torch.Tensor:
            rows = [(weight[now[0]] * (image.flatten() - 0.5)).sum(1) for image in x]
            return scale * (torch.stack(rows) + torch.tensor([2.0, 0.0, 0.3, 0.1]))

        found.append(
            selective(
                model, x, y, THREAT, steps=10, eot=3, draws=range(8), loss=loss, seed=0, image_ids=[0, 1],
                set_draw=lambda draw: now.__setitem__(0, draw),
            )
        )  # fmt: skip
    assert all(torch.equal(one.x_adv, found[0].x_adv) for one in found) and found[0].failures.min() > 0


def test_the_batch_does_not_matter_and_runs_repeat() -> None:
    x = 0.5 + 0.04 * (torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5)
    y = torch.zeros(5, dtype=torch.int64)
    for objective in ("average", "worst"):
        model = Disagreeing()
        common = {"seed": 3, "steps": 8, "restarts": 2, "eot": 3, "set_draw": model.set_draw, "objective": objective}
        whole = selective(model, x, y, THREAT, image_ids=range(5), **common)
        again = selective(model, x, y, THREAT, image_ids=range(5), **common)
        part = selective(model, x[2:4], y[2:4], THREAT, image_ids=[2, 3], **common)
        assert torch.equal(whole.x_adv, again.x_adv) and torch.equal(whole.x_adv[2:4], part.x_adv)
        assert torch.equal(whole.failures[2:4], part.failures) and torch.equal(whole.correct[2:4], part.correct)


def test_nan_logits_count_as_failures() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        total = x.sum((1, 2, 3))
        return torch.stack([total, -total], dim=1) * (math.nan if draw[0] == 1 else 1.0)

    draw = [0]
    x, y = images(2)
    result = selective(
        model, x, y, THREAT, steps=3, eot=3, draws=[0, 1, 2], set_draw=lambda i: draw.__setitem__(0, i), seed=0,
        image_ids=[0, 1],
    )  # fmt: skip
    assert result.failures.tolist() == [1, 1] and result.non_finite_logits.all() and result.correct.all()


def test_errors() -> None:
    x, y = images(1)
    model = Disagreeing()
    common = {"seed": 0, "image_ids": [0], "steps": 2}
    with pytest.raises(InputError, match="set_draw"):
        selective(model, x, y, THREAT, **common)
    with pytest.raises(ConfigError, match="worst"):
        selective(model, x, y, THREAT, redraw=model.redraw, objective="worst", **common)
    with pytest.raises(ConfigError, match="objective"):
        selective(model, x, y, THREAT, set_draw=model.set_draw, objective="best", **common)
    for draws in (0, [], [1, 1], [-1], True):
        with pytest.raises(InputError, match="draws"):
            selective(model, x, y, THREAT, set_draw=model.set_draw, draws=draws, **common)
    with pytest.raises(InputError, match="eot"):
        selective(model, x, y, THREAT, set_draw=model.set_draw, eot=0, **common)
    with pytest.raises(ConfigError, match="temperature"):
        selective(model, x, y, THREAT, set_draw=model.set_draw, temperature=0.0, **common)


class Purifying:
    """A purification x -> A x + shift_i in float64, then classes that bend: all draws share the Jacobian A, unless they rotate it."""

    def __init__(self, rotates: bool = False) -> None:
        generator = torch.Generator().manual_seed(8)
        self.mixing = torch.randn(PIXELS, PIXELS, generator=generator, dtype=torch.float64) / 6
        self.shifts = torch.randn(40, PIXELS, generator=generator, dtype=torch.float64)
        self.weight = torch.randn(PIXELS, 3, generator=generator, dtype=torch.float64)
        self.rotates, self.draw, self.calls = rotates, 0, []

    def set_draw(self, draw: int) -> None:
        self.draw = draw

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append(("classify", len(images), images.requires_grad))
        return torch.tanh(images.flatten(1)) @ self.weight

    def path(self, x: torch.Tensor) -> PurificationPath:
        self.calls.append((self.draw, len(x), x.requires_grad))
        mixing = self.mixing.roll(self.draw, 0) if self.rotates else self.mixing
        moved = (x.double().flatten(1) @ mixing + 0.3 * self.shifts[self.draw % 40]).view(x.shape)
        return PurificationPath(torch.stack([moved / 2, moved], dim=1), self.classify(moved), self.classify)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.path(x).logits


def slopes(model: Purifying, gradients: str, eot: int) -> torch.Tensor:
    x, y = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(3)
    options = SelectiveOptions(
        set_draw=model.set_draw, path=model.path, draws=6, eot=eot, gradients=gradients, objective="worst"
    )
    chosen = _Selection(model, options)
    place = chosen.start(x, y)[2]
    model.calls.clear()
    return chosen.evaluate(x, y, place, gradient=True).slope


def test_grafted_gradients_are_the_full_ones_where_draws_share_a_jacobian() -> None:
    model = Purifying()
    full = slopes(model, "full", 6)
    assert (
        sum(rows for _, rows, gradient in model.calls if gradient and _ != "classify") == 18
    )  # each image through each draw
    grafted = slopes(model, "grafted", 6)
    assert torch.allclose(grafted, full, atol=FLOAT64_OP)
    through = [rows for name, rows, gradient in model.calls if gradient and name != "classify"]
    assert sum(through) == 3  # one draw for each image


def test_grafted_gradients_differ_where_jacobians_do_and_one_draw_is_exact() -> None:
    model = Purifying(rotates=True)
    full, grafted = slopes(model, "full", 6), slopes(model, "grafted", 6)
    assert not torch.allclose(grafted, full, rtol=QUITE_DIFFERENT_GRADIENT)
    assert torch.allclose(slopes(model, "full", 1), slopes(model, "grafted", 1), atol=FLOAT64_OP)


def test_grafting_needs_a_path_and_draws_that_can_be_set() -> None:
    model, (x, y) = Purifying(), images(2)
    with pytest.raises(ConfigError, match="grafted gradients need"):
        selective(model, x, y, THREAT, set_draw=model.set_draw, gradients="grafted")
    with pytest.raises(ConfigError, match="grafted gradients need"):
        selective(model, x, y, THREAT, redraw=lambda: None, path=model.path, gradients="grafted")
    with pytest.raises(ConfigError, match="gradients"):
        selective(model, x, y, THREAT, set_draw=model.set_draw, gradients="half")
    found = selective(
        model, x, y, THREAT, set_draw=model.set_draw, path=model.path, gradients="grafted", steps=4, draws=4, seed=0
    )
    check_budget(found.x_adv, x, EPS, "linf")
    assert found.gradient_evaluations <= 4 * int(found.clean_correct.sum())
    grafted = parse_attack("selective:gradients=grafted:eot=20")
    assert applies(grafted, gaussian_classifier(lm="paper-v2,steps=1"), "linf", "fresh") is None
    assert "purifies in steps" in str(applies(grafted, gaussian_classifier(), "linf", "fresh"))
