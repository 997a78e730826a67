"""Threats that training names: budgets, the first order and its oracle, one for each image, the worst of all."""

from __future__ import annotations

import itertools

import pytest
import torch

from rdc.attacks.stadv import warp
from rdc.errors import ConfigError
from rdc.norm_balls import distance, project
from rdc.training.adversarial import ClassifierObjective, InnerAttack
from rdc.training.distillation import DistillationObjective
from rdc.training.objective import NoiseDistribution
from rdc.training.secant import Secant
from rdc.training.threats import Perturbation, Threats, TrainedThreat, parse_threats
from tests.tiny_models import pixels, tiny_denoiser
from tests.tolerances import BUDGET_USE, FLOAT32_ULP, FLOAT64_ORDER

ALL = "linf:2/255..0.1,l2:0.5..1.5,l1:2,flow:0.05"
X = pixels(6, dtype=torch.float64)
GRADIENT = torch.randn(X.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def drawn(text: str, choice: str = "drawn", seed: int = 0):
    return Threats(parse_threats(text), choice).drawn(len(X), torch.Generator().manual_seed(seed), X)


def test_text() -> None:
    first, second, third, fourth = parse_threats(ALL)
    assert first == TrainedThreat("linf", 2 / 255, 0.1) and second == TrainedThreat("l2", 0.5, 1.5)
    assert third == TrainedThreat("l1", 2.0, 2.0) and fourth == TrainedThreat("flow", 0.05, 0.05)
    assert parse_threats(",".join(map(str, (first, second)))) == (first, second)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("linf", "expected NORM:RADIUS or NORM:LOW..HIGH"),
        ("l3:0.1", "expected one of linf, l2, l1, flow; got 'l3'"),
        ("linf:0", "a radius of linf above 0, below 1"),
        ("linf:8", "8"),
        ("l2:1.5..0.5", "the smaller one first"),
        ("flow:2.5", "a radius of flow above 0"),
        ("linf:x", "x"),
        (",".join(["l2:1"] * 17), "at most 16 threats; got 17"),
    ],
)
def test_texts_that_are_none(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_threats(text)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_radii_of_their_own_project_as_one_by_one(norm: str) -> None:
    radii = torch.tensor([0.01, 0.3, 0.7, 0.05, 1.0, 0.2], dtype=torch.float64)
    x, far = X.float(), X + 3 * GRADIENT
    together = project(far, x, radii, norm)
    for row, eps in enumerate(radii.tolist()):
        assert torch.equal(together[row], project(far[row : row + 1], x[row : row + 1], eps, norm)[0])


def test_every_step_keeps_the_budget() -> None:
    """First order, Frank-Wolfe's next, projected ascent, random starts: each image under its own threat and radius."""
    reach = drawn(ALL, seed=3)
    assert reach.which is not None and len(set(reach.which.tolist())) > 2
    generator = torch.Generator().manual_seed(5)
    now = reach.furthest(GRADIENT, X)
    steps = [now, now.towards(reach.onward(GRADIENT.flip(0), X, now), 2), reach.start(X, generator)]
    steps.append(reach.ascended(-GRADIENT, X, steps[-1], 0.7))
    for made, row in itertools.product(steps, range(len(X))):
        norm, eps = reach.norms[reach.which[row]], float(reach.radii[reach.which[row]][row])
        delta, flow = made.delta[row : row + 1], made.flow[row : row + 1]
        if norm == "flow":
            assert not delta.any() and flow.any() and flow.abs().max() <= eps
            continue
        moved = X[row : row + 1].float() + delta.float()
        assert not flow.any() and moved.min() >= -FLOAT32_ULP and moved.max() <= 1 + FLOAT32_ULP
        size = float(distance(delta, torch.zeros_like(delta), norm))
        assert size <= eps * (1 + BUDGET_USE) and (size > 0 or norm == "l1")
    assert (made.moved(X) - X).abs().amax((1, 2, 3)).gt(0).sum() >= 4


def test_first_order_flow_is_the_best_of_all_corners() -> None:
    """Along one axis the warp by less than a pixel is linear in each entry on either side: every entry's best choice, by trying."""
    x = torch.rand(1, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(1, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bound = 0.3
    reach = Threats((TrainedThreat("flow", bound, bound),)).drawn(1, torch.Generator(), x)
    found = reach.furthest(weight, x)
    for channel in (0, 1):
        best = None
        for corner in itertools.product((-bound, 0.0, bound), repeat=6):
            flow = torch.zeros(1, 2, 2, 3, dtype=torch.float64)
            flow[0, channel] = torch.tensor(corner, dtype=torch.float64).view(2, 3)
            value = float((weight * warp(x, flow)).sum())
            best = value if best is None else max(best, value)
        flow = torch.zeros_like(found.flow)
        flow[:, channel] = found.flow[:, channel]
        assert float((weight * warp(x, flow)).sum()) == pytest.approx(best, rel=FLOAT64_ORDER)


def test_worst_is_the_threat_that_gains_most() -> None:
    reach = drawn("linf:0.02,l2:0.5,flow:0.04", "worst")
    assert reach.which is None
    found = reach.furthest(GRADIENT, X)
    gains = []
    for index in range(3):
        made = reach.only(index).furthest(GRADIENT, X)
        gain = (GRADIENT * made.delta).flatten(1).sum(1)
        if index == 2:  # to first order: the sum of what each entry gains alone
            alone = [
                Perturbation(made.delta, made.flow * torch.tensor(mask).view(1, 2, 1, 1)) for mask in ((1, 0), (0, 1))
            ]
            gain = sum((GRADIENT * (one.moved(X) - X)).flatten(1).sum(1) for one in alone)
        gains.append(gain)
    assert torch.equal(reach.which, torch.stack(gains).argmax(0)) and len(set(reach.which.tolist())) > 1
    for row, index in enumerate(reach.which.tolist()):
        assert torch.equal(found.delta[row], reach.only(index).furthest(GRADIENT, X).delta[row])


def test_draws() -> None:
    """Each threat as likely, radii uniform in their range; nothing is drawn where there is nothing to choose."""
    threats, generator = Threats(parse_threats("linf:0.02..0.1,flow:0.05")), torch.Generator().manual_seed(0)
    made = threats.drawn(4000, generator, X)
    assert 0.46 < made.which.double().mean() < 0.54
    assert 0.02 <= made.radii[0].min() < 0.0202 and 0.0998 < made.radii[0].max() <= 0.1
    assert 0.059 < made.radii[0].mean() < 0.061 and set(made.radii[1].tolist()) == {0.05}
    before = generator.get_state()
    Threats(parse_threats("l2:0.5")).drawn(4, generator, X)
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize("choice", ["drawn", "worst"])
def test_student_and_classifier_train_under_threats(choice: str) -> None:
    """One threat said either way is the same loss, bit for bit; several give losses with gradients."""
    labels, x0 = torch.tensor([0, 2, 1, 1, 0, 2]), 2 * X - 1

    def student(secant: Secant):
        network = tiny_denoiser("multihead", torch.float64).network.requires_grad_()
        terms = {"classes_per_image": 0, "posterior_weight": 1.0, "secant": secant, "label_smoothing": 0.2}
        made = DistillationObjective(tiny_denoiser(dtype=torch.float64), NoiseDistribution(0.0, 0.5), **terms)
        return made(network, x0, labels, torch.Generator().manual_seed(0))[0]

    assert torch.equal(student(Secant(0.03, "l2", steps=2)), student(Secant(threats="l2:0.03", choice=choice, steps=2)))
    loss = student(Secant(threats=ALL, choice=choice, steps=2, low=0.2, high=1.0))
    assert torch.isfinite(loss) and not torch.equal(loss, student(Secant(threats="l2:0.03")))

    weight = torch.randn(X[0].numel(), 3, generator=torch.Generator().manual_seed(2))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(*weight.shape, bias=False))
    network[1].weight.data = weight.t().contiguous()
    network.requires_grad_(False)
    losses, several = {}, "linf:0.025,l2:0.3,flow:0.08"
    for text in (*several.split(","), several):
        objective = ClassifierObjective("pgd-at", InnerAttack(threats=text, choice=choice, steps=10))
        losses[text] = float(objective(network, x0.float(), labels, torch.Generator().manual_seed(0))[0])
    mixed, clean = losses.pop(several), float(torch.nn.functional.cross_entropy(network(X.float()), labels))
    assert clean < min(losses.values())
    assert mixed > max(losses.values()) if choice == "worst" else clean < mixed < max(losses.values())


def test_steepest_descent_step_by_step() -> None:
    """Against a loop over images and threats: each step projected there, the largest loss goes on; it beats every threat alone."""
    weight = torch.randn(X[0].numel(), 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1, 0, 2])
    several, steps = "linf:0.025,l2:0.3,flow:0.08", 4

    def loss(logits):
        return torch.nn.functional.cross_entropy(logits.double(), labels[: len(logits)], reduction="none")

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(*weight.shape, bias=False)).double()
    network[1].weight.data = weight.t().contiguous()
    found = InnerAttack(threats=several, choice="steepest", steps=steps)
    x_adv = found.among(network, X, loss, torch.Generator().manual_seed(0))

    generator = torch.Generator().manual_seed(0)
    reach = Threats(parse_threats(several), "steepest").drawn(len(X), generator, X)
    state, used = reach.start(X, generator), set()
    delta, flow = state.delta, state.flow
    for _ in range(steps):
        next_delta, next_flow = [], []
        for row in range(len(X)):
            x = X[row : row + 1]
            d, f = (part[row : row + 1].clone().requires_grad_() for part in (delta, flow))
            moved = (warp(x, f) + d).clamp(0, 1)
            value = torch.nn.functional.cross_entropy(moved.flatten(1) @ weight, labels[row : row + 1])
            slope_d, slope_f = torch.autograd.grad(value, (d, f))
            tried = []
            for name, eps in (("linf", 0.025), ("l2", 0.3)):
                step = slope_d.sign() if name == "linf" else slope_d / slope_d.norm()
                there = project((x + d + 2.5 / steps * eps * step).detach(), x.float(), eps, name)
                tried.append((there - x, torch.zeros_like(f)))
            tried.append((torch.zeros_like(d), (f.detach() + 2.5 / steps * 0.08 * slope_f.sign()).clamp(-0.08, 0.08)))
            values = [
                float(
                    torch.nn.functional.cross_entropy(
                        (warp(x, f) + d).clamp(0, 1).flatten(1) @ weight, labels[row : row + 1]
                    )
                )
                for d, f in tried
            ]
            best = max(range(3), key=values.__getitem__)
            used.add(best)
            next_delta.append(tried[best][0].detach())
            next_flow.append(tried[best][1].detach())
        delta, flow = torch.cat(next_delta), torch.cat(next_flow)
    torch.testing.assert_close(x_adv, (warp(X, flow) + delta).clamp(0, 1), rtol=0, atol=FLOAT32_ULP)
    assert len(used) > 1
    alone = [InnerAttack(threats=text, steps=steps) for text in several.split(",")]
    reached = [loss(network(one.among(network, X, loss, torch.Generator().manual_seed(0)))).mean() for one in alone]
    assert loss(network(x_adv)).mean() > max(reached)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Secant(threats="l2:0.5", choice="steepest"), "choice: expected drawn or worst for a student"),
        (lambda: Secant(0.03, threats="l2:0.5"), "threats: expected no secant_eps"),
        (lambda: Secant(threats="l2:0.5", choice="all"), "choice: expected one of drawn, worst, steepest; got 'all'"),
        (lambda: InnerAttack(0.1, threats="l2:0.5"), "threats: expected neither eps nor a step size"),
        (lambda: InnerAttack(threats="l2:0.5", step_size=0.1), "threats: expected neither eps nor a step size"),
        (lambda: Threats(()), "threats: expected at least one"),
    ],
)
def test_settings_that_contradict(make, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
