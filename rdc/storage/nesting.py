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

    def __init__(self, class_name: str, args: tuple = (), state: Any = None) -> None:
        self.class_name, self.args, self.state = class_name, args, state


def check_nesting(found: Any) -> None:
    """Refuse what contains itself, is nested too deeply, or has too many parts when written out in full.

    Raises:
        ValueError: it does.
    """
    known: dict[int, tuple[int, int]] = {}  # container -> (levels below it, parts)
    open_containers = {id(found)}
    walk = [[id(found), iter(_parts(found) or ()), 0, 1]]
    while walk:
        here = walk[-1]
        for part in here[1]:
            parts = _parts(part)
            if parts is None:
                here[3] += 1
                continue
            if id(part) not in known:
                if id(part) in open_containers:
                    raise ValueError("something that contains itself")
                if len(walk) >= DEPTH:
                    raise ValueError(f"nested more than {DEPTH} levels deep")
                open_containers.add(id(part))
                walk.append([id(part), iter(parts), 0, 1])
                break
            levels, count = known[id(part)]
            here[2], here[3] = max(here[2], levels + 1), here[3] + count
        else:
            walk.pop()
            if here[3] > PARTS or len(walk) + here[2] > DEPTH:
                raise ValueError(f"more than {PARTS:,} parts or {DEPTH} levels")
            known[here[0]] = here[2], here[3]
            open_containers.discard(here[0])
            if walk:
                walk[-1][2], walk[-1][3] = max(walk[-1][2], here[2] + 1), walk[-1][3] + here[3]


def _parts(value: Any) -> Iterable[Any] | None:
    """What a container contains; None for anything else."""
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        return value
    if kind is dict:
        return value.values()
    return (value.args, value.state) if kind is Stub else None
