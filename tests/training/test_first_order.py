"""First-order worst cases against brute force, and what training on them does."""

import pytest
import torch
import torch.nn.functional as F

from rdc.attacks import ThreatModel, apgd
from rdc.errors import ConfigError
from rdc.training.distillation import DistillationObjective
from rdc.training.first_order import draw_rivals, worst_logits, worst_rise
from rdc.training.objective import NoiseDistribution
from tests.tiny_models import pixels, tiny_denoiser
from tests.tolerances import (
    FLOAT32_ORDER,
    FLOAT32_ROUNDING,
    FLOAT32_ROUNDINGS,
    FLOAT32_SUM,
    RIVALS,
    TRAINING_DIFFERENCE,
)

LABELS = torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.6), ("l1", 1.5)])
def test_rise_is_the_maximum_over_ball_and_box(norm, eps):
    """Against the closed forms: a clamp, the steepest pixels first, a bisection on the multiplier."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 4, 4, generator=generator).round(decimals=1)  # some pixels at 0 and at 1
    x[0, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    gradient = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    gradient[1, 0, 0, 0] = 0.0
    rise = worst_rise(gradient, x, eps, norm)
    room = torch.where(gradient > 0, 1 - x, x).double().flatten(1)
    slope = gradient.abs().flatten(1)
    if norm == "linf":
        expected = (slope * room.clamp(max=eps)).sum(1)
    elif norm == "l1":  # fill the steepest pixels first
        order = slope.argsort(1, descending=True)
        filled = room.gather(1, order)
        before = filled.cumsum(1) - filled
        expected = (slope.gather(1, order) * torch.minimum(filled, (eps - before).clamp_min(0))).sum(1)
    else:  # d = min(t slope, room), t by bisection
        low, high = torch.zeros(3, 1, dtype=torch.float64), torch.full((3, 1), 1e6, dtype=torch.float64)
        for _ in range(200):
            middle = (low + high) / 2
            inside = torch.minimum(middle * slope, room).norm(dim=1, keepdim=True) <= eps
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        expected = (slope * torch.minimum(low * slope, room)).sum(1)
    torch.testing.assert_close(rise, expected, rtol=FLOAT32_ORDER, atol=FLOAT32_ROUNDING)


def test_rise_of_a_zero_gradient_is_zero():
    assert worst_rise(torch.zeros(2, 1, 3, 3), torch.rand(2, 1, 3, 3), 0.1, "l2").tolist() == [0.0, 0.0]


def test_worst_logits_of_a_linear_classifier_are_reached():
    """For linear logits first order is exact: the best point of the box and ball has the predicted margin."""
    generator = torch.Generator().manual_seed(1)
    x, matrix = torch.rand(4, 1, 3, 3, generator=generator), torch.randn(9, 2, generator=generator)
    labels = (x.flatten(1) @ matrix).argmax(1)
    x0, rows = (2 * x - 1).requires_grad_(), torch.arange(4)
    worst, rise = worst_logits(((x0 + 1) / 2).flatten(1) @ matrix, labels, 1 - labels, x0, 0.05, "linf")
    direction = (matrix[:, 1 - labels] - matrix[:, labels]).T.sign().reshape(x.shape)
    moved = (x + 0.05 * direction).clamp(0, 1).flatten(1) @ matrix
    margin = moved[rows, 1 - labels] - moved[rows, labels]
    torch.testing.assert_close(
        (worst[rows, 1 - labels] - worst[rows, labels]).detach(), margin, rtol=FLOAT32_SUM, atol=FLOAT32_ROUNDING
    )
    torch.testing.assert_close(worst[rows, labels].detach(), (x.flatten(1) @ matrix)[rows, labels])
    assert (rise > 0).all() and worst.requires_grad and not rise.requires_grad


def test_every_wrong_class_is_raised_by_what_the_rival_gains():
    """Four classes: the logits of all but the true one rise by the same amount, the true one's stays."""
    generator = torch.Generator().manual_seed(2)
    x, matrix = torch.rand(3, 1, 3, 3, generator=generator), torch.randn(9, 4, generator=generator)
    labels, rivals = torch.tensor([0, 3, 1]), torch.tensor([2, 0, 3])
    x0 = (2 * x - 1).requires_grad_()
    logits = ((x0 + 1) / 2).flatten(1) @ matrix
    worst, rise = worst_logits(logits, labels, rivals, x0, 0.05, "linf")
    slope = (matrix[:, rivals] - matrix[:, labels]).T.reshape(x.shape)
    room = torch.where(slope > 0, 1 - x, x).clamp(max=0.05)
    gain = (slope.abs() * room).sum((1, 2, 3))
    raised = gain[:, None].repeat(1, 4)
    raised[torch.arange(3), labels] = 0
    torch.testing.assert_close((worst - logits).detach(), raised, rtol=FLOAT32_SUM, atol=FLOAT32_ROUNDINGS)
    torch.testing.assert_close(rise, gain, rtol=FLOAT32_SUM, atol=FLOAT32_ROUNDING)


def test_rivals_are_wrong_classes_drawn_by_their_probability():
    logits = torch.tensor([[5.0, 1.0, 0.0, 0.0]]).repeat(4000, 1)
    rivals = draw_rivals(logits, torch.zeros(4000, dtype=torch.int64), torch.Generator().manual_seed(0))
    share = torch.bincount(rivals, minlength=4) / 4000
    torch.testing.assert_close(share, F.softmax(torch.tensor([-torch.inf, 1.0, 0.0, 0.0]), 0), rtol=0, atol=RIVALS)
    assert share[0] == 0


def objective(eps=0.03, norm="linf", **settings):
    return DistillationObjective(
        tiny_denoiser(dtype=torch.float64),
        NoiseDistribution(0.0, 0.5),
        0,
        posterior_weight=0.7,
        margin_eps=eps,
        margin_norm=norm,
        **settings,
    )


def run(made, student):
    return made(student, 2 * pixels(4, dtype=torch.float64) - 1, LABELS, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_objective_differentiates_through_the_input_gradient(norm):
    """The gradient in the weights is that of central differences, the rise included."""
    student = tiny_denoiser("multihead", torch.float64).network
    loss, values = run(objective(0.03, norm), student)
    assert values["rise"] > 0 and values["robust_first_order"] <= values["hits"]
    weight = student.head_weight
    (slope,) = torch.autograd.grad(loss, weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ends, h = [], 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * h)
        ends.append(run(objective(0.03, norm), student)[0].item())
        with torch.no_grad():
            weight.sub_(direction, alpha=sign * h)
    numeric = (ends[0] - ends[1]) / (2 * h)
    assert (slope * direction).sum().item() == pytest.approx(numeric, rel=TRAINING_DIFFERENCE)
    plain, _ = run(objective(0.0), student)
    without = torch.autograd.grad(plain, weight)[0]
    assert abs((without * direction).sum().item() - numeric) > 1e-2 * abs(numeric)  # the rise matters here


def test_without_margin_nothing_changes():
    student = tiny_denoiser("multihead", torch.float64).network
    plain = DistillationObjective(
        tiny_denoiser(dtype=torch.float64), NoiseDistribution(0.0, 0.5), 0, posterior_weight=0.7
    )
    (a, seen), (b, _) = run(plain, student), run(objective(0.0), student)
    assert a == b and "rise" not in seen


def _linear(weight):
    return lambda p: (2 * p - 1).flatten(1) @ weight


def test_training_on_the_worst_case_makes_a_classifier_withstand_an_attack():
    """Two pixels tell the class apart: one by a little and always, one by a lot and nearly always."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (512,), generator=generator)
    sign = (2.0 * labels - 1)[:, None, None, None]
    x = torch.cat(
        [0.5 + 0.02 * sign, 0.5 + 0.3 * sign * (1 - 2.0 * (torch.rand(512, 1, 1, 1, generator=generator) < 0.1))], 3
    )
    robust, threat = {}, ThreatModel("linf", 0.05)
    for eps in (0.0, 0.05):
        weight = torch.zeros(2, 2, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.3)
        for _ in range(300):
            x0 = (2 * x - 1).requires_grad_()
            logits = x0.flatten(1) @ weight
            if eps:
                logits, _ = worst_logits(logits, labels, 1 - labels, x0, eps, "linf")
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
        found = apgd(_linear(weight.detach()), x[:100], labels[:100], threat, seed=0, image_ids=range(100), steps=20)
        robust[eps] = found.correct.float().mean().item()
    assert robust[0.05] > 0.85 and robust[0.0] < 0.5


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"margin_eps": -0.1}, "margin_eps: expected a radius in"),
        ({"margin_eps": 8.0}, "margin_eps: expected a radius in"),
        ({"margin_eps": float("nan")}, "margin_eps: expected a radius in"),
        ({"margin_eps": 0.1, "margin_norm": "l3"}, "margin_norm: expected one of linf, l2, l1; got 'l3'"),
        ({"margin_eps": 0.1, "posterior_weight": 0.0, "classes_per_image": 2}, "expected posterior_weight > 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    made = {"classes_per_image": 0, "posterior_weight": 1.0, **settings}
    with pytest.raises(ConfigError, match=message):
        DistillationObjective(tiny_denoiser(), NoiseDistribution(0.0, 0.5), **made)
