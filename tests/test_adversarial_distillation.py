"""rdc distill --adversarial-eps: the loss is what its formula says, the perturbed image stays in the ball, steps do not leak."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rdc.data import Dataset
from rdc.distillation import Adversary, DistillationObjective
from rdc.errors import ConfigError
from rdc.objective import NoiseDistribution
from rdc.training import TrainConfig, Trainer
from tests.models import pixels, tiny_denoiser

LABELS = torch.tensor([0, 2, 1, 1])
NOISE = NoiseDistribution(0.0, 0.5)
TERMS = {"classes_per_image": 0, "posterior_weight": 0.7, "posterior_scale": 1.5}
EPS = 0.03


def objective(adversary: Adversary | None = None, **more) -> DistillationObjective:
    terms = {**TERMS, "adversarial": adversary or Adversary(EPS), **more}
    return DistillationObjective(tiny_denoiser(dtype=torch.float64), NOISE, **terms)


def images() -> torch.Tensor:
    return 2 * pixels(4, dtype=torch.float64) - 1


class Seen(torch.nn.Module):
    """The student; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.inputs = tiny_denoiser("multihead", torch.float64).network, []

    def forward(self, x, c_noise):
        self.inputs.append((x.detach().clone(), c_noise))
        return self.network(x, c_noise)


def by_hand(net, x0, sigma, noise, share, made):
    """(denoising terms + share * cross-entropy, cross-entropy) from the formulas alone."""
    p, s = made.precondition, sigma.reshape(-1, 1, 1, 1)
    x_t = x0 + s * noise
    target = (x0 - p.c_skip(s) * x_t) / p.c_out(s)
    f = net(p.c_in(s) * x_t, p.c_noise(sigma))
    error = (f - target[:, None]).square()
    logits = -1.5 * ((p.c_out(sigma) / sigma) ** 2)[:, None] * error[:, :3].flatten(2).sum(2)
    entropy = F.cross_entropy(logits, LABELS)
    denoising = error[torch.arange(4), LABELS].mean() + error[:, 3].mean()
    return denoising + share * 0.7 * entropy, entropy


def drawn():
    generator = torch.Generator().manual_seed(0)
    sigma = NOISE.sample(4, generator)  # float32, like the objective's
    return sigma, torch.randn(4, *images().shape[1:], generator=generator).double()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_loss_and_weight_gradients_are_those_of_the_formula(norm):
    made = objective(Adversary(EPS, norm, share=0.3))
    net = tiny_denoiser("multihead", torch.float64).network
    for p in net.parameters():
        p.requires_grad_()
    rest, values = made(net, images(), LABELS, torch.Generator().manual_seed(0))
    rest.backward()
    used = [p for p in net.parameters() if p.grad is not None]  # no label is embedded
    got = [p.grad.clone() for p in used]
    assert len(used) > 20
    net.zero_grad()

    sigma, noise = drawn()
    x0 = images().requires_grad_()
    first, _ = by_hand(net, x0, sigma, noise, 0.7, made)
    (slope,) = torch.autograd.grad(first, x0, retain_graph=True)
    if norm == "linf":
        worst = x0 + 2 * EPS * slope.sign()
    else:
        worst = x0 + 2 * EPS * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    assert worst.abs().max() < 1  # away from the border: the ball alone decides
    _, attacked = by_hand(net, worst.detach(), sigma, noise, 0.0, made)
    total = first + 0.3 * 0.7 * attacked
    torch.testing.assert_close(values["loss"], total.detach(), rtol=1e-6, atol=0)  # the budget holds in float32
    torch.testing.assert_close(values["posterior_attacked"], attacked.detach(), rtol=1e-6, atol=0)
    for mine, theirs in zip(got, torch.autograd.grad(total, used), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6 * theirs.abs().max().item() + 1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_network_sees_one_noise_and_images_within_the_ball(norm, steps):
    net, bright = Seen(), images().clamp_min(0.999)
    made = objective(Adversary(EPS, norm, steps))
    made(net, bright, LABELS, torch.Generator().manual_seed(0))
    assert len(net.inputs) == 1 + steps
    sigma, noise = drawn()
    shown = [
        x / made.precondition.c_in(sigma).reshape(-1, 1, 1, 1) - sigma.reshape(-1, 1, 1, 1) * noise
        for x, _ in net.inputs
    ]
    torch.testing.assert_close(shown[0], bright)
    for x in shown[1:]:
        moved = (x - bright) / 2
        size = moved.abs().amax((1, 2, 3)) if norm == "linf" else moved.flatten(1).norm(dim=1)
        assert (size <= EPS * (1 + 1e-6)).all() and (size > 0.2 * EPS).all()
        assert x.max() <= 1 + 1e-6  # of the pixel box


def test_more_steps_find_more():
    net = tiny_denoiser("multihead", torch.float64).network
    found = [
        objective(Adversary(0.1, "linf", steps))(net, images(), LABELS, torch.Generator().manual_seed(0))[1]
        for steps in (1, 8)
    ]
    assert found[0]["posterior"] == found[1]["posterior"]
    assert found[1]["posterior_attacked"] >= found[0]["posterior_attacked"] > found[0]["posterior"]


def test_the_threat_is_off_by_default():
    net = tiny_denoiser("multihead", torch.float64).network
    plain = DistillationObjective(tiny_denoiser(dtype=torch.float64), NOISE, **TERMS)
    _, values = plain(net, images(), LABELS, torch.Generator().manual_seed(0))
    _, attacked = objective()(net, images(), LABELS, torch.Generator().manual_seed(0))
    assert "posterior_attacked" not in values
    for name in ("denoising", "unlabelled", "posterior", "hits"):
        assert torch.equal(values[name], attacked[name])


def test_wrong_settings_are_refused():
    for settings, text in (
        ({"eps": 0.0}, "adversarial_eps: expected a radius > 0"),
        ({"eps": 8.0}, "adversarial_eps: expected a radius in"),
        ({"eps": EPS, "norm": "l1"}, "adversarial_norm: expected linf or l2; got 'l1'"),
        ({"eps": EPS, "steps": 0}, "adversarial_steps: expected a whole number >= 1"),
        ({"eps": EPS, "share": 1.0}, "adversarial_share: expected a share between 0 and 1"),
    ):
        with pytest.raises(ConfigError, match=text):
            Adversary(**settings)
    with pytest.raises(ConfigError, match="at most one of them"):
        objective(margin_eps=EPS)
    with pytest.raises(ConfigError, match="adversarial: expected posterior_weight > 0"):
        objective(posterior_weight=0.0, classes_per_image=2)


class InParts:
    """A quadratic in the weights, whole or half of it already differentiated by the objective."""

    def __init__(self, apart: bool) -> None:
        self.apart = apart

    def __call__(self, net, x0, labels, generator):
        loss = sum(p.square().sum() for p in net.parameters())
        if self.apart:
            (0.5 * loss).backward()
            return 0.5 * sum(p.square().sum() for p in net.parameters()), {"loss": loss.detach()}
        return loss, {"loss": loss.detach()}


def test_gradients_that_the_objective_made_count_once(tmp_path: Path):
    """Two steps each: nothing is lost by zeroing too late, nothing is left from the step before."""
    data = Dataset(
        torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64), ("a", "b"), "none", "train"
    )
    ends = []
    for apart in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = torch.nn.Linear(4, 3)
        config = TrainConfig(images=16, batch_size=8, learning_rate=0.1, warmup_images=0, clip=1e6)
        made = Trainer(net, InParts(apart), data, config, tmp_path / str(apart), {}, progress=False)
        norms = [made.train_step()["grad_norm"] for _ in range(2)]
        ends.append((norms, [p.detach().clone() for p in net.parameters()]))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-6) and ends[0][0][0] != ends[0][0][1]
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(a, b)
