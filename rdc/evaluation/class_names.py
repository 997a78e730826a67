"""What the classes of an evaluation are called: a model can know more classes than the data set, and call them otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["names_of_classes", "names_that_differ"]


def names_of_classes(classifier: Any, dataset: Any) -> tuple[str, ...]:
    """A name for each of the model's classes and of the data set's.

    The data set's names, where it has one for each class that the model knows; else the model's own; what neither has is called by
    its number.

    Args:
        classifier: has ``num_classes`` K, and may have ``class_names``.
        dataset: has ``class_names``.
    """
    data, count = tuple(map(str, dataset.class_names)), int(classifier.num_classes)
    if len(data) >= count:
        return data
    model = _own_names(classifier)
    names = model if model is not None else data
    return (*names, *(str(k) for k in range(len(names), count)))


def names_that_differ(classifier: Any, dataset: Any) -> list[tuple[str, str]]:
    """Pairs (the data set's name, the model's name) of classes that they call differently; numbers are no names."""
    model, data = _own_names(classifier), tuple(map(str, dataset.class_names))
    if model is None or _numbered(data):
        return []
    return [pair for pair in zip(data, model, strict=False) if pair[0].strip().casefold() != pair[1].strip().casefold()]


def _own_names(classifier: Any) -> tuple[str, ...] | None:
    """The model's names, if it has one for each class and they are more than numbers."""
    names = getattr(classifier, "class_names", None)
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) != int(classifier.num_classes):
        return None
    found = tuple(map(str, names))
    return None if _numbered(found) else found


def _numbered(names: Sequence[str]) -> bool:
    return all(name == str(k) for k, name in enumerate(names))
