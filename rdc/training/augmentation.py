"""Random changes to images in front of a training objective.

Displacements and rectangles of another image, of which the network is told nothing, and EDM's geometric transformations,
of which it is told: trained with the label, asked without, it answers for images as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.errors import ConfigError
from rdc.training.batches import integers, normal, uniform
from rdc.training.objective import Objective

__all__ = ["AUGMENTATION_LABEL", "Augmented", "Shifted", "cut_and_mixed", "geometric", "mirror_shifted", "shifted"]

#: length of the label that :func:`geometric` gives
AUGMENTATION_LABEL = 9


class Shifted:
    """An objective on images that were moved by up to ``largest`` pixels along each axis; borders are mirrored.

    The network cannot tell a moved image from another (there is no augmentation label): what it learns of the images' density
    includes mirrored borders. For a student that is to classify this costs nothing; leave it out for a model to sample from.

    Args:
        objective: see :data:`rdc.training.objective.Objective`.
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


def shifted(x: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to ``largest`` pixels along each axis; what comes in is black (0).

    Args:
        x: [B, C, H, W].
        largest: >= 0, in pixels.
        generator: draws the displacements.
    """
    height, width = x.shape[2:]
    moves = integers(2 * largest + 1, (len(x), 2), generator).to(x.device)
    rows = (moves[:, :1] + torch.arange(height, device=x.device))[:, :, None]
    columns = (moves[:, 1:] + torch.arange(width, device=x.device))[:, None, :]
    padded = F.pad(x, (largest,) * 4)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2).contiguous()


def mirror_shifted(x: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Move each image of x [B, C, H, W] by -largest..largest pixels along each axis; what comes in is the image mirrored.

    Args:
        largest: pixels, less than H and W; 0: x itself, nothing is drawn.
        generator: draws the displacements, see :mod:`rdc.training.batches`.

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
        generator: see :mod:`rdc.training.batches`.

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


class Augmented:
    """An objective on geometrically transformed images, with a network that is told how (Karras et al. 2022, appendix F.2).

    Args:
        objective: see :data:`rdc.training.objective.Objective`. It calls the network on the batch, or on every image
            several times in a row.
        probability: of each transformation; EDM takes 0.12 for CIFAR-10.

    Raises:
        ConfigError: ``probability`` is not in 0..1.
    """

    def __init__(self, objective: Objective, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise ConfigError(f"augment: expected a probability in 0..1; got {probability}")
        self.objective, self.probability = objective, probability
        self.differentiates_twice = getattr(objective, "differentiates_twice", False)

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0, label = geometric(x0, self.probability, generator)

        def told(x: Tensor, *conditions: Any) -> Tensor:
            f: Tensor = net(x, *conditions, augment_labels=label.repeat_interleave(len(x) // len(label), 0))
            return f

        return self.objective(told, x0, labels, generator)  # type: ignore[arg-type]  # it is only called


def geometric(x: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """EDM's augmentation (Karras et al. 2022, appendix F.2, table 6): x [B, C, H, W] in [-1, 1] -> (the same, label [B, 9]).

    In this order, about the centre of the image, each but the first with ``probability``, independently:

    ====================  ===============================================  =====================================
    transformation        parameters                                       label (all zeros: left as it was)
    ====================  ===============================================  =====================================
    mirrored left-right   always tried: a coin                             0: 1 if so
    mirrored top-bottom   a coin                                           1: 1 if so
    scaled                by 2^(0.2 a), a normal                           2: a
    rotated               by b in (-pi, pi), counterclockwise              3, 4: cos b - 1, sin b
    stretched             2^(0.2 c) along an axis at d, 2^(-0.2 c) across  5, 6: c cos 2d, c sin 2d
    moved                 e / 8 of the width right, f / 8 of the height    7, 8: e, f
                          down, both normal
    ====================  ===============================================  =====================================

    What comes in from outside is mirrored. Images are resampled once, bicubically, without a filter against aliasing (EDM
    resamples at twice the resolution), and clamped to [-1, 1]; those that are at most mirrored keep their values. d counts from
    the columns' axis towards the rows'. EDM's label of a stretch is c cos d, c sin d, which names two opposite stretches alike
    (c at d, and -c at d + pi); the doubled angle does not. EDM's program also leaves half of the stretches along the columns' axis.
    Signs were not compared with it.

    Args:
        probability: in 0..1.
        generator: see :mod:`rdc.training.batches`.

    Returns:
        Images in the memory format of x, and labels in its type.
    """
    count = len(x)
    chance = uniform((count, 7), generator).to(x.device, x.dtype)
    angle = (uniform((count, 2), generator) * 2 - 1).to(x.device, x.dtype) * math.pi
    a, c, e, f = normal((count, 4), generator).to(x.device, x.dtype).unbind(1)
    on = (chance[:, :5] < probability).to(x.dtype)  # top-bottom, scaled, rotated, stretched, moved
    left_right = (chance[:, 5] < 0.5).to(x.dtype)
    top_bottom = on[:, 0] * (chance[:, 6] < 0.5)
    a, b, c, d = a * on[:, 1], angle[:, 0] * on[:, 2], c * on[:, 3], angle[:, 1]
    e, f = e * on[:, 4], f * on[:, 4]
    stretch = c * (2 * d).cos(), c * (2 * d).sin()
    label = torch.stack([left_right, top_bottom, a, b.cos() - 1, b.sin(), *stretch, e, f], 1)
    x = torch.where(_per_image(left_right), x.flip(3), x)
    x = torch.where(_per_image(top_bottom), x.flip(2), x)
    with torch.autocast(x.device.type, enabled=False):  # places in bfloat16 would be off by tenths of a pixel
        # From places in the result back to places in x, coordinates (column, row) in -1..1: each inverted, the last first.
        turned = _rotation(b) @ (_rotation(d) @ _stretch(c) @ _rotation(-d))
        linear = _in_sides(turned * torch.exp2(-0.2 * a)[:, None, None], x)
        moved = torch.stack([e, f], 1)[:, :, None] / 4
        grid = F.affine_grid(torch.cat([linear, -linear @ moved], 2), list(x.shape), align_corners=False)
        made = F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    resampled = (on[:, 1:] > 0).any(1)
    return torch.where(_per_image(resampled), made, x).contiguous(memory_format=layout), label


def _in_sides(linear: Tensor, x: Tensor) -> Tensor:
    """Matrices [B, 2, 2] on pixels as matrices on coordinates of -1..1 along each side of x; the same where sides are equal."""
    height, width = x.shape[2:]
    if height == width:
        return linear
    return linear * linear.new_tensor([[1.0, height / width], [width / height, 1.0]])


def _per_image(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], whether not zero."""
    return (values != 0)[:, None, None, None]


def _rotation(angle: Tensor) -> Tensor:
    """[B] -> [B, 2, 2]; turns (column, row) coordinates by the angle, the image therefore by its opposite."""
    cos, sin = angle.cos(), angle.sin()
    matrix: Tensor = torch.stack([cos, -sin, sin, cos], 1).unflatten(1, (2, 2))
    return matrix


def _stretch(by: Tensor) -> Tensor:
    """[B] -> [B, 2, 2]: the inverse of 2^(0.2 by) along the columns' axis and 2^(-0.2 by) across."""
    return torch.diag_embed(torch.exp2(torch.stack([-0.2 * by, 0.2 * by], 1)))
