"""rdc distill --secant-eps: the loss is what its formula says, the images stay in the ball, the limit is the first order."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rdc.errors import ConfigError
from rdc.training.augmentation import cut_and_mixed
from rdc.training.batches import uniform
from rdc.training.distillation import DistillationObjective, DistillationTerms, Secant
from rdc.training.first_order import draw_rivals
from rdc.training.objective import NoiseDistribution
from tests.tiny_models import SHAPE, pixels, tiny_denoiser
from tests.tolerances import (
    BUDGET_USE,
    FLOAT32_DIFFERENCE,
    FLOAT32_GRADIENT,
    FLOAT32_NETWORK,
    FLOAT32_ROUNDING,
    FLOAT32_SUM,
    FLOAT32_ULP,
    FLOAT64_ORDER,
)

LABELS = torch.tensor([0, 2, 1, 1])
NOISE = NoiseDistribution(0.0, 0.5)
TERMS = {"classes_per_image": 0, "posterior_weight": 0.7, "posterior_scale": 1.5}
EPS = 0.03


def objective(secant: Secant | None = None, **more) -> DistillationObjective:
    terms = {**TERMS, "secant": secant or Secant(EPS), **more}
    return DistillationObjective(tiny_denoiser(dtype=torch.float64), NOISE, **terms)


def student() -> torch.nn.Module:
    network = tiny_denoiser("multihead", torch.float64).network
    return network.requires_grad_()


def images() -> torch.Tensor:
    return 2 * pixels(4, dtype=torch.float64) - 1


def run(made: DistillationObjective, net: torch.nn.Module):
    return made(net, images(), LABELS, torch.Generator().manual_seed(0))


class Seen(torch.nn.Module):
    """The student; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.inputs = student(), []

    def forward(self, x, c_noise):
        self.inputs.append(x.detach().clone())
        return self.network(x, c_noise)


def by_hand(net, x0, sigma, noise, made):
    """Denoising terms and logits, from the formulas alone."""
    p, s = made.precondition, sigma.reshape(-1, 1, 1, 1)
    x_t = x0 + s * noise
    target = (x0 - p.c_skip(s) * x_t) / p.c_out(s)
    error = (net(p.c_in(s) * x_t, p.c_noise(sigma)) - target[:, None]).square()
    logits = -1.5 * ((p.c_out(sigma) / sigma) ** 2)[:, None] * error[:, :3].flatten(2).sum(2)
    return error[torch.arange(4), LABELS].mean() + error[:, 3].mean(), logits


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_loss_and_weight_gradients_are_those_of_the_formula(norm):
    made, net = objective(Secant(EPS, norm, 0.2, 0.9, share=0.3)), student()
    loss, values = run(made, net)
    used = [p for name, p in net.named_parameters() if "map_label.weight" not in name]  # no label is embedded
    got = torch.autograd.grad(loss, used)

    generator = torch.Generator().manual_seed(0)  # the objective's draws, in its order
    sigma = NOISE.sample(4, generator)
    noise = torch.randn(4, *images().shape[1:], generator=generator).double()
    made._choose(LABELS, generator)
    x0 = images().requires_grad_()
    denoising, logits = by_hand(net, x0, sigma, noise, made)
    rivals = draw_rivals(logits, LABELS, generator)
    u = 0.2 + 0.7 * uniform((4,), generator).double()[:, None, None, None]
    margin = logits[torch.arange(4), rivals] - logits[torch.arange(4), LABELS]
    (slope,) = torch.autograd.grad(margin.sum(), x0, retain_graph=True)
    length = 1 if norm == "linf" else slope.flatten(1).norm(dim=1)[:, None, None, None]
    step = 2 * EPS * (slope.sign() if norm == "linf" else slope / length)
    assert (x0 + step).abs().max() < 1  # away from the border: the ball alone decides
    _, there = by_hand(net, (x0 + u * step).detach(), sigma, noise, made)
    far = logits + (there - logits) / u[:, :, 0, 0]
    total = denoising + 0.7 * (0.7 * F.cross_entropy(logits, LABELS) + 0.3 * F.cross_entropy(far, LABELS))
    torch.testing.assert_close(loss, total, rtol=FLOAT32_SUM, atol=0)  # the budget holds in float32
    for mine, theirs in zip(got, torch.autograd.grad(total, used), strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=FLOAT32_GRADIENT, atol=FLOAT32_NETWORK * theirs.abs().max().item() + FLOAT64_ORDER
        )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_network_sees_one_noise_and_images_within_the_ball(norm):
    net, bright = Seen(), images().clamp_min(0.999)
    made = objective(Secant(EPS, norm, 0.5, 1.0))
    made(net, bright, LABELS, torch.Generator().manual_seed(0))
    assert len(net.inputs) == 2
    generator = torch.Generator().manual_seed(0)
    sigma = NOISE.sample(4, generator).reshape(-1, 1, 1, 1)
    noise = torch.randn(4, *bright.shape[1:], generator=generator)
    first, second = (x / made.precondition.c_in(sigma) - sigma * noise for x in net.inputs)
    torch.testing.assert_close(first, bright, rtol=0, atol=FLOAT32_ROUNDING)
    moved = (second - bright) / 2
    flat = moved.flatten(1)
    size = {"linf": flat.abs().amax(1), "l2": flat.norm(dim=1), "l1": flat.abs().sum(1)}[norm]
    assert (size <= EPS * (1 + BUDGET_USE)).all() and (size > 0.2 * EPS).all()
    assert second.max() <= 1 + FLOAT32_SUM  # of the pixel box


def test_a_small_difference_is_the_first_order_and_a_whole_one_the_perturbed_image():
    """u -> 0: the rise of the rival is that of --margin-eps, exactly. u = 1: the logits of the perturbed image."""
    net = student()
    small = run(objective(Secant(EPS, "linf", 1e-5, 1e-5)), net)[1]
    whole = run(objective(Secant(EPS, "linf", 1.0, 1.0)), net)[1]
    margin = DistillationObjective(tiny_denoiser(dtype=torch.float64), NOISE, **TERMS, margin_eps=EPS)
    exact = run(margin, net)[1]
    torch.testing.assert_close(small["rise"], exact["rise"].double(), rtol=FLOAT32_DIFFERENCE, atol=0)
    assert abs(whole["rise"] - exact["rise"]) > 5 * abs(small["rise"] - exact["rise"])


def test_off_by_default_and_the_rest_of_the_loss_stays():
    net = student()
    plain = DistillationObjective(tiny_denoiser(dtype=torch.float64), NOISE, **TERMS)
    _, values = run(plain, net)
    _, trained = run(objective(), net)
    assert "rise" not in values and trained["rise"] > 0 and trained["robust_first_order"] <= trained["hits"]
    for name in ("denoising", "unlabelled", "hits"):
        assert torch.equal(values[name], trained[name])
    assert trained["posterior"] > values["posterior"]


def test_wrong_settings_are_refused():
    for settings, text in (
        ({"eps": 0.0}, "secant_eps: expected a radius > 0"),
        ({"eps": 8.0}, "secant_eps: expected a radius in"),
        ({"eps": EPS, "norm": "l3"}, "secant_norm: expected one of linf, l2, l1; got 'l3'"),
        ({"eps": EPS, "low": 0.0}, "secant_range: expected 0 < low"),
        ({"eps": EPS, "low": 0.5, "high": 0.4}, "secant_range: expected 0 < low"),
        ({"eps": EPS, "share": 0.0}, "secant_share: expected a share above 0"),
        ({"eps": EPS, "steps": 0}, "secant_steps: expected a whole number >= 1; got 0"),
    ):
        with pytest.raises(ConfigError, match=text):
            Secant(**settings)
    with pytest.raises(ConfigError, match="at most one of them"):
        objective(margin_eps=EPS)
    with pytest.raises(ConfigError, match="secant: expected posterior_weight > 0"):
        objective(posterior_weight=0.0, classes_per_image=2)
    with pytest.raises(ConfigError, match="cutmix: expected a probability"):
        objective(Secant(EPS), cutmix=1.5)
    with pytest.raises(ConfigError, match="margin_eps and cutmix: expected at most one of them"):
        objective(None, margin_eps=EPS, cutmix=0.5)


def test_cutmix_shares_losses_and_labels_between_two_classes():
    """Denoising losses and both cross-entropies, from the formulas alone."""
    made, net = objective(Secant(EPS, "linf", 0.2, 0.9, share=0.3), cutmix=1.0), student()
    loss, values = run(made, net)
    generator = torch.Generator().manual_seed(0)
    x0, other, share = cut_and_mixed(images(), 1.0, generator)
    assert share.min() < 0.9
    share = share.double()
    sigma = NOISE.sample(4, generator)
    noise = torch.randn(4, *images().shape[1:], generator=generator).double()
    shares = share[:, None] * F.one_hot(LABELS, 3) + (1 - share)[:, None] * F.one_hot(LABELS[other], 3)
    made._choose(shares.argmax(1), generator)
    x0.requires_grad_()
    p, s = made.precondition, sigma.reshape(-1, 1, 1, 1)

    def errors(x):
        x_t = x + s * noise
        target = (x - p.c_skip(s) * x_t) / p.c_out(s)
        found = (net(p.c_in(s) * x_t, p.c_noise(sigma)) - target[:, None]).square()
        return found.flatten(2).mean(2), -1.5 * ((p.c_out(sigma) / sigma) ** 2)[:, None] * found[:, :3].flatten(2).sum(
            2
        )

    means, logits = errors(x0)
    denoising = (means[:, :3] * shares).sum(1).mean() + means[:, 3].mean()
    rivals = draw_rivals(logits.masked_fill(shares > 0, -torch.inf), shares.argmax(1), generator)
    assert (
        shares[torch.arange(4), rivals][shares.max(1).values < 1] == 0
    ).all()  # neither of the two classes that are shown
    u = 0.2 + 0.7 * uniform((4,), generator).double()[:, None, None, None]
    margin = logits[torch.arange(4), rivals] - (shares * logits).sum(1)
    (slope,) = torch.autograd.grad(margin.sum(), x0, retain_graph=True)
    _, there = errors((x0 + u * 2 * EPS * slope.sign()).detach())
    far = logits + (there - logits) / u[:, :, 0, 0]
    entropies = [-(shares * z.log_softmax(1)).sum(1).mean() for z in (logits, far)]
    total = denoising + 0.7 * (0.7 * entropies[0] + 0.3 * entropies[1])
    torch.testing.assert_close(loss, total, rtol=FLOAT32_SUM, atol=0)
    assert values["robust_first_order"] <= values["hits"]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_find_worse_perturbations_within_the_ball(norm):
    """Frank-Wolfe: the network sees every iterate; the margin of the last is the largest, within radius and pixel box."""
    rises, eps = [], 0.2 if norm == "linf" else 1.5
    for steps in (1, 2, 6):
        seen = Seen()
        _, values = run(objective(Secant(eps, norm, 1.0, 1.0, steps=steps)), seen)
        assert len(seen.inputs) == 1 + steps  # the image, the iterates, the end
        rises.append(values["rise"].item())
    assert rises[0] < rises[1] < rises[2]


def test_two_steps_are_the_mean_of_two_worst_perturbations():
    made, net = objective(Secant(EPS, "linf", 1.0, 1.0, steps=2)), student()
    seen = []
    predict = made._predict
    made._predict = lambda net, x0, sigma, noise: (
        seen.append((x0.detach(), sigma, noise)) or predict(net, x0, sigma, noise)
    )
    run(made, net)
    (x0, sigma, noise), (first, _, _), (end, _, _) = seen
    generator = torch.Generator().manual_seed(0)
    NOISE.sample(4, generator)
    torch.randn(4, *images().shape[1:], generator=generator)
    made._choose(LABELS, generator)
    leaf = first.clone().requires_grad_()
    rivals = draw_rivals(by_hand(net, x0, sigma, noise, made)[1], LABELS, generator)
    _, logits = by_hand(net, leaf, sigma, noise, made)
    rows = torch.arange(4)
    (slope,) = torch.autograd.grad((logits[rows, rivals] - logits[rows, LABELS]).sum(), leaf)
    torch.testing.assert_close(
        (first - x0).abs().amax((1, 2, 3)),
        torch.full((4,), 2 * EPS, dtype=torch.float64),
        rtol=FLOAT32_ROUNDING,
        atol=0,
    )
    torch.testing.assert_close(end, x0 + ((first - x0) + 2 * EPS * slope.sign()) / 2, rtol=0, atol=FLOAT32_ULP)


def test_the_scale_of_the_posterior_where_none_is_given() -> None:
    """2, the ELBO's; with a threat 80 over the values of an image; a number that is given stays."""
    assert DistillationTerms(posterior_weight=1.0).fitted((3, 32, 32)).posterior_scale == 2.0
    assert DistillationTerms(posterior_weight=1.0, margin_eps=0.1).fitted((3, 32, 32)).posterior_scale == 2.0
    soft = DistillationTerms(posterior_weight=1.0, secant=Secant(0.1))
    assert (
        soft.fitted((3, 32, 32)).posterior_scale == 80 / 3072 and soft.fitted((1, 28, 28)).posterior_scale == 80 / 784
    )
    given = DistillationTerms(posterior_weight=1.0, posterior_scale=1.5, secant=Secant(0.1))
    assert given.fitted((3, 32, 32)) == given
    values = math.prod(SHAPE)
    for number in (None, 80 / values):
        made = objective(posterior_scale=number)
        assert made.posterior_scale == 80 / values
        loss, _ = made(student(), images(), LABELS, torch.Generator().manual_seed(0))
        torch.testing.assert_close(loss, _loss_at(80 / values), rtol=0, atol=0)
    assert not torch.equal(_loss_at(2.0), _loss_at(80 / values))


def _loss_at(scale: float) -> torch.Tensor:
    return objective(posterior_scale=scale)(student(), images(), LABELS, torch.Generator().manual_seed(0))[0]
