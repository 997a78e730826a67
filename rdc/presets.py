"""Ready classifiers by name: ``rdc.load("fashion-mnist")``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from rdc.checkpoints import load_model
from rdc.classifier import DiffusionClassifier
from rdc.denoiser import make_denoiser
from rdc.errors import ConfigError
from rdc.timesteps import levels_from_json

__all__ = ["MODELS", "load"]

ASSETS = Path(__file__).parent / "assets"

#: Shipped models and what they are.
MODELS: dict[str, str] = {
    "fashion-mnist": "multi-head diffusion classifier, Fashion-MNIST 28 x 28, one network pass a level",
    "fashion-mnist-teacher": "class-conditional diffusion classifier, Fashion-MNIST 28 x 28, ten passes a level",
}

#: Levels of a checkpoint that recommends none.
DEFAULT_LEVELS = "log:12:0.3:4:flat"


def load(name: str | os.PathLike[str], *, device: str | torch.device = "cpu", **settings: Any) -> DiffusionClassifier:
    """Load a classifier with its recommended settings.

    Args:
        name: a key of :data:`MODELS`, or the path of a checkpoint written by ``rdc train``, ``distill`` or ``convert``.
        device: where to put the weights.
        settings: override any setting of :class:`DiffusionClassifier`, e.g. ``levels="edm"``, ``lm="released"``,
            ``gradient="bpda"``, ``noise="fresh"``.

    Returns:
        A classifier in eval mode: pixels [N, C, H, W] in [0, 1] -> log-probabilities [N, K].

    Raises:
        ConfigError: no shipped model or file has that name, or a setting is unknown.
        CheckpointError: the file is damaged or not a checkpoint of rdc.
    """
    path = ASSETS / str(name) if str(name) in MODELS else Path(name)
    if str(name) not in MODELS and not _exists(path):
        raise ConfigError(
            f"model: expected {', '.join(MODELS)} or the path of a checkpoint; got {str(name)!r}, and no such file exists"
        )
    network, config, info = load_model(path)
    if not config.get("num_classes"):
        raise ConfigError(f"{path}: expected a class-conditional network; this one has no classes and cannot classify")
    denoiser = make_denoiser(network.to(device, memory_format=torch.channels_last), config)
    recommended = {key: value for key, value in info.get("classifier", {}).items() if value is not None}
    if "levels" not in settings and isinstance(recommended.get("levels"), dict):
        recommended["levels"] = levels_from_json(recommended["levels"], f"{path}: recommended levels")
    defaults = {"levels": DEFAULT_LEVELS, **recommended, "class_names": info.get("class_names")}
    return DiffusionClassifier(denoiser, **{**defaults, **settings})


def _exists(path: Path) -> bool:
    return path.exists() or any(path.with_name(path.name + suffix).exists() for suffix in (".json", ".safetensors"))
