"""PNG and JPEG files to pixels a model takes; every conversion is named in a notice."""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from rdc.errors import InputError, one_line
from rdc.images.headers import jpeg_scans, png_header
from rdc.images.kinds import unlike
from rdc.storage.reading import FLOOR_BYTES, read_content

__all__ = [
    "LARGEST",
    "PICTURES",
    "RESAMPLING",
    "ImageFile",
    "from_picture",
    "image_of",
    "open_picture",
    "picture_content",
    "read_image",
]

#: filters of a change of size, by PIL's names
RESAMPLING = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
_FORMATS = ("PNG", "JPEG")
_MANY = 50_000_000  # pixels; larger files are refused before they are unpacked
PICTURES = (".png", ".jpg", ".jpeg")  #: endings of the files that are looked for in folders
LARGEST = 256 * 2**20  #: bytes of a file
_EXPANSION = 64  # a picture may unpack to 64 MiB, or to so many times the file's size, at four bytes a pixel
_MOST_SCANNED = 10**9  # pixels that a JPEG's scans go over, all together
_ROWS = 2**20  # numbers of a deep picture that are scaled at once
_COLOUR = "colour"
_DEEP = "16 bits reduced to 8"
_ORIENTATION = 0x0112  # EXIF
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFile:
    """One file, ready for a model.

    Args:
        path: as given.
        pixels: [C, H, W] float32 in [0, 1].
        notices: what was converted, in words.
        unlike: what tells it from the pictures that the model takes (:mod:`rdc.images.kinds`), in words.
    """

    path: str
    pixels: np.ndarray
    notices: tuple[str, ...]
    unlike: tuple[str, ...] = ()


def read_image(
    path: str | os.PathLike[str], shape: tuple[int, int, int], *, strict: bool = False, invert: bool = False
) -> ImageFile:
    """Read one image and convert it to ``shape``.

    Args:
        path: a PNG or JPEG file; of a phone's file with several pictures (MPO) the first is taken.
        shape: (C, H, W) the model takes, C 1 or 3.
        strict: refuse what would have to be resized or converted: whatever a notice names.
        invert: 1 - pixels, for dark on light pictures and a model trained on light on dark ones.

    Raises:
        InputError: no such file, not a PNG or JPEG, damaged, or not fit under ``strict``; more than 50 million pixels, or at four bytes
            a pixel more than 64 MiB and 64 times the file's size.
    """
    importlib.import_module("PIL.Image")  # that it is not installed is said before that the file is not there
    if shape[0] not in (1, 3):
        raise InputError(f"this model takes {shape[0]} channels; image files have 1 or 3")
    return image_of(picture_content(path), path, shape, strict=strict, invert=invert)


def image_of(
    content: bytes,
    name: str | os.PathLike[str],
    shape: tuple[int, int, int],
    *,
    strict: bool = False,
    invert: bool = False,
) -> ImageFile:
    """The same from a file's content: of an upload, or of standard input.

    Args:
        content: of a PNG or JPEG file.
        name: what to call it.
        shape, strict, invert: as of :func:`read_image`.

    Raises:
        InputError: as of :func:`read_image`.
    """
    if shape[0] not in (1, 3):
        raise InputError(f"this model takes {shape[0]} channels; image files have 1 or 3")
    image, said = open_picture(content)
    if strict and said:
        raise InputError(f"--strict: {'; '.join(said)}")
    pixels, notices = from_picture(image, shape, strict=strict, invert=invert)
    coloured = any(notice.startswith(_COLOUR) for notice in notices)
    return ImageFile(str(name), pixels, (*said, *notices), unlike(image.size, coloured, shape))


def open_picture(content: bytes) -> tuple[Any, list[str]]:
    """A PIL image of a PNG or JPEG file's content, upright, and what was converted, in words.

    Raises:
        InputError: not a PNG or JPEG, damaged, too many pixels, or several frames; see :func:`read_image`.
    """
    from PIL import Image, UnidentifiedImageError

    header = png_header(content)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            _check_size(opened, content)
            said = []
            frames: int = getattr(opened, "n_frames", 1)
            if frames > 1:
                if opened.format != "MPO":
                    raise InputError(f"has {frames} frames; expected a single picture")
                said.append(f"first of {frames} pictures in the file (MPO)")
            opened.load()
            image, turned = _upright(opened)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError("not a PNG or JPEG file; convert it first") from error
    except Exception as error:  # decoders have many
        words = one_line(error, 300) or type(error).__name__
        raise InputError(f"cannot be read ({words}); it is damaged or cut short") from error
    if header is not None and header.depth == 16 and image.mode in ("L", "LA", "RGB", "RGBA"):
        said.append(_DEEP)  # by the decoder, without a word
        image = image.convert("LA") if header.grey and image.mode == "RGBA" else image
    if header is not None and header.depth == 16 and "transparency" in image.info:
        del image.info["transparency"]
        said.append("a transparent 16-bit colour shown as it is")
    return image, said + turned


def picture_content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a picture file.

    Raises:
        InputError: no such file, no plain file, or more than 256 MiB.
    """
    if not Path(path).is_file():
        raise InputError("no such file" if not Path(path).exists() else "not a file")
    try:
        return read_content(path, InputError, "a PNG or JPEG file", LARGEST)
    except InputError as error:  # whoever calls names the file
        raise InputError(str(error).removeprefix(f"{one_line(os.fspath(path), 400)}: ")) from error


def _check_size(opened: Any, content: bytes) -> None:
    """Before anything is unpacked."""
    width, height = opened.size
    pixels, size = width * height, len(content)
    if pixels > _MANY:
        raise InputError(f"{width} x {height} pixels; expected at most {_MANY:,} in all. Make it smaller first")
    if 4 * pixels > max(FLOOR_BYTES, _EXPANSION * size):
        raise InputError(
            f"{width} x {height} pixels in {size:,} bytes; expected at most {max(FLOOR_BYTES, _EXPANSION * size) // 4:,} pixels in a file "
            "of this size. Make it smaller first"
        )
    scans = jpeg_scans(content)
    if scans * pixels > _MOST_SCANNED and scans > 1:
        raise InputError(f"{width} x {height} pixels in {scans:,} scans; made to take long. Save it again")


def _upright(image: Any) -> tuple[Any, list[str]]:
    """The picture as a viewer shows it; EXIF data that cannot be read say nothing."""
    from PIL import Image

    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return image, []
    if not isinstance(orientation, int) or orientation not in _UPRIGHT:
        return image, []
    turned = image.transpose(getattr(Image.Transpose, _UPRIGHT[orientation]))
    turned.info.update(image.info)
    return turned, ["turned upright, as its EXIF data say"]


def from_picture(
    image: Any,
    shape: tuple[int, int, int],
    *,
    strict: bool = False,
    invert: bool = False,
    resample: str = "lanczos",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Pixels [C, H, W] float32 in [0, 1] of a PIL image, and what was converted, in words; arguments as of :func:`read_image`.

    Args:
        image: a PIL image.
        resample: the filter of a change of size, one of ``RESAMPLING``.

    Raises:
        InputError: the model takes neither 1 nor 3 channels; not fit under ``strict``; no such filter.
    """
    from PIL import Image

    if shape[0] not in (1, 3):
        raise InputError(f"this model takes {shape[0]} channels; image files have 1 or 3")
    if resample not in RESAMPLING:
        raise InputError(f"resample: expected one of {', '.join(RESAMPLING)}; got {one_line(repr(resample), 60)}")
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
        image = image.resize((shape[2], shape[1]), getattr(Image.Resampling, resample.upper()))
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if invert:
        pixels = 1 - pixels
        notices.append("inverted")
    return np.ascontiguousarray(pixels), tuple(notices)


def _mode(image: Any, channels: int) -> tuple[Any, list[str]]:
    """To "L" or "RGB": palettes resolved, 16 bits scaled, transparency laid on black, grey and colour exchanged."""
    from PIL import Image, ImageChops

    notices = []
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit PNG; PIL's own conversion would clip it
        image = Image.fromarray(_eight_bits(image))
        notices.append(_DEEP)
    image = image.convert("LA") if image.mode == "La" else image
    was_grey = image.mode in ("1", "L", "LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            notices.append("transparent parts shown on black")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
        image = image.getchannel("R") if was_grey else image
    if image.mode in ("1", "P"):
        image = image.convert("RGB" if image.mode == "P" else "L")
    if channels == 1 and image.mode == "RGB":
        red, green, blue = image.split()
        same = not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))
        image = red if same else image  # a grey picture saved as colour
    wanted = "L" if channels == 1 else "RGB"
    if image.mode != wanted:
        notices.append(
            f"{_COLOUR} ({image.mode}) turned to grey"
            if channels == 1
            else f"{'grey' if image.mode == 'L' else image.mode} turned to RGB"
        )
        image = image.convert(wanted)
    return image, notices


def _eight_bits(image: Any) -> np.ndarray:
    """Values 0..65535 as uint8, a part at a time: the numbers between are eight times as large."""
    deep = np.asarray(image)
    found = np.empty(deep.shape, np.uint8)
    step = max(1, _ROWS // max(1, deep.shape[1]))
    for begin in range(0, len(deep), step):
        part = deep[begin : begin + step].astype(np.float64)
        found[begin : begin + step] = np.clip(np.rint(part / 257), 0, 255)
    return found
