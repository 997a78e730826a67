"""Reading networks out of a public EDM pickle without running it.

Such a file names the function ``torch_utils.persistence._reconstruct_persistent_obj`` and hands it the Python source of
the network's class, which the original loader executes. Here no name from the file is ever imported: each name on the
list below stands for an inert object of this module, the embedded source is dropped unread, and any other name is an
error. NumPy values go through ``rdc.data.plain_pickle``; tensor storages through ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.data.plain_pickle import _Array, _Dtype, _ForbiddenName, _Name, _PlainUnpickler, _text
from rdc.errors import CheckpointError

__all__ = ["Stub", "load_persistent", "plain"]


class Stub:
    """What is kept of a pickled object: its class's name, constructor arguments and state. Nothing can be called."""

    __slots__ = ("args", "class_name", "state")

    def __init__(self, class_name: str, args: tuple = (), state: Any = None) -> None:
        self.class_name, self.args, self.state = class_name, args, state


class _Held:
    """A tensor, out of reach of the pickle's own instructions."""

    __slots__ = ("value",)

    def __init__(self, value: Tensor) -> None:
        self.value = value


class _Storage(_Held):
    """The numbers of a tensor, as a flat tensor."""

    __slots__ = ()


class _EasyDict(dict):
    """The dict with attribute access that EDM configurations are made of; here a plain dict."""

    __slots__ = ()


def load_persistent(content: bytes, name: str) -> Any:
    """Read a pickle of persistent objects, tensors and plain data.

    Args:
        content: the file.
        name: what to call it in errors.

    Returns:
        Containers and numbers; :class:`Stub` for every object; holders of tensors, see :func:`plain`.

    Raises:
        CheckpointError: the pickle names anything else (nothing is run), or is damaged.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except _ForbiddenName as error:
        raise CheckpointError(
            f"{name}: this pickle asks for {error}, which the weights of a network do not need. It was refused and "
            "nothing in it was run; get the file from its official source"
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(
            f"{name}: not a readable pickle of a network ({type(error).__name__}: {error})"
        ) from error


def plain(value: Any) -> Any:
    """The tensor or number inside a holder; everything else as it is."""
    if isinstance(value, _Held):
        return value.value
    if isinstance(value, _Array):
        return value.array
    return value


class _Unpickler(_PlainUnpickler):
    """Every name resolves to an inert callable; objects can only be made by it, and only stubs take a state."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        module, name = _text(module), _text(name)
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        if (module, name) in _ALLOWED:
            return _Name(_ALLOWED[module, name])
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return _Name(lambda *args: Stub(name, args))
        if module == "torch" and name in ("float16", "bfloat16", "float32", "float64"):
            return f"torch.{name}"
        if module.replace("numpy._core", "numpy.core") == "numpy.core.multiarray" and name == "scalar":
            return _Name(_numpy_scalar)
        return super().find_class(module, name)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], args, {})

    def load_newobj_ex(self) -> None:
        kwargs, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], args, kwargs)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], args, {})

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Stub:
            target.state = state
        elif type(target) in (_Array, _Dtype):
            target.__setstate__(state)
        elif type(target) not in (_EasyDict, OrderedDict):  # those two: attributes of no interest
            raise pickle.UnpicklingError(f"state given to a {type(target).__name__}")

    def _refused(self) -> None:
        raise pickle.UnpicklingError("an instruction that network pickles do not use")

    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    for _code in (pickle.INST, pickle.OBJ, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        dispatch[_code[0]] = _refused
    del _code


def _made(maker: Any, args: Any, kwargs: Any) -> Any:
    if type(maker) is not _Name or type(args) is not tuple or kwargs:
        raise pickle.UnpicklingError(f"object made by a {type(maker).__name__}")
    return maker(*args)


def _persistent_object(meta: Any) -> Stub:
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError("persistent object without type, class_name and state")
    return Stub(meta["class_name"], state=meta.get("state"))


def _old_style_object(_class: Any, _base: Any, state: Any) -> Any:
    """``copyreg._reconstructor(class, object, None)``: the class is one of ours, so call it."""
    if type(_class) is not _Name or state is not None:
        raise pickle.UnpicklingError("object of an unknown class")
    return _class()


def _storage(content: Any) -> _Storage:
    if not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("tensor storage that is not bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TypedStorage is deprecated; files hold it for ever
        try:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            raise pickle.UnpicklingError(f"tensor storage refused: {str(error).splitlines()[0][:300]}") from error
        if not isinstance(found, torch.storage.TypedStorage):
            raise pickle.UnpicklingError(f"tensor storage holds a {type(found).__name__}")
        return _Storage(torch.tensor([], dtype=found.dtype).set_(found.untyped()))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> _Held:
    """A copy of part of a storage, checked: all of it lies inside, and it is no larger than the storage."""
    if type(storage) is not _Storage:
        raise pickle.UnpicklingError("tensor without a storage")
    size, stride = tuple(size), tuple(stride)
    if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)) or len(size) != len(stride):
        raise pickle.UnpicklingError(f"tensor of size {size}, stride {stride}, offset {offset!r}")
    available, count = storage.value.numel(), math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count and (last >= available or count > available):
        raise pickle.UnpicklingError(f"tensor of size {size} in a storage of {available:,} numbers")
    return _Held(storage.value.as_strided(size, stride, offset).clone())


def _parameter(data: Any, *_rest: Any) -> _Held:
    if type(data) is not _Held:
        raise pickle.UnpicklingError("parameter without a tensor")
    return data


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    if type(dtype) is not _Dtype or not isinstance(data, (bytes, bytearray)) or len(data) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("NumPy scalar that is not dtype and bytes")
    return np.frombuffer(bytes(data), dtype=dtype.dtype)[0].item()


def _container(kind: type) -> Callable[..., Any]:
    def make(*args: Any) -> Any:
        if len(args) > 1 or (args and not isinstance(args[0], (list, tuple, set, frozenset, dict))):
            raise pickle.UnpicklingError(f"{kind.__name__} made from something else than a container")
        return kind(*args)

    return make


def _object_type(*_args: Any) -> Any:
    raise pickle.UnpicklingError("builtins.object called")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): _container(tuple),
    ("dnnlib.util", "EasyDict"): _EasyDict,
    ("collections", "OrderedDict"): _container(OrderedDict),
    ("copyreg", "_reconstructor"): _old_style_object,
    ("builtins", "object"): _object_type,
    **{("builtins", kind.__name__): _container(kind) for kind in (set, frozenset, dict, list, tuple)},
}
