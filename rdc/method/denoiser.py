"""A network under EDM preconditioning, and the per-class denoising losses it gives.

Both kinds answer the same question, ``class_losses``: sum_t w_t ||F(x_t; s_t, y) - F*_t||^2 for every class y. The
conditional network needs K passes a level, the multi-head network one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.arguments.scalars import shown
from rdc.errors import ConfigError
from rdc.method.draw import Draw
from rdc.method.null_label import NullLabel
from rdc.method.preconditioning import Preconditioning
from rdc.networks.blocks import fastest_layout
from rdc.networks.heads import MultiHeadUNet
from rdc.networks.presets import DISCRIMINATIVE
from rdc.networks.vp import VPNetwork
from rdc.ops.multihead_loss import multihead_loss

__all__ = ["PRECISIONS", "ConditionalDenoiser", "Denoiser", "MultiHeadDenoiser", "make_denoiser"]

#: Types that a network may compute in.
PRECISIONS = ("float32", "bfloat16")


class Denoiser(nn.Module):
    """Common part of the two kinds.

    Attributes:
        num_classes: K.
        image_shape: (C, H, W) of images, in [-1, 1].
        latent_shape: (c, h, w) of what is noised and denoised: the image itself, or what :meth:`encode` makes of it.
        passes_per_level: network passes for all classes at one level: K or 1.
        head: name for reports.
        precision: what the network computes in, "float32" (its weights' type) or "bfloat16" (autocast). Noise, targets, squared
            errors and their sums keep the type of the images in either case.
        null_training: whether it was ever trained without a label.
        source: the name that it was loaded by, for reports; None: it was made otherwise.
    """

    network: nn.Module
    image_shape: tuple[int, int, int]
    passes_per_level: int
    head: str
    precision = "float32"
    null_training = NullLabel()
    source: str | None = None

    def __init__(
        self, network: nn.Module, num_classes: int, image_shape: tuple[int, int, int], sigma_data: float
    ) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        self.image_shape = cast("tuple[int, int, int]", tuple(image_shape))
        self.precondition = Preconditioning(sigma_data)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.image_shape

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape of the noise of a level in a draw for the class losses: that of what is noised, unless classes have draws of their own."""
        return self.latent_shape

    def in_precision(self, precision: str) -> Denoiser:
        """This denoiser, weights shared, with a network that computes in ``precision``.

        Raises:
            ConfigError: no precision of that name.
        """
        if not isinstance(precision, str) or precision not in PRECISIONS:
            auto = (
                '; "auto" is chosen on images: rdc.load(..., precision="auto")'
                if isinstance(precision, str) and precision == "auto"
                else ""
            )
            raise ConfigError(f"precision: expected {' or '.join(PRECISIONS)}; got {shown(precision)}{auto}")
        if precision == self.precision:
            return self
        made = copy.copy(self)
        made.precision = precision
        return made

    @property
    def label_free(self) -> bool:
        """Whether it can be asked without a label (:meth:`f_null`)."""
        return True

    def encode(self, x0: Tensor) -> Tensor:
        """What is noised and denoised [N, c, h, w], of images [N, C, H, W] in [-1, 1]; differentiable. A pixel model: the images.

        Every other method of a denoiser takes and gives these.
        """
        return x0

    def describe(self) -> dict[str, Any]:
        """For reports: what else there is to know of this kind of denoiser, as plain JSON values."""
        return {}

    def recordable(self) -> Denoiser:
        """This denoiser, weights shared, of calls that :mod:`rdc.export` can translate."""
        return self

    def noisy(self, x0: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Noise every image at every level.

        Args:
            x0: [N, C, H, W] in [-1, 1].
            draw: T levels and their noise, shared by all images.

        Returns:
            x_t and target F*, each [N*T, C, H, W], image-major (row n*T + t).
        """
        sigma = draw.sigma.reshape(1, -1, 1, 1, 1).to(x0.dtype)
        x0 = x0[:, None]
        x_t = x0 + sigma * draw.noise[None].to(x0.dtype)
        return x_t.flatten(0, 1), self.precondition.target(x0, x_t, sigma).flatten(0, 1)

    def class_losses(self, x0: Tensor, draw: Draw) -> Tensor:
        """Weighted losses [N, K] of x0 [N, C, H, W]: sum over levels, channels and pixels.

        Args:
            x0: [N, C, H, W] in [-1, 1].
            draw: levels, their weights and their noise.
        """
        return self.losses_of(*self.noisy(x0, draw), draw)

    def losses_of(self, x_t: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """The same for rows [N*T, C, H, W] as :meth:`noisy` gives them -> [N, K]. Each kind of denoiser writes its own."""
        raise NotImplementedError

    def losses_of_labels(self, x0: Tensor, draw: Draw, labels: Tensor) -> Tensor:
        """The losses [N] of one class for every image: labels [N] int64; the rest as of :meth:`class_losses`."""
        x_t, target = self.noisy(x0, draw)
        f = self.f(x_t, self._rows(x_t, draw), labels.repeat_interleave(len(draw)))
        error = (f - target).square().flatten(1).sum(1)
        losses: Tensor = error.unflatten(0, (len(x0), len(draw))) @ draw.weight.to(error.dtype)
        return losses

    def _rows(self, x_t: Tensor, draw: Draw) -> Tensor:
        """The level of every noisy row [N*T], in the type of the rows."""
        return draw.rows(len(x_t) // len(draw)).to(x_t.dtype)

    def f_null(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """F without a label: x_t [B, C, H, W], sigma [B] -> [B, C, H, W]. Twice differentiable."""
        raise NotImplementedError

    def f(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """F for given classes: labels [B] int64, K for the null label -> [B, C, H, W]."""
        raise NotImplementedError

    def denoise(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """D(x_t; sigma, label) [B, C, H, W], the estimate of x0."""
        return self.precondition.denoised(self.f(x_t, sigma, labels), x_t, sigma.reshape(-1, 1, 1, 1))

    def _compute(self, function: Callable[..., Tensor], x_t: Tensor, *operands: Tensor) -> Tensor:
        """``function(x_t, *operands)`` in this denoiser's precision; the result in the type of x_t."""
        if self.precision == "float32":
            return function(x_t, *operands)
        # Without a cache: inside the caller's autocast it would outlive this call, weights cast without a graph included.
        with torch.autocast(x_t.device.type, torch.bfloat16, cache_enabled=False):
            return function(x_t, *operands).to(x_t.dtype)

    def _inputs(self, x_t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        scaled = self.precondition.c_in(sigma).reshape(-1, 1, 1, 1) * x_t
        return scaled.contiguous(memory_format=fastest_layout(x_t.device)), self.precondition.c_noise(sigma)


class ConditionalDenoiser(Denoiser):
    """A class-conditional network ``network(x, c_noise, one_hot or None) -> F``: K passes for K classes."""

    head = "conditional"

    def __init__(
        self, network: nn.Module, num_classes: int, image_shape: tuple[int, int, int], sigma_data: float = 0.5
    ) -> None:
        super().__init__(network, num_classes, image_shape, sigma_data)
        self.passes_per_level = num_classes
        if not num_classes:
            self.head, self.null_training = "unconditional", NullLabel(True, "the network takes no label")

    @property
    def label_free(self) -> bool:
        return not (self.num_classes and isinstance(self.network, VPNetwork) and self.network.null_label is None)

    def f(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        onehot = F.one_hot(labels, self.num_classes + 1)[:, : self.num_classes].to(x_t.dtype)
        return self._compute(self.network, *self._inputs(x_t, sigma), onehot)

    def f_null(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self._compute(self.network, *self._inputs(x_t, sigma), x_t.new_zeros(len(x_t), self.num_classes))

    def losses_of(self, x_t: Tensor, target: Tensor, draw: Draw) -> Tensor:
        scaled, c_noise = self._inputs(x_t, self._rows(x_t, draw))
        classes = torch.eye(self.num_classes, dtype=x_t.dtype, device=x_t.device)
        rows, count = len(x_t), self.num_classes
        inputs = scaled.repeat_interleave(count, 0), c_noise.repeat_interleave(count), classes.repeat(rows, 1)
        f = self._compute(self.network, *inputs).unflatten(0, (rows, count))
        error = (f - target[:, None]).square().flatten(2).sum(2)  # [N*T, K]
        return torch.einsum("ntk,t->nk", error.unflatten(0, (-1, len(draw))), draw.weight.to(error.dtype))


class MultiHeadDenoiser(Denoiser):
    """A :class:`MultiHeadUNet`: one pass for all classes, the head and the loss in one fused op."""

    network: MultiHeadUNet
    head = "multi-head"
    passes_per_level = 1

    def __init__(
        self, network: MultiHeadUNet, num_classes: int, image_shape: tuple[int, int, int], sigma_data: float = 0.5
    ) -> None:
        super().__init__(network, num_classes, image_shape, sigma_data)

    def features(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Last feature map h [B, c, H / patch, W / patch]."""
        return self._compute(self.network.features, *self._inputs(x_t, sigma))

    def f_null(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.network.predict(self.features(x_t, sigma), self.num_classes, self.num_classes + 1)[:, 0]

    def f(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        everything = self._compute(self.network, *self._inputs(x_t, sigma))
        return everything[torch.arange(len(x_t), device=x_t.device), labels]

    def losses_of(self, x_t: Tensor, target: Tensor, draw: Draw) -> Tensor:
        return multihead_loss(*self.loss_operands(x_t, target, draw))

    def loss_operands(self, x_t: Tensor, target: Tensor, draw: Draw) -> tuple[Tensor, ...]:
        """What ``multihead_loss`` takes: features, the classes' head and bias, folded target, level weights."""
        rows = self.num_classes * self.network.folded_channels
        head, bias = self.network.head_weight[:rows], self.network.head_bias[:rows]
        target = F.pixel_unshuffle(target, self.network.patch_size)  # the order of pixels does not change their sum
        return self.features(x_t, self._rows(x_t, draw)), head, bias, target, draw.weight


def make_denoiser(network: nn.Module, config: dict[str, Any]) -> Denoiser:
    """Wrap a network made from ``config`` (see ``networks.presets.build_network``).

    Raises:
        ConfigError: the network is a classifier, no denoiser.
    """
    if config["kind"] in DISCRIMINATIVE:
        raise ConfigError(f"expected a diffusion model; this is a discriminative classifier (kind {config['kind']})")
    kind: Callable[..., Denoiser] = MultiHeadDenoiser if config["kind"] == "multihead" else ConditionalDenoiser
    return kind(network, config["num_classes"], tuple(config["image_shape"]), config.get("sigma_data", 0.5))
