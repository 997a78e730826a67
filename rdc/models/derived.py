"""Models that are made when they are loaded, by a name with a prefix: ``optimal:fashion-mnist``.

    optimal:DATA[,images=N][,split=train|test][,exponent=gaussian|released]
        the optimal diffusion classifier of a data set (:mod:`rdc.method.optimal`): DATA as for --data, of its ``train`` split; N images,
        the first of each class in turn

    sbgc:NAME[,steps=N][,solver=heun|rk4][,probes=N][,sigma_min=X][,sigma_max=X][,gradient=checkpoint|adjoint]
        the score-based generative classifier (:mod:`rdc.defences.score_based`) of the diffusion model NAME, shipped or a path

    per-class:NAME
        the diffusion classifier NAME, shipped or a path, with noise that its classes do not share (:mod:`rdc.method.per_class_noise`)

    diffusers:FOLDER[,prompts=FILE][,image=CxHxW][,guidance=G][,null=INDEX]
        a pipeline of the diffusers library (:mod:`rdc.models.pipelines`), a folder or a name on Hugging Face

    timm:NAME[,weights=none|FILE][,classes=K][,image=CxHxW]
    torchvision:NAME[,weights=NAME|none|FILE][,classes=K][,image=CxHxW]
    robustbench:NAME:THREAT[,data=cifar10|cifar100|imagenet][,folder=DIR]
        a classifier of that library (:mod:`rdc.models.libraries`)

    azula:PLUGIN/NAME[,weights=FILE][,image=CxHxW]
        a diffusion model of azula's plug-ins ADM (guided-diffusion) and JiT (:mod:`rdc.models.azula_denoisers`)

A loader gets what stands behind the colon, the device and the settings, and gives a defence.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch

from rdc.arguments.scalars import shown
from rdc.contracts import BaseDefence
from rdc.data import DataNotice, first_balanced, load_dataset
from rdc.defences.score_based import SBGC_FLOW, ScoreBasedClassifier
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.optimal import EXPONENTS, OptimalDenoiser
from rdc.method.per_class_noise import PerClassNoise
from rdc.method.probability_flow import EXACT
from rdc.models.single import load_single
from rdc.models.words import parse_words

__all__ = ["DERIVED", "is_derived", "load_derived", "optimal_denoiser"]

_FLOW_NUMBERS = ("steps", "probes", "sigma_min", "sigma_max")
OPTIMAL_LEVELS = "log:12:0.3:4:flat"
_SETTINGS = {
    name for name in inspect.signature(DiffusionClassifier.__init__).parameters if name not in ("self", "denoiser")
}
_SBGC_SETTINGS = {
    name for name in inspect.signature(ScoreBasedClassifier.__init__).parameters if name not in ("self", "denoiser")
}


def is_derived(name: str) -> bool:
    """Whether a model's name begins with one of the prefixes."""
    return str(name).partition(":")[0] in DERIVED and ":" in str(name)


def load_derived(name: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    """A model of this module.

    Args, Raises: as :func:`rdc.models.zoo.load`; ``name`` is one that :func:`is_derived`.
    """
    prefix, _, rest = name.partition(":")
    return DERIVED[prefix](rest, device, settings)


def _load_optimal(text: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    _known(settings, _SETTINGS)
    denoiser, class_names = optimal_denoiser(text, device)
    return DiffusionClassifier(denoiser, **{"levels": OPTIMAL_LEVELS, "class_names": class_names, **settings})


def optimal_denoiser(text: str, device: torch.device) -> tuple[OptimalDenoiser, tuple[str, ...]]:
    """The optimal denoiser of a data set, and the names of its classes.

    Args:
        text: what stands behind ``optimal:``.
        device: where the images are put.

    Raises:
        ConfigError: a field that there is not, or a value that does not fit.
    """
    data_name, fields = parse_words(text, "optimal", {"images": None, "split": "train", "exponent": "gaussian"})
    if fields["exponent"] not in EXPONENTS:
        raise ConfigError(
            f"model optimal: exponent: expected {' or '.join(EXPONENTS)}; got {shown(fields['exponent'])}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNotice)  # who names a split here knows what is in the file
        data = load_dataset(data_name, fields["split"])
    if fields["images"] is not None:
        data = first_balanced(data, _count(fields["images"], data.num_classes, len(data)))
    images = (data.pixels() * 2 - 1).to(device)
    denoiser = OptimalDenoiser(images, data.labels.to(device), data.num_classes, exponent=fields["exponent"])
    return denoiser, tuple(data.class_names)


def _known(settings: dict[str, Any], names: set[str]) -> None:
    if unknown := set(settings) - names:
        raise ConfigError(f"settings: expected some of {', '.join(sorted(names))}; got {', '.join(sorted(unknown))}")


def _count(text: str, least: int, most: int) -> int:
    count = int(text) if text.isdecimal() and len(text) < 10 else 0
    if not least <= count <= most:
        raise ConfigError(f"model optimal: images: expected an integer from {least} to {most}; got {shown(text)}")
    return count


def _load_sbgc(text: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    name, fields = parse_words(
        text, "sbgc", {"solver": SBGC_FLOW.solver, "gradient": "checkpoint", **dict.fromkeys(_FLOW_NUMBERS)}
    )
    source = _diffusion_model(name, "sbgc", device, {})
    _known(settings, _SBGC_SETTINGS)
    given: dict[str, Any] = {key: _number(fields[key], key) for key in _FLOW_NUMBERS if fields[key] is not None}
    flow = dataclasses.replace(SBGC_FLOW, solver=fields["solver"], **given)
    own = {"solver_gradient": fields["gradient"], "class_names": source.class_names, "flow": flow}
    return ScoreBasedClassifier(source.denoiser, **{**own, **settings})


def _load_per_class(text: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    source = _diffusion_model(text, "per-class", device, settings)
    return DiffusionClassifier(PerClassNoise(source.denoiser), **source.settings())


def _diffusion_model(name: str, prefix: str, device: torch.device, settings: dict[str, Any]) -> DiffusionClassifier:
    source = load_single(name, device, settings)
    if not isinstance(source, DiffusionClassifier):
        raise ConfigError(f"model {prefix}: expected the name of a diffusion model; got {shown(name)}, a {source.head}")
    return source


def _number(text: str, what: str) -> float | int | str:
    if text == EXACT:
        return text
    for kind in (int, float):
        try:
            return kind(text[:50])
        except ValueError:
            continue
    raise ConfigError(f"model sbgc: {what}: expected a number; got {shown(text)}")


def _load_diffusers(text: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    from rdc.models.pipelines import load_pipeline

    folder, fields = parse_words(text, "diffusers", {"prompts": None, "image": None, "guidance": "1", "null": None})
    _known(settings, _SETTINGS)
    return load_pipeline(folder, device, settings, **fields)


def _load_timm(text: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    from rdc.models.libraries import load_timm

    name, words = parse_words(text, "timm", {"weights": None, "classes": None, "image": None})
    return load_timm(name, device, settings, **words)


def _load_torchvision(text: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    from rdc.models.libraries import load_torchvision

    name, words = parse_words(text, "torchvision", {"weights": None, "classes": None, "image": None})
    return load_torchvision(name, device, settings, **words)


def _load_robustbench(text: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    from rdc.models.libraries import load_robustbench

    name, words = parse_words(text, "robustbench", {"data": "cifar10", "folder": None})
    return load_robustbench(name, device, settings, **words)


def _load_azula(text: str, device: torch.device, settings: dict[str, Any]) -> BaseDefence:
    from rdc.models.azula_denoisers import load_azula

    name, words = parse_words(text, "azula", {"weights": None, "image": None})
    _known(settings, _SETTINGS)
    return load_azula(name, device, settings, **words)


#: Prefix -> loader.
DERIVED: dict[str, Callable[[str, torch.device, dict[str, Any]], BaseDefence]] = {
    "azula": _load_azula,
    "diffusers": _load_diffusers,
    "optimal": _load_optimal,
    "sbgc": _load_sbgc,
    "per-class": _load_per_class,
    "robustbench": _load_robustbench,
    "timm": _load_timm,
    "torchvision": _load_torchvision,
}
