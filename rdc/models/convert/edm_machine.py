"""Reading networks out of a public EDM pickle without running it.

Such a file names the function ``torch_utils.persistence._reconstruct_persistent_obj`` and hands it the Python source of
the network's class, which the original loader executes. Here no name from the file is ever imported: each name on the
list below stands for an inert object of this module, the embedded source is dropped unread, and any other name is an
error. NumPy values are read by ``rdc.storage.pickles``; tensor storages, streams of ``torch.save`` inside the file, by
``rdc.models.convert.torch_files``.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from rdc.errors import CheckpointError, RdcError
from rdc.models.convert.tensors import Held, Storage, TensorMaker
from rdc.models.convert.torch_files import load_storage
from rdc.storage.nesting import Stub
from rdc.storage.pickle_machine import STEPS, ForbiddenName, Name
from rdc.storage.pickles import NumpyMachine, PickledArray, PickledDtype, reading_pickle
from rdc.storage.reading import Budget

__all__ = ["load_persistent", "plain"]

_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_HALF_DTYPES = ("float16", "bfloat16", "float32", "float64")


def load_persistent(content: bytes, name: str) -> Any:
    """Read a pickle of persistent objects, tensors and plain data.

    Args:
        content: the file.
        name: what to call it in errors.

    Returns:
        Containers and numbers; :class:`Stub` for every object; holders of tensors, see :func:`plain`.

    Raises:
        CheckpointError: the pickle names anything else (nothing is run), is damaged, or asks for more memory than a file
            of its size may.
    """
    with reading_pickle(name, CheckpointError, "a readable pickle of a network", "a file of weights"):
        return _Machine(content, Budget(name, len(content), CheckpointError)).load()


def plain(value: Any) -> Any:
    """The tensor or array inside a holder; everything else as it is."""
    if type(value) is Held:
        return value.tensor()
    return value.array if type(value) is PickledArray else value


class _Machine(NumpyMachine):
    """Every name stands for an inert callable; objects can only be made by it, and only stubs take a state."""

    text_of_bytes = True

    def __init__(self, content: bytes, budget: Budget) -> None:
        super().__init__(content, budget)
        tensors, self._storage_steps = TensorMaker(budget, expanded=False), STEPS
        self._known |= {
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
            ("torch._utils", "_rebuild_tensor_v2"): tensors.version_2,
            ("torch._utils", "_rebuild_parameter"): tensors.parameter,
            ("torch.storage", "_load_from_bytes"): self._storage,
            ("torch", "Size"): self._container(tuple),
            ("dnnlib.util", "EasyDict"): self._container(dict),
            ("collections", "OrderedDict"): self._container(dict),
            ("copyreg", "_reconstructor"): self._old_style_object,
            ("builtins", "object"): _object_type,
            ("builtins", "bytes"): self._known["__builtin__", "bytes"],
            ("numpy.core.multiarray", "scalar"): _numpy_scalar,
            **{("builtins", kind.__name__): self._container(kind) for kind in (set, frozenset, dict, list, tuple)},
        }

    def name(self, module: str, name: str) -> Any:
        module = _OLD_MODULES.get(module, module)
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return Name(f"{module}.{name}", lambda *args: Stub(name, args))
        if module == "torch" and name in _HALF_DTYPES:
            return f"torch.{name}"
        return super().name(module, name)

    def new(self, maker: Any, args: Any, named: Any) -> Any:
        if named:
            raise pickle.UnpicklingError("object made with named arguments")
        return self.call(maker, args)

    def state(self, target: Any, state: Any) -> None:
        if type(target) is Stub:
            target.state = state
        elif type(target) is not dict:  # of dicts: attributes of no interest
            super().state(target, state)

    def _old_style_object(self, kind: Any, _base: Any, state: Any) -> Any:
        """``copyreg._reconstructor(class, object, None)``: the class is one of ours, so call it."""
        if type(kind) is not Name or state is not None:
            raise pickle.UnpicklingError("object of an unknown class")
        return kind.build()

    def _storage(self, content: Any) -> Storage:
        if not isinstance(content, (bytes, bytearray)):
            raise pickle.UnpicklingError("tensor storage that is not bytes")
        try:
            found, self._storage_steps = load_storage(bytes(content), self.budget, self._storage_steps)
        except RdcError:
            raise
        except ForbiddenName as problem:
            raise pickle.UnpicklingError(f"tensor storage refused: it asks for {problem}") from problem
        except Exception as problem:
            raise pickle.UnpicklingError(f"tensor storage refused: {problem}") from problem
        return found

    def _container(self, kind: type) -> Callable[..., Any]:
        def make(*args: Any) -> Any:
            if len(args) > 1 or (args and type(args[0]) not in (list, tuple, set, frozenset, dict)):
                raise pickle.UnpicklingError(f"{kind.__name__} made from something else than a container")
            items = args[0] if args else ()
            self.budget.take(100 * len(items), "a copy")
            if kind is dict:
                pairs = items.items() if type(items) is dict else items
                return self._dict([part for key, value in pairs for part in (key, value)])
            return kind(self.keys(items)) if kind in (set, frozenset) else kind(items)

        return make


def _persistent_object(meta: Any) -> Stub:
    if type(meta) is not dict or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError("persistent object without type, class_name and state")
    return Stub(meta["class_name"], state=meta.get("state"))


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    if type(dtype) is not PickledDtype or not isinstance(data, (bytes, bytearray)) or len(data) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("NumPy scalar that is not dtype and bytes")
    return np.frombuffer(bytes(data), dtype=dtype.dtype)[0].item()


def _object_type(*_args: Any) -> Any:
    raise pickle.UnpicklingError("builtins.object called")
