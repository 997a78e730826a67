"""Robust accuracy beside torchattacks 3.5.1 (PyPI), attack by attack, at the same steps, restarts, targets and queries.

200 images, so 0.5 point is one image: ours may leave at most one more standing. Where ours leaves clearly fewer, the
reason is known and measured (images of 200 standing):

    square   (a) torchattacks never touches the last row and column after its start (it draws corners below h - s, not up
             to it). On the recipe network, l_inf, 1000 queries, it leaves 81; ours 37 and 35 (two seeds); ours with that
             restriction 89 and 91. l_2, 800 queries: 184; ours 177 and 177; restricted 185 and 187.
             (b) l_inf: proposals that would change nothing are drawn again here, not asked: without that 40 and 37.
    fab-t    the two points added at the end (rdc/attacks/fab.py): recipe network, l_inf, 30 standing; without the
             original's projection 31, without the nearest point drawn into the budget as well 32, as torchattacks.

apgd-ce runs with logit_scale=1, the cross-entropy of torchattacks. With rdc's own "auto" scale it leaves the same numbers
standing here; on the same CNN at 20 x 20 pixels one more under l_inf and two more under l_2 (113 and 114 for 112).
torchattacks reads the global generator: it is forked and seeded around each of its calls.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

import rdc
from rdc.attacks import ThreatModel
from rdc.attacks.apgd import apgd, apgd_targeted
from rdc.attacks.fab import fab
from rdc.attacks.square import square

torchattacks = pytest.importorskip(
    "torchattacks", reason="parity with torchattacks needs it: pip install --no-deps torchattacks"
)

pytestmark = pytest.mark.slow
IMAGES, STEPS, QUERIES = 200, 20, 800
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")


def train(net: nn.Module, x: Tensor, y: Tensor, steps: int, noise: float, generator: torch.Generator) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=generator)
        batch = x[rows] + noise * (2 * torch.rand(64, *x.shape[1:], generator=generator) - 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch), y[rows]).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


@lru_cache
def fashion_cnn() -> tuple[nn.Module, Tensor, Tensor]:
    """A CNN trained here on half of the shipped sample, at 16 x 16 pixels, with noise: partly robust; the other half."""
    data = rdc.load_dataset("fashion-mnist-sample")
    x = nn.functional.adaptive_avg_pool2d(data.pixels(), 16).contiguous()
    y = torch.as_tensor(data.labels).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(1024, 10),
        )  # fmt: skip
    train(net, x[:256], y[:256], 250, 0.3, torch.Generator().manual_seed(0))
    return net, x[256:][:IMAGES], y[256:][:IMAGES]


@lru_cache
def recipe_network() -> tuple[nn.Module, Tensor, Tensor]:
    """By recipe: 5 classes of colour blobs (3 x 10 x 10), smooth network, every number from seed 1."""
    generator = torch.Generator().manual_seed(1)
    means = nn.functional.interpolate(torch.rand(5, 3, 4, 4, generator=generator), size=10, mode="bilinear")

    def blobs(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, 5, (count,), generator=generator)
        noisy = 0.3 + 0.4 * means[labels] + 0.25 * torch.randn(count, 3, 10, 10, generator=generator)
        return noisy.clamp(0, 1), labels

    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(200, 24), nn.Tanh(),
            nn.Linear(24, 5),
        )  # fmt: skip
    train(net, *blobs(512), 120, 0.05, generator)
    return net, *blobs(IMAGES)


NETWORKS = {
    "fashion": (fashion_cnn, {"linf": 8 / 255, "l2": 0.4}),
    "recipe": (recipe_network, {"linf": 0.06, "l2": 0.6}),
}


def ours(name: str, net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> int:
    kept = {"seed": 0, "image_ids": range(len(x))}
    runs = {
        "apgd-ce": lambda: apgd(net, x, y, threat, steps=STEPS, loss="ce", logit_scale=1.0, **kept),
        "apgd-dlr": lambda: apgd(net, x, y, threat, steps=STEPS, loss="dlr", **kept),
        "apgd-t": lambda: apgd_targeted(net, x, y, threat, steps=STEPS, **kept),
        "fab-t": lambda: fab(net, x, y, threat, steps=STEPS, **kept),
        "square": lambda: square(net, x, y, threat, queries=QUERIES, **kept),
    }
    result = runs[name]()
    assert result.verify_mismatches == 0
    return int(result.correct.sum())


def theirs(name: str, net: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, classes: int) -> int:
    common = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": eps, "n_restarts": 1, "seed": 0}
    attack = {
        "apgd-ce": lambda: torchattacks.APGD(net, steps=STEPS, loss="ce", **common),
        "apgd-dlr": lambda: torchattacks.APGD(net, steps=STEPS, loss="dlr", **common),
        "apgd-t": lambda: torchattacks.APGDT(net, steps=STEPS, n_classes=classes, **common),
        "fab-t": lambda: torchattacks.FAB(net, steps=STEPS, multi_targeted=True, n_classes=classes, **common),
        "square": lambda: torchattacks.Square(net, n_queries=QUERIES, p_init=0.8, loss="margin", **common),
    }[name]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adversarial = attack(x, y).detach()
    return int((net(adversarial).argmax(1) == y).sum())


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_as_strong_as_torchattacks(network: str, norm: str, name: str, record_property) -> None:
    make, radii = NETWORKS[network]
    net, x, y = make()
    clean, eps = int((net(x).argmax(1) == y).sum()), radii[norm]
    mine = ours(name, net, x, y, ThreatModel(norm, eps))
    other = theirs(name, net, x, y, norm, eps, int(net(x[:1]).shape[1]))
    record_property("standing", f"{network} {norm} {name}: clean {clean}, ours {mine}, torchattacks {other}")
    print(f"{network} {norm} {name}: clean {clean}, ours {mine}, torchattacks {other} of {len(x)}")
    assert 0.1 * len(x) < mine < 0.9 * clean, "the radius must leave some and break some, or nothing is compared"
    assert mine <= other + len(x) // 200
