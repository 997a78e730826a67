"""Reading the data out of a pickle without running it: containers, numbers, text, bytes and NumPy arrays, nothing else.

A pickle is a program that may call any importable function. This reader resolves no name at all: the six names that
pickled NumPy arrays need stand for the inert objects below, every other name is an error. NumPy's own unpickling is
not used either, since ``dtype.__setstate__`` believes what it is told; arrays are rebuilt with ``np.frombuffer``.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from rdc.errors import DataError

__all__ = ["load_plain_dict"]

_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")


def load_plain_dict(content: bytes, name: str) -> dict[str, Any]:
    """Read a pickled dict with text keys; values are plain Python data or NumPy arrays.

    Python 2 and 3 pickles, of NumPy 1 and 2, are understood. Python 2's byte strings come as bytes.

    Args:
        content: the pickle.
        name: what to call it in errors.

    Raises:
        DataError: it names a function or class that plain data does not need (nothing is run), is damaged, or is not a
            dict.
    """
    try:
        found = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except _ForbiddenName as error:
        raise DataError(
            f"{name}: this pickle asks for {error}, which a file of images does not need. It was refused and nothing "
            "in it was run; get the file from its official source"
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{name}: not a readable pickle of plain data ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{name}: holds a {type(found).__name__}, expected a dict with labels and data")
    return {_text(key): value.array if isinstance(value, _Array) else value for key, value in found.items()}


class _ForbiddenName(Exception):
    """The pickle names something outside the list."""


class _PlainUnpickler(pickle._Unpickler):
    """The standard library's unpickler written in Python: the one in C takes a memo index from the file for a size to
    allocate, so that one wrong byte costs tens of GB.
    """

    def find_class(self, module: str, name: str) -> Any:
        module, name = _text(module), _text(name)
        build = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if build is None:
            raise _ForbiddenName(f"{module}.{name}")
        return _Name(build)

    def persistent_load(self, pid: Any) -> Any:
        raise _ForbiddenName(f"the external object {pid!r}")

    def get_extension(self, code: int) -> Any:
        raise _ForbiddenName(f"the registered object {code}")


class _Name:
    """What a permitted name resolves to: callable like the original, but no type, and nothing can be set on it."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state given to a name")


class _Dtype:
    """A numeric dtype, as code and byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *flags: Any) -> None:
        text = _text(code)
        if not _DTYPE.fullmatch(text):
            raise pickle.UnpicklingError(f"dtype {text!r}; only plain numbers are read")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        _version, order, subarray, names, fields, *_sizes = state
        if subarray is not None or names is not None or fields is not None:
            raise pickle.UnpicklingError("structured dtype; only plain numbers are read")
        order = _text(order)
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array, filled by its pickled state (version, shape, dtype, column-major, bytes)."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array = np.zeros(0, dtype=np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, column_major, data = state
        self.array = _fill(data, dtype, shape, "F" if column_major else "C")


def _fill(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("array state that is not (shape, dtype, bytes)")
    if any(type(size) is not int or size < 0 for size in shape) or _text(order) not in ("C", "F"):
        raise pickle.UnpicklingError(f"array shape {shape!r}, order {order!r}")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"array of shape {shape} with {len(data):,} bytes")
    return np.frombuffer(bytes(data), dtype=dtype.dtype).reshape(shape, order=_text(order))


def _reconstruct(*_args: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.array = _fill(data, dtype, shape, order)
    return made


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if _text(encoding) not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _empty_bytes(*args: Any) -> bytes:
    if args:
        raise pickle.UnpicklingError("bytes called with arguments; other than empty bytes are pickled by encode")
    return b""


def _array_type(*_args: Any) -> Any:
    raise pickle.UnpicklingError("numpy.ndarray called; arrays are pickled by _reconstruct")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value if isinstance(value, str) else repr(value)


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,  # protocol 5
    ("numpy", "ndarray"): _array_type,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,  # bytes in protocols 0 to 2,
    ("__builtin__", "bytes"): _empty_bytes,  # and empty ones
}
