"""The gradient of streamed class losses: the same as without pieces, and no pass for a class that carries none."""

import warnings

import pytest
import torch

from rdc.attacks.losses import Objective
from rdc.execution.upstream import all_classes_carry
from rdc.method import class_gradients
from rdc.method.class_gradients import in_pieces, rebuilt, streamed, taken_along
from rdc.method.draw import Draw
from tests.tiny_models import CLASSES, pixels, tiny_classifier
from tests.tolerances import CENTRAL_DIFFERENCE, FLOAT32_SUM, FLOAT64_ORDER, close


def parts(dtype=torch.float64, count=3, kind="conditional"):
    classifier = tiny_classifier(kind, dtype)
    x0 = (2 * pixels(count, dtype=dtype) - 1).requires_grad_()
    return classifier.denoiser, x0, classifier.drawn(0, x0)


def counted(denoiser, monkeypatch):
    """A list that gets the number of rows of every network pass."""
    rows, network = [], denoiser.network.forward
    monkeypatch.setattr(denoiser.network, "forward", lambda x, *rest: (rows.append(len(x)), network(x, *rest))[1])
    return rows


@pytest.mark.parametrize("pairs", [1, 2, 4, 7, 40])
def test_gradient_is_that_of_the_whole_batch(pairs):
    denoiser, x0, draw = parts()
    upstream = torch.tensor([[1.0, -1, 0], [0, 0, 0], [0.3, 2, -1]], dtype=torch.float64)
    whole = denoiser.class_losses(x0, draw)
    (expected,) = torch.autograd.grad(whole, x0, upstream)
    losses = rebuilt(denoiser, x0, draw, pairs)
    close(losses.detach(), whole.detach(), FLOAT64_ORDER)
    close(torch.autograd.grad(losses, x0, upstream)[0], expected, FLOAT64_ORDER)
    assert (expected[1] == 0).all()


def test_only_classes_that_carry_gradient_are_passed_again(monkeypatch):
    denoiser, x0, draw = parts()
    losses = rebuilt(denoiser, x0, draw, 2)
    rows, count = counted(denoiser, monkeypatch), len(draw)
    upstream = torch.zeros(3, CLASSES, dtype=torch.float64)
    upstream[0, 0], upstream[0, 2], upstream[2, 1] = 1, -1, 1e-3
    upstream[2, 0] = 1e-20  # nothing beside 1e-3 in float64
    torch.autograd.grad(losses, x0, upstream)
    assert sum(rows) == 3 * count, rows
    assert max(rows) <= 2 * CLASSES


def test_a_small_but_visible_share_is_kept():
    denoiser, x0, draw = parts(count=1)
    small = torch.tensor([[1.0, 1e-12, 0]], dtype=torch.float64)
    large = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    losses = rebuilt(denoiser, x0, draw, 1)
    (a,) = torch.autograd.grad(losses, x0, small, retain_graph=True)
    (b,) = torch.autograd.grad(losses, x0, large, retain_graph=True)
    assert (a != b).any()


@pytest.mark.parametrize(("parts_of_epsilon", "classes"), [(7.9, 2), (8.1, 1)])
def test_an_eighth_of_epsilon_is_the_least_that_is_kept(monkeypatch, parts_of_epsilon, classes):
    denoiser, x0, draw = parts(count=1)
    losses = rebuilt(denoiser, x0, draw, 1)
    rows = counted(denoiser, monkeypatch)
    small = torch.finfo(torch.float64).eps / parts_of_epsilon
    torch.autograd.grad(losses, x0, torch.tensor([[1.0, small, 0]], dtype=torch.float64))
    assert sum(rows) == classes * len(draw)


def test_pieces_are_forgotten_unless_told_otherwise(monkeypatch):
    """By default the backward pass makes every piece again; with rebuild=False it has them."""
    denoiser, x0, draw = parts()
    rows = counted(denoiser, monkeypatch)
    passes = []
    for options in ({}, {"rebuild": True}, {"rebuild": False}):
        losses = streamed(denoiser, x0, draw, 2, **options)
        once = sum(rows)
        (grad,) = torch.autograd.grad(losses.sum(), x0)
        passes.append((once, sum(rows)))
        rows.clear()
    each = 3 * len(draw) * CLASSES
    assert passes == [(each, 2 * each), (each, 2 * each), (each, each)] and (grad != 0).any()


def test_what_is_not_a_number_is_not_hidden():
    denoiser, x0, draw = parts(count=2)
    upstream = torch.tensor([[1.0, torch.nan, 0], [1.0, -1.0, 0]], dtype=torch.float64)
    (grad,) = torch.autograd.grad(rebuilt(denoiser, x0, draw, 2), x0, upstream)
    assert grad[0].isnan().all() and grad[1].isfinite().all() and (grad[1] != 0).any()


def test_saturated_cross_entropy_equals_float64():
    """Probabilities of 1e-30 and less are left out in float32; the gradient is that of float64 all the same."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        classifier = tiny_classifier("conditional", dtype, logit_scale=30.0, memory_budget_mb=0.1)
        x = pixels(3, dtype=torch.float32).to(dtype).requires_grad_()
        log_p = classifier(x)
        assert len(x) * len(classifier.levels) > classifier.pairs_that_fit(x)
        gradients.append(torch.autograd.grad(log_p.gather(1, log_p.argsort(1)[:, :1]).sum(), x)[0])
    close(gradients[0].double() / gradients[1].abs().max(), gradients[1] / gradients[1].abs().max(), FLOAT32_SUM)


def test_second_derivatives_are_those_of_the_whole_batch():
    denoiser, x0, draw = parts(count=2)
    direction = torch.linspace(-1, 1, x0.numel(), dtype=torch.float64).view_as(x0)

    def curvature(losses):
        (grad,) = torch.autograd.grad(losses[:, 0].square().sum(), x0, create_graph=True)
        return torch.autograd.grad((grad * direction).sum(), x0)[0]

    expected = curvature(denoiser.class_losses(x0, draw))
    close(curvature(rebuilt(denoiser, x0, draw, 2)), expected, FLOAT64_ORDER)
    close(curvature(streamed(denoiser, x0, draw, 2)), expected, FLOAT64_ORDER)


def test_a_classifier_under_its_budget_takes_two_classes_for_a_margin(monkeypatch):
    """The margin's gradient through Bayes' rule: exact zeros for the other classes, and no passes for them."""
    classifier = tiny_classifier("conditional", memory_budget_mb=0.1)
    x = pixels(2).requires_grad_()
    log_p = classifier(x)
    rows = counted(classifier.denoiser, monkeypatch)
    torch.autograd.grad((log_p[:, 0] - log_p[:, 1]).sum(), x)
    assert sum(rows) == 2 * 2 * len(classifier.levels), rows


# --- Weights that are not frozen ------------------------------------------------------------------------------------------------------


def gradients_of_weights(classifier, x, numbers):
    """Of the trained network's weights, by name."""
    classifier.denoiser.requires_grad_()
    names, weights = zip(*classifier.denoiser.named_parameters(), strict=True)
    found = torch.autograd.grad(numbers(classifier(x)), weights, allow_unused=True)
    return dict(zip(names, found, strict=True))


def margin(log_p):
    return (log_p[:, 0] - log_p[:, 1]).sum()


@pytest.mark.parametrize("of_pixels", [True, False], ids=["pixels too", "weights alone"])
@pytest.mark.parametrize("lm", [None, "paper-v2,steps=2,sign=false"], ids=["DC", "RDC"])
@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_unfrozen_weights_get_their_gradient_under_a_small_budget(kind, lm, of_pixels):
    """126 of 126 were None: the function knew x0 alone."""
    settings = {"lm": lm, "levels": "log:2:0.5:1:flat"}
    x = pixels(2, dtype=torch.float64).requires_grad_(of_pixels)
    whole = tiny_classifier(kind, torch.float64, memory_budget_mb=1e5, **settings)
    cut = tiny_classifier(kind, torch.float64, memory_budget_mb=0.1, **settings)
    assert cut.pairs_that_fit(x) == 1
    expected, found = (gradients_of_weights(classifier, x, margin) for classifier in (whole, cut))
    used = [name for name, grad in expected.items() if grad is not None and grad.any()]
    assert len(used) > 60
    for name in used:
        assert found[name] is not None, name
        close(found[name], expected[name], FLOAT64_ORDER)


@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_gradient_of_weights_passes_through_the_steps(kind):
    """Against central differences: the image that LM arrives at depends on the weights, whether or not pixels want a gradient."""
    classifier = tiny_classifier(
        kind, torch.float64, lm="paper-v2,steps=2,sign=false,eta=none", levels="log:2:0.5:1:flat", memory_budget_mb=0.2
    )
    x = pixels(1, dtype=torch.float64)
    found = gradients_of_weights(classifier, x, margin)
    g = torch.Generator().manual_seed(0)
    way = {
        name: torch.randn(weight.shape, generator=g).double() for name, weight in classifier.denoiser.named_parameters()
    }
    slope = sum((grad * way[name]).sum() for name, grad in found.items() if grad is not None)
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for name, weight in classifier.denoiser.named_parameters():
                weight += sign * 1e-6 * way[name]
            ends.append(margin(classifier(x)))
    numeric = (ends[0] - ends[1]) / 2e-6
    assert abs(slope - numeric) <= CENTRAL_DIFFERENCE * abs(numeric), (slope, numeric)


@pytest.mark.parametrize("outer", [False, True], ids=["alone", "inside autocast, after a call without gradients"])
@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_unfrozen_weights_in_bfloat16(kind, outer):
    """Older PyTorch's autocast keeps the weights that it cast, without their graph if need be, until the caller's own one ends."""
    settings = {"precision": "bfloat16", "levels": "log:2:0.5:1:flat"}
    x, cut = pixels(2), tiny_classifier(kind, memory_budget_mb=0.12, **settings)
    cut.denoiser.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=outer):
        if outer:
            with torch.no_grad():
                cut(x)
        found = gradients_of_weights(cut, x, margin)
    expected = gradients_of_weights(tiny_classifier(kind, memory_budget_mb=1e5, **settings), x, margin)
    used = [name for name, grad in expected.items() if grad is not None and grad.any()]
    missing = [name for name in used if found[name] is None or not found[name].any()]
    assert not missing
    flat = [torch.cat([grads[name].flatten() for name in used]) for grads in (found, expected)]
    assert (flat[0] - flat[1]).norm() <= 0.1 * flat[1].norm()  # other batches, other roundings in 8 bits


@pytest.mark.parametrize("place", [0, 1, 2], ids=["sigma", "level weights", "noise"])
@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_whatever_else_wants_a_gradient_gets_it(kind, place):
    classifier = tiny_classifier(kind, torch.float64)
    x0 = (2 * pixels(2, dtype=torch.float64) - 1).requires_grad_()
    operands = list(classifier.drawn(0, x0).tensors)
    operands[place] = operands[place].clone().requires_grad_()
    asked, draw = [x0, operands[place]], Draw(*operands)
    expected = torch.autograd.grad(classifier.denoiser.class_losses(x0, draw)[:, 0].sum(), asked)
    for function in (rebuilt, streamed):
        found = torch.autograd.grad(function(classifier.denoiser, x0, draw, 2)[:, 0].sum(), asked)
        for a, b in zip(found, expected, strict=True):
            close(a, b, FLOAT64_ORDER)


def test_frozen_weights_cost_no_pass_more(monkeypatch):
    """The way by classes is still taken where nothing but pixels wants a gradient, whatever is unfrozen under no_grad."""
    denoiser, x0, draw = parts()
    with torch.no_grad():
        denoiser.requires_grad_()
        assert not rebuilt(denoiser, x0, draw, 2).requires_grad
    denoiser.requires_grad_(False)
    assert "Rebuilt" in type(rebuilt(denoiser, x0, draw, 2).grad_fn).__name__


@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 11])
def test_rebuilt_pieces_give_the_bits_of_checkpointed_ones(pairs):
    """Pieces of images and of levels; the sums over levels in autograd's order."""
    denoiser, x0, draw = parts(torch.float32, 3, kind="multihead")
    upstream = torch.linspace(-1, 2, 3 * CLASSES).view(3, CLASSES)
    results = []
    for function in (rebuilt, streamed):
        losses = function(denoiser, x0, draw, pairs)
        results.append((losses.detach(), torch.autograd.grad(losses, x0, upstream)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][1].abs().max() > 0


@pytest.mark.parametrize("lm", [None, "paper-v2,steps=1,sign=false"], ids=["DC", "RDC"])
@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_weights_put_in_by_functional_call(kind, lm):
    """torch.func's way of training: weights are arguments; a frozen classifier under a small budget gives their gradient."""
    settings = {"lm": lm, "levels": "log:2:0.5:1:flat"}
    x = pixels(1, dtype=torch.float64)
    cut = tiny_classifier(kind, torch.float64, memory_budget_mb=0.2, **settings)
    named = {name: weight.detach() for name, weight in cut.named_parameters()}
    found = torch.func.grad(lambda named: margin(torch.func.functional_call(cut, named, (x,))))(named)
    whole = tiny_classifier(kind, torch.float64, memory_budget_mb=1e5, **settings)
    expected = gradients_of_weights(whole, x, margin)
    used = [name for name, grad in expected.items() if grad is not None and grad.any()]
    assert len(used) > 60
    for name in used:
        close(found[f"denoiser.{name}"], expected[name], FLOAT64_ORDER)
    assert not any(weight.requires_grad for weight in cut.parameters())
    name = "denoiser.network.unet.map_layer1.weight"
    way = torch.linspace(-1, 1, named[name].numel(), dtype=torch.float64).view_as(named[name])
    moved = torch.func.jvp(
        lambda weight: margin(torch.func.functional_call(cut, {name: weight}, (x,))), (named[name],), (way,)
    )[1]
    close(moved, (expected[name.removeprefix("denoiser.")] * way).sum(), FLOAT64_ORDER)


def test_a_fresh_draw_is_the_same_for_values_and_derivatives():
    """Under torch.func a derivative computes again: with the draw of its call, and without using up another."""
    fresh, fixed = (
        tiny_classifier("conditional", torch.float64, noise=noise, memory_budget_mb=0.2) for noise in ("fresh", "fixed")
    )
    x = pixels(1, dtype=torch.float64)
    for draw in range(3):
        fixed.set_draw(draw)
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(margin(fixed(leaf)), leaf)
        close(torch.func.grad(lambda x: margin(fresh(x)))(x), expected, FLOAT64_ORDER)


@pytest.mark.parametrize("lm", [None, "paper-v2,steps=2,sign=false"], ids=["DC", "RDC"])
@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_lent_weights_are_those_of_the_backward_pass_too(kind, lm):
    """functional_call has taken them away by then; what is computed again was computed with the classifier's own."""
    settings = {"lm": lm, "levels": "log:2:0.5:1:flat"}
    x, cut = pixels(2, dtype=torch.float64), tiny_classifier(kind, torch.float64, memory_budget_mb=0.2, **settings)
    g = torch.Generator().manual_seed(5)
    lent = {name: w + 0.05 * torch.randn(w.shape, generator=g).double() for name, w in cut.named_parameters()}
    other = tiny_classifier(kind, torch.float64, memory_budget_mb=1e5, **settings)
    other.load_state_dict(lent, strict=False)

    def gradient(function):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(margin(function(leaf)), leaf)[0]

    def borrowed(x):
        return torch.func.functional_call(cut, lent, (x,))

    expected = gradient(other)
    assert (gradient(cut) - expected).norm() > 0.01 * expected.norm()
    close(gradient(borrowed), expected, FLOAT64_ORDER)
    close(torch.func.grad(lambda x: margin(borrowed(x)))(x), expected, FLOAT64_ORDER)
    if lm is not None:
        leaf = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(other.penalty(leaf).sum(), leaf)
        with torch.no_grad():
            own = {name: w.clone() for name, w in cut.named_parameters()}
        penalty = Calls(cut, "penalty")
        leaf = x.clone().requires_grad_()
        lent_to = {f"classifier.{name}": w for name, w in lent.items()}
        close(
            torch.autograd.grad(torch.func.functional_call(penalty, lent_to, (leaf,)).sum(), leaf)[0],
            found,
            FLOAT64_ORDER,
        )
        assert all(torch.equal(w, own[name]) for name, w in cut.named_parameters())


class Calls(torch.nn.Module):
    """A method of a classifier as a module's forward."""

    def __init__(self, classifier, method):
        super().__init__()
        self.classifier, self.method = classifier, method

    def forward(self, x):
        return getattr(self.classifier, self.method)(x)


ENOUGH = 1e6  # bytes


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 64])
def test_gradients_of_all_classes_are_taken_along(rows, monkeypatch):
    denoiser, x0, draw = parts()
    upstream = torch.tensor([[1.0, -1, 0.1], [0, 0, 0], [0.3, 2, -1]], dtype=torch.float64)
    whole = denoiser.class_losses(x0, draw)
    (expected,) = torch.autograd.grad(whole, x0, upstream)
    passes = counted(denoiser, monkeypatch)
    losses = taken_along(denoiser, x0, draw, 1, rows, ENOUGH)
    assert sum(passes) == 3 * CLASSES * len(draw) and max(passes) <= rows
    close(losses.detach(), whole.detach(), FLOAT64_ORDER)
    passes.clear()
    close(torch.autograd.grad(losses, x0, upstream, retain_graph=True)[0], expected, FLOAT64_ORDER)
    assert not passes  # nothing is made again
    (first,) = torch.autograd.grad(losses, x0, upstream, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), x0)
    (as_whole,) = torch.autograd.grad(denoiser.class_losses(x0, draw), x0, upstream, create_graph=True)
    close(second, torch.autograd.grad((as_whole**2).sum(), x0)[0], FLOAT64_ORDER)


def test_what_is_not_finite_counts_where_it_carries(monkeypatch):
    denoiser, x0, draw = parts()
    losses, slopes = class_gradients._with_slopes(denoiser, x0.detach(), draw, 64)
    slopes[0, 1] = torch.inf
    monkeypatch.setattr(class_gradients, "_with_slopes", lambda *given: (losses, slopes))
    losses = taken_along(denoiser, x0, draw, 1, 64, ENOUGH)
    of_first, of_second = (torch.eye(CLASSES, dtype=torch.float64)[k].expand(3, -1) for k in (0, 1))
    assert torch.autograd.grad(losses, x0, of_first, retain_graph=True)[0].isfinite().all()
    assert not torch.autograd.grad(losses, x0, of_second)[0][0].isfinite().any()


def test_they_are_taken_along_where_that_was_said_and_there_is_room(monkeypatch):
    denoiser, x0, draw = parts()
    passes, each = counted(denoiser, monkeypatch), 3 * CLASSES * len(draw)

    def again(room, said, rows=CLASSES, **changes):
        with all_classes_carry(said):
            losses = in_pieces(denoiser, changes.get("x0", x0), draw, 1, rows, room)
        passes.clear()
        if losses.requires_grad:
            torch.autograd.grad(losses.sum(), x0)
        return sum(passes)

    slopes = 8 * x0[0].numel() * 3 * CLASSES  # bytes of all
    assert again(8 * slopes, True) == 0 and again(8 * slopes - 8, True) == again(8 * slopes, False) == each
    assert again(8 * slopes, True, rows=each) == 0  # all fits: kept
    assert not in_pieces(denoiser, x0.detach(), draw, 1, CLASSES, ENOUGH).requires_grad
    with all_classes_carry():
        losses = torch.func.grad(lambda x: in_pieces(denoiser, x, draw, 1, CLASSES, 8 * slopes).sum())(x0.detach())
    close(losses, torch.autograd.grad(denoiser.class_losses(x0, draw).sum(), x0)[0], FLOAT64_ORDER)


@pytest.mark.parametrize(("loss", "again"), [("ce", 0), ("margin", 2)])
def test_attacks_say_what_their_loss_needs(loss, again, monkeypatch):
    """Cross-entropy makes every pass once, a margin those of two classes twice; the gradients are those of an ample budget."""
    found, labels = {}, torch.tensor([0, 2, 1])
    for budget in (1024.0, 0.1):
        classifier = tiny_classifier("conditional", torch.float64, memory_budget_mb=budget)
        passes = counted(classifier.denoiser, monkeypatch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a budget is small
            objective, x = Objective(classifier, loss), pixels(3, dtype=torch.float64)
            scale = objective.start(x, labels)[2]
            passes.clear()
            found[budget] = objective.evaluate(x, labels, scale, gradient=True).gradient
        assert sum(passes) == 3 * len(classifier.levels.sigma) * (CLASSES + (again if budget < 1 else 0))
    close(found[0.1], found[1024.0], FLOAT64_ORDER)


@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_what_rounding_would_lose_is_nothing_where_all_is_kept(kind, monkeypatch):
    """Numbers below the smallest normal one would make a backward pass ten times as long on a CPU."""
    denoiser, x0, draw = parts(torch.float32, kind=kind)
    seen, upstream = [], torch.tensor([[1.0, 1e-42, 0.5]]).expand(3, -1)
    real = denoiser.class_losses

    def watched(*given):
        losses = real(*given)
        losses.register_hook(seen.append)
        return losses.clone()

    monkeypatch.setattr(denoiser, "class_losses", watched)
    losses = in_pieces(denoiser, x0, draw, 1000, 1000, ENOUGH)
    (grad,) = torch.autograd.grad(losses, x0, upstream, retain_graph=True)
    (again,) = torch.autograd.grad(losses, x0, upstream, create_graph=True)
    close(again.detach(), grad, FLOAT32_SUM)
    (second,) = torch.autograd.grad((again**2).sum(), x0)
    kept = 0.0 if kind == "conditional" else float(upstream[0, 1])  # of a multi-head network one pass is of all classes
    assert seen[0][0].tolist() == [1.0, kept, 0.5] and second.isfinite().all()
    (expected,) = torch.autograd.grad(real(x0, draw), x0, upstream)
    close(grad.detach(), expected, FLOAT32_SUM)
