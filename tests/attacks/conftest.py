"""Small models with known answers for the attack tests, handed out by the fixtures ``models`` and ``cnn``."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn


class Linear:
    """logits_k = scale * (w_k . (x - centre) + b_k), image by image: a row's bits do not depend on the batch."""

    def __init__(self, weight: Tensor, bias: Tensor, centre: float = 0.5, scale: float = 1.0) -> None:
        self.weight, self.bias, self.centre, self.scale = weight, bias, centre, scale
        self.batches: list[tuple[int, bool]] = []  # (rows, with gradient) of each call

    def __call__(self, x: Tensor) -> Tensor:
        self.batches.append((x.shape[0], x.requires_grad))
        rows = [((self.weight * (image.flatten() - self.centre)).sum(dim=1) + self.bias) * self.scale for image in x]
        return torch.stack(rows)


def two_class(weight: Tensor, bias: float) -> Linear:
    """Class 0 where w . (x - 1/2) + bias > 0; the logit difference is exactly that."""
    weight = weight.flatten()
    return Linear(torch.stack([weight, torch.zeros_like(weight)]), torch.tensor([bias, 0.0]))


def random_linear(classes: int, pixels: int, seed: int = 0, scale: float = 1.0) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    return Linear(torch.randn(classes, pixels, generator=generator), torch.zeros(classes), scale=scale)


def random_images(
    count: int, shape: tuple[int, int, int] = (1, 6, 6), seed: int = 1, low: float = 0.3, high: float = 0.7
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, *shape, generator=generator)


def trained_cnn(steps: int = 150) -> tuple[nn.Module, Tensor, Tensor]:
    """A small CNN that tells three noisy 8x8 patterns apart, with 24 images it classifies right and their labels."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(3, 1, 8, 8, generator=generator)

    def images(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, 3, (count,), generator=generator)
        noisy = 0.35 + 0.3 * patterns[labels] + 0.1 * torch.randn(count, 1, 8, 8, generator=generator)
        return noisy.clamp(0, 1), labels

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(128, 3),
        )
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        x, y = images(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval().requires_grad_(False)
    x, y = images(64)
    right = net(x).argmax(1) == y
    return net, x[right][:24], y[right][:24]


@pytest.fixture(scope="session")
def models() -> SimpleNamespace:
    return SimpleNamespace(Linear=Linear, two_class=two_class, random_linear=random_linear, random_images=random_images)


@pytest.fixture(scope="session")
def cnn() -> tuple[nn.Module, Tensor, Tensor]:
    return trained_cnn()
