"""A command line as text that can be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

__all__ = ["command_line"]


def command_line(argv: Sequence[str], without: Iterable[str] = ()) -> str:
    """``rdc`` and its arguments, quoted: one line of printable text, whatever is in them.

    Args:
        argv: arguments without the program's name.
        without: arguments to leave out.
    """
    without = set(without)
    return " ".join(["rdc", *(_quoted(word) for word in argv if word not in without)])


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    text = "".join(_escaped(character) for character in word)
    return f"$'{text}'"  # bash, zsh and ksh know this form


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(
        f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape" if _raw(character) else "surrogatepass")
    )


def _raw(character: str) -> bool:
    """A byte of a file name that is no text."""
    return "\udc80" <= character <= "\udcff"
