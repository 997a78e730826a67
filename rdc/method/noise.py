"""Which draw of noise goes to which level.

Noise is counter-based: the draw for (seed, draw, level) is the same however the work is cut into chunks, whatever else
is in the batch, and on every device. All classes and all images of a call share it: common random numbers make the
*differences* between class losses, which decide, much less variable than the losses (arXiv 2305.15241, section 3.2).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.scalars import as_integer, shown
from rdc.arguments.seeds import checked_seed, random
from rdc.contracts import NoisePolicy
from rdc.errors import ConfigError
from rdc.method.draw import Draw

__all__ = ["NoisePlan"]


@dataclasses.dataclass(frozen=True)
class NoisePlan:
    """A family of Gaussian draws.

    Args:
        seed: any integer, of any size and sign; every one has draws of its own.
        policy: ``"fixed"``: every call uses draw 0, the classifier is a deterministic function that an attacker can
            know; ``"fresh"``: call number i uses draw i, a stochastic defence.
        stream: separates independent uses of one seed (0: classification, 1: likelihood maximisation).

    Raises:
        ConfigError: a seed or stream that is no integer, an unknown policy.
    """

    seed: int = 0
    policy: str = NoisePolicy.FIXED
    stream: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", NoisePolicy.of(self.policy, "noise policy"))
        object.__setattr__(self, "seed", checked_seed(self.seed, "noise_seed"))
        object.__setattr__(self, "stream", checked_seed(self.stream, "noise stream"))

    def _generator(self, draw: int, index: int) -> np.random.Generator:
        number = as_integer(draw)
        if number is None:
            raise ConfigError(f"draw: expected an integer; got {shown(draw)}")
        return random(self.seed, self.stream, (0, 0, index, number))

    def normal(self, draw: int, count: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise [count, *shape] float32 on the CPU; row t depends on (seed, stream, draw, t) only."""
        rows = [self._generator(draw, index).standard_normal(shape, dtype=np.float32) for index in range(count)]
        return torch.from_numpy(np.stack(rows))

    def draw(
        self, number: int, sigma: Tensor, weight: Tensor, image_shape: tuple[int, ...], noise: str = "independent"
    ) -> Draw:
        """Draw ``number`` for levels sigma [T] with their weights [T]; noise float32 on the CPU.

        Args:
            number: which draw of the family.
            sigma, weight: [T]; kept as they are. :meth:`rdc.method.draw.Draw.to` brings all to one type.
            image_shape: (C, H, W).
            noise: how the draws of the levels hang together, a key of ``rdc.method.levels.NOISES``.
        """
        levels = len(sigma)
        if noise == "shared":
            return Draw(sigma, weight, self.normal(number, 1, image_shape).repeat(levels, 1, 1, 1))
        if noise == "antithetic":
            pairs = self.normal(number, -(-levels // 2), image_shape)
            return Draw(sigma, weight, torch.stack([pairs, -pairs], 1).flatten(0, 1)[:levels])
        return Draw(sigma, weight, self.normal(number, levels, image_shape))

    def uniform(self, draw: int, index: int, count: int) -> Tensor:
        """``count`` numbers in [0, 1), float64; they depend on (seed, stream, draw, index) only."""
        return torch.from_numpy(self._generator(draw, index + 2**32).random(count))
