"""Pickles as data: a machine for the instructions of all protocols that builds containers, numbers and text, and runs nothing.

The standard library's unpicklers believe what a file says about itself: one takes a size from it and allocates, both hash and
compare whatever is put into a dict, and a few thousand nested tuples used as a key overflow the C stack. Here

- every length is compared with what is left of the file before anything is made;
- keys of dicts and members of sets are text, bytes, numbers, True, False or None;
- what comes out may be walked through: nothing contains itself, and depth and size are bounded (:mod:`rdc.storage.nesting`);
- a name is looked up in a table of the reader's own, never imported; no attribute of anything is read or set.

Source: the comments of the standard library's ``pickletools``, which define the instructions.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable, Iterable
from typing import Any

from rdc.storage.nesting import check_nesting

__all__ = ["STEPS", "ForbiddenName", "Machine", "Name"]

STEPS = 500_000  #: instructions
_LONGEST_NUMBER = 640  # characters of a number written in digits: 255 bytes, the most that pickle writes otherwise
_LONGEST_NAME = 1000
_LARGEST_KEY = 2**60  # as hashes go modulo 2**61 - 1, larger ones can be made to collide
_STOP = pickle.STOP[0]
_KEYS = (str, bytes, int, float, bool, type(None))


class ForbiddenName(Exception):
    """The pickle names something that the reader does not know; nothing was imported."""


class Name:
    """What a name in a pickle stands for: what to call in its place, out of the pickle's reach.

    Args:
        label: ``module.name``.
        build: called with the arguments that the pickle gives.
    """

    __slots__ = ("build", "label")

    def __init__(self, label: str, build: Callable[..., Any]) -> None:
        self.label, self.build = label, build


class Machine:
    """Reads one pickle, or several in a row.

    What names, objects and states mean is left to subclasses: here each of them is refused.

    Args:
        content: the file, or the part of it to read.
        start: where in ``content`` the first pickle starts.
        steps: most instructions, all pickles together.

    Attributes:
        at: where the next pickle starts.
        text_of_bytes: what Python 2's ``str`` becomes: bytes, or text of the same codes.
    """

    text_of_bytes = False

    def __init__(self, content: bytes, start: int = 0, steps: int = STEPS) -> None:
        self.content, self.at, self.steps = content, start, steps
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below the marks
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """What the pickle at ``at`` holds.

        Raises:
            ForbiddenName: it names something unknown.
            EOFError: it ends too early.
            Exception: it is damaged in any other way, or breaks one of the rules above.
        """
        self._stack, self._below, self._memo = [], [], {}
        content, actions = self.content, _ACTIONS
        for left in range(self.steps, 0, -1):
            at = self.at
            if at >= len(content):
                raise EOFError("it ends before the last instruction")
            self.at = at + 1
            code = content[at]
            if code == _STOP:
                self.steps = left
                break
            actions[code](self)
        else:
            raise pickle.UnpicklingError(f"more than {STEPS:,} instructions")
        found = self._stack.pop()
        self._stack, self._below, self._memo = [], [], {}
        check_nesting(found)
        return found

    # What subclasses give a meaning.

    def name(self, module: str, name: str) -> Any:
        """What ``module.name`` stands for."""
        raise ForbiddenName(f"{module}.{name}")

    def persistent(self, reference: Any) -> Any:
        """What a reference to something outside the pickle stands for."""
        text = reference if isinstance(reference, (str, int)) else f"of type {type(reference).__name__}"
        raise ForbiddenName(f"the external object {text}")

    def new(self, maker: Any, args: Any, named: Any) -> Any:
        """An object of a class, without its constructor."""
        return self.refuse()

    def state(self, target: Any, state: Any) -> None:
        """Give an object its state."""
        kind = "name" if type(target) is Name else type(target).__name__
        raise pickle.UnpicklingError(f"state given to a {kind}")

    def odd_key(self, key: Any) -> None:
        """A key or member of another type than those above; if this returns, it is left out with its value."""
        raise pickle.UnpicklingError(
            f"a key that is a {type(key).__name__} or too large; expected text, bytes, a number, True, False or None"
        )

    def call(self, maker: Any, args: Any) -> Any:
        """What ``maker`` makes of the arguments."""
        if type(maker) is not Name or type(args) is not tuple:
            raise pickle.UnpicklingError(f"object made by a {type(maker).__name__}")
        return maker.build(*args)

    def add(self, target: Any, items: list[Any]) -> None:
        """Append to a list, or add to a set."""
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(self.keys(items))
        else:
            raise pickle.UnpicklingError(f"items added to a {type(target).__name__}")

    def put(self, target: Any, items: list[Any]) -> None:
        """Keys and values, alternating, into a dict."""
        if type(target) is not dict or len(items) % 2:
            raise pickle.UnpicklingError(f"{len(items):,} keys and values for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _is_key(key):
                target[key] = value
            else:
                self.odd_key(key)

    def keys(self, members: Iterable[Any]) -> list[Any]:
        """Those members that a set may have."""
        fit = []
        for member in members:
            if _is_key(member):
                fit.append(member)
            else:
                self.odd_key(member)
        return fit

    def refuse(self) -> Any:
        """Refuse an instruction."""
        raise pickle.UnpicklingError("an instruction that data does not use")

    # The file.

    def _bytes(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self.content):
            raise EOFError(f"{count:,} bytes announced, {len(self.content) - self.at:,} are left")
        found = bytes(self.content[self.at : end])
        self.at = end
        return found

    def _byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]

    def _counted(self, form: str) -> bytes:
        """Bytes behind their number, which is written in ``form``."""
        return self._bytes(self._number(form))

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _line(self, longest: int | None = None) -> bytes:
        end = self.content.find(b"\n", self.at)
        if end < 0:
            raise EOFError("it ends within a line")
        if longest is not None and end - self.at > longest:
            raise pickle.UnpicklingError(f"{end - self.at:,} characters; expected {longest} at most")
        line = bytes(self.content[self.at : end])
        self.at = end + 1
        return line

    def _digits(self) -> int:
        return int(self._line(_LONGEST_NUMBER).rstrip(b"L"))

    def _whole(self) -> int | bool:
        line = self._line(_LONGEST_NUMBER)
        return line == b"01" if line in (b"00", b"01") else int(line)

    def _large(self, form: str) -> int:
        count = self._number(form)
        if not 0 <= count < 256:
            raise pickle.UnpicklingError(f"a whole number of {count:,} bytes; expected 255 at most")
        return int.from_bytes(self._bytes(count), "little", signed=True)

    def _old_text(self, content: bytes) -> bytes | str:
        return content.decode("latin1") if self.text_of_bytes else content

    def _quoted(self) -> bytes | str:
        line = self._line().strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise pickle.UnpicklingError("text without its quotes")
        return self._old_text(codecs.escape_decode(line[1:-1])[0])

    def _global(self) -> Any:
        return self._named(*(self._line(_LONGEST_NAME).decode("utf-8") for _ in range(2)))

    def _old_instance(self) -> None:
        label = ".".join(self._line(_LONGEST_NAME).decode("utf-8") for _ in range(2))
        raise ForbiddenName(f"{label} by an instruction that data does not use")

    def _named(self, module: Any, name: Any) -> Any:
        module, name = (part.decode("latin1") if isinstance(part, bytes) else part for part in (module, name))
        if not isinstance(module, str) or not isinstance(name, str) or max(len(module), len(name)) > _LONGEST_NAME:
            raise pickle.UnpicklingError("a name that is no text, or too long")
        return self.name(module, name)

    # The stack.

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._below.pop()
        return items

    def _join(self, make: Callable[[list[Any]], Any]) -> None:
        made = make(self._to_mark())
        self._stack.append(made)

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError("a tuple of more than there is")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _add(self, items: list[Any]) -> None:
        self.add(self._stack[-1], items)

    def _put(self, items: list[Any]) -> None:
        self.put(self._stack[-1], items)

    def _dict(self, items: list[Any]) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        self.put(made, items)
        return made

    def _pair(self) -> list[Any]:
        value = self._stack.pop()
        return [self._stack.pop(), value]

    def _with_arguments(self, make: Callable[[Any, Any], Any]) -> None:
        args = self._stack.pop()
        self._stack[-1] = make(self._stack[-1], args)

    def _new_with_names(self) -> None:
        named, args = self._stack.pop(), self._stack.pop()
        self._stack[-1] = self.new(self._stack[-1], args, named)

    def _state(self) -> None:
        state = self._stack.pop()
        self.state(self._stack[-1], state)

    def _two(self) -> tuple[Any, Any]:
        name = self._stack.pop()
        return self._stack.pop(), name

    def _keep(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _protocol(self) -> None:
        if (version := self._byte()) > 5:
            raise pickle.UnpicklingError(f"protocol {version}; expected 0 to 5")

    def _extension(self, form: str) -> None:
        raise ForbiddenName(f"the registered object {self._number(form)}")


def _is_key(key: Any) -> bool:
    kind = type(key)
    return kind in _KEYS and (kind is not int or -_LARGEST_KEY < key < _LARGEST_KEY)


def _utf8(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda m: m._stack.append(value)


_INSTRUCTIONS: dict[int, Callable[[Machine], Any]] = {
    code[0]: action
    for code, action in {
        pickle.PROTO: Machine._protocol,
        pickle.FRAME: lambda m: m._bytes(8),  # frames are a hint for reading ahead
        pickle.NONE: _constant(None),
        pickle.NEWTRUE: _constant(True),
        pickle.NEWFALSE: _constant(False),
        pickle.INT: lambda m: m._stack.append(m._whole()),
        pickle.LONG: lambda m: m._stack.append(m._digits()),
        pickle.FLOAT: lambda m: m._stack.append(float(m._line(_LONGEST_NUMBER))),
        pickle.BININT: lambda m: m._stack.append(m._number("<i")),
        pickle.BININT1: lambda m: m._stack.append(m._byte()),
        pickle.BININT2: lambda m: m._stack.append(m._number("<H")),
        pickle.BINFLOAT: lambda m: m._stack.append(m._number(">d")),
        pickle.LONG1: lambda m: m._stack.append(m._large("<B")),
        pickle.LONG4: lambda m: m._stack.append(m._large("<i")),
        pickle.STRING: lambda m: m._stack.append(m._quoted()),
        pickle.BINSTRING: lambda m: m._stack.append(m._old_text(m._counted("<i"))),
        pickle.SHORT_BINSTRING: lambda m: m._stack.append(m._old_text(m._counted("<B"))),
        pickle.BINBYTES: lambda m: m._stack.append(m._counted("<I")),
        pickle.SHORT_BINBYTES: lambda m: m._stack.append(m._counted("<B")),
        pickle.BINBYTES8: lambda m: m._stack.append(m._counted("<Q")),
        pickle.BYTEARRAY8: lambda m: m._stack.append(bytearray(m._counted("<Q"))),
        pickle.UNICODE: lambda m: m._stack.append(m._line().decode("raw-unicode-escape")),
        pickle.BINUNICODE: lambda m: m._stack.append(_utf8(m._counted("<I"))),
        pickle.SHORT_BINUNICODE: lambda m: m._stack.append(_utf8(m._counted("<B"))),
        pickle.BINUNICODE8: lambda m: m._stack.append(_utf8(m._counted("<Q"))),
        pickle.MARK: Machine._mark,
        pickle.POP: Machine._pop,
        pickle.POP_MARK: Machine._to_mark,
        pickle.DUP: lambda m: m._stack.append(m._stack[-1]),
        pickle.EMPTY_LIST: lambda m: m._stack.append([]),
        pickle.LIST: lambda m: m._join(list),
        pickle.APPEND: lambda m: m._add([m._stack.pop()]),
        pickle.APPENDS: lambda m: m._add(m._to_mark()),
        pickle.EMPTY_TUPLE: _constant(()),
        pickle.TUPLE: lambda m: m._join(tuple),
        pickle.TUPLE1: lambda m: m._tuple(1),
        pickle.TUPLE2: lambda m: m._tuple(2),
        pickle.TUPLE3: lambda m: m._tuple(3),
        pickle.EMPTY_DICT: lambda m: m._stack.append({}),
        pickle.DICT: lambda m: m._join(m._dict),
        pickle.SETITEM: lambda m: m._put(m._pair()),
        pickle.SETITEMS: lambda m: m._put(m._to_mark()),
        pickle.EMPTY_SET: lambda m: m._stack.append(set()),
        pickle.ADDITEMS: lambda m: m._add(m._to_mark()),
        pickle.FROZENSET: lambda m: m._join(lambda members: frozenset(m.keys(members))),
        pickle.GET: lambda m: m._stack.append(m._memo[m._digits()]),
        pickle.BINGET: lambda m: m._stack.append(m._memo[m._byte()]),
        pickle.LONG_BINGET: lambda m: m._stack.append(m._memo[m._number("<I")]),
        pickle.PUT: lambda m: m._keep(m._digits()),
        pickle.BINPUT: lambda m: m._keep(m._byte()),
        pickle.LONG_BINPUT: lambda m: m._keep(m._number("<I")),
        pickle.MEMOIZE: lambda m: m._keep(len(m._memo)),
        pickle.GLOBAL: lambda m: m._stack.append(m._global()),
        pickle.STACK_GLOBAL: lambda m: m._stack.append(m._named(*m._two())),
        pickle.INST: Machine._old_instance,
        pickle.REDUCE: lambda m: m._with_arguments(m.call),
        pickle.NEWOBJ: lambda m: m._with_arguments(lambda maker, args: m.new(maker, args, {})),
        pickle.NEWOBJ_EX: Machine._new_with_names,
        pickle.BUILD: Machine._state,
        pickle.PERSID: lambda m: m._stack.append(m.persistent(m._line(_LONGEST_NAME).decode("ascii"))),
        pickle.BINPERSID: lambda m: m._stack.append(m.persistent(m._stack.pop())),
        pickle.EXT1: lambda m: m._extension("<B"),
        pickle.EXT2: lambda m: m._extension("<H"),
        pickle.EXT4: lambda m: m._extension("<i"),
        **dict.fromkeys((pickle.OBJ, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER), Machine.refuse),
    }.items()
}


def _unknown(machine: Machine) -> None:
    raise pickle.UnpicklingError(f"byte {machine.content[machine.at - 1]} where an instruction was expected")


_ACTIONS = [_INSTRUCTIONS.get(code, _unknown) for code in range(256)]
