"""Names of classes, as callers hand them in."""

from __future__ import annotations

from typing import Any

from rdc.arguments.scalars import shown
from rdc.errors import ConfigError, RdcError, one_line

__all__ = ["checked_names"]


def checked_names(names: Any, count: int | None = None, error: type[RdcError] = ConfigError) -> tuple[str, ...]:
    """K different names as text.

    Args:
        names: a sequence, not one text; None where ``count`` is given: "0", "1", ...
        count: K; None: as many as there are, at least one.
        error: the class to raise.

    Raises:
        RdcError: (of the class given) one text, nothing to go through, another number, or a name twice.
    """
    if names is None and count is not None:
        return tuple(str(k) for k in range(count))
    expected = f"class_names: expected {'a list of' if count is None else count} different names"
    try:
        found = None if isinstance(names, (str, bytes)) else tuple(str(name) for name in names)
    except TypeError:  # nothing to go through
        found = None
    if found is None:
        raise error(f"{expected}, such as ['cat', 'dog']; got {shown(names)}")
    if count is not None and len(found) != count:
        raise error(f"{expected}, one for each class; got {len(found)}: {one_line(', '.join(found))}")
    if len(set(found)) < len(found):
        twice = next(name for place, name in enumerate(found) if name in found[:place])
        raise error(f"{expected}; got {shown(twice)} twice")
    return found
