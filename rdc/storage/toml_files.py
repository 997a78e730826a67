"""TOML files, read within bounds."""

from __future__ import annotations

import os
import sys
from typing import Any

from rdc.errors import RdcError
from rdc.storage.reading import read_content, reading

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_toml"]

_LARGEST = 2**20  # bytes


def read_toml(path: str | os.PathLike[str], error: type[RdcError], expected: str) -> dict[str, Any]:
    """The tables of a TOML file, nested.

    Args:
        path: the file.
        error: the class to raise.
        expected: what the file should be, such as ``"a recipe (TOML)"``.

    Raises:
        RdcError: (of the class given) the file is missing, larger than a MiB, or no TOML.
    """
    content = read_content(path, error, expected, _LARGEST)
    with reading(path, error, expected):
        return tomllib.loads(content.decode("utf-8"))
