"""Public EDM checkpoints (``.pkl``): configuration and weights of the averaged network, read without running them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdc.errors import CheckpointError, one_line
from rdc.models.convert.edm_machine import load_persistent, plain
from rdc.storage.nesting import Stub
from rdc.storage.reading import read_content, reading

__all__ = ["read_edm_pickle"]

_PRECOND_ARGUMENTS = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "model_type",
)
_PRECOND_DEFAULTS = {"label_dim": 0, "sigma_data": 0.5, "model_type": "DhariwalUNet"}


def read_edm_pickle(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Read the ``ema`` network of an EDM pickle.

    Args:
        path: the file.

    Returns:
        Network description for ``build_network``, state dict under the U-Net's own names, notes for the user.

    Raises:
        CheckpointError: the file is damaged, names anything that weights do not need, or holds another kind of network.
    """
    expected = "a pickled network of EDM"
    content = load_persistent(read_content(path, CheckpointError, expected), one_line(path, 400))
    with reading(path, CheckpointError, expected):
        return _network(content, path)


def _network(content: Any, path: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    network, notes = content, []
    if isinstance(content, dict):
        network = content.get("ema")
        if network is None:
            raise CheckpointError(
                f"{path}: expected an entry 'ema' (the averaged network); found {one_line(sorted(map(str, content)))}"
            )
        if others := [str(key) for key in content if key != "ema"]:
            notes.append(one_line(f"only the entry ema was read; left out: {', '.join(others)}", 400))
    if not isinstance(network, Stub) or not isinstance(network.state, dict):
        raise CheckpointError(f"{path}: expected a pickled network; found a {type(network).__name__}")
    if network.class_name != "EDMPrecond":
        raise CheckpointError(
            f"{path}: expected a network under EDMPrecond, found {one_line(network.class_name, 80)}; VP, VE and iDDPM "
            "preconditioning are not supported. The EDM authors publish EDMPrecond versions of their "
            "CIFAR-10 networks (edm-cifar10-*)"
        )
    config = _config(_arguments(network, path), path)
    state = dict(_tensors(network, "", set(), path))
    foreign = [name for name in state if not name.startswith("model.")]
    if foreign:
        raise CheckpointError(f"{path}: expected weights of EDMPrecond.model only; found {', '.join(foreign[:4])}")
    return config, {name.removeprefix("model."): value for name, value in state.items()}, notes


def _arguments(network: Stub, path: Path) -> dict[str, Any]:
    """Constructor arguments by name, positional ones included."""
    state = network.state
    positional = state.get("_init_args", state.get("init_args", ()))
    named = state.get("_init_kwargs", state.get("init_kwargs"))
    if (
        not isinstance(positional, (tuple, list))
        or not isinstance(named, dict)
        or len(positional) > len(_PRECOND_ARGUMENTS)
    ):
        raise CheckpointError(f"{path}: the network does not say how it was made (_init_args, _init_kwargs)")
    return {**_PRECOND_DEFAULTS, **dict(zip(_PRECOND_ARGUMENTS, positional, strict=False)), **named}


def _config(arguments: dict[str, Any], path: Path) -> dict[str, Any]:
    missing = [name for name in ("img_resolution", "img_channels") if name not in arguments]
    if missing:
        raise CheckpointError(f"{path}: the network does not say its {' and '.join(missing)}")
    size = _json(arguments["img_resolution"], "img_resolution", path)
    unet = {name: _json(value, name, path) for name, value in arguments.items() if name not in _PRECOND_ARGUMENTS}
    return {
        "kind": "conditional",
        "image_shape": [_json(arguments["img_channels"], "img_channels", path), size, size],
        "num_classes": _json(arguments["label_dim"], "label_dim", path),
        "sigma_data": _json(arguments["sigma_data"], "sigma_data", path),
        "unet": {"architecture": _json(arguments["model_type"], "model_type", path), **unet},
    }


def _json(value: Any, name: str, path: Path) -> Any:
    """``value`` as JSON data."""
    value = plain(value)
    if isinstance(value, (list, tuple)):
        return [_json(item, name, path) for item in value]
    if hasattr(value, "tolist") and not isinstance(value, Tensor):  # NumPy array
        return value.tolist()
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise CheckpointError(
        f"{path}: argument {name} of the network is a {type(value).__name__}; expected numbers or text"
    )


def _tensors(module: Any, prefix: str, seen: set[int], path: Path) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of a pickled module and its submodules."""
    if (
        not isinstance(module, Stub)
        or not isinstance(module.state, dict)
        or id(module) in seen
        or prefix.count(".") > 30
    ):
        raise CheckpointError(f"{path}: {prefix or 'the network'} is not a module of its own")
    seen.add(id(module))
    temporary = module.state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in _entries(module, kind, path):
            value = plain(value)
            if value is None or (kind == "_buffers" and name in temporary):
                continue
            if not isinstance(value, torch.Tensor):
                raise CheckpointError(f"{path}: {prefix}{name} is a {type(value).__name__}, expected a tensor")
            yield f"{prefix}{name}", value
    for name, child in _entries(module, "_modules", path):
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.", seen, path)


def _entries(module: Stub, kind: str, path: Path) -> list[tuple[str, Any]]:
    entries = module.state.get(kind)
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: a pickled {module.class_name} has no {kind}")
    return list(entries.items())
