"""Folders of the diffusers library: a ``UNet2DModel``, class-conditional or not, and its noise schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rdc.arguments.scalars import shown
from rdc.errors import CheckpointError, ConfigError, one_line
from rdc.models.convert.diffusers_parts import prediction_of, renamed, sample_size, scheduler_options, unet_folder
from rdc.models.convert.diffusers_weights import read_diffusers_weights
from rdc.models.convert.state_dicts import strip_prefix
from rdc.storage.json_files import read_json
from rdc.storage.reading import reading

__all__ = ["read_diffusers_folder"]

_UNET_OPTIONS = (
    "center_input_sample",
    "time_embedding_type",
    "time_embedding_dim",
    "freq_shift",
    "flip_sin_to_cos",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "downsample_padding",
    "downsample_type",
    "upsample_type",
    "dropout",
    "act_fn",
    "attention_head_dim",
    "norm_num_groups",
    "attn_norm_num_groups",
    "norm_eps",
    "resnet_time_scale_shift",
    "add_attention",
    "num_class_embeds",
    "num_train_timesteps",
)
_SCHEDULE_OPTIONS = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)


def read_diffusers_folder(
    folder: Path, null_label: int | str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Read a pipeline's folder (with ``unet/``), or the folder of the ``UNet2DModel`` itself.

    Args:
        folder: the folder.
        null_label: what "no label" means: an embedding's index, "mean" or "none", see ``networks.vp.VPNetwork``; None:
            "mean", with a note.

    Returns:
        Network description for ``build_network``, state dict under its names (the schedule's ``log_sigmas`` are left
        for the caller to compute), notes for the user.

    Raises:
        CheckpointError: a file is missing or damaged, or an option is not supported.
        ConfigError: a null label of a model without class labels.
    """
    with reading(folder, CheckpointError, "a diffusers folder"):
        return _read(folder, null_label)


def _read(folder: Path, null_label: int | str | None) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    inside, about = unet_folder(folder)
    options = _json_file(inside / "config.json")
    if options.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise CheckpointError(
            f"{inside}/config.json: expected a UNet2DModel; got {one_line(options['_class_name'], 80)}"
        )
    unet, shape = _unet_config(options, inside)
    prediction, schedule, notes = _schedule(folder, inside)
    embeddings = unet.get("num_class_embeds", 0)
    if not embeddings and null_label is not None:
        raise ConfigError(
            f"null_label: expected none, the model in {inside} takes no class labels; got {shown(null_label)}"
        )
    null = None if null_label == "none" or not embeddings else "mean" if null_label is None else null_label
    vp = {"prediction": prediction, "null_label": null, "schedule": schedule}
    config = {
        "kind": "conditional",
        "image_shape": shape,
        "num_classes": embeddings - (type(null_label) is int),
        "sigma_data": 0.5,
        "unet": unet,
        "vp": vp,
    }
    if not embeddings:
        notes.append(
            "num_class_embeds is not set, so the model is unconditional: it cannot classify, but likelihood maximisation can move the "
            "input of another by it (--lm-model)"
        )
    elif null_label is None:
        notes.append(
            "null label: the mean of the class embeddings stands in for it, an input the model was never trained on; "
            "it affects likelihood maximisation only. Name the embedding's index if one was trained for it (null_label)"
        )
    state, more = _weights(inside)
    return config, {f"unet.{name}": value for name, value in state.items()}, about + notes + more


def _unet_config(options: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[int]]:
    where = f"{folder}/config.json"
    if options.get("class_embed_type") is not None:
        raise CheckpointError(
            f"{where}: class_embed_type {shown(options['class_embed_type'])} is not supported; expected null"
        )
    embeddings = options.get("num_class_embeds")
    if embeddings is not None and (type(embeddings) is not int or embeddings < 1):
        raise CheckpointError(
            f"{where}: num_class_embeds: expected a whole number >= 1, or null for an unconditional model; got {shown(embeddings)}"
        )
    channels, out_channels = options.get("in_channels", 3), options.get("out_channels", 3)
    if type(channels) is not int:
        raise CheckpointError(f"{where}: in_channels: expected a whole number; got {shown(channels)}")
    if out_channels not in (channels, 2 * channels):
        raise CheckpointError(f"{where}: expected out_channels {channels} or {2 * channels}; got {shown(out_channels)}")
    height, width = sample_size(options.get("sample_size"), where)
    if height != width:
        raise CheckpointError(f"{where}: expected a square sample_size in pixels; got {height} x {width}")
    unet = {name: options[name] for name in _UNET_OPTIONS if name in options}
    if embeddings is None:
        unet.pop("num_class_embeds", None)
    return {"architecture": "UNet2DModel", "out_channels": out_channels, **unet}, [channels, height, width]


def _schedule(folder: Path, inside: Path) -> tuple[str, dict[str, Any], list[str]]:
    """Prediction type, noise schedule and notes."""
    places = [place for parent in (folder, inside.parent) for place in (parent / "scheduler", parent)]
    found = scheduler_options(*places)
    if found is None:
        return (
            "epsilon",
            {},
            ["no scheduler/scheduler_config.json: DDPM's linear schedule and epsilon prediction were assumed"],
        )
    options, path = found
    prediction = prediction_of(options, str(path))
    return prediction, {name: options[name] for name in _SCHEDULE_OPTIONS if options.get(name) is not None}, []


def _weights(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    state, notes = read_diffusers_weights(folder)
    state, more = strip_prefix(state, None, folder)
    return renamed(state, folder), notes + more


def _json_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(
            f"{path}: missing; expected a diffusers folder (unet/config.json and its weights) "
            "or the UNet2DModel's own folder"
        )
    content: dict[str, Any] = read_json(path, CheckpointError, kind=dict)
    return content
