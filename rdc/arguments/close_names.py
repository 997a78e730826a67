"""What somebody may have meant who wrote a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

__all__ = ["close_name", "did_you_mean"]

_LONGEST = 100  # characters of a name worth a comparison


def close_name(name: object, names: Iterable[object], also: Mapping[str, str] | None = None) -> str | None:
    """The one of ``names`` that is most like ``name``; None where none is like it.

    Capitals, and ``_`` in place of ``-``, make no difference.

    Args:
        name: what was written; anything that is no text is like nothing.
        names: those there are.
        also: further words -> the name each of them means, for words that are unlike it in letters.
    """
    if not isinstance(name, str) or not name or len(name) > _LONGEST:
        return None
    known = {_plain(str(one)): str(one) for one in names}
    known |= {_plain(word): meant for word, meant in (also or {}).items()}
    found = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0.65)
    return known[found[0]] if found and known[found[0]] != name else None


def did_you_mean(name: object, names: Iterable[object], also: Mapping[str, str] | None = None) -> str:
    """The end of a message, ``" (did you mean 'fab'?)"``; empty where no name is like ``name``. Arguments as of :func:`close_name`."""
    close = close_name(name, names, also)
    return "" if close is None else f" (did you mean {close!r}?)"


def _plain(text: str) -> str:
    return text.lower().replace("_", "-")
