"""Classifiers as folders that others load, on disk or on the Hugging Face Hub: model.safetensors, model.json, README.md."""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rdc.arguments.scalars import shown
from rdc.contracts import BaseDefence, Defence
from rdc.errors import CheckpointError, ConfigError, one_line
from rdc.method.classifier import DiffusionClassifier
from rdc.method.levels import LEVEL_PRESETS, NoiseLevels, parse_levels
from rdc.method.likelihood_maximization import resolve_lm
from rdc.models.checkpoints import save_model
from rdc.models.origins import network_of, origin_of
from rdc.models.settings import Settings
from rdc.models.zoo import load
from rdc.storage.files import atomic_write

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

_FILES = ("model.safetensors", "model.json")
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_KEPT = ("gradient", "noise", "noise_seed", "logit_scale", "precision")  # settings that JSON holds as they are


def save_pretrained(
    classifier: Defence,
    folder: str | os.PathLike[str],
    *,
    config: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a classifier with its settings into a folder, for :func:`from_pretrained` and ``rdc.load``.

    Args:
        classifier: of one network, as ``rdc.load`` gives it; also with other settings (``with_``).
        folder: made when missing; files of these names are replaced.
        config: description of the network (``rdc.networks.presets.build_network``); None: that of the checkpoint it was loaded from.
        info: further entries of model.json, such as ``{"licence": "MIT"}``.
        dtype: how weights are stored, ``torch.float32`` or ``torch.float16``.

    Returns:
        The folder.

    Raises:
        ConfigError: a classifier of several parts, without a description, or with likelihood maximisation that no text stands for.
        CheckpointError: weights that are not finite, or a disk that is full.
    """
    network = network_of(classifier)
    kept_config, kept_info = origin_of(network) or (None, {})
    described = config if config is not None else kept_config
    if described is None:
        raise ConfigError(
            "config: expected the description that the network was made of (rdc.networks.presets.build_network), since it came from no "
            "checkpoint; got None"
        )
    about = {**kept_info, "class_names": list(classifier.class_names), **(info or {})}
    if isinstance(classifier, DiffusionClassifier):
        about["classifier"] = {**(kept_info.get("classifier") or {}), **_settings(classifier)}
    save_model(Path(folder) / "model", network, described, about, dtype)
    with atomic_write(Path(folder) / "README.md", "w") as file:
        file.write(_card(classifier, about))
    return Path(folder)


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    precision_sample: Tensor | None = None,
    **settings: Unpack[Settings],
) -> BaseDefence:
    """Load a classifier from a folder, or from the Hugging Face Hub. No code from it is run.

    Args:
        name: a folder written by :func:`save_pretrained` (or anything else that ``rdc.load`` takes), or ``"user/model"`` of the Hub.
        revision, token, cache_dir: as of ``huggingface_hub.snapshot_download``.
        device, precision_sample, settings: as of ``rdc.load``.

    Raises:
        ConfigError: no such folder; or huggingface_hub, which the Hub needs, is not installed.
        CheckpointError: nothing could be downloaded, or it is no checkpoint of rdc.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ConfigError(f'name: expected a folder or "user/model"; got {shown(name)}')
    text = os.fspath(name)
    if isinstance(name, str) and not Path(text).exists() and _REPOSITORY.fullmatch(text):
        hub = _hub()
        try:
            folder = hub.snapshot_download(
                repo_id=text, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=list(_FILES)
            )
        except Exception as error:  # huggingface_hub's own, those of its HTTP library, and of the system
            raise CheckpointError(
                f"{text}: could not be downloaded from the Hugging Face Hub ({one_line(error, 300)})"
            ) from error
        return load(folder, device=device, precision_sample=precision_sample, **settings)
    return load(text, device=device, precision_sample=precision_sample, **settings)


def push_to_hub(
    classifier: Defence,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload a classifier of rdc",
    config: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Write a classifier as :func:`save_pretrained` does and upload it.

    Args:
        classifier, config, info, dtype: as of :func:`save_pretrained`.
        repo_id: ``"user/model"``; made when missing.
        private: of a repository that is made.
        token: of the account; None: the one that ``hf auth login`` left.
        commit_message: first line of the commit.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: huggingface_hub is not installed, or no such name is possible. Others: see :func:`save_pretrained`; what
        huggingface_hub raises passes through.
    """
    if not isinstance(repo_id, str) or not _REPOSITORY.fullmatch(repo_id):
        raise ConfigError(f'repo_id: expected "user/model"; got {shown(repo_id)}')
    api = _hub().HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="rdc-") as folder:
        save_pretrained(classifier, folder, config=config, info=info, dtype=dtype)
        api.create_repo(repo_id=repo_id, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return str(getattr(done, "commit_url", done))


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(
            "huggingface_hub is not installed; pip install huggingface_hub, or the extra robust-diffusion-classifier[hub]"
        ) from error


def _settings(classifier: DiffusionClassifier) -> dict[str, Any]:
    """What ``rdc.load`` sets again, as JSON values."""
    settings = classifier.settings()
    lm = settings["lm"]
    text = None if lm is None else lm.name
    if lm is not None:
        try:
            known = resolve_lm(text) == lm
        except ConfigError:
            known = False
        if not known:
            raise ConfigError(
                "lm: expected likelihood maximisation that a text stands for, such as lm='paper-v2,steps=10'; got settings made in "
                f"Python ({shown(text)})"
            )
    prior = settings["class_prior"]
    kept = {name: str(settings[name]) if isinstance(settings[name], str) else settings[name] for name in _KEPT}
    return {
        "levels": _levels(settings["levels"]),
        "lm": text,
        "class_prior": None if prior is None else [float(share) for share in prior],
        **kept,
    }


def _levels(levels: NoiseLevels) -> Any:
    """Levels as the text that gives them to the last bit, if there is one, else as lists (whose weights are normalised once more)."""
    about = levels.describe()
    text = ":".join(str(about.get(name)) for name in ("scheme", "count", "sigma_min", "sigma_max", "weighting"))
    for candidate in (text, *LEVEL_PRESETS):
        try:
            if parse_levels(candidate) == levels:
                return candidate
        except ConfigError:
            continue
    return levels.to_json()


def _card(classifier: Defence, about: dict[str, Any]) -> str:
    """README.md for the Hub."""
    licence = about.get("licence")
    channels, height, width = classifier.image_shape
    data = f", trained on {one_line(about['dataset'], 100)}" if about.get("dataset") else ""
    lines = [
        "---", "library_name: rdc", "pipeline_tag: image-classification", "tags: [rdc, adversarial-robustness]", "---", "",
        f"A {classifier.head} classifier of {classifier.num_classes} classes, images {channels} x {height} x {width}{data}.", "",
        "```python", "import rdc", "", 'model = rdc.from_pretrained("user/model")  # or the path of this folder', "```", "",
    ]  # fmt: skip
    if licence:
        lines += [f"Licence: {one_line(licence, 300)}", ""]
    return "\n".join(lines)
