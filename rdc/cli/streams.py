"""Standard output and error as the commands need them: they exist, and printing to them cannot fail for a character's sake."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["discard_output", "flush_output", "standard_streams"]

#: what a poorer encoding gets in place of the characters that rdc itself prints
_PLAIN = {"∞": "inf", "–": "-", "−": "-", "…": "...", "±": "+-", "×": "x", "·": "-", "²": "^2", "Δ": "d"}
_REPLACE = "rdc.plain"  # name of the handler below, for the codecs


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


codecs.register_error(_REPLACE, _plain)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """While this is open, ``sys.stdout`` and ``sys.stderr`` take any text.

    A stream that is missing or closed (``2>&-``, a daemon, pythonw) becomes one that forgets; characters beyond a stream's
    encoding, and the bytes of file names that are no text, are written as a plain sign or as an escape. Afterwards all is as before.
    """
    _occupy_descriptors()
    before = sys.stdout, sys.stderr
    undo: list[Callable[[], None]] = []
    try:
        sys.stdout, sys.stderr = (_prepared(stream, undo) for stream in before)
        yield
    finally:
        sys.stdout, sys.stderr = before
        for step in reversed(undo):
            with contextlib.suppress(OSError, ValueError):
                step()


def _prepared(stream: Any, undo: list[Callable[[], None]]) -> Any:
    if stream is None or getattr(stream, "closed", False):
        nowhere = open(os.devnull, "w", encoding="utf-8", errors=_REPLACE)  # noqa: SIM115 (closed by undo)
        undo.append(nowhere.close)
        return nowhere
    if isinstance(stream, io.TextIOWrapper):
        errors = stream.errors
        with contextlib.suppress(OSError, ValueError):
            stream.reconfigure(errors=_REPLACE)
            undo.append(lambda: stream.reconfigure(errors=errors))
        return stream
    return stream if isinstance(stream, io.StringIO) else _Escaping(stream)


class _Escaping:
    """A stream of somebody's own class: what its encoding cannot hold is escaped before it is written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        written: int
        try:
            written = self._stream.write(text)
        except UnicodeEncodeError as error:
            written = self._stream.write(text.encode(error.encoding, _REPLACE).decode(error.encoding))
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def flush_output() -> None:
    """Write what is still in the buffers.

    Raises:
        OSError: a disk is full, say, or nobody reads the pipe any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "flush"):
            stream.flush()


def discard_output() -> None:
    """After an error of a stream: what it still holds goes nowhere, so that the interpreter's end does not fail too."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def _occupy_descriptors() -> None:
    """Where 0, 1 or 2 is closed, the next file opened would get that number, and libraries' own words would land in it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
