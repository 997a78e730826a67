"""What a model carries: the labels it is asked for, or the very images, in its attributes, closures and globals."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.audits.subject import Subject
from rdc.contracts.parts import found_in

__all__ = ["Contents", "answers_inside", "measure_contents"]

_LABELS = 16  # in a row that agree: of ten classes by chance once in 10^16
_MOST_ENTRIES = 2**31  # of a tensor that is looked through


@dataclasses.dataclass(frozen=True)
class Contents:
    """What was found inside.

    Args:
        labels: tensors, arrays and lists that hold the labels of these images in a row, with their shapes.
        images: tensors and arrays that hold some of these images.
        looked: tensors, arrays and lists looked at.
    """

    labels: tuple[str, ...]
    images: tuple[str, ...]
    looked: int


def measure_contents(subject: Subject) -> Contents:
    """Look for labels and images inside the model as it was given."""
    return answers_inside(subject.given, subject.pixels, subject.labels)


def answers_inside(model: Any, pixels: Tensor, labels: Tensor) -> Contents:
    """Look for labels and images inside a model.

    Args:
        model: anything; nothing of it is called.
        pixels, labels: [n, C, H, W] in [0, 1], [n]; at least 16 labels of more than one class, or labels are not looked for.

    Returns:
        What was found. A function's globals are looked at where its code names them.
    """
    x, y = pixels.detach().cpu(), labels.detach().cpu().tolist()
    of_labels, of_images, looked = [], [], 0
    for place, value in _values(model):
        looked += 1
        if len(y) >= _LABELS and len(set(y)) > 1 and _holds_labels(value, y):
            of_labels.append(place)
        if _holds_images(value, x):
            of_images.append(place)
    return Contents(tuple(of_labels), tuple(of_images), looked)


def _values(model: Any) -> Iterator[tuple[str, Any]]:
    """Tensors, arrays and lists of integers, each once: (what it is, the value)."""
    functions = found_in(model, types.FunctionType)
    waiting = [model, *_globals(model), *(part for made in functions for part in _globals(made))]
    seen: set[int] = set()
    while waiting:
        root = waiting.pop(0)
        inside = [value for kind in (Tensor, np.ndarray, list, tuple) for value in found_in(root, kind)]
        for value in (root, *inside):
            if id(value) in seen or not isinstance(value, (Tensor, np.ndarray, list, tuple)):
                continue
            seen.add(id(value))
            if isinstance(value, (list, tuple)):
                if len(value) >= _LABELS and all(type(one) is int and 0 <= one < 2**31 for one in value):
                    yield f"{type(value).__name__} of {len(value)}", torch.tensor(value)
                elif value is not root:
                    waiting.append(value)  # a list in a list is not looked into by itself
                continue
            tensor = value if isinstance(value, Tensor) else _as_tensor(value)
            if tensor is not None and 0 < tensor.numel() < _MOST_ENTRIES:
                yield f"{type(value).__name__} {list(value.shape)}", tensor.detach().cpu()


def _as_tensor(value: np.ndarray) -> Tensor | None:
    try:
        return torch.from_numpy(value)
    except (TypeError, ValueError):  # of objects, of another byte order
        return None


def _globals(function: Any) -> list[Any]:
    """What a function's code names of its module's globals, but for functions and modules."""
    if not isinstance(function, types.FunctionType):
        return []
    named = (function.__globals__.get(name) for name in function.__code__.co_names)
    return [value for value in named if isinstance(value, (Tensor, np.ndarray, list, tuple, dict))]


def _holds_labels(value: Tensor, labels: list[int]) -> bool:
    if value.ndim != 1 or len(value) < len(labels) or value.is_floating_point() or value.dtype == torch.bool:
        return False
    rows = value.to(torch.int64).unfold(0, len(labels), 1)
    return bool((rows == torch.tensor(labels)).all(1).any())


def _holds_images(value: Tensor, x: Tensor) -> bool:
    """Rows equal to one of the first images, as pixels in [0, 1], as whole levels, or on the scale of a diffusion model."""
    size = x[0].numel()
    if value.ndim < 2 or value.shape[0] < 1 or value[0].numel() != size or value.dtype == torch.bool:
        return False
    rows = value.reshape(len(value), size)
    for image in x[:4].flatten(1):
        if float(image.max()) == float(image.min()):
            continue
        for shown in (image, (255 * image).round(), 2 * image - 1):
            near = (rows[:, :64].double() - shown[:64].double()).abs().amax(1) < 1e-5
            if bool(near.any()) and bool(((rows[near].double() - shown.double()).abs().amax(1) < 1e-5).any()):
                return True
    return False
