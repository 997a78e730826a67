"""What an ONNX file holds, read before onnxruntime builds anything of it: its properties, and nothing that could do harm.

onnxruntime reads weights from other files where a model says so, and unpacks what a model describes by few bytes (sparse weights,
shapes of any size). Files of ``rdc export`` have neither, so both are refused here.

Source: the message definitions of onnx.proto3 (IR version 8) and the wire format of Protocol Buffers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rdc.errors import CheckpointError
from rdc.storage.reading import Budget

__all__ = ["read_properties"]

_MOST_FIELDS = 200_000
_DEEPEST = 8  # graphs inside graphs
_WORD = 10_000  # bytes of a name
_SHAPE = 64  # bytes of a shape: eight axes
_PROPERTIES = 8 * 2**20  # bytes of all properties
_INT64 = 7
_INFLATING = {"Expand": 1, "Tile": 1, "ConstantOfShape": 0}  # operator -> which input is a shape


class _Message:
    """A message's fields, one level deep."""

    def __init__(self, content: memoryview, left: list[int]) -> None:
        self.content, self.left = content, left

    def fields(self) -> Iterator[tuple[int, int | memoryview]]:
        """(number, integer or bytes) of each field, in order."""
        at, content = 0, self.content
        while at < len(content):
            self.left[0] -= 1
            if self.left[0] < 0:
                raise ValueError(f"more than {_MOST_FIELDS:,} parts")
            value: int | memoryview
            key, at = _varint(content, at)
            number, kind = key >> 3, key & 7
            if kind == 0:
                value, at = _varint(content, at)
            elif kind in (1, 2, 5):
                size = 8 if kind == 1 else 4
                if kind == 2:
                    size, at = _varint(content, at)
                if size > len(content) - at:
                    raise ValueError("a part is longer than what is around it")
                value, at = content[at : at + size], at + size
            else:
                raise ValueError(f"a part of the unknown kind {kind}")
            yield number, value

    def parts(self, number: int) -> Iterator[_Message]:
        """The messages in the fields of this number."""
        for found, value in self.fields():
            if found == number and isinstance(value, memoryview):
                yield _Message(value, self.left)

    def texts(self, number: int, limit: int = _WORD) -> list[str]:
        """The texts in the fields of this number."""
        values = [value for found, value in self.fields() if found == number and isinstance(value, memoryview)]
        if any(len(value) > limit for value in values):
            raise ValueError(f"a name of more than {limit:,} bytes")
        return [bytes(value).decode() for value in values]


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = content[at]  # IndexError: cut short
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")


def read_properties(content: bytes, name: str) -> dict[str, str]:
    """The metadata properties of an ONNX model.

    Args:
        content: the file.
        name: what to call it in errors.

    Returns:
        Key -> value, both text.

    Raises:
        CheckpointError: it takes weights from other files, or unpacks to more than ``rdc.storage.reading`` allows a file of its size.
        ValueError, IndexError: it is no such model.
    """
    budget = Budget(name, len(content), CheckpointError)
    model = _Message(memoryview(content), [_MOST_FIELDS])
    for number, _ in model.fields():
        if number in (20, 25):
            raise CheckpointError(f"{name}: has training information or functions of its own; rdc export writes none")
    for graph in model.parts(7):
        _check_graph(graph, budget, 0)
    found: dict[str, str] = {}
    for entry in model.parts(14):
        (key,), value = entry.texts(1), "".join(entry.texts(2, _PROPERTIES))
        if key in found:
            raise ValueError(f"the property {key[:40]} is there twice")
        found[key] = value
    return found


def _check_graph(graph: _Message, budget: Budget, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("graphs nested too deeply")
    shapes: dict[str, int] = {}
    for number, value in graph.fields():
        if number == 15:
            raise CheckpointError(f"{budget.name}: has sparse weights; rdc export writes none")
        if number == 5 and isinstance(value, memoryview):
            _check_tensor(_Message(value, graph.left), budget, shapes)
    for node in graph.parts(1):
        (kind,) = node.texts(4) or [""]
        inputs = node.texts(1) if kind in _INFLATING else []
        place = _INFLATING.get(kind, 0)
        if place < len(inputs) and inputs[place] in shapes:
            budget.take(4 * shapes[inputs[place]], f"what {kind} makes of a constant")
        for attribute in node.parts(5):
            for number, value in attribute.fields():
                if number in (22, 23):
                    raise CheckpointError(f"{budget.name}: has sparse weights; rdc export writes none")
                if number in (5, 10) and isinstance(value, memoryview):
                    _check_tensor(_Message(value, graph.left), budget, {})
                if number in (6, 11) and isinstance(value, memoryview):
                    _check_graph(_Message(value, graph.left), budget, depth + 1)


def _check_tensor(tensor: _Message, budget: Budget, shapes: dict[str, int]) -> None:
    """Refuse data in other files; note the product of a short list of integers, which may be a shape."""
    kind, name, raw = 0, "", b""
    for number, value in tensor.fields():
        if number == 13 or (number == 14 and value):
            raise CheckpointError(f"{budget.name}: takes weights from other files; rdc export writes all into one")
        if number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and isinstance(value, memoryview):
            name = bytes(value[:_WORD]).decode()
        elif number == 9 and isinstance(value, memoryview) and len(value) <= _SHAPE:
            raw = bytes(value)
    if kind == _INT64 and raw and len(raw) % 8 == 0:
        sizes = [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]
        shapes[name] = abs(math.prod(sizes))
