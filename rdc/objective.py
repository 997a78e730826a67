"""What training minimises: the EDM denoising loss of a class-conditional network, and its noise levels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.batches import batch_rows, normal, uniform
from rdc.errors import ConfigError
from rdc.preconditioning import Preconditioning

__all__ = ["ConditionalObjective", "NoiseDistribution", "Objective", "noisy"]

#: objective(net, x0 [B,C,H,W] in [-1,1], labels [B], generator) -> (loss to minimise, {name: value for the log}).
#: Draw with rdc.batches.uniform, normal, integers, so that the numbers do not depend on the count of processes.
Objective = Callable[[nn.Module, Tensor, Tensor, torch.Generator], tuple[Tensor, dict[str, Tensor]]]


@dataclasses.dataclass(frozen=True)
class NoiseDistribution:
    """Log-normal noise levels for training: ln(sigma) ~ N(mean, std^2), cut to [low, high] (EDM, section 5)."""

    mean: float = -1.2
    std: float = 1.2
    low: float = 0.002
    high: float = 80.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf and 0 < self.low < self.high < math.inf):
            raise ConfigError(f"noise: expected a finite mean, std > 0 and 0 < low < high; got {self}")

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw sigma [count], stratified so that each batch (of all processes) covers the distribution evenly."""
        total, rows = batch_rows(count, generator)
        device = generator.device
        strata = torch.arange(total, device=device) + torch.rand(total, generator=generator, device=device)
        order = torch.randperm(total, generator=generator, device=device)
        strata = (strata / total)[order].clamp(1e-6, 1 - 1e-6)
        sigma = (self.mean + self.std * torch.special.ndtri(strata)).exp()
        return sigma.clamp(self.low, self.high)[rows]


class ConditionalObjective:
    """EDM training loss ||F(c_in x_t; c_noise, y) - F*||^2, mean over pixels, with label dropout for the null label."""

    def __init__(
        self, num_classes: int, noise: NoiseDistribution, sigma_data: float = 0.5, label_dropout: float = 0.1
    ) -> None:
        if not 0 <= label_dropout <= 1:
            raise ConfigError(f"label_dropout: expected a share in 0..1; got {label_dropout}")
        self.num_classes, self.noise, self.label_dropout = num_classes, noise, label_dropout
        self.precondition = Preconditioning(sigma_data)

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch, device = len(x0), x0.device
        sigma = self.noise.sample(batch, generator).to(device)
        keep = (uniform((batch,), generator) >= self.label_dropout).to(device)
        x_t, target = noisy(x0, sigma, generator, self.precondition)
        onehot = F.one_hot(labels, self.num_classes).to(x0.dtype) * keep[:, None]
        c_in = self.precondition.c_in(sigma).reshape(-1, 1, 1, 1)
        loss = (net(c_in * x_t, self.precondition.c_noise(sigma), onehot) - target).square().mean()
        return loss, {"loss": loss.detach()}


def noisy(
    x0: Tensor, sigma: Tensor, generator: torch.Generator, precondition: Preconditioning
) -> tuple[Tensor, Tensor]:
    """Add noise of level sigma [B] to x0 [B,C,H,W]; return x_t and the target F*."""
    sigma = sigma.reshape(-1, 1, 1, 1)
    noise = normal(x0.shape, generator).to(x0.device, x0.dtype)
    x_t = x0 + sigma * noise
    return x_t, precondition.target(x0, x_t, sigma)
