"""The JSON half of a checkpoint: what the network is, what is known about it, and digests of both halves.

    {"format": "rdc-checkpoint", "version": 1,
     "config": {...},             description of the network, see networks.presets.build_network
     "info": {...},               free: class names, training data, recommended settings, licence, ...
     "dtype": "float16", "tensors": 118, "parameters": 752321,
     "sha256": "...",             of the safetensors file
     "digest": "..."}             of everything else in this file, see storage.sealed

Files of earlier versions have no ``digest`` and are read all the same.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rdc.errors import CheckpointError, one_line
from rdc.storage.json_files import read_json
from rdc.storage.sealed import digest_of, write_sealed
from rdc.storage.structure import choice, integer, optional, record

__all__ = ["description_text", "read_description", "reseal", "update_info"]

_FORMAT, _VERSION = "rdc-checkpoint", 1
_ENTRIES = {"format", "version", "config", "info", "dtype", "tensors", "parameters", "sha256"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBERS = record(
    {},
    {
        "dtype": choice("float32", "float16"),
        "tensors": integer(0),
        "parameters": integer(0),
        "info": optional(record({})),
    },
)


def description_text(path: Path, entries: dict[str, Any]) -> str:
    """The whole file, sealed.

    Args:
        path: for errors.
        entries: config, info, dtype, tensors, parameters, sha256.

    Raises:
        CheckpointError: an entry is not JSON.
    """
    try:
        described = json.loads(json.dumps({"format": _FORMAT, "version": _VERSION, **entries}, allow_nan=False))
        return json.dumps({**described, "digest": digest_of(described)}, indent=2) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: config and info must be plain JSON values ({one_line(error)})") from error


def read_description(path: Path) -> dict[str, Any]:
    """The entries of the file, of the right types, without its digest.

    Raises:
        CheckpointError: missing, not JSON, of another kind or version, incomplete, or not what its digest says.
    """
    described: dict[str, Any] = read_json(path, CheckpointError, kind=dict)
    if described.get("format") != _FORMAT:
        raise CheckpointError(f'{path}: expected an rdc checkpoint description ("format": "{_FORMAT}")')
    if type(described.get("version")) is not int or described["version"] != _VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version {one_line(repr(described.get('version')), 40)}; this rdc reads version {_VERSION}. "
            "Update rdc or convert the checkpoint again"
        )
    _check_digest(path, described)
    sha256 = described.get("sha256")
    if not isinstance(described.get("config"), dict) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise CheckpointError(f"{path}: expected config (an object) and sha256 (64 digits); the file is incomplete")
    try:
        _NUMBERS(described, path.name)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; copy the checkpoint again") from error
    return described


def _check_digest(path: Path, described: dict[str, Any]) -> None:
    """Take the digest out and compare it. A file without one has no other entries either, so that none lost its name."""
    said = described.pop("digest", None)
    unknown = sorted(set(described) - _ENTRIES)
    if said is None and unknown:
        raise CheckpointError(
            f"{path}: unknown entry {one_line(unknown[0], 60)}; it is damaged: copy the checkpoint again"
        )
    if said is not None and said != digest_of(described):
        raise CheckpointError(
            f"{path}: its content does not have the digest that it names; it is damaged, or was changed by hand: copy the "
            'checkpoint again, or delete the line "digest" if the change was meant'
        )


def update_info(path: Path, changes: dict[str, Any]) -> None:
    """Put entries into ``info``, atomically; the weights stay as they are.

    Args:
        path: the description.
        changes: entry -> its new value.

    Raises:
        CheckpointError: see :func:`read_description`.
    """
    described = read_description(path)
    write_sealed(path, {**described, "info": {**(described.get("info") or {}), **changes}})


def reseal(path: Path) -> None:
    """Write the description again with its digest: of a file that has none yet.

    Raises:
        CheckpointError: see :func:`read_description`.
    """
    write_sealed(path, read_description(path))
