"""Pickles inside ``torch.save`` files: tensors are read, everything else about a training run is kept as inert stubs.

No name in the file is resolved. Names of the standard library that data never needs (``os.system``) are refused: the file was made
to do something. Names of anybody else's classes and functions become stubs, so that weights beside them can be read.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from typing import Any

from rdc.models.convert.tensors import DTYPES, STORAGE_DTYPES, Held, Storage, TensorMaker
from rdc.storage.nesting import Stub
from rdc.storage.pickle_machine import STEPS, ForbiddenName, Machine, Name
from rdc.storage.reading import Budget

__all__ = ["TorchMachine"]

_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_OLD_STANDARD = {
    "StringIO",
    "cPickle",
    "cStringIO",
    "commands",
    "dl",
    "exceptions",
    "httplib",
    "imp",
    "popen2",
    "thread",
    "urllib2",
}
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
#: of the standard library, what training scripts put into their files; stubs
_DATA = {
    "argparse": "Namespace",
    "builtins": "bool bytearray bytes complex float frozenset int object range slice str",
    "collections": "Counter deque",
    "copyreg": "_reconstructor",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}
_STUBS = {(module, name) for module, names in _DATA.items() for name in names.split()}
#: tensors that cannot be a network's weights; stubs of this name
_OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values (of the meta device)",
    "_rebuild_wrapper_subclass": "a tensor of a subclass",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
_PLAIN_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")


class TorchMachine(Machine):
    """Reads the pickles of one file.

    Args:
        content, start, steps: as of :class:`Machine`.
        budget: what tensors are taken from.
        only_storages: refuse every other name (the streams inside EDM's pickles).

    Attributes:
        storages: by key, as they were met. They are filled by whoever has the bytes.
    """

    text_of_bytes = True

    def __init__(
        self, content: bytes, budget: Budget, *, start: int = 0, steps: int = STEPS, only_storages: bool = False
    ) -> None:
        super().__init__(content, start, steps)
        self.budget, self.storages = budget, dict[str, Storage]()
        tensors = TensorMaker(budget, expanded=True)
        self._known: dict[tuple[str, str], Callable[..., Any]] = {}
        self._only_storages = only_storages
        if not only_storages:
            rebuilt: dict[str, Callable[..., Any]] = {
                "_rebuild_tensor": tensors.version_2,
                "_rebuild_tensor_v2": tensors.version_2,
                "_rebuild_tensor_v3": tensors.version_3,
                "_rebuild_parameter": tensors.parameter,
                "_rebuild_parameter_with_state": tensors.parameter,
            }
            self._known = {
                **{("torch._utils", name): function for name, function in rebuilt.items()},
                ("torch._tensor", "_rebuild_from_type_v2"): self._of_type,
                ("collections", "OrderedDict"): self._dict_of,
                ("collections", "defaultdict"): lambda *_: {},
                ("builtins", "dict"): self._dict_of,
                **{("builtins", kind.__name__): self._container(kind) for kind in (list, tuple, set)},
                ("torch", "Size"): self._container(tuple),
                ("_codecs", "encode"): self._encode,  # bytes in protocol 2
            }

    def name(self, module: str, name: str) -> Any:
        module = _OLD_MODULES.get(module, module)
        label = f"{module}.{name}"
        if module in _STORAGE_MODULES and name in STORAGE_DTYPES:
            return Name(label, lambda *_: self.refuse())
        if (module, name) in self._known:
            return Name(label, self._known[module, name])
        outer = module.split(".")[0]
        standard = outer in sys.stdlib_module_names or outer in _OLD_STANDARD
        if self._only_storages or (standard and (module, name) not in _STUBS):
            raise ForbiddenName(label)
        if module == "torch._utils" and name in _OTHER_TENSORS:
            label = _OTHER_TENSORS[name]
        elif module == "torch" and name in DTYPES:
            return Name(label, lambda *_: self.refuse())
        return Name(label, lambda *_: Stub(label))

    def persistent(self, reference: Any) -> Any:
        """A storage, or (of whole networks saved before 2020) a class with its source, which stays unread."""
        if isinstance(reference, tuple) and len(reference) == 4 and reference[0] == "module":
            return reference[1]
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            return super().persistent(reference)
        _, kind, key, _place, count, *view = reference
        dtype = STORAGE_DTYPES.get(kind.label.rpartition(".")[2]) if type(kind) is Name else None
        if dtype is None or type(key) is not str:
            raise pickle.UnpicklingError("a storage of unknown type")
        whole = self.storages.setdefault(key, Storage(dtype, count))
        if (whole.dtype, whole.count) != (dtype, count):
            raise pickle.UnpicklingError("one storage of two types or sizes")
        if not view or view[0] is None:
            return whole
        _name, start, length = view[0]
        return Storage(dtype, length, whole, start)

    def call(self, maker: Any, args: Any) -> Any:
        return Stub(maker.class_name) if type(maker) is Stub else super().call(maker, args)

    def new(self, maker: Any, args: Any, named: Any) -> Any:
        return self.call(maker, args)

    def state(self, target: Any, state: Any) -> None:
        if type(target) not in (Stub, Held, dict, list, set):  # attributes, of no interest
            super().state(target, state)

    def add(self, target: Any, items: list[Any]) -> None:
        if type(target) is not Stub:
            super().add(target, items)

    def put(self, target: Any, items: list[Any]) -> None:
        if type(target) is not Stub:
            super().put(target, items)

    def odd_key(self, key: Any) -> None:
        """Weights have text for keys; whatever has a tuple is not one of them."""

    def _of_type(self, function: Any, kind: Any, args: Any, _state: Any) -> Any:
        made = self.call(function, args)
        plain = type(kind) is Name and kind.label in _PLAIN_TENSORS
        return made if plain else Stub("a tensor of a subclass")

    def _encode(self, text: Any, encoding: Any = "latin1") -> Any:
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            return Stub("bytes")
        self.budget.take(len(text), "its bytes")
        return text.encode("latin1")

    def _dict_of(self, *args: Any) -> Any:
        if len(args) > 1 or (args and type(args[0]) not in (dict, list, tuple)):
            return Stub("dict")
        pairs = args[0] if args else ()
        self.budget.take(100 * len(pairs), "a copy")
        made: dict[Any, Any] = {}
        for pair in pairs.items() if type(pairs) is dict else pairs:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise pickle.UnpicklingError("a dict made of something else than pairs")
            self.put(made, list(pair))
        return made

    def _container(self, kind: type) -> Callable[..., Any]:
        def make(*args: Any) -> Any:
            if len(args) > 1 or (args and type(args[0]) not in (list, tuple, set, frozenset)):
                return Stub(kind.__name__)
            items = args[0] if args else ()
            self.budget.take(100 * len(items), "a copy")
            return set(self.keys(items)) if kind is set else kind(items)

        return make
