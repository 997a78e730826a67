"""APGD step for step against a second, per-image implementation of Algorithm 1; checkpoints; strength beside PGD."""

from __future__ import annotations

import math

import pytest
import torch

from rdc.attacks import ThreatModel, apgd, pgd
from rdc.attacks.apgd import _ApgdRule, _SparseRule, checkpoints
from rdc.attacks.losses import Evaluation
from rdc.attacks.per_image import AscentRule, JumpRule
from rdc.attacks.transfer import _ReturnToBest
from rdc.norm_balls import project, random_start
from tests.tolerances import FLOAT32_SUM, FLOAT32_ULP


def test_checkpoints_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50) == [
        11,
        21,
        29,
        35,
        40,
        44,
        47,
    ]  # 0.99 * 50 rounds up to the end itself: nothing left to do there
    assert checkpoints(1) == [] and checkpoints(3) == [1, 2]


def halvings(losses: list[float], steps: int = 100) -> list[int]:
    """Steps at which the rule halves eta when it is fed these losses (one image, constant gradient)."""
    x, flag, found = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.bool), []
    rule = _ApgdRule(x, ThreatModel("linf", 0.1), steps)
    for k, loss in enumerate(losses):
        before = float(rule.eta)
        value = torch.tensor([loss], dtype=torch.float64)
        rule.next(x, Evaluation(value, ~flag, torch.ones_like(x, dtype=torch.float64), flag, flag))
        if float(rule.eta) < before:
            assert float(rule.eta) == before / 2
            found.append(k)
    return found


def test_each_condition_alone_halves_the_step() -> None:
    rising, falling = [float(k) for k in range(100)], [-float(k) for k in range(100)]
    assert halvings(rising) == []  # progress all along, and a new best at each checkpoint
    assert halvings(falling) == checkpoints(100)  # condition 1, at every checkpoint
    # Condition 2: from step 1 on the loss rises each time but never reaches the first one's. Halved at 22, spared at 41
    # because eta has just changed, halved at 57, spared at 70, ..
    assert halvings([1000.0, *rising[1:]]) == [22, 57, 80, 93]
    # Condition 1 by its fraction: 16 of the first 22 steps rise (< 16.5): halved; 17 of 22: not.
    for rises, expected in ((16, [22]), (17, [])):
        start = [-float(k) for k in range(23 - rises)]
        assert halvings([*start, *(start[-1] + 2.0 * k for k in range(1, rises + 1))]) == expected


@pytest.mark.parametrize("steps, phases", [(3, {0: (1.0, 3)}), (10, {0: (3.0, 3), 3: (2.0, 3), 6: (1.0, 4)})])
def test_phases_of_l1(steps, phases) -> None:
    """A run too short for three phases is spent within the budget."""
    assert _SparseRule(torch.full((1, 1, 2, 2), 0.5), ThreatModel("l1", 0.5), steps).phases == phases


def test_a_rule_says_which_iterates_count_and_those_around_it_say_the_same() -> None:
    """l_1's first phases go beyond the budget: such an iterate is no adversarial example, whoever hands the rule on."""
    x = torch.full((2, 1, 2, 2), 0.5)
    far = x + torch.tensor([0.1, 0.2]).view(-1, 1, 1, 1)  # 0.4 and 0.8 in l_1
    sparse = _SparseRule(x, ThreatModel("l1", 0.5), 10)
    for rule in (sparse, AscentRule(sparse), JumpRule(AscentRule(sparse), lambda ids: x), _ReturnToBest(sparse, x, 10)):
        assert rule.counts(far).tolist() == [True, False]
    dense = _ApgdRule(x, ThreatModel("linf", 0.5), 10)
    assert dense.counts(far) is None and AscentRule(dense).counts(far) is None


class Bumpy:
    """Three classes, oscillating logits: APGD has to halve its step."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(3, 16, generator=generator)
        self.fast = torch.randn(3, 16, generator=generator) * 12
        self.seen: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach().clone())
        flat = x.flatten(1)[:, None, :]
        return (
            (self.weight * flat).sum(-1) + 0.6 * torch.sin((self.fast * flat).sum(-1)) + torch.tensor([9.0, 0.0, 0.0])
        )


def algorithm_1(
    model: Bumpy, x: torch.Tensor, eps: float, norm: str, steps: int, start: torch.Tensor
) -> tuple[list[torch.Tensor], int]:
    """Croce & Hein 2020, Algorithm 1, for one image, margin loss for class 0; the iterates and the halvings."""

    def f(point: torch.Tensor) -> tuple[float, torch.Tensor]:
        point = point.clone().requires_grad_()
        logits = model(point)[0].double()
        value = torch.maximum(logits[1], logits[2]) - logits[0]
        return value.item(), torch.autograd.grad(value, point)[0].double()

    def step(point: torch.Tensor, eta: float, gradient: torch.Tensor) -> torch.Tensor:
        unit = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        return project(point.double() + eta * unit, x, eps, norm)

    p, j = [0.0, 0.22], 0
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(value * steps, 9)) for value in p]
    eta, halvings = 2 * eps, 0
    xs, (value, gradient) = [start], f(start)
    values, gradients = [value], [gradient]
    best = 0  # index of x_max
    restarted: dict[int, float] = {}  # k -> value of x^(k) after x^(k) := x_max
    halved = {0: False}
    xs.append(step(start, eta, gradient))
    best_at, previous = {0: value}, start
    for k in range(1, steps):
        value, gradient = f(xs[k])
        values.append(value), gradients.append(gradient)
        if value > values[best]:
            best = k
        current, direction = xs[k], gradient
        if k == w[j + 1]:
            last = w[j]
            rises = sum(values[i + 1] > restarted.get(i, values[i]) for i in range(last, k))
            one = rises < 0.75 * (k - last)
            two = not halved[last] and best_at[last] == values[best]
            halved[k] = one or two
            if halved[k]:
                eta, halvings, current, direction = eta / 2, halvings + 1, xs[best], gradients[best]
                restarted[k] = values[best]
            best_at[k], j = values[best], j + 1
        z = step(current, eta, direction)
        mixed = (
            current.double() + 0.75 * (z.double() - current.double()) + 0.25 * (current.double() - previous.double())
        )
        xs.append(project(mixed, x, eps, norm))
        previous = current
    return xs, halvings


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.8)])
@pytest.mark.parametrize("image_id", [0, 1, 2, 3])
def test_every_iterate_is_that_of_algorithm_1(norm: str, eps: float, image_id: int) -> None:
    x = 0.2 + 0.6 * torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(image_id))
    start = random_start(x, eps, norm, seed=5, image_ids=[image_id], restart=0)
    expected, halved = algorithm_1(Bumpy(), x, eps, norm, 40, start)
    model = Bumpy()
    result = apgd(
        model,
        x,
        torch.tensor([0]),
        ThreatModel(norm, eps),
        seed=5,
        image_ids=[image_id],
        steps=40,
        loss="margin",
        verify=False,
    )
    assert result.correct.all() and halved >= 2
    iterates = model.seen[1:]
    assert len(iterates) == 41
    for mine, other in zip(iterates, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=FLOAT32_ULP, rtol=0)


def test_best_point_is_kept_not_the_last() -> None:
    x = 0.2 + 0.6 * torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(9))
    model, y = Bumpy(), torch.zeros(6, dtype=torch.int64)
    result = apgd(
        model,
        x,
        y,
        ThreatModel("linf", 0.2),
        seed=0,
        image_ids=range(6),
        steps=30,
        restarts=3,
        loss="margin",
        verify=False,
    )
    losses = torch.stack([z[:, 1:].amax(1) - z[:, 0] for z in (model(p).double() for p in list(model.seen[1:]))])
    assert result.correct.all() and torch.equal(result.best_loss, losses.amax(0))
    z = model(result.x_adv).double()
    assert torch.equal(z[:, 1:].amax(1) - z[:, 0], result.best_loss)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.8)])
def test_beats_pgd_on_a_bumpy_landscape(norm: str, eps: float) -> None:
    x = 0.2 + 0.6 * torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(11))
    y, kept = torch.zeros(40, dtype=torch.int64), {"seed": 0, "image_ids": range(40), "steps": 100, "loss": "margin"}
    adaptive, plain = (attack(Bumpy(), x, y, ThreatModel(norm, eps), **kept).best_loss for attack in (apgd, pgd))
    assert float(adaptive.mean()) > float(plain.mean())


def test_restarts_only_help() -> None:
    x = 0.2 + 0.6 * torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(12))
    y, kept = torch.zeros(10, dtype=torch.int64), {"seed": 0, "image_ids": range(10), "steps": 10, "loss": "margin"}
    one, five = (apgd(Bumpy(), x, y, ThreatModel("linf", 0.2), restarts=r, **kept).best_loss for r in (1, 5))
    assert (five >= one).all() and (five > one).any()


def sparse_algorithm(model: Bumpy, x: torch.Tensor, eps: float, steps: int, start: torch.Tensor) -> list[torch.Tensor]:
    """Croce & Hein 2021, Algorithm 1 with radii 3 eps, 2 eps, eps, for one image, margin loss for class 0."""

    def f(point: torch.Tensor) -> tuple[float, torch.Tensor]:
        point = point.clone().requires_grad_()
        logits = model(point)[0].double()
        value = torch.maximum(logits[1], logits[2]) - logits[0]
        return value.item(), torch.autograd.grad(value, point)[0].double()

    early, current, found = int(0.3 * steps), start, []
    number = int(0.2 * x.numel())
    for factor, length in ((3, early), (2, early), (1, steps - 2 * early)):
        radius = eta = factor * eps
        best, best_value, best_slope, every = current, -math.inf, None, math.ceil(round(0.04 * length, 9))
        for k in range(length):
            found.append(current)
            value, slope = f(current)
            if value > best_value:
                best, best_value, best_slope = current, value, slope
            if k + 1 == length:
                break
            if (k + 1) % every == 0:
                before, number = number, max(1, int((best != x).sum() / 1.5))
                if number <= 0.95 * before:
                    eta, current, slope = radius, best, best_slope
                else:
                    eta = max(eta / 1.5, radius / 10)
            held = ((current == 1) & (slope > 0)) | ((current == 0) & (slope < 0))
            slope = torch.where(held, 0.0, slope)
            move = torch.zeros(x.numel(), dtype=torch.float64)
            for place in sorted(range(x.numel()), key=lambda i: -abs(float(slope.flatten()[i])))[:number]:
                move[place] = math.copysign(1.0, float(slope.flatten()[place])) if slope.flatten()[place] != 0 else 0.0
            current = project(current.double() + eta * (move / move.abs().sum()).view_as(x), x, radius, "l1")
        current = project(best, x, max(factor - 1, 1) * eps, "l1")
        number = max(1, int((current != x).sum() / 1.5))
    return found


@pytest.mark.parametrize("image_id", [0, 1, 2])
def test_every_l1_iterate_is_that_of_the_algorithm(image_id: int) -> None:
    x = 0.2 + 0.6 * torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(image_id))
    if image_id == 2:
        x = x.round()  # half of all directions are blocked by the box
    start = random_start(x, 0.4, "l1", seed=5, image_ids=[image_id], restart=0)
    expected, model = sparse_algorithm(Bumpy(), x, 0.4, 60, start), Bumpy()
    threat = ThreatModel("l1", 0.4)
    apgd(model, x, torch.tensor([0]), threat, seed=5, image_ids=[image_id], steps=60, loss="margin", verify=False)
    assert len(model.seen) == 62
    for mine, other in zip(model.seen[1:61], expected, strict=True):
        torch.testing.assert_close(mine, other, atol=FLOAT32_ULP, rtol=0)


def test_l1_finds_the_greedy_optimum(models) -> None:
    """On w . x the best l_1 point spends the budget on the pixels of largest |w|, each to the end of the box."""
    weight = torch.randn(36, generator=torch.Generator().manual_seed(2))
    model, x = models.two_class(weight, bias=100.0), models.random_images(5)
    threat, eps = ThreatModel("l1", 1.5), 1.5
    result = apgd(model, x, torch.zeros(5, dtype=torch.int64), threat, seed=0, image_ids=range(5), loss="margin")
    for image, loss in zip(x.double().flatten(1).tolist(), result.best_loss.tolist(), strict=True):
        left, gain = eps, 0.0
        for w, pixel in sorted(zip(weight.double().tolist(), image, strict=True), key=lambda pair: -abs(pair[0])):
            step = min(left, pixel if w > 0 else 1 - pixel)
            left, gain = left - step, gain + abs(w) * step
        clean = -(sum(w * (p - 0.5) for w, p in zip(weight.double().tolist(), image, strict=True)) + 100.0)
        assert 0.995 < (loss - clean) / gain < 1 + FLOAT32_SUM
    moved = (result.x_adv.double() - x.double()).flatten(1).abs().numpy()
    assert (moved.sum(1) <= eps).all() and result.x_adv.min() >= 0 and result.x_adv.max() <= 1


def test_l1_breaks_more_than_pgd_and_forgets_what_lies_outside(cnn) -> None:
    net, x, y = cnn
    kept = {"seed": 0, "image_ids": range(24), "steps": 40}
    plain, adaptive = (attack(net, x, y, ThreatModel("l1", 1.0), **kept) for attack in (pgd, apgd))
    assert adaptive.accuracy < plain.accuracy
    assert int((adaptive.broken_at[~adaptive.correct] < 24).sum()) == 0  # radii 3 eps and 2 eps: 24 of 40 steps
    assert torch.equal(net(adaptive.x_adv).argmax(1) == y, adaptive.correct)


@pytest.mark.parametrize(("norm", "eps"), [("l1", 0.25), ("l2", 0.06), ("linf", 0.01)])
def test_an_image_does_not_know_its_batch(models, norm: str, eps: float) -> None:
    """Some are broken on the way and leave; what is kept of each image goes on with the others."""
    x, model = models.random_images(5), models.random_linear(5, 36)
    y, kept = model(x).argmax(1), {"seed": 3, "steps": 12, "restarts": 2}
    threat = ThreatModel(norm, eps)
    whole = apgd(model, x, y, threat, image_ids=range(20, 25), **kept)
    assert 0 < whole.accuracy < 1
    for row in range(5):
        alone = apgd(model, x[row : row + 1], y[row : row + 1], threat, image_ids=[20 + row], **kept)
        assert torch.equal(alone.x_adv[0], whole.x_adv[row]) and alone.broken_at[0] == whole.broken_at[row]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_l1_short_runs(cnn, steps: int) -> None:
    net, x, y = cnn
    result = apgd(net, x, y, ThreatModel("l1", 0.5), seed=0, image_ids=range(24), steps=steps)
    assert result.correct.any() and len(result.accuracy_per_step) == steps + 1
