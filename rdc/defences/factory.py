"""From somebody's object or ``package.module:factory`` to what an evaluation takes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rdc.arguments.close_names import close_name, did_you_mean
from rdc.contracts import Defence
from rdc.defences.foreign import ForeignDefence
from rdc.defences.plain import PlainClassifier, call_model, checked_logits
from rdc.errors import ConfigError, InputError
from rdc.execution.frozen import at_rest

__all__ = ["as_defence", "is_factory", "load_factory", "name_of"]


def is_factory(name: str) -> bool:
    """Whether a model's name is ``package.module:factory``, two dotted identifiers around a colon, or ``path/file.py:factory``."""
    module, colon, attribute = str(name).rpartition(":")
    dotted = (attribute,) if module.endswith(".py") else (module, attribute)
    return bool(colon) and all(part.isidentifier() for text in dotted for part in text.split("."))


def name_of(model: Any) -> str:
    """What reports call a model: its name or path, what answers in a defence, or the name of a function or class."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if isinstance(model, Defence):
        return model.head
    return str(getattr(model, "__name__", type(model).__name__))


def load_factory(name: str, example: Tensor, class_names: Sequence[str] | None, device: Any = "cpu") -> Defence:
    """Import a module, call the factory in it without arguments, and make a defence of what it returns.

    The module's code is run, because the caller named it. Nothing else in rdc runs code of a file.

    Args:
        name: ``package.module:factory``, where the current folder is searched too; or ``path/file.py:factory``.
        example: [n, C, H, W] pixels, called once to learn the number of classes.
        class_names: of the data set.
        device: where a returned ``nn.Module`` is put.

    Raises:
        ConfigError: no such module or factory, the factory needs arguments or raises, or returns nothing callable.
        InputError: the model's answer to the example is not logits, see ``rdc.defences.as_defence``.
    """
    module_name, _, attribute = name.rpartition(":")
    try:
        factory: Any = _module_of_file(Path(module_name)) if module_name.endswith(".py") else _module(module_name)
    except Exception as error:
        kind = type(error).__name__
        raise ConfigError(
            f"model: {name!r}: {module_name} cannot be imported ({kind}: {error}){_meant(module_name, error)}. Expected "
            "file.py:factory, or package.module:factory found from the current folder or installed"
        ) from error
    for part in attribute.split("."):
        if not hasattr(factory, part):
            public = [found for found in vars(factory) if not found.startswith("_")]
            raise ConfigError(
                f"model: {name!r}: {module_name} has no {attribute}{did_you_mean(part, public)}; it has "
                f"{', '.join(public[:12]) or '-'}"
            )
        factory = getattr(factory, part)
    if not callable(factory):
        raise ConfigError(f"model: {name!r}: expected a function that returns the model; got {type(factory).__name__}")
    _needs_no_arguments(factory, name)
    try:
        made = factory()
    except Exception as error:
        raise ConfigError(f"model: {name!r}: the factory raised {type(error).__name__}: {error}") from error
    if isinstance(made, nn.Module):
        made = made.to(device)
        if any(
            is_lazy(value) for value in (*made.parameters(), *made.buffers())
        ):  # torch.nn.Lazy...: sizes come with the first call
            with torch.no_grad():
                call_model(made.eval(), example.to(device), name)
    return as_defence(made, example.to(device), class_names=class_names, name=name)


def _module(name: str) -> Any:
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _module_of_file(path: Path) -> Any:
    """The module in a file, run once for each file; what lies beside it can be imported by it."""
    path = path.resolve(strict=True)
    name = f"_rdc_model_{zlib.crc32(os.fsencode(path)):08x}_{path.stem}"  # no module of another name is hidden
    if name in sys.modules:
        return sys.modules[name]
    if (folder := str(path.parent)) not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # of a file .py they are there
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _meant(module: str, error: Exception) -> str:
    """Which file may have been meant by a module that is not there."""
    missing = isinstance(error, FileNotFoundError)
    if isinstance(error, ModuleNotFoundError):
        missing = error.name == module.partition(".")[0]
    folder = Path(module).parent if module.endswith(".py") else Path()
    if not missing or not folder.is_dir():
        return ""
    files = [file.name for file in itertools.islice(folder.glob("*.py"), 1000)]
    close = close_name(Path(module).name if module.endswith(".py") else f"{module}.py", files)
    return f" (did you mean {str(folder / close)!r}?)" if close else ""


def as_defence(
    model: Any, example: Tensor, *, class_names: Sequence[str] | None = None, name: str = "model"
) -> Defence:
    """What an evaluation takes, from a defence, an object with purify and classify, or a callable. Everything bare is wrapped here.

    A module is lent: between calls it is as its owner left it (training mode, weights that want gradients).

    Args:
        model: any of these; a :class:`rdc.contracts.Defence` is returned as it is; callables take pixels [N, C, H, W] float32 in
            [0, 1] and return logits [N, K].
        example: [n, C, H, W] pixels; the model is called on it once.
        class_names: used where their number is K.
        name: for reports and errors.

    Raises:
        ConfigError: the model is none of these.
        InputError: it does not answer with finite floating logits [n, K], K >= 2.
    """
    if isinstance(model, Defence):
        return model
    shape = tuple(example.shape[1:])
    if hasattr(model, "purify") and hasattr(model, "classify"):
        with torch.no_grad(), at_rest(model):
            moved = call_model(model.purify, example, f"{name}.purify")
            logits = call_model(model.classify, moved, f"{name}.classify")
        kind: Callable[..., Defence] = ForeignDefence
    elif callable(model):
        with torch.no_grad(), at_rest(model):
            logits = call_model(model, example, name)
        kind = PlainClassifier
    else:
        raise ConfigError(
            f"model {name}: expected a callable pixels -> logits, or an object with purify(x) and classify(x); got "
            f"{type(model).__name__}"
        )
    logits = checked_logits(logits, example, None, name)
    if not bool(torch.isfinite(logits).any()):
        raise InputError(f"model {name}: every logit of the first {len(example)} images is NaN or infinite")
    count = logits.shape[1]
    names = class_names if class_names is not None and len(class_names) == count else None
    return kind(model, image_shape=shape, num_classes=count, class_names=names, name=name, device=example.device)


def _needs_no_arguments(factory: Callable[..., Any], name: str) -> None:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise ConfigError(
            f"model: {name!r}: the factory is called without arguments, but needs {', '.join(needed)}. Write a function "
            "without arguments that makes the model"
        )
