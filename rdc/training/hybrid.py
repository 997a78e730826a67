"""A vision transformer that classifies and denoises at once (HybViT).

    CE(f(x), y) + w E_t ||eps_hat(x_t, t) - eps||^2 ,     x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps ,   t uniform

The class token of clean images (time 0) names the class; the patch tokens of noisy ones (time t / T) predict the noise.

Source: Yang et al. 2022, "Your ViT is secretly a hybrid discriminative-generative diffusion model", arXiv 2208.07791,
equations 5 to 7; the noise schedule: Ho et al. 2020, arXiv 2006.11239 (linear betas, T = 1000).
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.errors import ConfigError
from rdc.networks.vp import vp_sigmas
from rdc.training.augmentation import shifted
from rdc.training.batches import integers, normal

__all__ = ["HybridObjective", "HybridTerms"]


@dataclasses.dataclass(frozen=True)
class HybridTerms:
    """What :class:`HybridObjective` minimises.

    Args:
        denoising_weight: w of the squared error of the noise, mean over pixels; 0: cross-entropy alone.

    Raises:
        ConfigError: out of range.
    """

    denoising_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.denoising_weight < math.inf:
            raise ConfigError(f"denoising_weight: expected 0 or more; got {self.denoising_weight!r}")


class HybridObjective:
    """Cross-entropy and denoising; see the module's head. An ``rdc.training.objective.Objective``.

    Args:
        terms: :class:`HybridTerms`.
        label_smoothing: of the cross-entropy.
        shift: largest random displacement of each training image, in pixels; 0: none.

    Logged: loss; clean, the share of the batch that is right; entropy (CE); denoising, the noise's squared error.
    """

    def __init__(
        self,
        terms: HybridTerms = HybridTerms(),  # noqa: B008 (frozen)
        label_smoothing: float = 0.0,
        shift: int = 0,
    ) -> None:
        self.terms, self.label_smoothing, self.shift = terms, label_smoothing, shift
        sigma = vp_sigmas({})
        self.signal = (1 + sigma**2).rsqrt().float()  # sqrt(abar_t)
        self.spread = (sigma * (1 + sigma**2).rsqrt()).float()  # sqrt(1 - abar_t)

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = ((x0 + 1) / 2).clamp(0, 1)
        if self.shift:
            pixels = shifted(pixels, self.shift, generator)
        logits = net(pixels).float()
        entropy = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        denoising = self._denoising(net, 2 * pixels - 1, generator) if self.terms.denoising_weight else 0 * entropy
        loss = entropy + self.terms.denoising_weight * denoising
        hits = (logits.detach().argmax(1) == labels).float().mean()
        return loss, {
            "loss": loss.detach(),
            "clean": hits,
            "entropy": entropy.detach(),
            "denoising": denoising.detach(),
        }

    def _denoising(self, net: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error of the predicted noise, mean over images and pixels."""
        count, device = len(self.signal), x0.device
        step = integers(count, (len(x0),), generator).cpu()
        signal, spread = (table[step].to(device)[:, None, None, None] for table in (self.signal, self.spread))
        noise = normal(x0.shape, generator).to(device, x0.dtype)
        x_t = signal * x0 + spread * noise
        times = ((step + 1) / count).to(device, x0.dtype)
        error: Tensor = net((x_t + 1) / 2, times).float() - noise
        return error.square().mean()
