"""What PNG and JPEG files say of themselves, where the library that decodes them keeps it to itself.

Source: PNG specification (W3C, third edition), 5.3 and 11.2; ITU-T T.81, B.1.1.
"""

from __future__ import annotations

import dataclasses
import re
import zlib

from rdc.errors import InputError

__all__ = ["PngHeader", "jpeg_scans", "png_header"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd8\xff]")  # not a byte of data, a restart or a beginning


@dataclasses.dataclass(frozen=True)
class PngHeader:
    """A PNG's first chunk.

    Args:
        depth: bits of a sample.
        grey: no colours: grey levels, with or without transparency.
    """

    depth: int
    grey: bool


def png_header(content: bytes) -> PngHeader | None:
    """The header of a PNG; None for other content.

    Raises:
        InputError: a chunk that the picture depends on does not have its checksum.
    """
    if not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR" or len(content) < 33:
        return None
    at, view = len(_SIGNATURE), memoryview(content)
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        end = at + 8 + length
        kind = content[at + 4 : at + 8]
        if end + 4 > len(content):
            break  # cut short: found by the decoder
        if not kind[0] & 32 or kind == b"tRNS":  # a capital letter: critical
            if zlib.crc32(view[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
                raise InputError("cannot be read (a checksum is wrong); it is damaged")
        if kind == b"IEND":
            break
        at = end + 4
    return PngHeader(content[24], content[25] in (0, 4))


def jpeg_scans(content: bytes) -> int:
    """How often a JPEG's data go over its first picture; 0 for other content."""
    if not content.startswith(b"\xff\xd8"):
        return 0
    at, scans = 2, 0
    while match := _MARKER.search(content, at):
        kind, at = match[0][1], match.end()
        if kind == 0xD9:  # end of the picture; what a phone appends comes after
            break
        scans += kind == 0xDA
        if kind != 0x01:  # the one marker without a length that is left
            at += max(2, int.from_bytes(content[at : at + 2], "big"))
    return scans
