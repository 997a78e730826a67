"""Random changes to images in front of a training objective: displacements, and rectangles of another image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.batches import integers, uniform
from rdc.errors import ConfigError
from rdc.objective import Objective

__all__ = ["Shifted", "cut_and_mixed", "mirror_shifted"]


class Shifted:
    """An objective on images that were moved by up to ``largest`` pixels along each axis; borders are mirrored.

    The network cannot tell a moved image from another (there is no augmentation label): what it learns of the images' density
    includes mirrored borders. For a student that is to classify this costs nothing; leave it out for a model to sample from.

    Args:
        objective: see :data:`rdc.objective.Objective`.
        largest: pixels, >= 0.

    Raises:
        ConfigError: ``largest`` is no whole number >= 0.
    """

    def __init__(self, objective: Objective, largest: int) -> None:
        if type(largest) is not int or largest < 0:
            raise ConfigError(f"shift: expected a whole number of pixels >= 0; got {largest!r}")
        self.objective, self.largest = objective, largest
        self.differentiates_twice = getattr(objective, "differentiates_twice", False)

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(net, mirror_shifted(x0, self.largest, generator), labels, generator)


def mirror_shifted(x: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Move each image of x [B, C, H, W] by -largest..largest pixels along each axis; what comes in is the image mirrored.

    Args:
        largest: pixels, less than H and W; 0: x itself, nothing is drawn.
        generator: draws the displacements, see :mod:`rdc.batches`.

    Returns:
        [B, C, H, W] in the memory format of x.

    Raises:
        ConfigError: ``largest`` is the size of the image or more.
    """
    if not largest:
        return x
    height, width = x.shape[2:]
    if largest >= min(height, width):
        raise ConfigError(f"shift: expected fewer pixels than the image has ({height} x {width}); got {largest}")
    moves = integers(2 * largest + 1, (len(x), 2), generator).to(x.device)
    rows = (moves[:, :1] + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (moves[:, 1:] + torch.arange(width, device=x.device))[:, None, None, :]
    image, channel = (torch.arange(count, device=x.device) for count in x.shape[:2])
    padded = F.pad(x, (largest,) * 4, mode="reflect")
    moved = padded[image[:, None, None, None], channel[:, None, None], rows, columns]
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return moved.contiguous(memory_format=layout)


def cut_and_mixed(x: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """CutMix (Yun et al., arXiv 1905.04899): a rectangle of some images is replaced by what their neighbour shows there.

    The rectangle's area is uniform in 0..1 of the image's before it is cut at the border, its centre uniform. Neighbours are rows
    2i and 2i + 1 of the batch.

    Args:
        x: [B, C, H, W], B even.
        probability: of an image to get a rectangle.
        generator: see :mod:`rdc.batches`.

    Returns:
        (mixed images [B, C, H, W], the row [B] int64 each rectangle comes from, the share [B] of the image that is its own).

    Raises:
        ConfigError: B is odd.
    """
    if len(x) % 2:
        raise ConfigError(f"cutmix: expected an even number of images a step and process; got {len(x)}")
    height, width = x.shape[2:]
    draw = uniform((len(x), 4), generator).to(x.device, torch.float32)
    half = draw[:, 0].sqrt() / 2
    rows, columns = ((torch.arange(size, device=x.device) + 0.5) / size for size in (height, width))
    tall = (rows - draw[:, 1:2]).abs() < half[:, None]
    wide = (columns - draw[:, 2:3]).abs() < half[:, None]
    inside = tall[:, :, None] & wide[:, None] & (draw[:, 3] < probability)[:, None, None]
    other = torch.arange(len(x), device=x.device) ^ 1
    return torch.where(inside[:, None], x[other], x), other, 1 - inside.float().mean((1, 2))
