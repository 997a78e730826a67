"""Training batches: which images make up a step, and random numbers that belong to an image's place in the batch.

Both depend on (seed, step) alone. A run that is resumed, or shared among more processes, sees the same images with the
same noise; only the order of floating-point sums differs between process counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.seeds import checked_seed, random, step_seed
from rdc.data import Dataset
from rdc.errors import ConfigError

__all__ = ["BatchGenerator", "Batches", "batch_rows", "integers", "normal", "uniform"]

_FLIP_STREAM = 1 << 63  # keeps the mirror coins apart from the epoch orders


class BatchGenerator(torch.Generator):
    """A ``torch.Generator`` that knows its process's share of the batch.

    :func:`uniform`, :func:`normal` and :func:`integers` draw for the whole batch and keep this process's rows. Plain
    ``torch.rand(..., generator=g)`` works too and is the same thing in one process, but with several every process
    would get the first one's numbers.

    Args:
        device: where the numbers are drawn.
        share: rows of this process.
        rank, world: which process of how many; the batch has ``share * world`` rows.
    """

    def __new__(cls, device: torch.device | str, share: int, rank: int = 0, world: int = 1) -> BatchGenerator:
        return super().__new__(cls, device=device)  # type: ignore[call-arg]  # the stub has object's

    def __init__(self, device: torch.device | str, share: int, rank: int = 0, world: int = 1) -> None:
        self.share, self.rank, self.world = share, rank, world


def batch_rows(count: int, generator: torch.Generator) -> tuple[int, slice]:
    """Where ``count`` rows of this process lie among those of all processes.

    Args:
        count: the rows wanted here: the share, or an image-major multiple of it.

    Returns:
        Rows to draw, and which of them to keep. ``(count, everything)`` for a plain generator.
    """
    if not isinstance(generator, BatchGenerator):
        return count, slice(None)
    if count % generator.share:
        raise ConfigError(f"random numbers for a batch: expected a multiple of {generator.share} rows; got {count}")
    return count * generator.world, slice(generator.rank * count, (generator.rank + 1) * count)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """U(0, 1) numbers [B, ...] on the generator's device; ``shape[0]`` counts rows of this process."""
    total, rows = batch_rows(shape[0], generator)
    return torch.rand((total, *shape[1:]), generator=generator, device=generator.device)[rows]


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """N(0, 1) numbers [B, ...]; see :func:`uniform`."""
    total, rows = batch_rows(shape[0], generator)
    return torch.randn((total, *shape[1:]), generator=generator, device=generator.device)[rows]


def integers(high: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Integers [B, ...] in 0..high-1 (int64); see :func:`uniform`."""
    total, rows = batch_rows(shape[0], generator)
    return torch.randint(high, (total, *shape[1:]), generator=generator, device=generator.device)[rows]


class Batches:
    """The images of every step: epochs in random order without gaps, optionally mirrored.

    The images stay on ``device`` as uint8; a batch is gathered and converted there.

    Args:
        data: training images.
        size: images a step, over all processes.
        seed: any integer; of the order, the mirror coins and the generators.
        flip: mirror half of the images left to right.
        rank, world: this process and how many there are.
    """

    def __init__(
        self,
        data: Dataset,
        size: int,
        seed: int,
        device: torch.device,
        flip: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(data) == 0:
            raise ConfigError(f"{data!r}: expected at least one image to train on")
        if size % world:
            raise ConfigError(f"batch_size: expected a multiple of the {world} processes; got {size}")
        self.size, self.seed, self.flip, self.rank, self.world = size, checked_seed(seed), flip, rank, world
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.device, self.share = device, size // world
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's share of a step: x0 [B, C, H, W] in [-1, 1], labels [B]."""
        rows = torch.from_numpy(self.positions(step)).to(self.device)
        x0 = self.images[rows].to(torch.float32) / 255 * 2 - 1
        if self.flip:
            coins = random(self.seed, _FLIP_STREAM + step).random(self.size)
            mirror = torch.from_numpy(coins[self._mine()] < 0.5).to(self.device)
            x0 = torch.where(mirror[:, None, None, None], x0.flip(-1), x0)
        return x0, self.labels[rows]

    def generator(self, step: int) -> BatchGenerator:
        """Random numbers of a step, on the device."""
        generator = BatchGenerator(self.device, self.share, self.rank, self.world)
        self.seed_for(step, generator)
        return generator

    def seed_for(self, step: int, generator: torch.Generator) -> None:
        """Let ``generator`` begin with the numbers of a step."""
        generator.manual_seed(step_seed(self.seed, step))

    def positions(self, step: int) -> np.ndarray:
        """Positions [B] in the data set of this process's images."""
        index = step * self.size + np.arange(self.size)[self._mine()]
        count = len(self.labels)
        chosen = np.empty(self.share, dtype=np.int64)
        for epoch in np.unique(index // count):
            here = index // count == epoch
            chosen[here] = self._order(int(epoch))[index[here] % count]
        return chosen

    def _mine(self) -> slice:
        return slice(self.rank * self.share, (self.rank + 1) * self.share)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old == epoch - 1}
            self._orders[epoch] = random(self.seed, epoch).permutation(len(self.labels))
        return self._orders[epoch]
