"""Checkpoints in float16 files of a limited size, for a way back that takes only small files; and back into checkpoints.

``NAME-1-of-2.safetensors`` ...: tensors of the network, and in every file's metadata the description and a digest of all
tensors, so that files of two checkpoints are never put together.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rdc.errors import CheckpointError
from rdc.models.checkpoints import load_model, network_from_state, save_model

__all__ = ["LIMIT_MIB", "read_shards", "shard_files", "write_shards"]

LIMIT_MIB = 15.9  # of a file
_FORMAT = "rdc-shard"


def write_shards(model: Path, folder: Path, name: str, limit_mib: float = LIMIT_MIB, **more: Any) -> list[Path]:
    """Write a checkpoint as shards ``folder/NAME-i-of-n.safetensors``, parameters in float16; older ones of NAME go.

    Args:
        model: what :func:`rdc.models.checkpoints.load_model` reads.
        more: JSON values added to the checkpoint's ``info``.

    Raises:
        CheckpointError: a weight is beyond float16, one tensor is larger than a file may be, or the disk is full.
    """
    network, config, info = load_model(model)
    parameters = dict(network.named_parameters())
    state = {
        key: (value.detach().half() if key in parameters else value).contiguous()
        for key, value in network.state_dict().items()
    }
    if bad := [key for key, value in state.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{model}: not written as float16, {bad[0]} holds a value beyond 65504")
    parts = _divide(state, int(limit_mib * 2**20), model)
    about = {"format": _FORMAT, "digest": _digest(state), "model": json.dumps({"config": config, "info": info | more})}
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{i}-of-{len(parts)}.safetensors" for i in range(1, len(parts) + 1)]
    new = [path.with_name(f".{path.name}.tmp") for path in paths]
    try:
        for temporary, part in zip(new, parts, strict=True):
            temporary.write_bytes(safetensors.torch.save(part, about))
        for temporary, path in zip(new, paths, strict=True):  # at once, when all are written
            os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{paths[0]}: could not be written ({error}); the shards that were there stay") from error
    finally:
        for temporary in new:
            temporary.unlink(missing_ok=True)
    for old in set(shard_files(folder, name)) - set(paths):
        old.unlink()
    return paths


def shard_files(folder: Path, name: str) -> list[Path]:
    """The shards of NAME in a folder, in order."""
    return sorted(folder.glob(f"{name}-*-of-*.safetensors"))


def read_shards(folder: Path, name: str, out: Path) -> dict[str, Any]:
    """Put the shards of NAME together into the checkpoint ``out``; returns its ``info``.

    Raises:
        CheckpointError: a file is missing, damaged, or of another checkpoint.
    """
    paths = shard_files(folder, name)
    state: dict[str, Tensor] = {}
    seen = set()
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                seen.add((about.get("format"), about.get("digest"), about.get("model")))
                state |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); copy it again") from error
    if len(seen) != 1 or next(iter(seen))[0] != _FORMAT:
        got = f"files of {len(seen)} checkpoints" if seen else "none"
        raise CheckpointError(f"{folder}: expected the {name}-*.safetensors of one checkpoint; got {got}")
    _, digest, model = next(iter(seen))
    if _digest(state) != digest:
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(f"{folder}: shards of {name} are missing or damaged; found {names}. Copy all of them")
    described = json.loads(model)
    network = network_from_state(described["config"], state, folder)
    save_model(out, network, described["config"], described["info"])
    return described["info"]


def _divide(state: dict[str, Tensor], limit: int, model: Path) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    room = limit - 65536  # names, metadata
    for key, value in state.items():
        if value.nbytes > room:
            raise CheckpointError(f"{model}: {key} alone has {value.nbytes:,} bytes, a file may have {limit:,}")
        if sum(other.nbytes for other in parts[-1].values()) + value.nbytes > room:
            parts.append({})
        parts[-1][key] = value
    return parts


def _digest(state: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for key in sorted(state):
        sha.update(key.encode() + state[key].flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
