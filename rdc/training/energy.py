"""A classifier that is an energy-based model as well (JEM), trained by contrast with samples of its own.

With f the logits,  p(y | x) = softmax f(x)_y  and  p(x) ~ exp(-E(x)),  E(x) = -log sum_y exp f(x)_y.  The loss is

    CE(f(x), y) + w [E(x) - E(x')] ,        x' ~ p(x) roughly, by K steps of stochastic gradient Langevin dynamics (SGLD):

    x' <- x' - a dE/dx'(x') + b n,   n ~ N(0, I)                  (cut to [-1, 1] if ``bounded``)

from an image of the replay buffer, which takes the result back (persistent contrastive divergence); a share of the chains
starts anew from uniform noise. Everything is in units of x0 in [-1, 1], as in the paper. x gets a little Gaussian noise
(``input_noise``) where its energy is lowered, none in the cross-entropy.

Source: Grathwohl et al. 2020, "Your classifier is secretly an energy based model and you should treat it like one",
arXiv 1912.03263, equation 3, section 4 and appendix A.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.errors import ConfigError
from rdc.training.batches import batch_rows, normal, uniform

__all__ = ["EnergyObjective", "EnergyTerms", "energy", "langevin"]


@dataclasses.dataclass(frozen=True)
class EnergyTerms:
    """What :class:`EnergyObjective` minimises, and how it samples.

    Args:
        steps: K of SGLD for every batch, >= 1.
        step_size: a, > 0.
        noise: b, >= 0, in units of x0 in [-1, 1].
        buffer: images of the replay buffer, at least the batch.
        restart: share of the chains that start anew from uniform noise.
        input_noise: standard deviation of the noise on the images whose energy is lowered, in units of x0.
        weight: w of the energy term; 0: cross-entropy alone.
        largest_gap: a mean |E(x) - E(x')| beyond it counts as divergence.
        bounded: cut the chains to [-1, 1], where images are, after every step. The paper does not; a network without norms has
            ever lower energies outside, and chains that run there teach it nothing about images.

    Raises:
        ConfigError: a setting is out of range.
    """

    steps: int = 20
    step_size: float = 1.0
    noise: float = 0.01
    buffer: int = 10_000
    restart: float = 0.05
    input_noise: float = 0.03
    weight: float = 1.0
    largest_gap: float = 100.0
    bounded: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("buffer", 1)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= 10**6:
                raise ConfigError(f"{name}: expected a whole number from {least} to 1,000,000; got {value!r}")
        for name in ("step_size", "largest_gap"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a positive number; got {getattr(self, name)!r}")
        for name in ("noise", "input_noise", "weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected 0 or more; got {getattr(self, name)!r}")
        if not 0 <= self.restart <= 1:
            raise ConfigError(f"restart: expected a share in 0..1; got {self.restart!r}")


def energy(logits: Tensor) -> Tensor:
    """E = -log sum_y exp f_y: logits [B, K] -> [B]; -log p(x) up to a constant."""
    return -logits.float().logsumexp(1)


def langevin(
    energies: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    step_size: float,
    noise: float,
    generator: torch.Generator,
    bounded: bool = False,
) -> Tensor:
    """Unadjusted Langevin steps x <- x - step_size dE/dx + noise n.

    Args:
        energies: x [B, ...] -> E [B]; each image's own, so that the gradient of the sum is each one's gradient.
        start: [B, ...] float32.
        steps, step_size, noise: K, a, b; on E = |x|^2 / (2 s^2) the stationary variance is b^2 / (1 - (1 - a / s^2)^2).
        generator: draws n.
        bounded: cut x to [-1, 1] after every step.

    Returns:
        [B, ...] without graph.
    """
    x = start.detach()
    for _ in range(steps):
        x = x.requires_grad_(True)
        with torch.enable_grad():
            value = energies(x).sum()
        with torch.autocast(x.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(value, x)
        x = x.detach() - step_size * gradient
        if noise:
            x = x + noise * normal(x.shape, generator).to(x.device)
        if bounded:
            x = x.clamp(-1, 1)
    return x


class EnergyObjective:
    """Cross-entropy and the energy's contrast; see the module's head. An ``rdc.training.objective.Objective``.

    Its replay buffer is part of the training state (:meth:`state`), so that a resumed run is the same run.

    Args:
        image_shape: (C, H, W).
        terms: :class:`EnergyTerms`.
        seed: of the buffer's first content.
        label_smoothing: of the cross-entropy.

    Logged: loss; clean, the share of the batch that is right; entropy (CE); gap, the mean of E(x) - E(x').
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        terms: EnergyTerms = EnergyTerms(),  # noqa: B008 (frozen)
        seed: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        self.image_shape, self.terms, self.label_smoothing = tuple(image_shape), terms, label_smoothing
        self.buffer = self._noise(torch.Generator().manual_seed(seed))

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        terms = self.terms
        if batch_rows(len(x0), generator)[0] != len(x0):
            raise ConfigError(
                "method jem: expected one process, its replay buffer is not shared; start it without torchrun"
            )
        if len(x0) > terms.buffer:
            raise ConfigError(f"buffer: expected at least the batch ({len(x0)} images); got {terms.buffer}")
        samples = self._sample(net, len(x0), generator).to(x0.device)
        noisy = x0 + terms.input_noise * normal(x0.shape, generator).to(x0.device)
        clean, data, own = net(_pixels(torch.cat([x0, noisy, samples]))).float().split(len(x0))
        entropy = F.cross_entropy(clean, labels, label_smoothing=self.label_smoothing)
        gap = (energy(data) - energy(own)).mean()
        hits = (clean.detach().argmax(1) == labels).float().mean()
        loss = entropy + terms.weight * gap
        return loss, {"loss": loss.detach(), "clean": hits, "entropy": entropy.detach(), "gap": gap.detach()}

    def diverged(self, values: dict[str, float]) -> bool:
        """Whether the logged values of a step say that the energy ran away: not finite, or a gap beyond ``largest_gap``."""
        finite = all(map(math.isfinite, values.values()))
        return not finite or abs(values["gap"]) > self.terms.largest_gap

    def restart(self, generator: torch.Generator) -> None:
        """Fill the buffer with noise again, after a divergence."""
        self.buffer = self._noise(generator)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the network."""
        return {"buffer": self.buffer}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take :meth:`state` back; shapes have to be the same.

        Raises:
            ValueError: they are not.
        """
        if state.keys() != {"buffer"} or state["buffer"].shape != self.buffer.shape:
            raise ValueError(f"expected a replay buffer of {list(self.buffer.shape)}")
        self.buffer = state["buffer"].clone()

    def _sample(self, net: nn.Module, count: int, generator: torch.Generator) -> Tensor:
        """Go on with ``count`` chains of the buffer, or start anew; the buffer takes the results."""
        terms = self.terms
        rows = torch.randperm(terms.buffer, generator=generator, device=generator.device)[:count].cpu()
        fresh = (uniform((count,), generator) < terms.restart).cpu()
        begin = 2 * uniform((count, *self.image_shape), generator).cpu() - 1
        start = torch.where(fresh[:, None, None, None], begin, self.buffer[rows]).to(generator.device)
        taught = [p for p in net.parameters() if p.requires_grad]
        for p in taught:  # gradients with respect to images alone
            p.requires_grad_(False)
        try:
            samples = langevin(
                lambda x: energy(net(_pixels(x))),
                start,
                terms.steps,
                terms.step_size,
                terms.noise,
                generator,
                terms.bounded,
            )
        finally:
            for p in taught:
                p.requires_grad_(True)
        self.buffer[rows] = samples.cpu()
        return samples

    def _noise(self, generator: torch.Generator) -> Tensor:
        shape = (self.terms.buffer, *self.image_shape)
        return 2 * torch.rand(shape, generator=generator, device=generator.device).cpu() - 1


def _pixels(x0: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]; samples may lie beyond, as in the paper."""
    return (x0 + 1) / 2
