"""Ready classifiers by name: ``rdc.load("fashion-mnist")``."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import torch

from rdc.arguments.scalars import as_integer, shown
from rdc.errors import ConfigError, one_line
from rdc.execution.surroundings import never_inference
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import make_denoiser
from rdc.method.levels import levels_from_json
from rdc.models.checkpoints import load_model
from rdc.networks.blocks import fastest_layout

__all__ = ["MODELS", "load"]

ASSETS = Path(__file__).resolve().parent.parent / "assets"

#: Shipped models and what they are.
MODELS: dict[str, str] = {
    "fashion-mnist": "multi-head diffusion classifier, Fashion-MNIST 28 x 28, one network pass a level",
    "cifar10": "multi-head diffusion classifier, CIFAR-10 32 x 32, one network pass a level; five minutes on a GPU, far from converged",
    "fashion-mnist-teacher": "class-conditional diffusion classifier, Fashion-MNIST 28 x 28, ten passes a level",
    "fashion-mnist-standard": "small ResNet, ordinary training: the undefended baseline",
    "fashion-mnist-pgd-at": "small ResNet, adversarial training (PGD-AT) at l_inf 8/255: a baseline",
    "fashion-mnist-trades": "small ResNet, adversarial training (TRADES) at l_inf 8/255: a baseline",
    "fashion-mnist-mart": "small ResNet, adversarial training (MART) at l_inf 8/255: a baseline",
    "fashion-mnist-lm-resnet": "likelihood maximisation by fashion-mnist-teacher, then fashion-mnist-standard",
    "fashion-mnist-diffpure": "DiffPure by fashion-mnist-teacher, then fashion-mnist-standard",
}

#: Models made of two others: name -> (function of rdc.models.joined, classifier, diffusion model, settings it takes)
_JOINED = {
    "fashion-mnist-lm-resnet": ("lm_in_front", "fashion-mnist-standard", "fashion-mnist-teacher", {"lm"}),
    "fashion-mnist-diffpure": ("diffpure_in_front", "fashion-mnist-standard", "fashion-mnist-teacher", set()),
}

#: Settings of a diffusion classifier.
_SETTINGS = {
    name for name in inspect.signature(DiffusionClassifier.__init__).parameters if name not in ("self", "denoiser")
}

#: Levels of a checkpoint that recommends none.
DEFAULT_LEVELS = "log:12:0.3:4:flat"


@never_inference
def load(name: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu", **settings: Any) -> Any:
    """Load a classifier with its recommended settings.

    Args:
        name: a key of :data:`MODELS`, or the path of a checkpoint written by ``rdc train``, ``distill`` or ``convert``.
        device: where to put the weights: "cpu", "cuda", "cuda:1", "mps", ..., or a ``torch.device``.
        settings: override any setting of :class:`DiffusionClassifier`, e.g. ``levels="edm"``, ``levels="accurate"`` (a name of
            the checkpoint's own: the shipped models have "fast" and "accurate"), ``lm="released"``,
            ``gradient="bpda"``, ``noise="fresh"``.

    Returns:
        A classifier: pixels [N, C, H, W] in [0, 1] -> log-probabilities [N, K], in evaluation mode for good (``train()`` is without
        effect). For a checkpoint of ``rdc train --method standard`` and the like a ``rdc.defences.PlainClassifier``, for a purifier
        in front of one a ``rdc.defences.PurifiedClassifier``: logits [N, K].

    Raises:
        ConfigError: no shipped model or file has that name, a setting is unknown or has a value that does not fit, or there is no
            such device.
        CheckpointError: the file is damaged or not a checkpoint of rdc.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ConfigError(f"model: expected {', '.join(MODELS)} or the path of a checkpoint; got {shown(name)}")
    name, device = os.fspath(name), _device(device)
    if str(name) in _JOINED:
        return _joined(str(name), device, settings)
    path = ASSETS / str(name) if str(name) in MODELS else Path(name)
    if str(name) not in MODELS and not _exists(path):
        raise ConfigError(
            f"model: expected {', '.join(MODELS)} or the path of a checkpoint; got {shown(name, 400)}, and no such file exists"
        )
    network, config, info = load_model(path)
    if config["kind"] == "resnet":
        return _discriminative(network.to(device), config, info, settings, path)
    if not config.get("num_classes"):
        raise ConfigError(f"{path}: expected a class-conditional network; this one has no classes and cannot classify")
    denoiser = make_denoiser(network.to(device, memory_format=fastest_layout(device)), config)
    if unknown := set(settings) - _SETTINGS:
        raise ConfigError(
            f"settings: expected some of device, {', '.join(sorted(_SETTINGS))}; got {', '.join(sorted(unknown))}"
        )
    recommended = {key: value for key, value in info.get("classifier", {}).items() if value is not None}
    defaults = {"levels": DEFAULT_LEVELS, **recommended, "class_names": info.get("class_names")}
    chosen = {**defaults, **settings}
    return DiffusionClassifier(denoiser, **{**chosen, "levels": _levels(chosen["levels"], info, path)})


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
) -> Any:
    """A discriminative network with the interface of a defence."""
    from rdc.defences import PlainClassifier

    if unknown := set(settings) - {"gradient", "noise", "noise_seed"}:
        raise ConfigError(
            f"{path}: a discriminative network ({info.get('method', 'resnet')}) has no {', '.join(sorted(unknown))}; leave "
            "it out. For likelihood maximisation in front of it see rdc.defences.PurifiedClassifier"
        )
    name = f"resnet ({info['method']})" if "method" in info else "resnet"
    shape, count = config["image_shape"], config["num_classes"]
    return PlainClassifier(
        network.requires_grad_(False),
        image_shape=shape,
        num_classes=count,
        class_names=info.get("class_names"),
        name=name,
        **settings,
    )


def _joined(name: str, device: str | torch.device, settings: dict[str, Any]) -> Any:
    """A purifier in front of a discriminative network."""
    from rdc.defences import examples

    function, classifier, diffusion, own = _JOINED[name]
    if unknown := set(settings) - own - {"gradient", "noise", "noise_seed"}:
        raise ConfigError(
            f"{name}: expected no {', '.join(sorted(unknown))}, this model has none; leave it out, or put one together with "
            f"rdc.models.joined.{function}"
        )
    parts = load(classifier, device=device), load(diffusion, device=device)
    return getattr(examples, function)(*parts, **settings)


def _device(device: str | torch.device) -> torch.device:
    """The device, if PyTorch can use it.

    Raises:
        ConfigError: no such kind of device, or none of that kind or number here.
    """
    expected = "device: expected cpu, cuda, cuda:0, mps or another device of PyTorch's"
    try:
        number = as_integer(device)  # of a GPU, as torch has it
        known = isinstance(device, (str, torch.device)) or number is not None
        found = torch.device(device if number is None else number) if known else None
    except (RuntimeError, ValueError, OverflowError):
        found = None
    if found is None:
        raise ConfigError(f"{expected}; got {shown(device)}")
    try:
        torch.empty(0, device=found)
    except Exception as error:  # PyTorch has a class of its own for every reason
        raise ConfigError(
            f"{expected} that it can use here; got {shown(str(found))} ({one_line(error, 120)}). `rdc info` says which there are"
        ) from error
    if found.type == "meta":
        raise ConfigError(f"{expected} that holds values; got 'meta'")
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists() or any(path.with_name(path.name + suffix).exists() for suffix in (".json", ".safetensors"))
    except (OSError, ValueError):  # a name that no file can have
        return False
