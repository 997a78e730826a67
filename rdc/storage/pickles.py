"""Reading the data out of a pickle without running it: containers, numbers, text, bytes and NumPy arrays, nothing else.

A pickle is a program that may call any importable function. This reader resolves no name at all: the six names that
pickled NumPy arrays need stand for the inert objects below, every other name is an error. NumPy's own unpickling is
not used either, since ``dtype.__setstate__`` believes what it is told; arrays are views of the file's own bytes.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import re
from collections.abc import Iterator
from typing import Any, Final, Literal

import numpy as np

from rdc.errors import DataError, RdcError
from rdc.storage.pickle_machine import ForbiddenName, Machine, Name
from rdc.storage.reading import Budget, reading

__all__ = ["NumpyMachine", "PickledArray", "PickledDtype", "load_plain_dict", "reading_pickle"]

_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")
_ORDERS: Final[tuple[Literal["<", ">", "=", "|"], ...]] = ("<", ">", "=", "|")
_AXES, _LONGEST_AXIS = 32, 2**48


def load_plain_dict(content: bytes, name: str, error: type[RdcError] = DataError) -> dict[str, Any]:
    """Read a pickled dict with text keys; values are plain Python data or NumPy arrays.

    Python 2 and 3 pickles, of NumPy 1 and 2, are understood. Python 2's byte strings come as bytes.

    Args:
        content: the pickle.
        name: what to call it in errors.
        error: the class to raise.

    Raises:
        RdcError: (of the class given) it names a function or class that plain data does not need (nothing is run), is
            damaged, asks for more memory than a file of its size may, or is not a dict.
    """
    with reading_pickle(name, error, "a readable pickle of plain data", "a file of images"):
        found = NumpyMachine(content, Budget(name, len(content), error)).load()
    if not isinstance(found, dict):
        raise error(f"{name}: holds a {type(found).__name__}, expected a dict with labels and data")
    return {_text(key): value.array if isinstance(value, PickledArray) else value for key, value in found.items()}


@contextlib.contextmanager
def reading_pickle(name: str, error: type[RdcError], expected: str, purpose: str) -> Iterator[None]:
    """The outer edge of a reader of pickles: :func:`rdc.storage.reading.reading`, and plain words for a name that was refused.

    Args:
        name, error, expected: as there.
        purpose: what the file is for, such as ``"a file of images"``.
    """
    with reading(name, error, expected, "It is damaged or another file: get it again from its official source"):
        try:
            yield
        except ForbiddenName as problem:
            raise error(
                f"{name}: this pickle asks for {problem}, which {purpose} does not need. It was refused and nothing "
                "in it was run; get the file from its official source"
            ) from None


class PickledDtype:
    """A numeric dtype, as code and byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *flags: Any) -> None:
        text = _text(code)
        if not _DTYPE.fullmatch(text):
            raise pickle.UnpicklingError(f"dtype {text[:40]!r}; only plain numbers are read")
        self.dtype = np.dtype(text)

    def set_state(self, state: tuple[Any, ...]) -> None:
        """Take byte order from NumPy's state (version, order, subarray, names, fields, ...)."""
        _version, order, subarray, names, fields, *_sizes = state
        if subarray is not None or names is not None or fields is not None:
            raise pickle.UnpicklingError("structured dtype; only plain numbers are read")
        told = _text(order)
        for known in _ORDERS:
            if told == known:
                self.dtype = self.dtype.newbyteorder(known)
                return
        raise pickle.UnpicklingError(f"byte order {told[:40]!r}")


class PickledArray:
    """An array, filled by its pickled state."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array = np.zeros(0, dtype=np.uint8)

    def set_state(self, state: tuple[Any, ...]) -> None:
        """Take what NumPy's state holds: version, shape, dtype, column-major, bytes."""
        _version, shape, dtype, column_major, data = state
        self.array = _view(data, dtype, shape, "F" if column_major else "C")


class NumpyMachine(Machine):
    """Containers, numbers, text and NumPy arrays, whatever version of Python and NumPy wrote them.

    Args:
        content, start, steps: as of :class:`Machine`.
        budget: what copies of the file's parts are taken from.
    """

    def __init__(self, content: bytes, budget: Budget, *place: int) -> None:
        super().__init__(content, *place)
        self.budget = budget
        self._known = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: PickledArray(),
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,  # protocol 5
            ("numpy", "ndarray"): _array_type,
            ("numpy", "dtype"): PickledDtype,
            ("_codecs", "encode"): self._encode,  # bytes in protocols 0 to 2,
            ("__builtin__", "bytes"): _empty_bytes,  # and empty ones
        }

    def name(self, module: str, name: str) -> Any:
        build = self._known.get((module.replace("numpy._core", "numpy.core"), name))
        if build is None:
            raise ForbiddenName(f"{module}.{name}")
        return Name(f"{module}.{name}", build)

    def state(self, target: Any, state: Any) -> None:
        if type(target) in (PickledArray, PickledDtype) and type(state) is tuple:
            target.set_state(state)
        else:
            super().state(target, state)

    def _encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        if type(text) is not str or _text(encoding) not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes encoded as {_text(encoding)[:40]!r}")
        self.budget.take(len(text), "its bytes")
        return text.encode("latin1")


def _view(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, PickledDtype) or not isinstance(data, (bytes, bytearray)) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("array state that is not (shape, dtype, bytes)")
    if len(shape) > _AXES or any(type(size) is not int or not 0 <= size < _LONGEST_AXIS for size in shape):
        raise pickle.UnpicklingError(f"array shape {shape[:_AXES]!r}")
    if _text(order) not in ("C", "F"):
        raise pickle.UnpicklingError("array order that is neither C nor F")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"array of shape {shape} with {len(data):,} bytes")
    values: np.ndarray = np.frombuffer(data, dtype=dtype.dtype)
    return values.reshape(shape, order="F" if _text(order) == "F" else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    made = PickledArray()
    made.array = _view(data, dtype, shape, order)
    return made


def _empty_bytes(*args: Any) -> bytes:
    if args:
        raise pickle.UnpicklingError("bytes called with arguments; other than empty bytes are pickled by encode")
    return b""


def _array_type(*_args: Any) -> Any:
    raise pickle.UnpicklingError("numpy.ndarray called; arrays are pickled by _reconstruct")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    return value if isinstance(value, str) else str(value) if isinstance(value, (int, float)) else type(value).__name__
