"""Frozen dataclasses that are JSON objects: what is read is checked, kept and written as it was."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rdc.storage.json_records import ABSENT, JsonRecord, entry, given
from rdc.storage.structure import integer, number, optional, sequence, text


@dataclasses.dataclass(frozen=True)
class Point(JsonRecord):
    """Two coordinates."""

    x: float = entry(number())
    y: float = entry(number())


@dataclasses.dataclass(frozen=True)
class Shape(JsonRecord):
    """A bit of everything."""

    name: str = entry(text())
    corners: tuple[Point, ...] = entry(of=Point, many=True)
    centre: Point | None = entry(of=Point, nullable=True)
    tags: tuple[str, ...] = entry(sequence(text()))
    ends: tuple[Point, ...] = entry(sequence(lambda value, where: None, 2, 2), of=Point, many=True, absent=True)
    weight: float | None = entry(optional(number(0)), absent=True)
    order: int = entry(integer(0), absent=True)
    named: dict[str, Point] = entry(of=Point, keyed=True, absent=True)


JSON = {
    "name": "line",
    "corners": [{"x": 1, "y": 2.5}],
    "centre": None,
    "tags": ["a", "b"],
    "weight": None,
    "named": {"b": {"x": 0, "y": 0}, "a": {"x": 1, "y": 1}},
    "colour": {"later": [1, {"a": (2)}]},
}


def test_what_is_read_is_written_letter_by_letter():
    shape = Shape.from_json(JSON, "shape")
    assert json.dumps(shape.to_json()) == json.dumps(JSON)
    assert (shape.corners, shape.tags, shape.centre, shape.weight) == ((Point(1, 2.5),), ("a", "b"), None, None)
    assert shape.named == {"b": Point(0, 0), "a": Point(1, 1)}
    assert shape.ends is ABSENT and shape.order is ABSENT and shape.further == {"colour": {"later": [1, {"a": 2}]}}
    assert Shape.from_json(shape.to_json(), "shape") == shape


def test_absent_is_not_null():
    assert not ABSENT and given(ABSENT) is None and given(0) == 0 and repr(ABSENT) == "ABSENT"
    without = {key: value for key, value in JSON.items() if key != "weight"}
    assert Shape.from_json(without, "shape").weight is ABSENT
    assert Shape.from_json(without, "shape") != Shape.from_json(JSON, "shape")
    assert "weight" not in Shape.from_json(without, "shape").to_json()


def test_nothing_is_shared_with_what_was_written():
    shape = Shape.from_json(JSON, "shape")
    shape.to_json()["colour"]["later"].append(2)
    shape.to_json()["corners"][0]["x"] = 7
    assert shape == Shape.from_json(JSON, "shape")
    with pytest.raises(dataclasses.FrozenInstanceError):
        shape.name = "other"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": 3}, "shape.name: expected a text; got 3"),
        ({"corners": {}}, "shape.corners: expected a list of 0 or more; got {}"),
        ({"corners": [{"x": 1}]}, r"shape.corners\[0\]: y is missing"),
        ({"corners": [{"x": 1, "y": None}]}, r"shape.corners\[0\].y: expected a number; got None"),
        ({"corners": ["x"]}, r"shape.corners\[0\]: expected an object; got 'x'"),
        ({"centre": 1}, "shape.centre: expected an object; got 1"),
        ({"tags": ["a", 1]}, r"shape.tags\[1\]: expected a text; got 1"),
        ({"ends": [{"x": 1, "y": 1}]}, "shape.ends: expected a list of 2; got"),
        ({"weight": -1}, "shape.weight: expected a number >= 0; got -1"),
        ({"named": []}, r"shape.named: expected an object; got \[\]"),
        ({"named": {"a": {"x": 0}}}, "shape.named.a: y is missing"),
        ({"order": True}, "shape.order: expected an integer >= 0; got True"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        Shape.from_json({**JSON, **changes}, "shape")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["name", "corners", "centre", "tags"])
def test_what_must_be_there(key):
    with pytest.raises(ValueError, match=f"shape: {key} is missing"):
        Shape.from_json({name: value for name, value in JSON.items() if name != key}, "shape")


@pytest.mark.parametrize("value", [None, [], "text", 1])
def test_only_an_object_is_a_record(value):
    with pytest.raises(ValueError, match="shape: expected an object"):
        Shape.from_json(value, "shape")
