"""Checkpoints of other programs -> safetensors + JSON: the function behind ``rdc convert``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdc.arguments.class_names import checked_names
from rdc.arguments.close_names import did_you_mean
from rdc.errors import CheckpointError, ConfigError
from rdc.method.null_label import NullLabel
from rdc.models.checkpoints import checkpoint_paths, network_from_state, save_model
from rdc.models.convert.diffusers_folder import read_diffusers_folder
from rdc.models.convert.edm_pickle import read_edm_pickle
from rdc.models.convert.state_dicts import infer_config, read_safetensors, read_torch_file, strip_prefix
from rdc.models.convert.torch_files import is_torch_file
from rdc.models.null_labels import null_label_of
from rdc.networks.presets import NETWORK_PRESETS, build_network, network_preset
from rdc.storage.json_files import read_json
from rdc.storage.reading import reading, regular_file
from rdc.storage.safetensors_files import is_safetensors

__all__ = ["KINDS", "convert_checkpoint"]

KINDS = ("auto", "edm-pickle", "state-dict", "diffusers", "safetensors")


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    kind: str = "auto",
    network: str | os.PathLike[str] | dict[str, Any] | None = None,
    num_classes: int | None = None,
    null_label: int | str | None = None,
    info: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Convert a checkpoint once, without running any code in it.

    Args:
        source: an EDM pickle (.pkl), a state dict (.pt, .pth, .safetensors), or a diffusers folder.
        destination: the checkpoint to write, see ``rdc.models.checkpoints.checkpoint_paths``.
        kind: what ``source`` is, one of :data:`KINDS`.
        network: for state dicts: preset name, path of a JSON description, or the description itself; None: inferred
            from the tensors' shapes (EDM U-Nets).
        num_classes: with ``network``: number of classes; None: read off the label map.
        null_label: for diffusers: what "no label" means: the index of an embedding trained for it, "mean" or "none"
            (see ``VPNetwork``); None: "mean", and a note says so.
        info: put into the checkpoint's ``info`` (``class_names``: K different ones; licence, ...).
        dtype: how weights are stored, float32 or float16.

    Returns:
        ``source``, ``kind``, ``destination`` (safetensors file), ``description`` (JSON file), ``config``,
        ``parameters``, ``tensors``, ``null_label`` (see :class:`rdc.method.null_label.NullLabel`), ``notes`` (list of texts that the
        user should see).

    Raises:
        CheckpointError: the source is missing, damaged, asks for code, or its weights fit no supported network.
        ConfigError: an option is unknown, has no meaning for the source, or does not fit its network.
    """
    source = Path(source)
    with reading(source, CheckpointError, "a checkpoint"):
        return _convert(source, destination, kind, network, num_classes, null_label, info, dtype)


def _convert(
    source: Path,
    destination: str | os.PathLike[str],
    kind: str,
    network: str | os.PathLike[str] | dict[str, Any] | None,
    num_classes: int | None,
    null_label: int | str | None,
    info: dict[str, Any] | None,
    dtype: torch.dtype,
) -> dict[str, Any]:
    kind = _kind(source, kind)
    if kind not in ("state-dict", "safetensors") and (network is not None or num_classes is not None):
        raise ConfigError(f"network, num_classes: expected with state dicts only; a {kind} source describes itself")
    if num_classes is not None and network is None:
        raise ConfigError(
            f"num_classes: expected with network only; without one it is read off the tensors; got {num_classes}"
        )
    if kind != "diffusers" and null_label is not None:
        raise ConfigError(f"null_label: expected with diffusers folders only; the source is {kind}")
    if source.resolve() in (path.resolve() for path in checkpoint_paths(destination)):
        raise ConfigError(f"destination: expected another name than the source {source}")
    config, state, notes = _read(source, kind, network, num_classes, null_label)
    info = _checked_info(info, config)
    made = network_from_state(config, state, source)
    origin = {"converted_from": {"file": source.name, "kind": kind, "notes": notes}, **info}
    null = null_label_of(config, origin, str(source))
    about = {**origin, "null_label": null.to_json()}
    notes = [*notes, *_null_note(config, null)]
    written = save_model(destination, made, config, about, dtype)
    return {
        "source": str(source),
        "kind": kind,
        "destination": str(written),
        "description": str(checkpoint_paths(written)[1]),
        "config": config,
        "parameters": sum(parameter.numel() for parameter in made.parameters()),
        "tensors": len(made.state_dict()),
        "null_label": null.to_json(),
        "notes": notes,
    }


def _null_note(config: dict[str, Any], null: NullLabel) -> list[str]:
    """What the user should know of the null label; diffusers folders have notes of their own."""
    if null.trained or "vp" in config:
        return []
    asked = "likelihood maximisation by this network asks it without a label; use an unconditional network for that (--lm-model)"
    if null.trained is None:
        return [f"null label: nobody knows if it was trained ({null.why}); {asked}, or know better"]
    return [f"null label: never trained ({null.why}); {asked}"]


def _kind(source: Path, kind: str) -> str:
    """Check that the source exists and say what it is."""
    if kind not in KINDS:
        raise ConfigError(f"kind: expected one of {', '.join(KINDS)}; got {kind!r}{did_you_mean(kind, KINDS)}")
    if not source.exists():
        raise CheckpointError(f"{source}: no such file or folder")
    if source.is_dir() != (kind == "diffusers") and kind != "auto":
        raise CheckpointError(f"{source}: expected a {'folder' if kind == 'diffusers' else 'file'} for kind {kind}")
    if kind != "auto":
        return kind
    if source.is_dir():
        return "diffusers"
    regular_file(source, CheckpointError, "a checkpoint")
    with source.open("rb") as file:
        head = file.read(300)
    if is_safetensors(head) or source.suffix == ".safetensors":
        return "safetensors"
    if is_torch_file(head):
        return "state-dict"
    if head[:1] == b"\x80":
        return "edm-pickle"
    raise CheckpointError(
        f"{source}: neither a pickle, a torch.save file, a safetensors file nor a diffusers folder; name its kind: "
        f"{', '.join(KINDS[1:])}"
    )


def _checked_info(info: dict[str, Any] | None, config: dict[str, Any]) -> dict[str, Any]:
    """``info`` with a name for each class, if it has names."""
    if not info or info.get("class_names") is None:
        return dict(info or {})
    count = config.get("num_classes") or 0
    if count == 0:
        raise ConfigError("class_names: expected none; the network has no classes")
    return {**info, "class_names": list(checked_names(info["class_names"], count))}


def _read(
    source: Path,
    kind: str,
    network: str | os.PathLike[str] | dict[str, Any] | None,
    num_classes: int | None,
    null_label: int | str | None,
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Network description, its complete state, notes."""
    if kind == "edm-pickle":
        return read_edm_pickle(source)
    if kind == "diffusers":
        config, state, notes = read_diffusers_folder(source, null_label)
        log_sigmas = _built(config, source).get_buffer("log_sigmas")
        return config, {**state, "log_sigmas": log_sigmas.cpu()}, notes
    state, notes = (read_safetensors(source), []) if kind == "safetensors" else read_torch_file(source)
    if network is None:
        state, more = strip_prefix(state, None, source)
        return (
            infer_config(state, source),
            state,
            notes + more + ["the architecture was inferred from the tensors' shapes"],
        )
    config = _described(network, num_classes, state)
    state, more = strip_prefix(state, set(_built(config, source).state_dict()), source)
    return config, state, notes + more


def _described(
    network: str | os.PathLike[str] | dict[str, Any], num_classes: int | None, state: dict[str, Tensor]
) -> dict[str, Any]:
    """The description that ``network`` stands for."""
    if isinstance(network, dict):
        config = dict(network)
    elif str(network) in NETWORK_PRESETS:
        if num_classes is None:
            label = next((value for name, value in state.items() if name.endswith("map_label.weight")), None)
            num_classes = 0 if label is None or label.ndim != 2 else label.shape[1]
        return network_preset(str(network), num_classes)
    else:
        try:
            config = read_json(network, ConfigError, kind=dict)
        except ConfigError as error:
            raise ConfigError(
                f"network: expected a preset ({', '.join(NETWORK_PRESETS)}) or a JSON file; got {error}"
            ) from error
        config = config["config"] if isinstance(config.get("config"), dict) else config
    return config if num_classes is None else {**config, "num_classes": num_classes}


def _built(config: dict[str, Any], source: Path) -> torch.nn.Module:
    """A network of ``config`` for its names and buffers; its parameters have no memory."""
    try:
        with torch.device("meta"):
            return build_network(config)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
