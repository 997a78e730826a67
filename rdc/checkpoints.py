"""Model checkpoints: weights as safetensors, everything else as JSON beside them. Neither can run code.

A checkpoint ``NAME`` is two files: ``NAME.safetensors`` (the network's state) and ``NAME.json``::

    {"format": "rdc-checkpoint", "version": 1,
     "config": {...},             description of the network, see networks.presets.build_network
     "info": {...},               free: class names, training data, recommended settings, licence, ...
     "dtype": "float16", "tensors": 118, "parameters": 752321, "sha256": "..."}

The digest is that of the safetensors file, so that the two cannot be mixed up.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rdc.errors import CheckpointError, ConfigError
from rdc.networks.presets import build_network
from rdc.storage.files import atomic_write

__all__ = ["checkpoint_paths", "is_safetensors", "load_model", "network_from_state", "save_model"]

_FORMAT, _VERSION = "rdc-checkpoint", 1
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")
_SHOWN = 4  # tensors named in an error


def checkpoint_paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The two files that ``path`` stands for: ``(weights, description)``.

    ``path`` may be a folder holding ``model.safetensors`` and ``model.json``, either file, or their common name
    without suffix. Nothing is opened.
    """
    path = Path(path)
    if path.is_dir() and not (path.parent / f"{path.name}.safetensors").is_file():
        path = path / "model"
    stem = str(path)
    for suffix in (".safetensors", ".json"):
        stem = stem.removesuffix(suffix)
    return Path(f"{stem}.safetensors"), Path(f"{stem}.json")


def save_model(
    path: str | os.PathLike[str],
    network: nn.Module,
    config: dict[str, Any],
    info: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write ``NAME.safetensors`` and ``NAME.json``; the old pair stays as it was if anything fails.

    Args:
        path: see :func:`checkpoint_paths`; folders are created.
        network: made by ``build_network(config)``.
        config: its description.
        info: anything worth keeping that JSON can hold.
        dtype: how parameters are stored, float32 or float16; buffers (frequencies, filters) always stay float32.

    Returns:
        The path of the safetensors file.

    Raises:
        CheckpointError: the disk is full or not writable, the network does not match ``config``, a weight is NaN or
            infinite (or becomes so in float16), or ``config`` or ``info`` is not JSON.
    """
    if dtype not in (torch.float32, torch.float16):
        raise CheckpointError(f"dtype: expected torch.float32 or torch.float16; got {dtype}")
    weights_path, json_path = checkpoint_paths(path)
    state = _stored_state(network, dtype, weights_path)
    _check_shapes(_empty_network(config, json_path).state_dict(), state, f"{weights_path} (not written)")
    content = safetensors.torch.save(state, metadata={"format": "pt"})
    described = {
        "format": _FORMAT,
        "version": _VERSION,
        "config": config,
        "info": info or {},
        "dtype": str(dtype).removeprefix("torch."),
        "tensors": len(state),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    try:
        text = json.dumps(described, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{json_path}: config and info must be plain JSON values ({error})") from error
    _write_pair(weights_path, content, json_path, text)
    return weights_path


def load_model(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Read a checkpoint written by :func:`save_model`. No code from it is run.

    Args:
        path: see :func:`checkpoint_paths`.

    Returns:
        The network in evaluation mode, float32, on the CPU; its description; the free ``info``.

    Raises:
        CheckpointError: a file is missing, truncated, corrupt, of another kind (pickles: convert them first) or of
            another version, or the weights do not belong to the description.
    """
    _refuse_pickle(Path(path))
    weights_path, json_path = checkpoint_paths(path)
    described = _read_description(json_path, weights_path)
    content = _read_bytes(weights_path, json_path)
    state = _parse(content, weights_path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != described["sha256"]:
        raise CheckpointError(
            f"{weights_path}: sha256 is {digest[:16]}..., but {json_path.name} expects "
            f"{str(described['sha256'])[:16]}...; the two files belong to different saves or one was damaged: "
            "copy both again"
        )
    if len(state) != described.get("tensors", len(state)):
        raise CheckpointError(f"{weights_path}: expected {described['tensors']} tensors, found {len(state)}")
    return (
        network_from_state(described["config"], state, weights_path),
        described["config"],
        described.get("info") or {},
    )


def network_from_state(config: dict[str, Any], state: dict[str, Tensor], source: str | os.PathLike[str]) -> nn.Module:
    """Build the network of ``config`` around ``state`` (names exactly as in its ``state_dict``).

    Nothing is drawn at random and nothing is allocated before the shapes were compared.

    Args:
        config: see ``networks.presets.build_network``.
        state: tensors of any floating dtype, on the CPU.
        source: what to call it in errors.

    Returns:
        The network in evaluation mode, float32.

    Raises:
        CheckpointError: the tensors are not those of the network, or hold NaN or infinity.
    """
    network = _empty_network(config, source)
    expected = network.state_dict()
    _check_shapes(expected, state, source)
    wanted = {name: state[name].detach().to(torch.float32) for name in expected}
    bad = [name for name, value in wanted.items() if not value.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{source}: NaN or infinity in {_first(bad)}; the training run diverged or the file is damaged"
        )
    network.load_state_dict(wanted, strict=True, assign=True)
    return network.eval()


def _empty_network(config: dict[str, Any], source: str | os.PathLike[str]) -> nn.Module:
    """The network of ``config`` without memory behind its tensors."""
    try:
        with torch.device("meta"):
            return build_network(config)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except Exception as error:  # a config from a file may hold anything
        raise CheckpointError(
            f"{source}: this config describes no network ({type(error).__name__}: {error})"
        ) from error


def _stored_state(network: nn.Module, dtype: torch.dtype, path: Path) -> dict[str, Tensor]:
    parameters = {name for name, _ in network.named_parameters()}
    state = {}
    for name, value in network.state_dict().items():
        stored = value.detach().to("cpu", dtype if name in parameters else torch.float32)
        if not stored.isfinite().all():
            why = "NaN or infinity" if not value.isfinite().all() else "a value beyond float16's 65504: use float32"
            raise CheckpointError(f"{path}: not written, {name} holds {why}")
        state[name] = stored.clone(memory_format=torch.contiguous_format)
    return state


def _write_pair(weights_path: Path, content: bytes, json_path: Path, text: str) -> None:
    """Write both files completely before either takes its place."""
    try:
        with atomic_write(weights_path) as weights:
            weights.write(content)
            weights.flush()
            os.fsync(weights.fileno())
            with atomic_write(json_path, "w") as description:
                description.write(text)
    except OSError as error:
        raise CheckpointError(
            f"{weights_path}: could not be written ({error.strerror or error}); nothing was lost, earlier files of "
            f"this name are unchanged. Expected {(len(content) + len(text)) / 1e6:.1f} MB of free space and "
            "a writable folder"
        ) from error


def _refuse_pickle(path: Path) -> None:
    if not path.is_file() or path.suffix == ".json":
        return
    with path.open("rb") as file:
        head = file.read(9)
    looks = head[:1] == b"\x80" or head[:4] == b"PK\x03\x04"
    if (path.suffix.lower() in _PICKLE_SUFFIXES or looks) and not is_safetensors(head):
        raise CheckpointError(
            f"{path}: expected an rdc checkpoint (.safetensors and .json), got a pickle or torch.save file, which may "
            f"run code when loaded. Convert it once, safely: rdc convert {path} DESTINATION"
        )


def is_safetensors(head: bytes) -> bool:
    """Whether the first nine bytes of a file are those of safetensors: a length (8 bytes), then JSON.

    The length comes first and may start like a pickle or a zip file, so this is to be asked before those.
    """
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _read_description(path: Path, weights_path: Path) -> dict[str, Any]:
    if not path.is_file():
        if weights_path.is_file():
            raise CheckpointError(
                f"{path}: missing beside {weights_path.name}. A safetensors file from elsewhere needs its description: "
                f"rdc convert {weights_path} DESTINATION"
            )
        raise CheckpointError(
            f"{path}: no such checkpoint; expected {weights_path.name} and {path.name} in {weights_path.parent}"
        )
    try:
        described = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); copy the checkpoint again") from error
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise CheckpointError(f'{path}: expected an rdc checkpoint description ("format": "{_FORMAT}")')
    if described.get("version") != _VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version {described.get('version')!r}; this rdc reads version {_VERSION}. Update rdc "
            "or convert the checkpoint again"
        )
    if not isinstance(described.get("config"), dict) or not isinstance(described.get("sha256"), str):
        raise CheckpointError(f"{path}: expected config (an object) and sha256 (text); the file is incomplete")
    return described


def _read_bytes(path: Path, json_path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, although {json_path.name} is there; copy both files of the checkpoint")
    _refuse_pickle(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: could not be read ({error.strerror or error})") from error


def _parse(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a safetensors file ({len(content):,} bytes; {error}); copy or convert it again"
        ) from error


def _check_shapes(expected: dict[str, Tensor], found: dict[str, Tensor], source: str | os.PathLike[str]) -> None:
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"missing {_first(missing)}")
    if unexpected := [name for name in found if name not in expected]:
        problems.append(f"unexpected {_first(unexpected)}")
    both = [name for name in expected if name in found]
    if other := [name for name in both if expected[name].shape != found[name].shape]:
        shapes = [f"{name} is {list(found[name].shape)}, expected {list(expected[name].shape)}" for name in other]
        problems.append(f"wrong shapes: {_first(shapes)}")
    if integers := [name for name in both if not found[name].is_floating_point()]:
        problems.append(f"not floating point: {_first(integers)}")
    if problems:
        raise CheckpointError(f"{source}: the weights are not those of the described network: {'; '.join(problems)}")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
