"""Model checkpoints: weights as safetensors, everything else as JSON beside them. Neither can run code.

A checkpoint ``NAME`` is two files: ``NAME.safetensors`` (the network's state) and ``NAME.json`` (:mod:`rdc.models.descriptions`), which
holds the digests of both, so that the two cannot be mixed up and one changed bit in either is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from rdc.errors import CheckpointError, ConfigError, one_line
from rdc.models.advice import OWN
from rdc.models.descriptions import description_text, read_description
from rdc.networks.bounds import check_description, least_size
from rdc.networks.presets import build_network
from rdc.storage.files import atomic_write
from rdc.storage.reading import read_content, reading
from rdc.storage.safetensors_files import is_safetensors, parse_safetensors

__all__ = ["checkpoint_paths", "is_safetensors", "load_model", "network_from_state", "save_model"]

_PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")
_SHOWN = 4  # tensors named in an error
_LARGEST = 1e8  # weights are of order one; a network with larger ones overflows, and all classes are equally likely


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
        CheckpointError: the disk is full or not writable, the network does not match ``config``, a weight is NaN,
            infinite (or becomes so in float16) or beyond 1e8, or ``config`` or ``info`` is not JSON.
    """
    if dtype not in (torch.float32, torch.float16):
        raise CheckpointError(f"dtype: expected torch.float32 or torch.float16; got {dtype}")
    weights_path, json_path = checkpoint_paths(path)
    state = _stored_state(network, dtype, weights_path)
    _check_shapes(_empty_network(config, json_path).state_dict(), state, f"{weights_path} (not written)")
    content = safetensors.torch.save(state, metadata={"format": "pt"})
    entries = {
        "config": config,
        "info": info or {},
        "dtype": str(dtype).removeprefix("torch."),
        "tensors": len(state),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    text = description_text(json_path, entries)
    _write_pair(weights_path, content, json_path, text)
    return weights_path


def load_model(
    path: str | os.PathLike[str], *, weights: str | os.PathLike[str] | None = None
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Read a checkpoint written by :func:`save_model`. No code from it is run.

    Args:
        path: see :func:`checkpoint_paths`.
        weights: the safetensors file, where it does not lie beside the description.

    Returns:
        The network in evaluation mode, float32, on the CPU; its description; the free ``info``.

    Raises:
        CheckpointError: a file is missing, truncated, corrupt, of another kind (pickles: convert them first) or of
            another version, or the weights do not belong to the description.
    """
    _refuse_pickle(Path(path))
    weights_path, json_path = checkpoint_paths(path)
    weights_path = weights_path if weights is None else Path(weights)
    _check_both(weights_path, json_path)
    described = read_description(json_path)
    _refuse_pickle(weights_path)
    content = read_content(weights_path, CheckpointError, "the weights of a checkpoint (safetensors)")
    state = parse_safetensors(content, one_line(weights_path, 400), CheckpointError)
    digest = hashlib.sha256(content).hexdigest()
    if digest != described["sha256"]:
        raise CheckpointError(
            f"{weights_path}: sha256 is {digest[:16]}..., but {json_path.name} expects "
            f"{described['sha256'][:16]}...; the two files belong to different saves or one was damaged: "
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
    _check_count(config, state, source)
    network = _empty_network(config, source)
    expected = network.state_dict()
    _check_shapes(expected, state, source)
    with reading(source, CheckpointError, "the weights of a network"):
        wanted = {name: state[name].detach().to(torch.float32) for name in expected}
        largest = {name: float(value.abs().max()) for name, value in wanted.items() if value.numel()}
    bad = [name for name, value in largest.items() if not value < float("inf")]
    if bad:
        raise CheckpointError(
            f"{source}: NaN or infinity in {_first(bad)}; the training run diverged or the file is damaged"
        )
    if large := [f"{name} ({value:.2g})" for name, value in largest.items() if value > _LARGEST]:
        raise CheckpointError(
            f"{source}: weights beyond {_LARGEST:g} in {_first(large)}; whatever the image, the network would overflow. The training "
            "run diverged or the file is damaged"
        )
    network.load_state_dict(wanted, strict=True, assign=True)
    return network.eval()


def _check_count(config: dict[str, Any], state: dict[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Refuse a description of far more layers than there are tensors, before its network is made (which takes no memory, but time)."""
    try:
        check_description(config)
        tensors, _weights = least_size(config)
    except Exception:  # build_network says what is wrong
        return
    if tensors > len(state) + 300:  # the next check names what differs, where that is cheap
        raise CheckpointError(
            f"{source}: the weights are not those of the described network: it has {tensors:,} tensors or more; found {len(state):,}"
        )


@contextlib.contextmanager
def _described(source: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever is wrong with a description, as an error about the file that it came from."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except Exception as error:  # a config from a file may hold anything
        raise CheckpointError(
            f"{source}: this config describes no network ({type(error).__name__}: {one_line(error)})"
        ) from error


def _empty_network(config: dict[str, Any], source: str | os.PathLike[str]) -> nn.Module:
    """The network of ``config`` without memory behind its tensors."""
    with _described(source), torch.device("meta"):
        return build_network(config)


def _stored_state(network: nn.Module, dtype: torch.dtype, path: Path) -> dict[str, Tensor]:
    parameters = {name for name, _ in network.named_parameters()}
    state = {}
    for name, value in network.state_dict().items():
        stored = value.detach().to("cpu", dtype if name in parameters else torch.float32)
        if not stored.isfinite().all():
            why = "NaN or infinity" if not value.isfinite().all() else "a value beyond float16's 65504: use float32"
            raise CheckpointError(f"{path}: not written, {name} holds {why}")
        if stored.numel() and stored.abs().max() > _LARGEST:
            raise CheckpointError(
                f"{path}: not written, {name} holds weights beyond {_LARGEST:g}; the training run diverged"
            )
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
    with reading(path, CheckpointError, "an rdc checkpoint"), path.open("rb") as file:
        head = file.read(9)
    looks = head[:1] == b"\x80" or head[:4] == b"PK\x03\x04"
    if (path.suffix.lower() in _PICKLE_SUFFIXES or looks) and not is_safetensors(head):
        raise CheckpointError(
            f"{path}: expected an rdc checkpoint (.safetensors and .json), got a pickle or torch.save file, which may "
            f"run code when loaded. Convert a diffusion model once, safely: rdc convert {path} DESTINATION; {OWN}"
        )


def _check_both(weights_path: Path, json_path: Path) -> None:
    """Say what is missing of the two files."""
    weights, description = weights_path.exists(), json_path.exists()
    if weights and not description:
        raise CheckpointError(
            f"{json_path}: missing beside {weights_path.name}. A safetensors file from elsewhere needs its description: "
            f"rdc convert {weights_path} DESTINATION"
        )
    if not description:
        raise CheckpointError(
            f"{json_path}: no such checkpoint; expected {weights_path.name} and {json_path.name} in {weights_path.parent}"
        )
    if not weights:
        raise CheckpointError(
            f"{weights_path}: missing, although {json_path.name} is there; copy both files of the checkpoint"
        )


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
