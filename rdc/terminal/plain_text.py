"""Names and texts of users and files, as they may stand in a page, a table or a picture."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

_HIDDEN = frozenset("\u2028\u2029")  # line and paragraph separator


def printable(value: object, limit: int | None = None) -> str:
    """``str(value)`` in one line, and readable from left to right as it is written.

    Control characters, line breaks, half surrogate pairs, invisible and direction-changing characters are escaped; letters, signs and
    spaces of every script stay.

    Args:
        value: anything.
        limit: most characters; of a longer text the end is left out.
    """
    text = str(value)
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(character if _shown(character) else _escape(character) for character in text)


def _shown(character: str) -> bool:
    return character.isprintable() or (unicodedata.category(character) == "Zs" and character not in _HIDDEN)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
