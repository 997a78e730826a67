"""What is smoothed: noised diffusion classifiers, and any plain classifier, as one function of a noisy image.

A noised diffusion classifier never sees the image, only x_tau = x0 + s_tau n (in [-1, 1] units; s_tau = 2 sigma for noise of sigma in
[0, 1] pixel units), and classifies by a lower bound of log p(x_tau | y) (arXiv 2402.02316). With s_tau < s_1 < ... < s_T, s_0 = s_tau,
a_i = sqrt(s_i^2 - s_tau^2) and x_i = x_tau + a_i e_i,

    f_y = - sum_i w_i ||D(x_i; s_i, y) - t_i||^2

    EPNDC   t_i = x_tau - (s_tau^2 / a_i) e_i        w_i = W_i (s_i^2 - s_{i-1}^2)^2 / s_i^4
    APNDC   t_i = D(x_tau; s_tau), without a label   w_i = (s_i^2 - s_{i-1}^2) / (2 s_{i-1}^2 s_i^2)

EPNDC is the evidence lower bound itself. Its terms are KL(q(x_{i-1} | x_i, x_tau) || p(x_{i-1} | x_i)), Gaussians of one variance v:

    m_p - m_q = (s_i^2 - s_{i-1}^2) / s_i^2 (D - t_i)                v = (s_{i-1}^2 - s_tau^2)(s_i^2 - s_{i-1}^2) / (s_i^2 - s_tau^2)

so W_i = 1 / (2 v). The first term is -log p(x_tau | x_1), where q has no variance; p's is s_tau^2 (s_1^2 - s_tau^2) / s_1^2, what it is if
the image is known, and w_1 = (s_1^2 - s_tau^2) / (2 s_tau^2 s_1^2). In the limit of many levels w_i is d(s^2) / (2 s^4) for both.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from rdc.contracts import Defence, NetworkUse
from rdc.errors import ConfigError
from rdc.execution.surroundings import undisturbed
from rdc.method.classifier import DiffusionClassifier
from rdc.method.draw import Draw
from rdc.method.latents import refuse_latents
from rdc.provenance.networks import doubt_of, doubtful_null_labels, notable_networks

__all__ = ["METHODS", "BaseClassifier", "NoisedDiffusion", "SmoothedPlain", "base_classifier", "noised_weights"]

METHODS = ("epndc", "apndc", "plain")


class BaseClassifier(Protocol):
    """The function that is smoothed.

    Attributes:
        num_classes, image_shape, device: as of a defence.
        levels: T, how many draws of the image's shape it needs beside the noisy image; 0: none.
        passes: network passes for one noisy image.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    device: torch.device
    levels: int
    passes: int

    def scores(self, noisy: Tensor, draws: Tensor) -> Tensor:
        """Scores [B, K], the highest decides; differentiable, softmax gives probabilities.

        Args:
            noisy: [B, C, H, W] pixels plus Gaussian noise, in [0, 1] units, not clipped.
            draws: [B, T, C, H, W] standard normal.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values."""
        ...


def noised_weights(method: str, s_tau: float, sigma: list[float]) -> list[float]:
    """w_i of the module's docstring, of ||D - t||^2.

    Args:
        method: "epndc" or "apndc".
        s_tau: level of the noisy image.
        sigma: T levels, rising, all above s_tau.
    """
    weights = []
    for before, s in zip([s_tau, *sigma[:-1]], sigma, strict=True):
        step = s**2 - before**2
        if method == "apndc" or before == s_tau:
            weights.append(step / (2 * before**2 * s**2))
        else:
            weights.append((s**2 - s_tau**2) * step / (2 * (before**2 - s_tau**2) * s**4))
    return weights


class NoisedDiffusion:
    """EPNDC or APNDC of a diffusion classifier's network, see the module's docstring.

    The classifier's own levels give the range; its weights, scale, prior and noise policy have no part in it.

    Args:
        classifier: whose network it is; without likelihood maximisation.
        sigma: of the smoothing noise, in [0, 1] pixel units.
        method: "epndc" or "apndc".
        levels: T >= 1: s_tau (s_max / s_tau)^(i / T), i = 1 .. T, where s_max is the classifier's largest level.

    Raises:
        ConfigError: s_tau = 2 sigma lies outside the classifier's levels; or there is likelihood maximisation.
    """

    def __init__(self, classifier: DiffusionClassifier, sigma: float, method: str, levels: int) -> None:
        refuse_latents(classifier.denoiser, f"method {method}")
        low, high = min(classifier.levels.sigma), max(classifier.levels.sigma)
        s_tau = 2 * sigma
        if classifier.lm is not None:
            raise ConfigError(
                f"method {method}: expected a model without likelihood maximisation, which moves the image that the noise was added to; "
                "use --lm none, or method plain, which smooths all of the model"
            )
        if not low <= s_tau < high:
            raise ConfigError(
                f"sigma: noise of {sigma:g} in [0, 1] pixels is s_tau = {s_tau:g} in [-1, 1], and the model's levels go from {low:g} to "
                f"{high:g}; expected sigma >= {low / 2:g} and < {high / 2:g}. Take another sigma, other --levels, or a model trained for it"
            )
        self.classifier, self.denoiser, self.method = classifier, classifier.denoiser, method
        self.num_classes, self.image_shape = classifier.num_classes, classifier.image_shape
        self.device, self.levels, self.s_tau = classifier.device, levels, s_tau
        self.sigma = [s_tau * (high / s_tau) ** (number / levels) for number in range(1, levels + 1)]
        self.weight = noised_weights(method, s_tau, self.sigma)
        self.passes = levels * self.denoiser.passes_per_level + (method == "apndc")

    def scores(self, noisy: Tensor, draws: Tensor) -> Tensor:
        return undisturbed(lambda noisy: -self._losses(2 * noisy - 1, draws), noisy, self.denoiser)

    def _losses(self, x_tau: Tensor, draws: Tensor) -> Tensor:
        """[B, K] of x_tau [B, C, H, W]."""
        sigma, weight = (torch.tensor(values, dtype=torch.float64).to(x_tau) for values in (self.sigma, self.weight))
        a = torch.tensor([math.sqrt(s**2 - self.s_tau**2) for s in self.sigma], dtype=torch.float64).to(x_tau)
        column, a = sigma.reshape(1, -1, 1, 1, 1), a.reshape(1, -1, 1, 1, 1)
        x = x_tau[:, None] + a * draws
        precondition = self.denoiser.precondition
        if self.method == "epndc":
            wanted = x_tau[:, None] - self.s_tau**2 / a * draws
        else:
            level = sigma.new_full((len(x_tau),), self.s_tau)
            f = self.denoiser.f_null(x_tau, level)
            wanted = precondition.denoised(f, x_tau, level.reshape(-1, 1, 1, 1))[:, None]
        target = precondition.target(wanted, x, column)
        # every image has noise of its own; of the draw only levels and weights are looked at
        draw = Draw(sigma, weight * precondition.c_out(sigma) ** 2, draws[0])
        return self.denoiser.losses_of(x.flatten(0, 1), target.flatten(0, 1), draw)

    def describe(self) -> dict[str, Any]:
        return {
            "method": self.method, "s_tau": self.s_tau, "sigma": self.sigma, "weight": self.weight, "passes": self.passes,
            "head": self.denoiser.head, "precision": self.denoiser.precision, **self._doubt(),
        }  # fmt: skip

    def _doubt(self) -> dict[str, Any]:
        """APNDC asks for the clean image without a label."""
        line = doubt_of(NetworkUse("APNDC's denoised image", self.denoiser, label_free=self.method == "apndc"))
        return {"null_label": [line]} if line else {}


class SmoothedPlain:
    """A classifier as it is, of the noisy pixels clipped to [0, 1], which every classifier of images takes.

    Clipping is part of the function that is smoothed, so the certificate holds for it.
    """

    levels = 0

    def __init__(self, classifier: Defence) -> None:
        self.classifier = classifier
        self.num_classes, self.image_shape, self.device = (
            classifier.num_classes,
            classifier.image_shape,
            classifier.device,
        )
        self.passes = classifier.evaluations_per_image

    def scores(self, noisy: Tensor, draws: Tensor) -> Tensor:
        return self.classifier(noisy.clamp(0, 1))

    def describe(self) -> dict[str, Any]:
        about: dict[str, Any] = {
            "method": "plain",
            "passes": self.passes,
            "head": self.classifier.head,
            "input": "clipped to [0, 1]",
        }
        networks, lines = notable_networks(self.classifier), doubtful_null_labels(self.classifier)
        about |= {"networks": networks} if networks else {}
        return about | ({"null_label": lines} if lines else {})


def base_classifier(classifier: Defence, sigma: float, method: str, levels: int) -> BaseClassifier:
    """What ``rdc certify`` smooths.

    Args:
        classifier: any defence; a diffusion classifier for "epndc" and "apndc".
        sigma, levels: see :class:`NoisedDiffusion`.
        method: one of :data:`METHODS`.

    Raises:
        ConfigError: unknown method, a model that does not go with it, or a sigma that no level can serve.
    """
    if method not in METHODS:
        raise ConfigError(f"method: expected {', '.join(METHODS)}; got {method!r}")
    if method == "plain":
        if classifier.stochastic and classifier.noise_policy != "fixed":
            raise ConfigError("method plain: expected a model with fixed noise; with_(noise='fixed') gives it")
        return SmoothedPlain(classifier)
    if not isinstance(classifier, DiffusionClassifier):
        raise ConfigError(
            f"method {method}: expected a diffusion classifier, whose network denoises; this model ({classifier.head}) is none. "
            "Use method plain, which smooths any classifier"
        )
    return NoisedDiffusion(classifier, sigma, method, levels)
