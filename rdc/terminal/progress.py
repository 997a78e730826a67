"""Progress bars on stderr. They are never worth a run: where stderr is missing or cannot be written to, there are none."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["bar", "on_terminal"]


def bar(iterable: Any = None, *, enabled: bool = True, **options: Any) -> tqdm:
    """A tqdm bar on stderr as it is now.

    Args:
        iterable: as of tqdm.
        enabled: False draws nothing.
        options: tqdm's others.
    """
    stream = _stderr()
    return tqdm(iterable, disable=not enabled or stream is None, file=stream and _Forgiving(stream), **options)


def on_terminal() -> bool:
    """Whether somebody may be watching; in a log file a line now and then is enough."""
    stream = _stderr()
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, OSError, ValueError):
        return False


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
