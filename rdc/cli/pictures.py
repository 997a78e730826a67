"""The pictures that ``rdc classify`` and ``rdc predict`` are given: files, folders, a list, standard input."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from rdc.errors import ConfigError, InputError, one_line

if TYPE_CHECKING:
    from rdc.images.files import ImageFile

__all__ = ["STANDARD_INPUT", "add_picture_options", "named_pictures", "read_pictures", "say_errors"]

STANDARD_INPUT = "-"
_LONGEST_LIST = 64 * 2**20  # bytes
_NONE_GIVEN = "expected pictures: files, folders, - for standard input, or a list of paths by --files-from; got none"


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """IMAGE..., --recursive, --files-from, --null, --invert, --strict."""
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="PNG or JPEG file; a folder: the pictures in it, by name; -: one picture from standard input",
    )
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="of folders, the pictures in the folders inside too"
    )
    parser.add_argument(
        "--files-from",
        metavar="FILE",
        help="a list of files and folders, one on a line, paths from the current folder; -: from standard input",
    )
    parser.add_argument(
        "-0",
        "--null",
        action="store_true",
        help="names in the list end with a zero byte, as `find -print0` writes them",
    )
    parser.add_argument("--invert", action="store_true", help="turn dark on light into light on dark first")
    parser.add_argument("--strict", action="store_true", help="refuse files that would have to be resized or converted")


def named_pictures(args: argparse.Namespace) -> list[str]:
    """Every picture asked for, in order: folders are replaced by what is in them, and the list is read.

    A folder without pictures stays itself, so that it gets its line. What is left out of folders is counted on stderr.

    Raises:
        ConfigError: nothing is named, or standard input is to be two things. InputError: a list that cannot be read.
    """
    if not args.images and args.files_from is None:
        raise ConfigError(_NONE_GIVEN)
    if args.null and args.files_from is None:
        raise ConfigError("--null: expected with --files-from alone; it says how names in the list end")
    if [*args.images, args.files_from].count(STANDARD_INPUT) > 1:
        raise ConfigError("-: expected once; standard input is one picture, or one list")
    listed = [] if args.files_from is None else _list(args.files_from, b"\0" if args.null else b"\n")
    if not args.images and not listed:
        print("rdc: the list names no pictures", file=sys.stderr)
    found: list[str] = []
    for name in (*args.images, *listed):
        found += [name] if name == STANDARD_INPUT or not os.path.isdir(name) else _in_folder(name, args.recursive)
    return found


def read_pictures(
    args: argparse.Namespace, names: list[str], shape: tuple[int, int, int]
) -> Iterator[tuple[dict[str, Any], ImageFile | None]]:
    """An entry for every picture, with its error where it cannot be read, and the picture.

    Args:
        args: of :func:`add_picture_options`.
        names: some of :func:`named_pictures`.
        shape: (C, H, W) that the model takes.
    """
    from rdc.images.files import image_of, read_image

    settings = {"strict": args.strict, "invert": args.invert}
    for name in names:
        answer: dict[str, Any] = {"file": name}
        image = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the decoder's doubts about EXIF data and the like
                if name == STANDARD_INPUT:
                    image = image_of(_standard_input(), name, shape, **settings)
                elif os.path.isdir(name):
                    raise InputError(_empty(args.recursive))
                else:
                    image = read_image(name, shape, **settings)
        except InputError as error:
            answer["error"] = str(error)
        yield answer, image


def say_errors(answers: list[dict[str, Any]]) -> bool:
    """A line on stderr for every picture without an answer; whether there are any."""
    bad = [answer for answer in answers if "error" in answer]
    for answer in bad:
        print(f"rdc: error: {one_line(answer['file'], 400)}: {answer['error']}", file=sys.stderr)
    return bool(bad)


def _in_folder(folder: str, recursive: bool) -> list[str]:
    """The pictures in a folder by name, those of the folders inside after its own; hidden ones are left out, links not followed."""
    from rdc.images.files import PICTURES

    def unreadable(error: OSError) -> None:
        raise InputError(f"{one_line(error.filename, 400)}: {error.strerror}") from error

    found, others, inside = [], 0, 0
    for here, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen = sorted(name for name in files if not name.startswith("."))
        pictures = [name for name in seen if os.path.splitext(name)[1].lower() in PICTURES]
        found += [os.path.join(here, name) for name in pictures]
        others += len(seen) - len(pictures)
        if not recursive:
            inside = len(folders)
            break
    if found and (others or inside):
        left = [_count(others, "other file")] * (others > 0)
        left += [f"{_count(inside, 'folder')} inside (--recursive)"] * (inside > 0)
        print(
            f"rdc: {one_line(folder, 400)}: {_count(len(found), 'picture')}; left out: {', '.join(left)}",
            file=sys.stderr,
        )
    return found or [folder]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _empty(recursive: bool) -> str:
    more = "" if recursive else "; --recursive looks into the folders inside"
    return f"a folder without PNG or JPEG files{more}"


def _list(name: str, end: bytes) -> list[str]:
    """The names in a list, as they stand; empty lines are none."""
    if name == STANDARD_INPUT:
        content = _bytes(_stdin(), _LONGEST_LIST, "list of files")
    else:
        try:
            with open(name, "rb") as file:
                content = _bytes(file, _LONGEST_LIST, "list of files")
        except OSError as error:
            raise InputError(f"--files-from {one_line(name, 400)}: {error.strerror}") from error
    lines = content.split(end)
    return [os.fsdecode(line) for line in (lines if end == b"\0" else (line.rstrip(b"\r") for line in lines)) if line]


def _standard_input() -> bytes:
    from rdc.images.files import LARGEST

    stream = _stdin()
    if stream.isatty():
        print("rdc: waiting for a picture on standard input", file=sys.stderr)
    content = _bytes(stream, LARGEST, "picture")
    if not content:
        raise InputError("standard input is empty")
    return content


def _stdin() -> BinaryIO:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or sys.stdin.closed:
        raise InputError("there is no standard input")
    return stream  # type: ignore[no-any-return]


def _bytes(stream: BinaryIO, most: int, what: str) -> bytes:
    content = stream.read(most + 1)
    if len(content) > most:
        raise InputError(f"the {what} has more than {most:,} bytes")
    return content
