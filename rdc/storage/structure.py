"""What a JSON value must look like: small checks that are put together, and that say where the value differs.

``record({"n": integer(1)}, {"note": text()})(value, "report")`` raises ``ValueError: report.n: expected an integer >= 1; got 'x'``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from rdc.errors import one_line

__all__ = ["Check", "choice", "flag", "integer", "mapping", "number", "optional", "record", "sequence", "text"]

_LARGEST = sys.float_info.max

#: (value, what to call it); raises ValueError
Check = Callable[[Any, str], None]


def _refuse(where: str, expected: str, value: Any) -> None:
    raise ValueError(f"{one_line(where, 120)}: expected {expected}; got {one_line(repr(value), 60)}")


def integer(least: int | None = None, most: int | None = None) -> Check:
    """An integer in a range."""

    def check(value: Any, where: str) -> None:
        known = isinstance(value, int) and not isinstance(value, bool)
        if not known or (least is not None and value < least) or (most is not None and value > most):
            _refuse(where, f"an integer{_range(least, most)}", value)

    return check


def number(least: float | None = None, most: float | None = None) -> Check:
    """A finite number in a range."""

    def check(value: Any, where: str) -> None:
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        low, high = -_LARGEST if least is None else least, _LARGEST if most is None else most
        if not known or not low <= value <= high:  # NaN is in no range
            _refuse(where, f"a number{_range(least, most)}", value)

    return check


def _range(least: float | None, most: float | None) -> str:
    return "".join([f" >= {least}" if least is not None else "", f" and <= {most}" if most is not None else ""])


def text() -> Check:
    """A string."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str):
            _refuse(where, "a text", value)

    return check


def flag() -> Check:
    """True or false."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, bool):
            _refuse(where, "true or false", value)

    return check


def choice(*allowed: Any) -> Check:
    """One of these."""

    def check(value: Any, where: str) -> None:
        if not any(value == one and type(value) is type(one) for one in allowed):
            _refuse(where, f"one of {', '.join(map(repr, allowed))}", value)

    return check


def optional(inner: Check) -> Check:
    """None, or what ``inner`` accepts."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def sequence(inner: Check, least: int = 0, most: int | None = None) -> Check:
    """A list whose items ``inner`` accepts."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) < least or (most is not None and len(value) > most):
            _refuse(
                where,
                f"a list of {least}{'' if most == least else f' to {most}' if most is not None else ' or more'}",
                value,
            )
        for place, item in enumerate(value):
            inner(item, f"{where}[{place}]")

    return check


def mapping(inner: Check) -> Check:
    """An object of any keys whose values ``inner`` accepts."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            _refuse(where, "an object", value)
        for key, item in value.items():
            inner(item, f"{where}.{key}")

    return check


def record(required: Mapping[str, Check], known: Mapping[str, Check] | None = None) -> Check:
    """An object with the ``required`` keys; what it has of ``known`` ones must be right, further keys may be anything."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            _refuse(where, "an object", value)
        for key, inner in required.items():
            if key not in value:
                raise ValueError(f"{one_line(where, 120)}: {key} is missing")
            inner(value[key], f"{where}.{key}")
        for key, inner in (known or {}).items():
            if key in value:
                inner(value[key], f"{where}.{key}")

    return check
