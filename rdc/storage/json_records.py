"""Frozen dataclasses that are one JSON object each: read with checks, written as they were read.

@dataclasses.dataclass(frozen=True)
class Decision(JsonRecord):
    predicted: int = entry(integer(0))
    right: float = entry(number(0, 1))

Decision.from_json({"predicted": 3, "right": 1.0}, "image 7.clean").to_json()
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from rdc.errors import one_line
from rdc.storage.structure import Check, mapping, sequence

__all__ = ["ABSENT", "Absent", "JsonObject", "JsonRecord", "JsonValue", "Readable", "anything", "entry", "given"]

#: a JSON value of a form that somebody else decides
JsonValue = Any
#: a JSON object of a form that somebody else decides
JsonObject = dict[str, JsonValue]

_R = TypeVar("_R", bound="JsonRecord")
_T = TypeVar("_T")
_ENTRY = "rdc entry"
_KNOWN: dict[type, dict[str, tuple[_Entry, bool]]] = {}  # by class: looked up for every record


@runtime_checkable
class Readable(Protocol):
    """What can be a part of a record: a :class:`JsonRecord`, or another class that reads and writes a JSON object."""

    @classmethod
    def from_json(cls, value: object, where: str) -> Readable: ...

    def to_json(self) -> JsonObject: ...


class Absent(enum.Enum):
    """The key is not there, which is not the same as null."""

    ABSENT = "absent"

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent.ABSENT


def given(value: _T | Absent) -> _T | None:
    """``value``, or None where it is absent."""
    return None if isinstance(value, Absent) else value


def anything(value: object, where: str) -> None:
    """A check that everything passes."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    check: Check
    of: type[Readable] | None
    many: bool
    keyed: bool
    nullable: bool

    def read(self, value: object, where: str) -> Any:
        if self.of is None:
            self.check(value, where)
            return tuple(value) if isinstance(value, list) else value
        if value is None and self.nullable:
            return None
        if self.keyed:
            mapping(anything)(value, where)
            assert isinstance(value, dict)
            return {key: self.of.from_json(item, f"{where}.{key}") for key, item in value.items()}
        if not self.many:
            return self.of.from_json(value, where)
        (sequence(anything) if self.check is anything else self.check)(value, where)
        assert isinstance(value, list)
        return tuple(self.of.from_json(item, f"{where}[{place}]") for place, item in enumerate(value))


def entry(
    check: Check = anything,
    *,
    of: type[Readable] | None = None,
    many: bool = False,
    keyed: bool = False,
    nullable: bool = False,
    absent: bool = False,
) -> Any:
    """A key of a record, as the default of a dataclass field of the same name.

    Args:
        check: what its value must be, see :mod:`rdc.storage.structure`.
        of: the value is an object of this kind.
        many: a list of them; it is kept as a tuple.
        keyed: an object of any keys whose values they are.
        nullable: null is allowed in place of an object.
        absent: the key may be missing; the field is then :data:`ABSENT`, which is also its default.
    """
    metadata = {_ENTRY: _Entry(check, of, many, keyed, nullable)}
    if absent:
        return dataclasses.field(default=ABSENT, metadata=metadata)
    return dataclasses.field(metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonRecord:
    """A JSON object; subclasses are frozen dataclasses whose fields are made by :func:`entry`.

    Args:
        further: keys that this version does not know; they are kept, and written after the others.
    """

    further: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls: type[_R], value: object, where: str) -> _R:
        """The record in a JSON value.

        Args:
            value: what was read.
            where: what to call it in errors.

        Raises:
            ValueError: what was expected, where, and what came; in one line.
        """
        mapping(anything)(value, where)
        assert isinstance(value, dict)
        found: dict[str, Any] = {}
        for name, (item, required) in _entries(cls).items():
            if name in value:
                found[name] = item.read(value[name], f"{where}.{name}")
            elif required:
                raise ValueError(f"{one_line(where, 120)}: {name} is missing")
        return cls(**found, further={key: value[key] for key in value if key not in found})

    def to_json(self) -> JsonObject:
        """The JSON object, keys in the order of the fields; nothing in it is shared with the record."""
        found = {}
        for name in _entries(type(self)):
            value = getattr(self, name)
            if value is not ABSENT:
                found[name] = _plain(value)
        return {**found, **{key: _plain(value) for key, value in self.further.items()}}


def _entries(kind: type[JsonRecord]) -> dict[str, tuple[_Entry, bool]]:
    """Name of a field -> (how to read it, whether it must be there)."""
    if kind not in _KNOWN:
        fields = [field for field in dataclasses.fields(kind) if _ENTRY in field.metadata]
        found = {field.name: (field.metadata[_ENTRY], field.default is dataclasses.MISSING) for field in fields}
        _KNOWN[kind] = found
    return _KNOWN[kind]


def _plain(value: Any) -> JsonValue:
    if isinstance(value, Readable):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
