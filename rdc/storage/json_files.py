"""JSON files: written atomically without NaN, read within bounds."""

from __future__ import annotations

import json
import os
from typing import Any, NoReturn

from rdc.errors import DataError, RdcError
from rdc.storage.files import atomic_write
from rdc.storage.reading import read_content, reading

__all__ = ["JSON_BYTES", "json_text", "parse_json", "read_json", "write_json"]

JSON_BYTES = 8 * 2**20  #: largest JSON file that is read where nothing else is said


def json_text(value: Any) -> str:
    """``value`` as indented JSON that ends in a line break.

    Raises:
        ValueError: a number is NaN or infinite, which is not JSON.
    """
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused (they are not JSON).

    Raises:
        ValueError: a number is NaN or infinite.
        OSError: see :func:`rdc.storage.files.atomic_write`.
    """
    text = json_text(value)
    with atomic_write(path, "w") as file:
        file.write(text)


def read_json(
    path: str | os.PathLike[str],
    error: type[RdcError] = DataError,
    *,
    kind: type | None = None,
    limit: int = JSON_BYTES,
) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        path: the file.
        error: the class to raise.
        kind: ``dict`` or ``list`` if the outermost value must be one.
        limit: most bytes.

    Raises:
        RdcError: (of the class given) missing, too large, not JSON, nested too deeply, with NaN or infinity, or of another kind.
    """
    return parse_json(read_content(path, error, "a JSON file", limit), path, error, kind=kind)


def parse_json(
    content: bytes | str, name: str | os.PathLike[str], error: type[RdcError] = DataError, *, kind: type | None = None
) -> Any:
    """The value in ``content``; arguments as of :func:`read_json`, ``name`` is what to call it in errors."""
    with reading(name, error, "JSON"):
        if isinstance(content, bytes):
            encoding = json.detect_encoding(content)
            content = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)  # strictly: no lone surrogates
        value = json.loads(content, parse_constant=_refuse, parse_float=_finite)
    if kind is not None and not isinstance(value, kind):
        words: dict[type, str] = {dict: "an object", list: "a list"}
        raise error(f"{os.fspath(name)}: expected {words[kind]} in this JSON; got a {type(value).__name__}")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is beyond the range of a number")
    return value
