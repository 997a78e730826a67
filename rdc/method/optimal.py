r"""The optimal denoiser: what a network would have learnt that remembers every training image and nothing else.

For the empirical distribution of class y with images :math:`x_i`,

.. math:: D^*(x; s, y) = \sum_i \operatorname{softmax}_i\bigl(-|x - x_i|^2 / (2 s^2)\bigr)\, x_i

minimises the denoising loss over all functions, so the classifier built on it, :class:`rdc.method.classifier.DiffusionClassifier` like any
other, shows what the method itself does, without a network's errors. Nothing is trained. It is attention over the data set:
:mod:`rdc.ops.empirical_denoiser` streams it.

Source: Chen et al., arXiv 2305.15241, section 3.3. The authors' program divides by 2 s in place of 2 s^2;
``exponent="released"`` does the same.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rdc.arguments.scalars import shown
from rdc.errors import ConfigError, InputError
from rdc.method.denoiser import Denoiser
from rdc.method.draw import Draw
from rdc.method.null_label import NullLabel
from rdc.ops.empirical_denoiser import empirical_denoiser

__all__ = ["EXPONENTS", "EmpiricalDistribution", "OptimalDenoiser"]

EXPONENTS = ("gaussian", "released")  #: |x - x_i|^2 over 2 s^2, or over 2 s


class EmpiricalDistribution(nn.Module):
    """Images of K classes, each with the same weight in its class, and posterior means under Gaussian noise.

    Args:
        images: [n, C, H, W] in [-1, 1].
        labels: int64 [n] in 0..K-1; every class has an image.
        num_classes: K.

    Raises:
        InputError: shapes or types that do not go together, values outside [-1, 1], or a class without an image.
    """

    images: Tensor
    half_square: Tensor
    centre: Tensor
    backend = "auto"  # of the op; what is recorded for export takes "matrix"

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int) -> None:
        super().__init__()
        _check(images, labels, num_classes)
        order = labels.argsort(stable=True)
        flat = images.flatten(1)[order]
        centre = flat.mean(0, dtype=torch.float64)
        half = flat.new_empty(len(flat))
        for begin in range(0, len(flat), 4096):  # in float64, and never all of it
            part = slice(begin, begin + 4096)
            flat[part] = flat[part].double() - centre  # about the mean products are smaller, and so are their roundings
            half[part] = flat[part].double().square().sum(1) / 2
        self.register_buffer("images", flat)
        self.register_buffer("half_square", half)
        self.register_buffer("centre", centre.to(images.dtype))
        counts = torch.bincount(labels, minlength=num_classes).tolist()
        ends = [sum(counts[: k + 1]) for k in range(num_classes)]
        self.places = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self.places.append(slice(0, len(flat)))  # the null label: all images

    def mean(self, x: Tensor, noise: Tensor | None, sigma: Tensor, beta: Tensor, label: int) -> Tensor:
        """Posterior mean of the clean image, of the images of one class.

        Args:
            x: [N, D] in [-1, 1].
            noise: [T, D], seen at every x: x_n + sigma_t noise_t; None: the x are noisy themselves, and T is 1.
            sigma: [T]; unused without noise.
            beta: [N*T], 1 / s^2.
            label: 0..K; K: all images.

        Returns:
            [N*T, D], row n*T + t.
        """
        place = self.places[label]
        images, half, centre = (
            tensor.to(x.dtype) for tensor in (self.images[place], self.half_square[place], self.centre)
        )
        inner = (x - centre) @ images.T
        if noise is None:
            noise_inner = inner.new_zeros(1, len(images))
        else:
            noise_inner = (sigma[:, None] * noise) @ images.T
        return empirical_denoiser(inner, noise_inner, images, half, beta, backend=self.backend) + centre

    def forward(self, *_: Any) -> Tensor:
        raise NotImplementedError("an empirical distribution is no network; see OptimalDenoiser")


class OptimalDenoiser(Denoiser):
    """The optimal denoiser of images with labels, as a denoiser like any other; differentiable any number of times.

    Args:
        images: [n, C, H, W] in [-1, 1]; kept as float32 (188 MB for 60,000 of 28 x 28).
        labels: int64 [n] in 0..K-1.
        num_classes: K.
        sigma_data: of the preconditioning that losses are weighted by.
        exponent: "gaussian" (2 s^2) or "released" (2 s, as the authors' program).

    A pass is one look at the images of one class: K for all classes at a level.

    Raises:
        InputError: see :class:`EmpiricalDistribution`.
        ConfigError: no exponent of that name.
    """

    head = "optimal"
    null_training = NullLabel(True, "the mean over the images of all classes")

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        sigma_data: float = 0.5,
        exponent: str = "gaussian",
    ) -> None:
        if exponent not in EXPONENTS:
            raise ConfigError(f"exponent: expected {' or '.join(EXPONENTS)}; got {shown(exponent)}")
        distribution = EmpiricalDistribution(images, labels, num_classes)
        channels, height, width = images.shape[1:]
        super().__init__(distribution, num_classes, (channels, height, width), sigma_data)
        self.exponent, self.passes_per_level = exponent, num_classes

    @property
    def distribution(self) -> EmpiricalDistribution:
        """The images of all classes."""
        network = self.network
        assert isinstance(network, EmpiricalDistribution)
        return network

    def describe(self) -> dict[str, Any]:
        return {"denoiser": {"kind": "optimal", "images": len(self.distribution.images), "exponent": self.exponent}}

    def in_precision(self, precision: str) -> Denoiser:
        """Itself, for float32; images and losses have no other precision.

        Raises:
            ConfigError: another precision.
        """
        if precision != "float32":
            raise ConfigError(f"precision: the optimal denoiser computes in float32; got {shown(precision)}")
        return self

    def recordable(self) -> OptimalDenoiser:
        """The same, images shared, of calls that :mod:`rdc.export` can translate."""
        made, distribution = copy.copy(self), copy.copy(self.distribution)
        distribution.backend = "matrix"
        made._modules = {**self._modules, "network": distribution}
        return made

    def class_losses(self, x0: Tensor, draw: Draw) -> Tensor:
        return torch.stack([self._losses(x0, draw, label) for label in range(self.num_classes)], 1)

    def losses_of_labels(self, x0: Tensor, draw: Draw, labels: Tensor) -> Tensor:
        picks = [(labels == label).nonzero().flatten() for label in range(self.num_classes)]
        parts = [self._losses(x0[pick], draw, label) for label, pick in enumerate(picks) if len(pick)]
        return torch.cat(parts)[torch.cat(picks).argsort()] if parts else x0.new_zeros(0)

    def losses_of(self, x_t: Tensor, target: Tensor, draw: Draw) -> Tensor:
        rows = self._rows(x_t, draw)
        f = torch.stack([self._f(x_t, rows, label) for label in range(self.num_classes)], 1)
        error = (f - target[:, None]).square().flatten(2).sum(2)
        return torch.einsum("ntk,t->nk", error.unflatten(0, (-1, len(draw))), draw.weight.to(error.dtype))

    def f(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        picks = [(labels == label).nonzero().flatten() for label in range(self.num_classes + 1)]
        parts = [self._f(x_t[pick], sigma[pick], label) for label, pick in enumerate(picks) if len(pick)]
        return torch.cat(parts)[torch.cat(picks).argsort()] if parts else torch.zeros_like(x_t)

    def f_null(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self._f(x_t, sigma, self.num_classes)

    def _losses(self, x0: Tensor, draw: Draw, label: int) -> Tensor:
        """Weighted losses [N] of one class: |F - F*|^2 = |D - x0|^2 / c_out^2, since both see the same x_t."""
        flat, draw = x0.flatten(1), draw.to(x0)
        beta = self._beta(draw.sigma).repeat(len(x0))
        mean = self.distribution.mean(flat, draw.noise.flatten(1), draw.sigma, beta, label)
        error = (mean.unflatten(0, (len(x0), len(draw))) - flat[:, None]).square().sum(2)
        losses: Tensor = error @ (draw.weight / self.precondition.c_out(draw.sigma).square())
        return losses

    def _f(self, x_t: Tensor, sigma: Tensor, label: int) -> Tensor:
        mean = self.distribution.mean(x_t.flatten(1), None, sigma, self._beta(sigma), label)
        sigma = sigma.reshape(-1, 1, 1, 1)
        return (mean.view_as(x_t) - self.precondition.c_skip(sigma) * x_t) / self.precondition.c_out(sigma)

    def _beta(self, sigma: Tensor) -> Tensor:
        return 1 / (sigma if self.exponent == "released" else sigma.square())


def _check(images: Tensor, labels: Tensor, num_classes: int) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.dtype not in (torch.float32, torch.float64):
        raise InputError(f"images: expected float32 or float64 [n, C, H, W] in [-1, 1]; got {shown(images)}")
    if not bool(((images >= -1) & (images <= 1)).all()):
        raise InputError("images: expected values in [-1, 1]; some are outside, or not numbers")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(f"labels: expected int64 [{len(images)}], one for each image; got {shown(labels)}")
    if len(labels) and not bool(((labels >= 0) & (labels < num_classes)).all()):
        raise InputError(f"labels: expected 0..{num_classes - 1}; got {int(labels.min())} to {int(labels.max())}")
    counts = torch.bincount(labels, minlength=num_classes)
    if empty := (counts == 0).nonzero().flatten().tolist():
        raise InputError(f"labels: expected an image of every class; there is none of class {empty[0]}")
