"""PNG and JPEG files, or their contents, as one array of images."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from rdc.arguments.scalars import as_integer
from rdc.errors import ConfigError, DataError, InputError, one_line
from rdc.images.files import PICTURES, RESAMPLING, from_picture, open_picture
from rdc.storage.reading import Budget

__all__ = ["PICTURES", "Form", "stacked"]

FLOOR, EXPANSION = 256 * 2**20, 64  #: what pictures of a data set may unpack to: bytes, and times the size of the files
_GREY = ("1", "L", "LA", "La", "I", "F")
_SAID = 5  # kinds of conversions that are named


@dataclasses.dataclass(frozen=True)
class Form:
    """What images are brought to.

    Args:
        size: (H, W) in pixels; None: as they are, which must be the same for all.
        channels: 1 or 3; None: 1 if all are grey, else 3.
        resample: the filter of a change of size, one of ``rdc.images.files.RESAMPLING``.

    Raises:
        ConfigError: none of these.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    resample: str = "lanczos"

    def __post_init__(self) -> None:
        if self.size is not None:
            try:
                object.__setattr__(self, "size", tuple(as_integer(side) for side in self.size))
            except TypeError:
                object.__setattr__(self, "size", ())
        if self.size is not None and not (
            len(self.size) == 2 and all(side is not None and 1 <= side <= 4096 for side in self.size)
        ):
            raise ConfigError(f"size: expected height and width, 1 to 4,096 pixels each; got {one_line(self.size, 60)}")
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"channels: expected 1 or 3; got {one_line(self.channels, 60)}")
        if self.resample not in RESAMPLING:
            raise ConfigError(
                f"resample: expected one of {', '.join(RESAMPLING)}; got {one_line(repr(self.resample), 60)}"
            )


def stacked(
    pictures: Iterable[tuple[str, Callable[[], bytes]]], count: int, form: Form, budget: Budget
) -> tuple[np.ndarray, tuple[str, ...]]:
    """All pictures as one array; one is unpacked at a time.

    Args:
        pictures: of each its name for errors, and what gives its content.
        count: how many, N >= 1.
        form: what they are brought to.
        budget: what the array is taken from.

    Returns:
        uint8 [N, C, H, W], and what was converted, in words.

    Raises:
        DataError: a picture that cannot be read, has another size than the first (and the form asks for none), or too many for the budget.
    """
    found: np.ndarray | None = None
    said: collections.Counter[str] = collections.Counter()
    for place, (name, content) in enumerate(pictures):
        try:
            image, words = open_picture(content())
            size = form.size or (image.height, image.width)
            if found is not None and size != found.shape[2:]:
                raise DataError(
                    f"{name}: {image.width} x {image.height} pixels, those before are {found.shape[3]} x {found.shape[2]}; expected "
                    "pictures of one size. Bring them to one: rdc data convert SRC out.npz --size H W"
                )
            grey = image.mode.startswith(_GREY)
            channels = form.channels or (1 if grey and (found is None or found.shape[1] == 1) else 3)
            resized = (image.height, image.width) != size
            pixels, more = from_picture(image, (channels, *size), resample=form.resample)
        except InputError as error:
            raise DataError(f"{name}: {error}") from error
        if found is None:
            budget.take(count * channels * size[0] * size[1], f"{count:,} images of {size[1]} x {size[0]}")
            found = np.empty((count, channels, *size), np.uint8)
        elif channels > found.shape[1]:  # the first one in colour
            budget.take(2 * found.size, "images in colour")
            found = np.repeat(found, 3, axis=1)
        found[place] = np.rint(255 * pixels)
        said.update(_kinds([*words, *more], resized, form))
    if found is None:
        raise DataError(f"{budget.name}: has no pictures")
    notices = [f"{number:,} of {count:,} pictures: {words}" for words, number in said.most_common(_SAID)]
    return found, tuple(notices)


def _kinds(words: list[str], resized: bool, form: Form) -> list[str]:
    """What was done to one picture, without what is its own."""
    kinds = [word for word in words if not word.startswith("resized")]
    if resized and form.size is not None:
        changed = any(word.endswith("proportions changed") for word in words)
        kinds.append(
            f"resized to {form.size[1]} x {form.size[0]} ({form.resample}){', proportions changed' if changed else ''}"
        )
    return kinds
