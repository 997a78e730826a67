"""The part that every shipped defence shares: settings, draws, counters, and the one formula for BPDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rdc.arguments.class_names import checked_names
from rdc.arguments.scalars import as_integer, shown
from rdc.contracts.component import Component
from rdc.contracts.defence import Defence
from rdc.contracts.modes import GradientMode, NoisePolicy
from rdc.contracts.path import PurificationPath
from rdc.errors import ConfigError

__all__ = ["BaseDefence"]

MOST_CLASSES = 10**6


class BaseDefence(Component):
    """Base of defences, :class:`rdc.contracts.Defence`; a kind of defence writes ``forward`` and what is special about it.

    Args:
        image_shape: (C, H, W).
        num_classes: K.
        class_names: K different names; None: "0", "1", ...
        gradient: "exact", or "bpda": the Jacobian of whatever purifies the input is taken as the identity.
        noise: "fixed": one draw of noise for all calls; "fresh": another draw in every call. Without effect on a
            defence that draws none.
        noise_seed: of the draws, any integer.
        device: where it computes if it has no parameter or buffer of its own; None: the CPU.

    One that holds others, as members or anywhere :mod:`rdc.contracts.parts` looks, rules them: see :class:`rdc.contracts.Component`.
    It stays in evaluation mode, as every defence does: ``train()`` is without effect.

    Raises:
        ConfigError: an unknown setting.
    """

    head: str = "discriminative"
    #: a :class:`rdc.models.precision.PrecisionChoice` where ``precision="auto"`` chose
    precision_choice: Any = None

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        class_names: Sequence[str] | None = None,
        *,
        gradient: str = GradientMode.EXACT,
        noise: str = NoisePolicy.FIXED,
        noise_seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(gradient=gradient, noise=noise, noise_seed=noise_seed)
        self.image_shape, self.num_classes = checked_shape(image_shape), checked_count(num_classes)
        self.class_names = checked_names(class_names, self.num_classes)
        self._home = torch.device("cpu") if device is None else device

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values, for reports."""
        noise = {"policy": str(self.noise_policy), "seed": self.noise_seed} if self.stochastic else "none"
        return {
            "levels": None, "weighting": None, "lm": None, "noise": noise, "head": self.head, "gradient": str(self.gradient),
        }  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the first parameter or buffer is."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return self._home

    # --- purification ---------------------------------------------------------------------------------------------
    def purify(self, pixels: Tensor) -> Tensor:
        """The image that is classified in place of the pixels; the pixels themselves if nothing is purified."""
        return pixels

    # --- what adaptive attacks and reports ask for ----------------------------------------------------------------
    @property
    def purification_length(self) -> int:
        """Steps whose images :meth:`purification_path` has; 0: it cannot be asked for."""
        return 0

    def purification_path(self, pixels: Tensor) -> PurificationPath:
        """A call with the images after each step of the purification.

        Raises:
            ConfigError: there are no steps, or none that are known.
        """
        raise ConfigError(f"this model ({self.head}) has no purification whose steps are known")

    @property
    def has_penalty(self) -> bool:
        """Whether :meth:`penalty` can be asked for."""
        return False

    def penalty(self, pixels: Tensor) -> Tensor:
        """The purification's own objective [N] at pixels [N, C, H, W], differentiable: what it makes small.

        Raises:
            ConfigError: this defence optimises nothing.
        """
        raise ConfigError(
            f"this model ({self.head}) optimises nothing at test time, so there is no objective to attack"
        )

    def surrogates(self) -> dict[str, Defence]:
        """Stand-ins for this defence in a transfer attack, by name."""
        return {}

    @property
    def has_levels(self) -> bool:
        """Whether :meth:`losses_per_level` can be asked for."""
        return False

    def losses_per_level(self, pixels: Tensor) -> Tensor:
        """Unweighted class losses [N, T, K].

        Raises:
            ConfigError: this defence has no noise levels.
        """
        raise ConfigError(f"this model ({self.head}) has no noise levels, so there are no losses at them")


def checked_shape(image_shape: Any) -> tuple[int, int, int]:
    """(C, H, W) of three positive integers, NumPy's included.

    Raises:
        ConfigError: something else.
    """
    try:
        sizes = [as_integer(size) for size in image_shape]
    except TypeError:
        sizes = []
    if len(sizes) != 3 or any(size is None or size < 1 for size in sizes):
        raise ConfigError(f"image_shape: expected three sizes (C, H, W), each >= 1; got {shown(image_shape)}")
    channels, height, width = (int(size) for size in sizes if size is not None)
    return channels, height, width


def checked_count(num_classes: Any) -> int:
    """K, an integer from 1 to :data:`MOST_CLASSES`.

    Raises:
        ConfigError: something else.
    """
    count = as_integer(num_classes)
    if count is None or not 1 <= count <= MOST_CLASSES:
        raise ConfigError(f"num_classes: expected an integer of 1 to {MOST_CLASSES:,}; got {shown(num_classes)}")
    return count
