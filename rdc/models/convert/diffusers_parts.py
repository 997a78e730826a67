"""What lies where in a folder of diffusers, and what its configurations say: for ``rdc convert`` and ``diffusers:FOLDER`` alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rdc.arguments.scalars import shown
from rdc.errors import CheckpointError, one_line
from rdc.models.convert.diffusers_weights import read_diffusers_weights
from rdc.networks.vp import PREDICTIONS
from rdc.storage.json_files import read_json

__all__ = ["model_weights", "prediction_of", "renamed", "sample_size", "scheduler_options", "unet_folder"]

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SIDE = 65536


def unet_folder(root: Path) -> tuple[Path, list[str]]:
    """The U-Net's own folder, and a note if there was a choice: averaged weights are what is sampled from."""
    inside = [root / name for name in ("unet_ema", "unet") if (root / name).is_dir()]
    notes = ["read unet_ema (averaged weights); left out: unet"] if len(inside) > 1 else []
    return (inside or [root])[0], notes


def scheduler_options(*folders: Path) -> tuple[dict[str, Any], Path] | None:
    """The first ``scheduler_config.json`` in these folders, and its path; None if there is none.

    Raises:
        CheckpointError: it is no JSON object.
    """
    path = next((found for folder in folders if (found := folder / "scheduler_config.json").is_file()), None)
    if path is None:
        return None
    options: dict[str, Any] = read_json(path, CheckpointError, kind=dict)
    return options, path


def prediction_of(options: dict[str, Any], where: str, others: str = "") -> str:
    """What a model with a variance-preserving scheduler predicts: epsilon, v_prediction or sample.

    Args:
        options: of ``scheduler_config.json``.
        where: its name for errors.
        others: further kinds of schedulers that the caller takes, for the message.

    Raises:
        CheckpointError: another kind of scheduler, or a prediction that it does not have.
    """
    if "beta_schedule" not in options and options.get("trained_betas") is None:
        raise CheckpointError(
            f"{where}: expected a variance-preserving scheduler (beta_schedule){others}; got {shown(options.get('_class_name'))}"
        )
    prediction = options.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise CheckpointError(
            f"{where}: prediction_type: expected one of {', '.join(PREDICTIONS)}; got {shown(prediction)}"
        )
    return str(prediction)


def sample_size(size: Any, where: str) -> tuple[int, int]:
    """(H, W) of ``sample_size`` in a model's configuration.

    Raises:
        CheckpointError: it is no size.
    """
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    if type(height) is not int or type(width) is not int or not (0 < height <= _SIDE and 0 < width <= _SIDE):
        raise CheckpointError(
            f"{where}: expected sample_size, the model's height and width; got {shown(size)}. Write it into the file"
        )
    return height, width


def model_weights(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a model's folder under the names of today, and notes.

    Raises:
        CheckpointError: see :func:`read_diffusers_weights`; or a tensor under two names.
    """
    state, notes = read_diffusers_weights(folder)
    return renamed(state, folder), notes


def renamed(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Attention's tensors as diffusers calls them since 0.12; Stable Diffusion's autoencoder has the old names.

    Raises:
        CheckpointError: a tensor is there under both.
    """
    found = {}
    for name, value in state.items():
        parts = name.split(".")
        if "attentions" in parts[:-2] and parts[-2] in _OLD_ATTENTION:
            name = ".".join([*parts[:-2], _OLD_ATTENTION[parts[-2]], parts[-1]])
        if name in found:
            raise CheckpointError(f"{folder}: {one_line(name, 80)} is there under its old and its new name")
        found[name] = value
    return found
