"""Errors raised by rdc. Each message says what was expected, what came, and what to do."""

from __future__ import annotations

__all__ = ["CheckpointError", "ConfigError", "DataError", "InputError", "RdcError", "one_line"]

_LONGEST = 2000  # characters of a message's first line, and of each detail


class RdcError(ValueError):
    """Base of every error that rdc raises on purpose; a ``ValueError``, so generic handlers keep working.

    The message is one line: what a file or a caller put into it cannot add lines, control a terminal or fill a screen.

    Args:
        message: what was expected, what came, what to do.
        details: further lines, shown below the message.
    """

    def __init__(self, message: object = "", *details: object) -> None:
        super().__init__(*(one_line(part, _LONGEST) for part in (message, *details)))

    def __str__(self) -> str:
        return "\n".join(self.args)


class InputError(RdcError):
    """A tensor or image handed to rdc has the wrong type, shape or range."""


class ConfigError(RdcError):
    """A setting, preset name or option is unknown or inconsistent."""


class DataError(RdcError):
    """A data-set file is missing, truncated, or not what its name says."""


class CheckpointError(RdcError):
    """A checkpoint is missing, corrupt, of the wrong kind, or tries to run code."""


def one_line(value: object, limit: int = 200) -> str:
    """``str(value)`` as part of one line of a message.

    Line breaks, control characters, lone surrogates and invisible characters are escaped; of a long text the middle is left out.

    Args:
        value: anything.
        limit: most characters.
    """
    text = str(value)
    if len(text) > limit:
        begin = limit * 2 // 3
        text = f"{text[:begin]} ... ({len(text):,} characters in all) ... {text[len(text) - (limit - begin) :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
