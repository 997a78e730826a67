"""Folders of the diffusers library: a ``UNet2DModel``, class-conditional or not, and its noise schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rdc.arguments.scalars import shown
from rdc.errors import CheckpointError, ConfigError, one_line
from rdc.models.convert.diffusers_weights import read_diffusers_weights
from rdc.models.convert.state_dicts import strip_prefix
from rdc.networks.vp import PREDICTIONS
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
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


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
    unet_folder, about = _unet_folder(folder)
    options = _json_file(unet_folder / "config.json")
    if options.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise CheckpointError(
            f"{unet_folder}/config.json: expected a UNet2DModel; got {one_line(options['_class_name'], 80)}"
        )
    unet, shape = _unet_config(options, unet_folder)
    prediction, schedule, notes = _schedule(folder, unet_folder)
    embeddings = unet.get("num_class_embeds", 0)
    if not embeddings and null_label is not None:
        raise ConfigError(
            f"null_label: expected none, the model in {unet_folder} takes no class labels; got {shown(null_label)}"
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
    state, more = _weights(unet_folder)
    return config, {f"unet.{name}": value for name, value in state.items()}, about + notes + more


def _unet_folder(folder: Path) -> tuple[Path, list[str]]:
    """The model's own folder, and a note if there was a choice: averaged weights are what is sampled from."""
    inside = [folder / name for name in ("unet_ema", "unet") if (folder / name).is_dir()]
    notes = ["read unet_ema (averaged weights); left out: unet"] if len(inside) > 1 else []
    return (inside or [folder])[0], notes


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
    size = options.get("sample_size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if type(height) is not int or height != width:
        raise CheckpointError(
            f"{where}: expected a square sample_size in pixels; got {shown(size)}. Write it into the file"
        )
    unet = {name: options[name] for name in _UNET_OPTIONS if name in options}
    if embeddings is None:
        unet.pop("num_class_embeds", None)
    return {"architecture": "UNet2DModel", "out_channels": out_channels, **unet}, [channels, height, width]


def _schedule(folder: Path, unet_folder: Path) -> tuple[str, dict[str, Any], list[str]]:
    """Prediction type, noise schedule and notes."""
    found = [
        parent / name
        for parent in (folder, unet_folder.parent)
        for name in ("scheduler/scheduler_config.json", "scheduler_config.json")
    ]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        return (
            "epsilon",
            {},
            ["no scheduler/scheduler_config.json: DDPM's linear schedule and epsilon prediction were assumed"],
        )
    options = _json_file(path)
    if "beta_schedule" not in options and options.get("trained_betas") is None:
        raise CheckpointError(
            f"{path}: expected a variance-preserving scheduler (beta_schedule); got {shown(options.get('_class_name'))}"
        )
    prediction = options.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise CheckpointError(
            f"{path}: prediction_type: expected one of {', '.join(PREDICTIONS)}; got {shown(prediction)}"
        )
    return prediction, {name: options[name] for name in _SCHEDULE_OPTIONS if options.get(name) is not None}, []


def _weights(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    state, notes = read_diffusers_weights(folder)
    state, more = strip_prefix(state, None, folder)
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if "attentions" in parts[:-2] and parts[-2] in _OLD_ATTENTION:  # names of diffusers before 0.12
            name = ".".join([*parts[:-2], _OLD_ATTENTION[parts[-2]], parts[-1]])
        if name in renamed:
            raise CheckpointError(f"{folder}: {one_line(name, 80)} is there under its old and its new name")
        renamed[name] = value
    return renamed, notes + more


def _json_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(
            f"{path}: missing; expected a diffusers folder (unet/config.json and its weights) "
            "or the UNet2DModel's own folder"
        )
    content: dict[str, Any] = read_json(path, CheckpointError, kind=dict)
    return content
