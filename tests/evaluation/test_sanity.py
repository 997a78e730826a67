"""The sanity checks' own figures, on functions whose answers are known."""

import pytest
import torch

from rdc.defences import PlainClassifier
from rdc.evaluation import EvaluationSettings
from rdc.evaluation.sanity import check_output, run_sanity
from rdc.evaluation.sanity_records import Sanity
from tests.evaluation_models import CLASSES, NAMES, images
from tests.tolerances import FLOAT32_ROUNDING

SHAPE = (1, 8, 8)
WEIGHT = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))
PIXELS = images(12, seed=5).float() / 255


def linear(x):
    return 3 * (x.flatten(1) - 0.5) @ WEIGHT


def checks(function, labels=None, **changes):
    model = PlainClassifier(function, image_shape=SHAPE, num_classes=CLASSES, class_names=NAMES)
    values = {"n": 12, "eps": "8/255", "steps": 8, "attacks": ("apgd-ce",), **changes}
    settings = EvaluationSettings(model="m", dataset="d", **values)
    with torch.no_grad():
        labels = model(PIXELS).argmax(1) if labels is None else labels
    return run_sanity(model, PIXELS, labels, torch.arange(12), settings)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([[1.0, 0.0, 0.0]], True),  # certain, and still probabilities
        ([[0.5, 0.25, 0.25]], True),
        ([[0.5, 0.25, 0.2]], False),
        ([[0.5, 0.35, 0.25]], False),
        ([[1.5, -0.25, -0.25]], False),
    ],
)
def test_probabilities_are_not_negative_and_sum_to_one(outputs, expected):
    assert check_output(lambda x: torch.tensor(outputs), torch.zeros(1, 1, 1, 1)).probabilities is expected


def test_what_differs_between_two_calls_is_measured():
    answers = iter([torch.tensor([[0.0, 1.0], [4.0, 0.0]]), torch.tensor([[3.0, 1.0], [4.0, 0.5]])])
    found = check_output(lambda x: next(answers), torch.zeros(2, 1, 1, 1))
    assert found.repeat_difference == 3.0 and found.repeat_decisions_changed == 1
    assert found.logit_spread == pytest.approx(((2 * 0.25 + 2 * 4) / 4) ** 0.5)


def test_at_most_eight_images_are_asked_about():
    sizes = []
    check_output(lambda x: (sizes.append(len(x)), torch.zeros(len(x), 2))[1], torch.zeros(11, 1, 1, 1))
    assert sizes == [8, 8]


@pytest.mark.parametrize("how", ["grad", "backward"])
def test_gradients_inside_a_model_are_counted_and_nothing_stays_changed(how):
    before = torch.autograd.grad, torch.autograd.backward

    def optimising(x):
        with torch.enable_grad():
            z = x.clone().requires_grad_()
            loss = z.square().sum()
            if how == "grad":
                torch.autograd.grad(loss, z)
            else:
                torch.autograd.backward(loss)
        return z.detach().flatten(1)

    assert check_output(optimising, torch.rand(2, 1, 1, 3)).gradients_inside == 1
    assert check_output(lambda x: x.flatten(1), torch.rand(2, 1, 1, 3)).gradients_inside == 0
    assert (torch.autograd.grad, torch.autograd.backward) == before
    with pytest.raises(ZeroDivisionError):
        check_output(lambda x: 1 / 0, torch.rand(2, 1, 1, 3))
    assert (torch.autograd.grad, torch.autograd.backward) == before


def test_the_path_is_of_twelve_steps_and_rises_where_the_gradient_is_right():
    found = checks(linear)
    assert found.path.steps == 12 and found.path.falls == 0 and found.path.gain > 0
    assert found.path.used == pytest.approx(1, rel=FLOAT32_ROUNDING)  # eight steps of eps / 8 cross it
    assert found.gradient.zero_entries == 0


def test_the_path_falls_where_the_gradient_points_the_wrong_way():
    wrong = checks(lambda x: linear(2 * x.detach() - x))
    right = checks(linear)
    assert wrong.path.falls > 0.5 and wrong.path.gain < -0.5 * right.path.gain


def test_without_images_that_are_right_there_is_nothing_to_attack():
    with torch.no_grad():
        labels = (linear(PIXELS).argmax(1) + 1) % CLASSES
    assert checks(linear, labels) == Sanity(n=0)
    assert checks(linear, norm="l1", eps="1") == checks(linear, sanity=0) == Sanity()


def test_short_attacks_grow_in_radius_and_in_length():
    found = checks(linear)
    whole, twice = found.budgets
    short, again = found.steps
    assert (whole.eps, twice.eps) == pytest.approx((8 / 255, 16 / 255)) and again == whole
    assert (short.steps, whole.steps, twice.steps) == (2, 8, 8)
    assert twice.loss > whole.loss and twice.accuracy <= whole.accuracy
    assert found.large_eps.eps == 0.5 and found.large_eps.accuracy == 0
    assert checks(linear, norm="l2", eps="0.3").large_eps.eps == pytest.approx(0.5 * 8)
