"""A training run between two steps, as one safetensors file that says whether it was damaged.

Its metadata has the run's description, the step, seconds, the log values since the last row, and a SHA-256 digest of all of that
and of every tensor's name, type, shape and bytes. Files of earlier versions have no digest; they are read as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from rdc.errors import CheckpointError
from rdc.storage.json_files import parse_json
from rdc.storage.reading import reading, regular_file
from rdc.storage.structure import mapping, number, optional, sequence

__all__ = ["DELETE", "NOT_A_STATE", "State", "pack_state", "read_state"]

NOT_A_STATE = "a training state of rdc, or truncated"
DELETE = "Delete it to start afresh"
_FORMAT = "2"
_TEXTS = ("step", "description", "seconds", "window")
_WINDOW = sequence(mapping(optional(number())))


@dataclasses.dataclass
class State:
    """A training run between two steps.

    Args:
        step: steps done.
        tensors: ``net.*`` weights, ``ema.*`` averages, ``m.*`` and ``v.*`` Adam's moments, ``buffer.*``.
        seconds: time trained so far.
        window: log values of the steps since the last log row.
    """

    step: int
    tensors: dict[str, Tensor]
    seconds: float = 0.0
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)


def pack_state(state: State, description: dict[str, Any]) -> bytes:
    """The file's content."""
    window = [{key: value if math.isfinite(value) else None for key, value in entry.items()} for entry in state.window]
    texts = {
        "step": str(state.step),
        "description": json.dumps(description),
        "seconds": repr(state.seconds),
        "window": json.dumps(window, allow_nan=False),
    }
    tensors = {key: value.detach().contiguous().cpu() for key, value in state.tensors.items()}
    return save(tensors, {**texts, "format": _FORMAT, "digest": _digest(tensors, texts)})


def read_state(path: Path) -> tuple[State, dict[str, Any]]:
    """The state and the description of its run.

    Raises:
        CheckpointError: missing, truncated, damaged, or something else.
    """
    regular_file(path, CheckpointError, NOT_A_STATE)
    with reading(path, CheckpointError, NOT_A_STATE, DELETE):
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        texts = {key: metadata[key] for key in _TEXTS if key in metadata}
        if "digest" in metadata or "format" in metadata:
            if metadata.get("format") != _FORMAT or metadata.get("digest") != _digest(tensors, texts):
                raise ValueError("its content does not have the digest that it names: it is damaged")
        return _state(texts, tensors), parse_json(texts["description"], path, CheckpointError, kind=dict)


def _state(texts: Mapping[str, str], tensors: dict[str, Tensor]) -> State:
    step, seconds = int(texts["step"]), float(texts.get("seconds", "0"))
    if step < 0 or not 0 <= seconds < math.inf:
        raise ValueError(f"step {step} after {seconds} seconds")
    found = json.loads(texts.get("window", "[]"))  # older files may have NaN in it
    if not isinstance(found, list):
        raise ValueError("window: expected a list")
    window = [{key: math.nan if value is None else value for key, value in entry.items()} for entry in found]
    _WINDOW(
        [{key: value if math.isfinite(value) else None for key, value in entry.items()} for entry in window], "window"
    )
    if odd := [
        name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()
    ]:
        raise ValueError(f"{odd[0]} holds NaN or infinity")
    return State(step, tensors, seconds, window)


def _digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """SHA-256 of tensors and texts, by name."""
    sha = hashlib.sha256()
    for name, text in sorted(texts.items()):
        sha.update(json.dumps([name, text]).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
