"""Recipes as TOML files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from rdc.errors import ConfigError
from rdc.storage import toml_files
from rdc.training.recipe_settings import Source, recipe_from, settings_of
from rdc.training.recipes import Recipe

__all__ = ["from_toml", "read_toml", "to_toml"]

_EXPECTED = "a recipe (TOML)"


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The nested settings of a recipe's file, not yet checked.

    Raises:
        ConfigError: the file is missing, too large, or no TOML.
    """
    return toml_files.read_toml(path, ConfigError, _EXPECTED)


def from_toml(path: str | os.PathLike[str]) -> Recipe:
    """The recipe of a TOML file.

    Raises:
        ConfigError: the file cannot be read; a key is unknown or belongs to another method, a type is wrong or a value out of
            range: the message names file and key.
    """
    return recipe_from(read_toml(path), Source(os.fspath(path)))


def to_toml(recipe: Recipe) -> str:
    """The recipe as the text of a TOML file, all of its settings written out."""
    return "\n".join(_lines(settings_of(recipe))) + "\n"


def _lines(tree: Mapping[str, Any], section: str = "") -> list[str]:
    lines = [f"{key} = {_word(value)}" for key, value in tree.items() if not isinstance(value, Mapping)]
    if section and lines:
        lines = ["", f"[{section}]", *lines]
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += _lines(value, f"{section}.{key}".lstrip("."))
    return lines


def _word(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return str(value) if isinstance(value, int) else f'"{"".join(map(_character, value))}"'


def _character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if "\ud800" <= character <= "\udfff":  # a byte of a path that is no text: TOML cannot say it
        return "\ufffd"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
