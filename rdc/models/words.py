"""The words behind a model's name: ``NAME,image=CxHxW,classes=K,weights=...``; and names of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import shown
from rdc.errors import ConfigError, one_line

__all__ = ["different_names", "parse_count", "parse_shape", "parse_weights", "parse_words", "weights_file"]

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


def parse_weights(
    weights: str | None, classes: str | None, words: Sequence[str], place: str, other: str
) -> tuple[str | None, Path | None, int | None]:
    """What ``weights=`` and ``classes=`` say.

    Args:
        weights: one of ``words``, "none", a file, or None: the model's own.
        classes: of weights of one's own.
        words: names of weights, as they are written.
        place: the model, for errors.
        other: what to say of the weights that there are.

    Returns:
        The library's own weights by name ("DEFAULT": the model's own) or None; the file or None; K or None.

    Raises:
        ConfigError: none of these.
    """
    count, file, own = parse_count(classes), None, "DEFAULT"
    if weights is not None:
        known = {word.lower(): word for word in words}
        own = known.get(weights.rpartition(".")[2].lower(), "")
        file = None if own else weights_file(weights)
        if not own and file is None:
            close = did_you_mean(weights, words)
            raise ConfigError(
                f"weights: expected none or a file, or a name ({other}); got {one_line(weights, 60)}{close}"
            )
    if own and own != "none" and count is not None:
        raise ConfigError(
            f"classes: expected with weights=FILE or weights=none; the weights of {place} know how many classes they have"
        )
    return (own if own and own != "none" else None), file, count


def different_names(names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    """Names of K classes, those that several share with their number behind; None if they are not K."""
    if names is None or len(names) != count:
        return None
    clean = [one_line(name, 60) for name in names]
    times = Counter(clean)
    return tuple(name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(clean))
