"""What the classes of an evaluation are called: a model can know more classes than the data set, and call them otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from rdc.contracts import Defence
from rdc.data import Dataset

__all__ = ["names_of_classes", "names_that_differ"]


def names_of_classes(classifier: Defence, dataset: Dataset) -> tuple[str, ...]:
    """A name for each of the model's classes and of the data set's.

    The data set's names, where it has one for each class that the model knows; else the model's own; what neither has is called by
    its number.

    Args:
        classifier: the defence, of K classes.
        dataset: its images.
    """
    data, count = tuple(map(str, dataset.class_names)), classifier.num_classes
    if len(data) >= count:
        return data
    model = _own_names(classifier)
    names = model if model is not None else data
    return (*names, *(str(k) for k in range(len(names), count)))


def names_that_differ(classifier: Defence, dataset: Dataset) -> list[tuple[str, str]]:
    """Pairs (the data set's name, the model's name) of classes that they call differently; numbers are no names."""
    model, data = _own_names(classifier), tuple(map(str, dataset.class_names))
    if model is None or _numbered(data):
        return []
    return [pair for pair in zip(data, model, strict=False) if pair[0].strip().casefold() != pair[1].strip().casefold()]


def _own_names(classifier: Defence) -> tuple[str, ...] | None:
    """The model's names, if they are more than numbers."""
    return None if _numbered(classifier.class_names) else classifier.class_names


def _numbered(names: Sequence[str]) -> bool:
    return all(name == str(k) for k, name in enumerate(names))
