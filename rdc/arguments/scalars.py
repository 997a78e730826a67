"""Numbers as callers hand them in: Python's, NumPy's, 0-d arrays and 0-d tensors. A bool is no number, and neither is text."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from typing import Any, TypeVar

from rdc.errors import one_line

__all__ = ["as_flag", "as_integer", "as_number", "shown"]

Number = TypeVar("Number", int, float)


def as_integer(value: Any) -> int | None:
    """The integer as Python's own, of any size; None if ``value`` is none (a bool, a float, text, more than one number)."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else int(value)
    return _taken(operator.index, value)


def as_number(value: Any) -> float | None:
    """The real number as a float (it may be infinite or NaN); None if ``value`` is none, or an integer beyond all floats."""
    if isinstance(value, (int, float)):
        return None if isinstance(value, bool) else _taken(float, value)
    return _taken(float, value)


def as_flag(value: Any) -> bool | None:
    """The truth value, of a bool of Python's or NumPy's; None for anything else."""
    return bool(value) if isinstance(value, bool) or _type_of(value) in ("bool", "bool_") else None


def shown(value: Any, limit: int = 120) -> str:
    """``value`` as a part of one line of a message, whatever it is."""
    try:
        return one_line(repr(value), limit)
    except Exception:  # a number of thousands of digits, an object whose repr fails
        return f"a {type(value).__name__}"


def _taken(convert: Callable[[Any], Number], value: Any) -> Number | None:
    """``convert(value)``, or None for what is no single real number."""
    kind = _type_of(value)
    if kind is None and not isinstance(value, numbers.Real):
        return None
    if kind is not None and (kind.startswith(("bool", "complex", "str", "bytes", "object", "datetime", "timedelta"))):
        return None
    try:
        return convert(value)
    except Exception:  # a float where an integer is meant, a tensor without data, a number too large
        return None


def _type_of(value: Any) -> str | None:
    """Name of the type of a NumPy scalar, a 0-d array or a 0-d tensor, such as ``"float32"``; None for anything else."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or isinstance(value, type) or getattr(value, "ndim", None) != 0:
        return None
    return str(dtype).removeprefix("torch.").lstrip("<>=|").lower()
