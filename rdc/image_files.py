"""PNG and JPEG files to pixels a model takes; every conversion is named in a notice."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from rdc.errors import InputError

__all__ = ["ImageFile", "from_picture", "read_image"]

_FORMATS = ("PNG", "JPEG")
_MANY = 50_000_000  # pixels; larger files are refused before they are unpacked


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFile:
    """One file, ready for a model.

    Args:
        path: as given.
        pixels: [C, H, W] float32 in [0, 1].
        notices: what was converted, in words.
    """

    path: str
    pixels: np.ndarray
    notices: tuple[str, ...]


def read_image(
    path: str | os.PathLike[str], shape: tuple[int, int, int], *, strict: bool = False, invert: bool = False
) -> ImageFile:
    """Read one image and convert it to ``shape``.

    Args:
        path: a PNG or JPEG file.
        shape: (C, H, W) the model takes, C 1 or 3.
        strict: refuse what would have to be resized or change between grey and colour.
        invert: 1 - pixels, for dark on light pictures and a model trained on light on dark ones.

    Raises:
        InputError: no such file, not a PNG or JPEG, damaged, or not fit under ``strict``.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if shape[0] not in (1, 3):
        raise InputError(f"this model takes {shape[0]} channels; image files have 1 or 3")
    if not Path(path).is_file():
        raise InputError("no such file" if not Path(path).exists() else "not a file")
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            if opened.width * opened.height > _MANY:
                raise InputError(
                    f"{opened.width} x {opened.height} pixels; expected at most {_MANY:,} in all. Make it smaller first"
                )
            if getattr(opened, "n_frames", 1) > 1:
                raise InputError(f"has {opened.n_frames} frames; expected a single picture")
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError("not a PNG or JPEG file; convert it first") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot be read ({error}); it is damaged or cut short") from error
    pixels, notices = from_picture(image, shape, strict=strict, invert=invert)
    return ImageFile(str(path), pixels, notices)


def from_picture(
    image: Any, shape: tuple[int, int, int], *, strict: bool = False, invert: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Pixels [C, H, W] float32 in [0, 1] of a PIL image, and what was converted, in words; arguments as of :func:`read_image`.

    Raises:
        InputError: the model takes neither 1 nor 3 channels; not fit under ``strict``.
    """
    from PIL import Image

    if shape[0] not in (1, 3):
        raise InputError(f"this model takes {shape[0]} channels; image files have 1 or 3")
    image, notices = _mode(image, shape[0])
    if strict and notices:
        raise InputError(f"--strict: {'; '.join(notices)}")
    if (image.height, image.width) != shape[1:]:
        notice = f"resized from {image.width} x {image.height} to {shape[2]} x {shape[1]}"
        if strict:
            raise InputError(
                f"--strict: {image.width} x {image.height} pixels, the model takes {shape[2]} x {shape[1]}"
            )
        across, down = image.width * shape[1], image.height * shape[2]
        if abs(across - down) > max(across, down) * 0.02:
            notice += ", proportions changed"
        notices.append(notice)
        image = image.resize((shape[2], shape[1]), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if invert:
        pixels = 1 - pixels
        notices.append("inverted")
    return np.ascontiguousarray(pixels), tuple(notices)


def _mode(image: Any, channels: int) -> tuple[Any, list[str]]:
    """To "L" or "RGB": palettes resolved, 16 bits scaled, transparency laid on black, grey and colour exchanged."""
    from PIL import Image

    notices = []
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit PNG; PIL's own conversion would clip it
        image = Image.fromarray(np.clip(np.rint(np.asarray(image, dtype=np.float64) / 257), 0, 255).astype(np.uint8))
        notices.append("16 bits reduced to 8")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            notices.append("transparent parts shown on black")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    if image.mode in ("1", "P"):
        image = image.convert("RGB" if image.mode == "P" else "L")
    if channels == 1 and image.mode == "RGB":
        red, green, blue = image.split()
        image = red if red.tobytes() == green.tobytes() == blue.tobytes() else image  # a grey picture saved as colour
    wanted = "L" if channels == 1 else "RGB"
    if image.mode != wanted:
        notices.append(
            f"colour ({image.mode}) turned to grey"
            if channels == 1
            else f"{'grey' if image.mode == 'L' else image.mode} turned to RGB"
        )
        image = image.convert(wanted)
    return image, notices
