"""What is inside something that somebody put together: finding objects of a kind in it, and a copy with others in their place.

Looked into: modules and their attributes, lists, tuples and dictionaries, ``functools.partial``, bound methods, what a function closes
over, and the attributes of other objects. Not looked into: a function's globals. Nothing is called, and an object of the kind that is
looked for is not looked into.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from rdc.errors import ConfigError, one_line

__all__ = ["found_in", "put_in_place"]

Kind = TypeVar("Kind")

_DEEPEST, _LONGEST = 40, 1000  # steps from the outside; entries of a container that is looked into
_OF_MODULES = frozenset(vars(nn.Module())) - {"_modules"}  # torch's own tables and flags
_NEVER = (type, types.ModuleType, types.BuiltinFunctionType, torch.Tensor, str, bytes, int, float, complex, bool)


def found_in(root: Any, kind: type[Kind]) -> tuple[Kind, ...]:
    """Objects of a kind inside ``root``, each once, in the order in which they are found.

    Args:
        root: anything; it is looked into, whatever it is.
        kind: a class.
    """
    found, _ = _graph(root, kind)
    return tuple(found.values())


def put_in_place(root: Any, others: Mapping[int, Any], kind: type[Any]) -> None:
    """Put other objects in place of some that are inside ``root``, which is changed.

    What leads to them is copied, so that nobody else's changes; everything beside is shared.

    Args:
        root: an object with attributes.
        others: ``id`` of an object that :func:`found_in` gave, or of one that stands for ``root`` -> what takes its place.
        kind: what is not looked into.

    Raises:
        ConfigError: something on the way cannot be copied.
    """
    _, parents = _graph(root, kind)
    affected, waiting = set[int](), [identity for identity in others if identity in parents]
    while waiting:
        for parent in parents.get(waiting.pop(), ()):
            if parent not in affected:
                affected.add(parent)
                waiting.append(parent)
    done: dict[int, Any] = {**others, id(root): root}

    def other(thing: Any) -> Any:
        if id(thing) not in done and id(thing) in affected:
            try:
                _copy(thing, other, done)
            except ConfigError:
                raise
            except Exception as error:  # __copy__ is somebody's code
                raise ConfigError(
                    f"model: a {type(thing).__name__} holds a defence of rdc and cannot be copied ({type(error).__name__}: "
                    f"{one_line(error, 120)}); its noise cannot be set. Make it a torch.nn.Module with the defence as a submodule"
                ) from error
        return done.get(id(thing), thing)

    _fill(root, root, other)


def _graph(root: Any, kind: type[Kind]) -> tuple[dict[int, Kind], dict[int, list[int]]]:
    """Objects of the kind by ``id``; and of everything inside, from whose attributes, entries or cells it is reached."""
    found: dict[int, Kind] = {}
    parents: dict[int, list[int]] = {}
    seen: dict[int, Any] = {id(root): root}

    def look(into: Any, depth: int) -> None:
        for _, inside in _entries(into):
            if inside is root:
                parents.setdefault(id(inside), []).append(id(into))
                continue
            if isinstance(inside, kind):
                found.setdefault(id(inside), inside)
            parents.setdefault(id(inside), []).append(id(into))
            if id(inside) not in seen and not isinstance(inside, kind) and depth < _DEEPEST:
                seen[id(inside)] = inside
                look(inside, depth + 1)

    look(root, 0)
    return found, parents


def _entries(thing: Any) -> Iterator[tuple[Any, Any]]:
    """(place, what is there) of everything one step inside."""
    if thing is None or isinstance(thing, _NEVER):
        return
    if isinstance(thing, types.FunctionType):
        for place, cell in enumerate(thing.__closure__ or ()):
            try:
                yield place, cell.cell_contents
            except ValueError:  # not filled yet
                continue
    elif isinstance(thing, types.MethodType):
        yield "__self__", thing.__self__
    elif isinstance(thing, functools.partial):
        yield "func", thing.func
        yield "args", thing.args
        yield "keywords", thing.keywords
    elif isinstance(thing, dict):
        yield from list(thing.items()) if len(thing) <= _LONGEST else ()
    elif isinstance(thing, (list, tuple)):
        yield from enumerate(thing) if len(thing) <= _LONGEST else ()
    else:
        table = getattr(thing, "__dict__", None)
        module = isinstance(thing, nn.Module)
        for name, inside in list(table.items()) if isinstance(table, dict) else ():
            if not (module and name in _OF_MODULES):
                yield name, inside


def _copy(thing: Any, other: Callable[[Any], Any], done: dict[int, Any]) -> None:
    """A copy with other objects inside, into ``done``; of what may lead back to itself, before what is inside is looked at."""
    made: Any
    if isinstance(thing, types.FunctionType):
        cells = [_cell(cell, other) for cell in thing.__closure__ or ()]
        made = types.FunctionType(thing.__code__, thing.__globals__, thing.__name__, thing.__defaults__, tuple(cells))
        made.__kwdefaults__ = thing.__kwdefaults__
        made.__dict__.update(thing.__dict__)
    elif isinstance(thing, types.MethodType):
        made = types.MethodType(thing.__func__, other(thing.__self__))
    elif isinstance(thing, functools.partial):
        made = functools.partial(other(thing.func), *other(thing.args), **other(thing.keywords))
    elif isinstance(thing, tuple):
        items = [other(inside) for inside in thing]
        made = type(thing)(*items) if hasattr(thing, "_fields") else tuple(items)
    else:
        done[id(thing)] = made = copy.copy(thing)
        _fill(made, thing, other)
    done[id(thing)] = made


def _cell(cell: types.CellType, other: Callable[[Any], Any]) -> types.CellType:
    """The cell itself where nothing changes: functions share what they assign to."""
    try:
        inside = cell.cell_contents
    except ValueError:  # not filled yet
        return cell
    changed = other(inside)
    return cell if changed is inside else types.CellType(changed)


def _fill(made: Any, thing: Any, other: Callable[[Any], Any]) -> None:
    """What is inside ``thing``, or in its place, into ``made``: attributes, or the entries of a list or dictionary."""
    if (
        isinstance(thing, nn.Module) and made is not thing
    ):  # a copy shares these tables, and what it is given would reach the other
        for table in ("_modules", "_parameters", "_buffers"):
            made.__dict__[table] = dict(thing.__dict__[table])
    into = made if isinstance(thing, (list, dict)) else made.__dict__
    for place, inside in list(_entries(thing)):
        changed = other(inside)
        if changed is not inside:
            into[place] = changed
