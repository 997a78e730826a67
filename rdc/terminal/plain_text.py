"""Names and texts of users and files, as they may stand in a page, a table or a picture."""

from __future__ import annotations

import unicodedata

__all__ = ["percent", "printable"]

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


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage of one digit; what is neither 0 nor 1 is never rounded to them."""
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _shown(character: str) -> bool:
    return character.isprintable() or (unicodedata.category(character) == "Zs" and character not in _HIDDEN)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
