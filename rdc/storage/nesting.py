"""What was read from a file may be walked through: its containers are no deeper, and no larger, than stated.

Containers built from a file can contain themselves, and a tuple of the same tuple twice, sixty times over, has 2**60 parts for
whoever walks through it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["DEPTH", "PARTS", "Stub", "check_nesting"]

DEPTH = 200  #: levels of containers in containers
PARTS = 1_000_000  #: parts when written out in full: what is referred to twice counts twice


class Stub:
    """What is kept of a pickled object: its class's name, constructor arguments and state. Nothing can be called."""

    __slots__ = ("args", "class_name", "state")

    def __init__(self, class_name: str, args: tuple[Any, ...] = (), state: Any = None) -> None:
        self.class_name, self.args, self.state = class_name, args, state


def check_nesting(found: Any) -> None:
    """Refuse what contains itself, is nested too deeply, or has too many parts when written out in full.

    Raises:
        ValueError: it does.
    """
    known: dict[int, tuple[int, int]] = {}  # container -> (levels below it, parts)
    open_containers = {id(found)}
    walk = [_Open(found, _parts(found) or ())]
    while walk:
        here = walk[-1]
        for part in here.left:
            parts = _parts(part)
            if parts is None:
                here.count += 1
                continue
            if id(part) not in known:
                if id(part) in open_containers:
                    raise ValueError("something that contains itself")
                if len(walk) >= DEPTH:
                    raise ValueError(f"nested more than {DEPTH} levels deep")
                open_containers.add(id(part))
                walk.append(_Open(part, parts))
                break
            levels, count = known[id(part)]
            here.add(levels, count)
        else:
            walk.pop()
            if here.count > PARTS or len(walk) + here.levels > DEPTH:
                raise ValueError(f"more than {PARTS:,} parts or {DEPTH} levels")
            known[here.place] = here.levels, here.count
            open_containers.discard(here.place)
            if walk:
                walk[-1].add(here.levels, here.count)


class _Open:
    """A container that is being walked through: parts left to see, levels below it and parts in full so far."""

    __slots__ = ("count", "left", "levels", "place")

    def __init__(self, container: Any, parts: Iterable[Any]) -> None:
        self.place, self.left, self.levels, self.count = id(container), iter(parts), 0, 1

    def add(self, levels: int, count: int) -> None:
        """Take in a container inside."""
        self.levels, self.count = max(self.levels, levels + 1), self.count + count


def _parts(value: Any) -> Iterable[Any] | None:
    """What a container contains; None for anything else."""
    kind = type(value)
    parts: Iterable[Any] | None = None
    if kind in (list, tuple, set, frozenset):
        parts = value
    elif kind is dict:
        parts = value.values()
    elif kind is Stub:
        parts = (value.args, value.state)
    return parts
