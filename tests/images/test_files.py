"""Pictures of every kind, and pictures made to do harm."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from rdc.errors import InputError
from rdc.images.files import from_picture, read_image
from rdc.images.headers import jpeg_scans, png_header
from tests.bounds import bounded
from tests.evaluation_models import grey

GREY, RGB = (1, 8, 8), (3, 8, 8)
LEVELS = grey((8, 8))
COLOURS = grey((8, 8, 3), seed=1)
DEEP = "16 bits reduced to 8"


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def png(array: np.ndarray, colour: int, depth: int, extra: bytes = b"") -> bytes:
    """A PNG of samples [H, W] or [H, W, bands], written by hand: PIL writes no 16-bit colours."""
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def stacked(*bands: np.ndarray) -> np.ndarray:
    return np.stack(bands, 2)


OPAQUE, HALF = np.full((8, 8), 255), np.where(np.arange(64).reshape(8, 8) < 32, 255, 0)
WIDE = LEVELS.astype(np.int64) * 257
ON_BLACK = "transparent parts shown on black"
TO_RGB, TO_GREY = "grey turned to RGB", "colour (RGB) turned to grey"
TRANSPARENT = chunk(b"tRNS", struct.pack(">H", int(WIDE[0, 0])))


@pytest.mark.parametrize(
    ("content", "for_grey", "for_rgb"),
    [
        (png(LEVELS, 0, 8), [], [TO_RGB]),
        (png(WIDE, 0, 16), [DEEP], [DEEP, TO_RGB]),
        (png(WIDE, 0, 16, TRANSPARENT), ["a transparent 16-bit colour shown as it is", DEEP], None),
        (png(COLOURS, 2, 8), [TO_GREY], []),
        (png(COLOURS.astype(int) * 257, 2, 16), [DEEP, TO_GREY], [DEEP]),
        (png(stacked(WIDE, WIDE, WIDE), 2, 16), [DEEP], [DEEP]),
        (png(stacked(LEVELS, OPAQUE), 4, 8), [], [TO_RGB]),
        (png(stacked(LEVELS, HALF), 4, 8), [ON_BLACK], [ON_BLACK, TO_RGB]),
        (png(stacked(WIDE, OPAQUE * 257), 4, 16), [DEEP], [DEEP, TO_RGB]),
        (png(stacked(WIDE, HALF * 257), 4, 16), [DEEP, ON_BLACK], [DEEP, ON_BLACK, TO_RGB]),
        (png(stacked(*np.moveaxis(COLOURS, 2, 0), OPAQUE), 6, 8), [TO_GREY], []),
        (png(stacked(*np.moveaxis(COLOURS, 2, 0), HALF), 6, 8), [ON_BLACK, TO_GREY], [ON_BLACK]),
        (png(stacked(WIDE, WIDE, WIDE, OPAQUE * 257), 6, 16), [DEEP], [DEEP]),
        (png(LEVELS, 0, 8, chunk(b"tRNS", struct.pack(">H", int(LEVELS[0, 0])))), [ON_BLACK], [ON_BLACK, TO_RGB]),
    ],
    ids=["l", "l16", "l16t", "rgb", "rgb16", "rgb16-grey", "la-opaque", "la", "la16-opaque", "la16", "rgba-opaque"]
    + ["rgba", "rgba16-opaque", "l-trns"],
)
def test_every_conversion_has_a_notice(tmp_path, content, for_grey, for_rgb):
    (tmp_path / "a.png").write_bytes(content)
    for shape, notices in ((GREY, for_grey), (RGB, for_rgb)):
        if notices is None:
            continue
        found = read_image(tmp_path / "a.png", shape)
        assert list(found.notices) == notices and found.pixels.shape == shape
        if not notices:
            assert np.array_equal(read_image(tmp_path / "a.png", shape, strict=True).pixels, found.pixels)
            continue
        with pytest.raises(InputError, match="^--strict: ") as caught:
            read_image(tmp_path / "a.png", shape, strict=True)
        assert any(notice in str(caught.value) for notice in notices)


def test_grey_levels_survive_every_form(tmp_path):
    """Depth, an opaque alpha channel and colours that are equal change nothing."""
    deep = [png(WIDE, 0, 16), png(stacked(WIDE, WIDE, WIDE), 2, 16), png(stacked(WIDE, OPAQUE * 257), 4, 16)]
    for content in (png(LEVELS, 0, 8), png(stacked(LEVELS, OPAQUE), 4, 8), *deep):
        (tmp_path / "a.png").write_bytes(content)
        assert np.array_equal(read_image(tmp_path / "a.png", GREY).pixels[0], LEVELS.astype(np.float32) / 255)
        assert np.array_equal(read_image(tmp_path / "a.png", RGB).pixels[2], LEVELS.astype(np.float32) / 255)


def test_deep_levels_are_rounded_in_pieces(monkeypatch):
    deep = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    whole = from_picture(Image.fromarray(deep), (1, 40, 50))[0]
    assert np.array_equal(whole[0] * 255, np.clip(np.rint(deep.astype(float) / 257), 0, 255).astype(np.float32))
    monkeypatch.setattr("rdc.images.files._ROWS", 120)
    assert np.array_equal(from_picture(Image.fromarray(deep), (1, 40, 50))[0], whole)


def test_pictures_in_memory_of_any_mode():
    picture = Image.fromarray(COLOURS)
    for mode, notices in (
        ("CMYK", ["CMYK turned to RGB"]),
        ("YCbCr", ["YCbCr turned to RGB"]),
        ("P", []),
        ("1", [TO_RGB]),
        ("RGBa", []),
        ("RGBX", ["RGBX turned to RGB"]),
    ):
        converted = picture.convert("RGBA").convert(mode) if mode == "RGBa" else picture.convert(mode)
        assert list(from_picture(converted, RGB)[1]) == notices, mode
    assert list(from_picture(Image.fromarray(LEVELS).convert("LA").convert("La"), RGB)[1]) == [TO_RGB]


def test_a_phones_file_of_two_pictures(tmp_path):
    first, second = (Image.fromarray(grey((8, 8), seed)) for seed in (1, 2))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    first.save(tmp_path / "b.jpg", quality=95)
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    found = read_image(tmp_path / "a.jpg", GREY)
    assert found.notices == ("first of 2 pictures in the file (MPO)",)
    assert np.array_equal(found.pixels, read_image(tmp_path / "b.jpg", GREY).pixels)
    with pytest.raises(InputError, match="--strict: first of 2 pictures"):
        read_image(tmp_path / "a.jpg", GREY, strict=True)


def test_animations_are_refused(tmp_path):
    frames = [Image.fromarray(grey((8, 8), seed)) for seed in (1, 2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="has 2 frames"):
        read_image(tmp_path / "a.png", GREY)


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(LEVELS).save(tmp_path / "a.jpg", exif=exif)
    found = read_image(tmp_path / "a.jpg", GREY)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")))
    assert np.array_equal(found.pixels[0], expected.astype(np.float32) / 255)
    assert bool(found.notices) is (2 <= orientation <= 8)
    if found.notices:
        with pytest.raises(InputError, match="--strict: turned upright"):
            read_image(tmp_path / "a.jpg", GREY, strict=True)


def test_exif_of_anything_says_nothing(tmp_path):
    plain = read_image(saved(tmp_path / "a.jpg"), GREY).pixels
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40, b"Exif\0\0" + bytes(50)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read_image(saved(tmp_path / "b.jpg", exif=exif), GREY)
        assert np.array_equal(found.pixels, plain) and found.notices == ()


def saved(path, **options):
    Image.fromarray(LEVELS).save(path, quality=95, **options)
    return path


# --- files made to fill the memory, or damaged ------------------------------------------------------------------------


def test_pictures_that_inflate(tmp_path):
    header = struct.pack(">IIBBBBB", 7000, 7000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(7000 * 3 + 1)) * 10
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    with (
        bounded(megabytes=20),
        pytest.raises(InputError, match=r"7000 x 7000 pixels in .* expected at most 16,777,216"),
    ):
        read_image(tmp_path / "a.png", RGB)
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data))
        with bounded(megabytes=20), pytest.raises(InputError, match="pixels; expected at most|cannot be read"):
            read_image(tmp_path / "a.png", RGB)


def test_large_pictures_are_read_as_before(tmp_path):
    """Four million pixels that compress to 4 KB; and noise whose file is large."""
    Image.fromarray(np.full((2000, 2000), 7, np.uint8)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 20_000
    found = read_image(tmp_path / "a.png", GREY)
    assert found.notices == ("resized from 2000 x 2000 to 8 x 8",) and (found.pixels == np.float32(7 / 255)).all()


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_that_inflates(tmp_path, kind):
    bomb = zlib.compress(bytes(300 * 2**20))
    data = {b"zTXt": b"a\0\0" + bomb, b"iTXt": b"a\0\1\0\0\0" + bomb, b"iCCP": b"a\0\0" + bomb}[kind]
    (tmp_path / "a.png").write_bytes(png(LEVELS, 0, 8, chunk(kind, data)))
    with bounded(megabytes=100):
        try:
            read_image(tmp_path / "a.png", GREY)
        except InputError as error:
            assert "cannot be read" in str(error)


def test_jpegs_of_very_many_scans(tmp_path):
    saved(tmp_path / "a.jpg", progressive=True)
    content = (tmp_path / "a.jpg").read_bytes()
    assert jpeg_scans(content) > 3 and jpeg_scans(content + b"\xff\xda" * 99) == jpeg_scans(content)
    assert jpeg_scans(saved(tmp_path / "b.jpg").read_bytes()) == 1 and jpeg_scans(b"\x89PNG\xff\xda") == 0
    Image.fromarray(np.zeros((3000, 3000), np.uint8)).save(tmp_path / "c.jpg", progressive=True)
    content = (tmp_path / "c.jpg").read_bytes()
    last = content.rindex(b"\xff\xda")
    (tmp_path / "c.jpg").write_bytes(content[:last] + content[last:-2] * 1000 + content[-2:])
    with bounded(), pytest.raises(InputError, match="in 1,00. scans; made to take long"):
        read_image(tmp_path / "c.jpg", GREY)


@pytest.mark.parametrize("place", ["IHDR", "IDAT", "PLTE", "tRNS"])
def test_the_checksums_of_a_png_are_compared(tmp_path, place):
    picture = Image.fromarray(LEVELS).convert("P")
    picture.save(tmp_path / "a.png", transparency=0)
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[content.index(place.encode()) + 5] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="a checksum is wrong"):
        read_image(tmp_path / "a.png", GREY)
    assert png_header(b"\x89PNG\r\n\x1a\n") is None and png_header(b"") is None


def test_what_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    (tmp_path / "empty").write_bytes(b"")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.png")
    with open(odd, "wb") as file:
        file.write(b"x")
    for path, words in (
        (tmp_path, "^not a file"),
        (tmp_path / "pipe", "^not a file"),
        (tmp_path / "a\0b", "^no such file"),
        (tmp_path / "pointer", "^is a Git LFS pointer"),
        (tmp_path / "empty", "^not a PNG or JPEG"),
        (odd, "^not a PNG or JPEG"),
    ):
        with pytest.raises(InputError, match=words):
            read_image(path, GREY)


@pytest.mark.parametrize("form", ["png", "jpeg", "mpo"])
def test_damage_anywhere_is_one_line(tmp_path, form):
    file, random = io.BytesIO(), np.random.default_rng(3)
    more = {"save_all": True, "append_images": [Image.fromarray(LEVELS)]} if form == "mpo" else {}
    Image.fromarray(COLOURS).save(file, form, **more)
    content, path = file.getvalue(), tmp_path / "a"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trial in range(150):
            changed = bytearray(content[: random.integers(1, len(content))] if trial % 3 == 0 else content)
            for _ in range(trial % 4):
                changed[random.integers(len(changed))] = random.integers(256)
            path.write_bytes(changed)
            try:
                assert np.isfinite(read_image(path, RGB).pixels).all()
            except InputError as error:
                assert "\n" not in str(error)
