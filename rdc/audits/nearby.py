"""How answers move with tiny changes of the image: not at all (rounded, clamped), or with a jump away from the very image."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rdc.audits.subject import Subject

__all__ = ["Jumps", "Steps", "measure_jumps", "measure_steps"]

_LEVEL = 1 / 255
_LARGE = 64 * _LEVEL
_JUMP = 5.0  # times the difference between two near copies
_INNER = 4  # pixels that are neither black nor white, which an image needs


@dataclasses.dataclass(frozen=True)
class Jumps:
    """Distance of an image's answer to that of a near copy, over the distance between the answers of two near copies.

    Args:
        on_grid: median over images, copies by whole levels (-1, 0 or 1 of 255); None: no answer moved.
        off_grid: the same, copies between the levels of 8 bits (at most 0.4 of one).
        jumped_on, jumped_off: images whose answer is more than :data:`_JUMP` times as far from its copies as they are from each other.
        lost: images that are right, and wrong in both near copies by whole levels.
        n: images, those without :data:`_INNER` pixels between black and white left out.
    """

    on_grid: float | None
    off_grid: float | None
    jumped_on: int
    jumped_off: int
    lost: int
    n: int


def measure_jumps(subject: Subject, most: int = 16) -> Jumps:
    """Compare each image with two near copies, on the levels of 8 bits and between them.

    Args:
        subject: model and images.
        most: images looked at.
    """
    inner = (
        subject.pixels - 0.5
    ).abs() < 0.5 - 1.5 * _LEVEL  # black ones can go one way alone: all copies would be brighter
    enough = (inner.flatten(1).sum(1) >= _INNER).nonzero()[:most, 0]
    x, inner, labels = subject.pixels[enough], inner[enough], subject.labels[enough].cpu()
    if not len(x):
        return Jumps(None, None, 0, 0, lost=0, n=0)
    shape = tuple(x.shape)
    on = [x + inner * _LEVEL * subject.uniform(shape, 2 + place).mul(1.5).round() for place in (0, 1)]
    off = [x + inner * 0.4 * _LEVEL * subject.uniform(shape, 4 + place) for place in (0, 1)]
    own, on_a, on_b, off_a, off_b = (subject.logits(images) for images in (x, *on, *off))
    right = own.argmax(1) == labels
    lost = right & (on_a.argmax(1) != labels) & (on_b.argmax(1) != labels)
    ratios = [_ratios(own, a, b) for a, b in ((on_a, on_b), (off_a, off_b))]
    medians = [float(ratio.median()) if len(ratio) else None for ratio in ratios]
    return Jumps(
        on_grid=medians[0],
        off_grid=medians[1],
        jumped_on=int((ratios[0] > _JUMP).sum()),
        jumped_off=int((ratios[1] > _JUMP).sum()),
        lost=int(lost.sum()),
        n=len(x),
    )


def _ratios(own: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Of the images whose answer moves at all; 1e9 where copies agree, and the image differs from them."""
    away = torch.minimum((a - own).norm(dim=1), (b - own).norm(dim=1))
    between = (a - b).norm(dim=1)
    moves = (away > 0) | (between > 0)
    ratios: Tensor = (away / between.clamp_min(1e-30)).clamp(max=1e9)
    return ratios[moves]


@dataclasses.dataclass(frozen=True)
class Steps:
    """How many changes of one pixel alone leave every logit as it is, to the last bit.

    Args:
        asked: pairs of image and pixel of which a change by 64 of 255 levels moves a logit.
        flat: of these, moved by 0.4 of a level: nothing.
        middle: pairs of which a change from 0.50 to 0.53 moves a logit.
        flat_low: of these, from 0 to 0.03: nothing.
        flat_high: from 0.97 to 1: nothing.
    """

    asked: int
    flat: int
    middle: int
    flat_low: int
    flat_high: int


def measure_steps(subject: Subject, images: int = 4, places: int = 6) -> Steps:
    """Change single pixels of a few images.

    Args:
        subject: model and images.
        images: changed.
        places: pixels of each, drawn at random.
    """
    x = subject.pixels[:images].repeat_interleave(places, 0)
    drawn = (subject.uniform((len(x),), 6) + 1) / 2
    place = (drawn * x[0].numel()).long().clamp(max=x[0].numel() - 1)
    rows = torch.arange(len(x), device=x.device)
    value = x.flatten(1)[rows, place]

    def put(new: Tensor | float) -> Tensor:
        changed = x.flatten(1).clone()
        changed[rows, place] = new if isinstance(new, Tensor) else torch.full_like(value, new)
        return subject.logits(changed.view_as(x))

    def differ(a: Tensor, b: Tensor) -> Tensor:
        moved: Tensor = (a != b).any(1)
        return moved

    own = put(value)
    sign = torch.where(value > 0.5, -1.0, 1.0)
    large = differ(own, put(value + _LARGE * sign))
    tiny = differ(own, put(value + 0.4 * _LEVEL * sign))
    middle = differ(put(0.5), put(0.53))
    low, high = differ(put(0.0), put(0.03)), differ(put(0.97), put(1.0))
    return Steps(
        asked=int(large.sum()),
        flat=int((large & ~tiny).sum()),
        middle=int(middle.sum()),
        flat_low=int((middle & ~low).sum()),
        flat_high=int((middle & ~high).sum()),
    )
