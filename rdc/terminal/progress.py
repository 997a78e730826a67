"""Progress on stderr. It is never worth a run: where stderr is missing or cannot be written to, there is none.

On a terminal bars are drawn. Elsewhere (a log file, a pipe) a bar becomes a line now and then: whole lines of text without cursor
movements, none before something was done.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rdc.errors import one_line

__all__ = ["bar", "on_terminal", "say", "say_begin"]

LINE_SECONDS = 15.0  #: between the lines of a log
_REDRAWN = 0.2  # seconds between pictures of a bar on a terminal
_PICTURE = re.compile(r"\|?\{bar[^}]*\}\|?")


def bar(iterable: Any = None, *, enabled: bool = True, **options: Any) -> tqdm:
    """A tqdm bar on stderr as it is now; where that is no terminal, lines.

    Args:
        iterable: as of tqdm.
        enabled: False draws nothing.
        options: tqdm's others.
    """
    stream = _stderr()
    if stream is None or not enabled:
        return tqdm(iterable, disable=True, **options)
    if on_terminal():
        return tqdm(iterable, file=_Forgiving(stream), **{"mininterval": _REDRAWN, **options})
    shape = options.pop("bar_format", None)
    if shape is None:
        options = {**options, "ncols": 0, "dynamic_ncols": False}  # tqdm's own words without the picture
    else:
        options["bar_format"] = _PICTURE.sub("", shape)
    options = {"mininterval": LINE_SECONDS, "maxinterval": 2 * LINE_SECONDS, **options, "position": 0}
    log = _Log(stream, options["mininterval"])
    log.bar = made = tqdm(iterable, file=log, **options)
    return made


def on_terminal() -> bool:
    """Whether somebody may be watching; in a log file a line now and then is enough."""
    stream = _stderr()
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, OSError, ValueError):
        return False


def say(text: str, *, enabled: bool = True) -> None:
    """A line of rdc's own on stderr.

    Args:
        text: without ``rdc:``.
        enabled: False prints nothing.
    """
    stream = _stderr()
    if enabled and stream is not None:
        line = _Forgiving(stream)
        line.write(f"rdc: {one_line(text, 1000)}\n")
        line.flush()


def say_begin(folder: Path, done: int, total: int, unit: str, *, enabled: bool = True) -> None:
    """Say of a run that may be gone on with where it begins; nothing of one that begins at its beginning.

    Args:
        folder: of the run.
        done, total: finished by earlier starts, and all.
        unit: what is counted, "images".
        enabled: False prints nothing.
    """
    if done >= total:
        say(f"{folder}: already complete, {done:,} of {total:,} {unit}; nothing is computed again", enabled=enabled)
    elif done:
        say(f"{folder}: resuming at {done:,} of {total:,} {unit}", enabled=enabled)


def _now() -> float:
    return time.monotonic()


def _stderr() -> Any:
    stream = sys.stderr  # None under pythonw, closed in some daemons
    return None if stream is None or getattr(stream, "closed", False) else stream


class _Forgiving:
    """A stream whose errors (a full disk, a closed pipe, a character it does not know) end nothing."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            written: int = self._stream.write(text)
            return written
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (AttributeError, OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Log(_Forgiving):
    """Where a bar writes that nobody watches: a line now and then, and one at the end if anything was done.

    Args:
        stream: what the lines go to.
        seconds: between two of them.
    """

    def __init__(self, stream: Any, seconds: float) -> None:
        super().__init__(stream)
        self._wait, self._since = 0.9 * seconds, _now()  # tqdm has a clock of its own
        self._words = self._said = ""
        self.bar: Any = None  # None while it is made

    def write(self, text: str) -> int:
        """Take what tqdm draws: pictures after a carriage return, and a line break alone when the bar is closed."""
        words, now = text.replace("\x1b[A", "").strip(), _now()
        self._words = words or self._words
        due = now - self._since >= self._wait if words else text == "\n" and self.bar.n > self.bar.initial
        if self.bar is not None and due and self._words != self._said:
            self._since, self._said = now, self._words
            super().write(f"{self._words}\n")
            self.flush()
        return len(text)
