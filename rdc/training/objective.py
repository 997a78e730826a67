"""What training a class-conditional network minimises, and at which noise levels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.errors import ConfigError
from rdc.method.preconditioning import Preconditioning
from rdc.training.batches import batch_rows, normal, uniform

__all__ = ["ConditionalObjective", "DiffusionTerms", "NoiseDistribution", "Objective", "noisy"]

#: objective(net, x0 [B,C,H,W] in [-1,1], labels [B], generator) -> (loss to minimise, {name: value for the log}).
#: Draw with rdc.training.batches.uniform, normal, integers, so that the numbers do not depend on the count of processes.
#: ``differentiates_twice`` = True says that it takes second derivatives of the network.
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
        sigma: Tensor = (self.mean + self.std * torch.special.ndtri(strata)).exp()
        return sigma.clamp(self.low, self.high)[rows]


@dataclasses.dataclass(frozen=True)
class DiffusionTerms:
    """What :class:`ConditionalObjective` minimises, whatever the data.

    Args:
        label_dropout: share of images seen without label (and without second term).
        posterior_weight: b; 0: the EDM loss alone.
        wrong_classes: m, drawn for every image without repetition; fewer than there are classes.
        posterior_scale: g; one level stands for the whole ELBO when g is the width of the range of ln s, 2 to 4.

    Raises:
        ConfigError: a setting is out of range.
    """

    label_dropout: float = 0.1
    posterior_weight: float = 0.0
    wrong_classes: int = 2
    posterior_scale: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout <= 1:
            raise ConfigError(f"label_dropout: expected a share in 0..1; got {self.label_dropout}")
        if not (0 <= self.posterior_weight < math.inf and 0 < self.posterior_scale < math.inf):
            raise ConfigError(
                f"posterior: expected a weight >= 0 and a scale > 0; got {self.posterior_weight} and {self.posterior_scale}"
            )
        if self.posterior_weight and self.wrong_classes < 1:
            raise ConfigError(f"wrong_classes: expected 1 or more; got {self.wrong_classes}")


class ConditionalObjective:
    """Denoising loss of a class-conditional network, and, if asked for, the posterior over a few classes.

    The EDM loss ||F(c_in x_t; c_noise, y) - F*||^2, mean over pixels, with label dropout for the null label, teaches what
    images of a class look like. A network that shares its weights between classes may yet ignore the label wherever x_t
    already tells it, and wrong labels, which decide a diffusion classifier, are never seen. The second term shows m wrong
    classes k with every image:

        b E [ -log softmax_{k in {y, k_1 .. k_m}}( -g(s) ||F_k - F*||^2 )_y ]        g(s) = g c_out^2 / s^2

    with the squared error summed over pixels: g(s) is the weight of the level in the ELBO over ln s. It makes the network
    partly discriminative, and sees no adversarial example.

    Args:
        num_classes: K.
        noise: distribution of the noise levels.
        sigma_data: standard deviation of the data.
        label_dropout, posterior_weight, wrong_classes, posterior_scale: :class:`DiffusionTerms`.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        noise: NoiseDistribution,
        sigma_data: float = 0.5,
        label_dropout: float = DiffusionTerms.label_dropout,
        posterior_weight: float = DiffusionTerms.posterior_weight,
        wrong_classes: int = DiffusionTerms.wrong_classes,
        posterior_scale: float = DiffusionTerms.posterior_scale,
    ) -> None:
        DiffusionTerms(label_dropout, posterior_weight, wrong_classes, posterior_scale)  # are they in range?
        if posterior_weight and not wrong_classes < num_classes:
            raise ConfigError(f"wrong_classes: expected 1 to {num_classes - 1}; got {wrong_classes}")
        self.num_classes, self.noise, self.label_dropout = num_classes, noise, label_dropout
        self.posterior_weight, self.wrong_classes, self.posterior_scale = (
            posterior_weight,
            wrong_classes,
            posterior_scale,
        )
        self.precondition = Preconditioning(sigma_data)

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch, device = len(x0), x0.device
        sigma = self.noise.sample(batch, generator).to(device)
        keep = (uniform((batch,), generator) >= self.label_dropout).to(device)
        x_t, target = noisy(x0, sigma, generator, self.precondition)
        onehot = F.one_hot(labels, self.num_classes).to(x0.dtype) * keep[:, None]
        scaled = self.precondition.c_in(sigma).reshape(-1, 1, 1, 1) * x_t
        c_noise = self.precondition.c_noise(sigma)
        if not self.posterior_weight:
            loss = (net(scaled, c_noise, onehot) - target).square().mean()
            return loss, {"loss": loss.detach()}
        others = self.wrong_for(net, labels, generator)
        wrong = F.one_hot(others, self.num_classes).to(x0.dtype)
        shown = torch.cat([onehot[:, None], wrong], 1)  # [B, 1 + m, K]
        count = shown.shape[1]
        f = net(scaled.repeat_interleave(count, 0), c_noise.repeat_interleave(count), shown.flatten(0, 1))
        error = (f.unflatten(0, (batch, count)) - target[:, None]).square().flatten(2)  # [B, 1 + m, C*H*W]
        denoising = error[:, 0].mean()
        scale = self.posterior_scale * (self.precondition.c_out(sigma) / sigma) ** 2
        logits = -scale[:, None] * error.sum(2)
        self.learn(net, labels, others, logits.detach())
        entropy = F.cross_entropy(logits, torch.zeros_like(labels), reduction="none")
        posterior = (keep * entropy).mean()  # over all images: the same for any number of processes
        loss = denoising + self.posterior_weight * posterior
        hits = (error.sum(2).argmin(1) == 0).to(x0.dtype).mean()
        return loss, {
            "loss": loss.detach(),
            "denoising": denoising.detach(),
            "posterior": posterior.detach(),
            "hits": hits,
        }

    def wrong_for(self, net: nn.Module, labels: Tensor, generator: torch.Generator) -> Tensor:
        """[B, m] distinct classes, none of them the image's own; a subclass may prefer some."""
        return self._wrong_classes(labels, generator)

    def _wrong_classes(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        order = uniform((len(labels), self.num_classes), generator).to(labels.device)
        order[torch.arange(len(labels), device=labels.device), labels] = 2
        return order.argsort(1)[:, : self.wrong_classes]

    def learn(self, net: nn.Module, labels: Tensor, others: Tensor, logits: Tensor) -> None:
        """Told of every step what the network said [B, 1 + m] of the image's class and of others [B, m]; for subclasses."""


def noisy(
    x0: Tensor, sigma: Tensor, generator: torch.Generator, precondition: Preconditioning
) -> tuple[Tensor, Tensor]:
    """Add noise of level sigma [B] to x0 [B,C,H,W]; return x_t and the target F*."""
    sigma = sigma.reshape(-1, 1, 1, 1)
    noise = normal(x0.shape, generator).to(x0.device, x0.dtype)
    x_t = x0 + sigma * noise
    return x_t, precondition.target(x0, x_t, sigma)
