"""The words behind a model's name: ``NAME,image=CxHxW,classes=K,weights=...``; and names of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdc.arguments.scalars import shown
from rdc.errors import ConfigError, one_line

__all__ = ["different_names", "parse_count", "parse_shape", "parse_words", "weights_file"]

_SIDE, _CLASSES = 65536, 10**6


def parse_words(text: str, prefix: str, known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """``"data,images=500"`` -> ("data", {...}), what is not said as in ``known``.

    Raises:
        ConfigError: a word that this kind of model does not have.
    """
    subject, *changes = text.split(",")
    found = dict(known)
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals or field not in known:
            raise ConfigError(
                f"model {prefix}: expected {prefix}:NAME with some of {', '.join(f'{field}=...' for field in known)} behind commas; "
                f"got {shown(text)}"
            )
        found[field] = value
    return subject, found


def parse_shape(text: str) -> tuple[int, int, int]:
    """``"3x224x224"`` -> (3, 224, 224).

    Raises:
        ConfigError: something else.
    """
    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and len(size) < 6 and 0 < int(size) <= _SIDE for size in sizes):
        raise ConfigError(f"image: expected CxHxW, such as 3x256x256; got {shown(text)}")
    channels, height, width = map(int, sizes)
    return channels, height, width


def parse_count(text: str | None) -> int | None:
    """Number of classes, or None where it was not said.

    Raises:
        ConfigError: no integer, fewer than two, or more than a million.
    """
    if text is None:
        return None
    count = int(text) if text.isdecimal() and len(text) < 8 else 0
    if not 2 <= count <= _CLASSES:
        raise ConfigError(f"classes: expected an integer from 2 to {_CLASSES:,}; got {shown(text)}")
    return count


def weights_file(text: str) -> Path | None:
    """The file that ``weights=`` names, or None where it is a word.

    Raises:
        ConfigError: it looks like a file, and there is none.
    """
    path = Path(text).expanduser()
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar") or "/" in text or path.is_file():
        if not path.is_file():
            raise ConfigError(f"weights: {one_line(text, 300)}: no such file")
        return path
    return None


def different_names(names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    """Names of K classes, those that several share with their number behind; None if they are not K."""
    if names is None or len(names) != count:
        return None
    clean = [one_line(name, 60) for name in names]
    times = Counter(clean)
    return tuple(name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(clean))
