"""Training batches: which images make up a step, and random numbers that belong to an image's place in the batch.

Both depend on (seed, step) alone. A run that is resumed, or shared among more processes, sees the same images with the
same noise; only the order of floating-point sums differs between process counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.seeds import checked_seed, random, step_seed
from rdc.data import Dataset
from rdc.errors import ConfigError, one_line

__all__ = ["BatchGenerator", "Batches", "Extra", "batch_rows", "integers", "normal", "uniform"]

_FLIP_STREAM = 1 << 63  # keeps the mirror coins apart from the epoch orders
_EXTRA_STREAM = 1 << 62  # and these from those of extra images


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


@dataclasses.dataclass(frozen=True)
class Extra:
    """More images beside those of a data set, such as drawn ones.

    Args:
        data: the images; shape and classes are the data set's.
        share: of them in every batch, above 0 and below 1; places are spread evenly, so that processes see as many.
    """

    data: Dataset
    share: float

    def of_batch(self, size: int) -> np.ndarray:
        """Whether each place of a batch is for an extra image, [size] bool; ``round(size * share)`` of them are."""
        count = round(size * self.share)
        if not 0 < count < size:
            raise ConfigError(
                f"extra_share: expected a share that leaves images of both kinds in a batch of {size}; got {self.share}, {count} of them"
            )
        return np.diff(np.arange(size + 1) * count // size) > 0

    def fits(self, data: Dataset) -> None:
        """Raise ConfigError unless shape and classes are those of ``data``."""
        for what, ours, theirs in (
            ("images", list(data.image_shape), list(self.data.image_shape)),
            ("classes", list(data.class_names), list(self.data.class_names)),
        ):
            if ours != theirs:
                raise ConfigError(
                    f"extra_data: expected {what} {one_line(str(ours), 200)}, like {data!r}; got {one_line(str(theirs), 200)}"
                )


class Batches:
    """The images of every step: epochs in random order without gaps, optionally mirrored.

    The images stay on ``device`` as uint8; a batch is gathered and converted there.

    Args:
        data: training images.
        size: images a step, over all processes.
        seed: any integer; of the order, the mirror coins and the generators.
        flip: mirror half of the images left to right.
        rank, world: this process and how many there are.
        extra: more images, which take some places of every batch; they have epochs of their own.
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
        extra: Extra | None = None,
    ) -> None:
        if len(data) == 0:
            raise ConfigError(f"{data!r}: expected at least one image to train on")
        if size % world:
            raise ConfigError(f"batch_size: expected a multiple of the {world} processes; got {size}")
        self.size, self.seed, self.flip, self.rank, self.world = size, checked_seed(seed), flip, rank, world
        self.device, self.share = device, size // world
        images, labels, count = data.images, data.labels, len(data)
        self._sources = [_Source(np.arange(size), 0, count, self.seed, 0)]
        if extra is not None:
            extra.fits(data)
            places = extra.of_batch(size)
            images, labels = torch.cat([images, extra.data.images]), torch.cat([labels, extra.data.labels])
            self._sources = [
                _Source(np.flatnonzero(~places), 0, count, self.seed, 0),
                _Source(np.flatnonzero(places), count, len(extra.data), self.seed, _EXTRA_STREAM),
            ]
        self.images, self.labels = images.to(device), labels.to(device)

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
        """Positions [B] of this process's images: in the data set, or behind it in the extra one."""
        chosen = np.empty(self.size, dtype=np.int64)
        for source in self._sources:
            chosen[source.places] = source.positions(step)
        return chosen[self._mine()]

    def _mine(self) -> slice:
        return slice(self.rank * self.share, (self.rank + 1) * self.share)


class _Source:
    """A data set's images in epochs of random order.

    Args:
        places: in a batch, that its images take.
        first, count: positions of its images.
        seed, stream: of the orders.
    """

    def __init__(self, places: np.ndarray, first: int, count: int, seed: int, stream: int) -> None:
        if not count:
            raise ConfigError("extra_data: expected at least one image; there is none")
        self.places, self.first, self.count, self.seed, self.stream = places, first, count, seed, stream
        self._orders: dict[int, np.ndarray] = {}

    def positions(self, step: int) -> np.ndarray:
        """Positions of its images of a step, one for each place."""
        index = step * len(self.places) + np.arange(len(self.places))
        chosen = np.empty(len(index), dtype=np.int64)
        for epoch in np.unique(index // self.count):
            here = index // self.count == epoch
            chosen[here] = self._order(int(epoch))[index[here] % self.count]
        return self.first + chosen

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old == epoch - 1}
            self._orders[epoch] = random(self.seed, self.stream + epoch).permutation(self.count)
        return self._orders[epoch]
