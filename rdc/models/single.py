"""Classifiers of one network: those that ship with the package, and checkpoints of ``rdc train``, ``distill`` and ``convert``."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdc.contracts import BaseDefence
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import Denoiser, make_denoiser
from rdc.method.levels import levels_from_json
from rdc.models.assets import ASSETS, load_shipped
from rdc.models.checkpoints import checkpoint_paths, load_model
from rdc.models.descriptions import read_description
from rdc.models.discriminative import as_discriminative
from rdc.models.null_labels import null_label_of
from rdc.models.origins import mark
from rdc.networks.blocks import fastest_layout
from rdc.networks.presets import DISCRIMINATIVE

__all__ = ["ASSETS", "SINGLE", "load_denoiser", "load_single", "recorded_info"]

#: Shipped models of one network and what they are.
SINGLE: dict[str, str] = {
    "fashion-mnist": "multi-head diffusion classifier, Fashion-MNIST 28 x 28, one network pass a level",
    "fashion-mnist-several": "the same, trained on for several threats (l_inf, l_2, displacements) with adversarial images",
    "cifar10": "multi-head diffusion classifier, CIFAR-10 32 x 32, one network pass a level; nine minutes on a GPU, far from converged",
    "fashion-mnist-teacher": "class-conditional diffusion classifier, Fashion-MNIST 28 x 28, ten passes a level",
    "fashion-mnist-standard": "small ResNet, ordinary training: the undefended baseline",
    "fashion-mnist-pgd-at": "small ResNet, adversarial training (PGD-AT) at l_inf 8/255: a baseline",
    "fashion-mnist-trades": "small ResNet, adversarial training (TRADES) at l_inf 8/255: a baseline",
    "fashion-mnist-mart": "small ResNet, adversarial training (MART) at l_inf 8/255: a baseline",
    "fashion-mnist-pgd-at-several": "small ResNet, adversarial training for several threats (l_inf, l_2, displacements): a baseline",
    "fashion-mnist-jem": "small ResNet, a classifier and energy-based model (JEM): a generative rival",
    "fashion-mnist-hybvit": "small vision transformer, classifies and denoises (HybViT): a generative rival",
}

#: Settings of a diffusion classifier.
_SETTINGS = {
    name for name in inspect.signature(DiffusionClassifier.__init__).parameters if name not in ("self", "denoiser")
}

#: Levels of a checkpoint that recommends none.
DEFAULT_LEVELS = "log:12:0.3:4:flat"


def recorded_info(name: str | os.PathLike[str]) -> dict[str, Any]:
    """What is recorded of a shipped model or a checkpoint, the ``info`` of its description; {} of any other model.

    Raises:
        CheckpointError: the description is damaged.
    """
    description = checkpoint_paths(ASSETS / str(name) if str(name) in SINGLE else name)[1]
    return dict(read_description(description).get("info") or {}) if description.is_file() else {}


def load_single(name: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    """A classifier of one network with its recommended settings.

    Args, Returns, Raises: as :func:`rdc.models.zoo.load`; ``name`` is a key of :data:`SINGLE` or a path.
    """
    path = ASSETS / name if name in SINGLE else Path(name)
    network, config, info = load_shipped(name) if name in SINGLE else load_model(path)
    mark(network, config, info)
    if config["kind"] in DISCRIMINATIVE:
        return _discriminative(network.to(device), config, info, settings, path)
    if not config.get("num_classes"):
        raise ConfigError(
            f"{path}: expected a class-conditional network; this one has no classes and cannot classify. It can move the input of one that "
            "does: lm_denoiser=, --lm-model"
        )
    denoiser = _denoiser(network, config, info, device, name)
    if unknown := set(settings) - _SETTINGS:
        raise ConfigError(
            f"settings: expected some of device, {', '.join(sorted(_SETTINGS))}; got {', '.join(sorted(unknown))}"
        )
    recommended = {key: value for key, value in info.get("classifier", {}).items() if value is not None}
    defaults = {"levels": DEFAULT_LEVELS, **recommended, "class_names": info.get("class_names")}
    chosen = {**defaults, **settings}
    return DiffusionClassifier(denoiser, **{**chosen, "levels": _levels(chosen["levels"], info, path)})


def load_denoiser(name: str, device: torch.device) -> Denoiser:
    """The network of a diffusion model by itself; it may be unconditional.

    Args:
        name: a key of :data:`SINGLE` or a path.
        device: where to put the weights.

    Raises:
        ConfigError: no such file, or a classifier.
        CheckpointError: the file is damaged.
    """
    path = ASSETS / name if name in SINGLE else Path(name)
    network, config, info = load_model(path)
    if config["kind"] in DISCRIMINATIVE:
        raise ConfigError(f"{path}: expected a diffusion model; this is a discriminative classifier ({config['kind']})")
    return _denoiser(network, config, info, device, name)


def _denoiser(
    network: nn.Module, config: dict[str, Any], info: dict[str, Any], device: torch.device, name: str
) -> Denoiser:
    mark(network, config, info)
    network = network.to(device, memory_format=fastest_layout(device))  # type: ignore[call-overload]
    denoiser = make_denoiser(network, config)
    denoiser.null_training, denoiser.source = null_label_of(config, info, name), name
    return denoiser


def _levels(levels: Any, info: dict[str, Any], path: Path) -> Any:
    """Levels by the name that the checkpoint gives them ("fast", "accurate"); an object of lists as NoiseLevels."""
    own = info.get("level_presets") or {}
    if not isinstance(levels, str):
        return levels_from_json(levels, f"{path}: recommended levels") if isinstance(levels, dict) else levels
    if levels in ("fast", "accurate") and levels not in own:
        raise ConfigError(
            f"levels: {path} has no levels of the name {levels!r} ({', '.join(own) or 'none'}); leave --levels out for its own "
            "choice, or write scheme:count:min:max:weighting"
        )
    levels = own.get(levels, levels)
    return levels_from_json(levels, f"{path}: recommended levels") if isinstance(levels, dict) else levels


def _discriminative(
    network: Any, config: dict[str, Any], info: dict[str, Any], settings: dict[str, Any], path: Path
) -> BaseDefence:
    """A discriminative network with the interface of a defence."""
    kind = config["kind"]
    name = f"{kind} ({info['method']})" if "method" in info else kind
    shape, count = config["image_shape"], config["num_classes"]
    what = info.get("method", kind)
    return as_discriminative(network, name, shape, count, info.get("class_names"), settings, str(path), what)
