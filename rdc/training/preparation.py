"""What a run begins with: its images, its network, its objective, and the description that tells it from others."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdc.arguments.close_names import did_you_mean
from rdc.data import Dataset, train_holdout
from rdc.errors import ConfigError, DataError
from rdc.method.denoiser import make_denoiser
from rdc.models.assets import load_shipped
from rdc.models.checkpoints import load_model
from rdc.models.single import SINGLE
from rdc.networks.network_files import is_network_file, read_network_file
from rdc.networks.presets import (
    DISCRIMINATIVE,
    NETWORK_PRESETS,
    build_network,
    network_preset,
    with_augmentation_label,
)
from rdc.networks.sizes import SIZES, scaled_network
from rdc.storage.json_files import read_json
from rdc.training.adversarial import DEFAULT_BETA, ClassifierObjective
from rdc.training.augmentation import AUGMENTATION_LABEL, Augmented, Shifted
from rdc.training.distillation import DistillationObjective, student_from_teacher
from rdc.training.energy import EnergyObjective
from rdc.training.hybrid import HybridObjective
from rdc.training.objective import ConditionalObjective, NoiseDistribution, Objective
from rdc.training.recipes import NoiseChoice, Recipe
from rdc.training.state import CONFIG

__all__ = ["Prepared", "fingerprint", "fitted", "held_out_of", "open_model", "prepare", "training_images"]

#: method -> family of ``rdc.networks.sizes``; others: "resnet"
_FAMILIES = {"diffusion": "diffusion", "jem": "energy", "hybvit": "vit"}
#: kinds of network that can be trained
_KINDS = {"diffusion": ("conditional",), "hybvit": ("vit",), "classifier": DISCRIMINATIVE}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A recipe made ready for its data.

    Args:
        recipe: with what its teacher decided: the noise levels.
        network: to train, on its device.
        config: the network's description, for ``model.json``.
        objective: to minimise.
        settings: what ``model.json`` records, and what tells the run from others beside network, data and ``recipe.train``.
    """

    recipe: Recipe
    network: nn.Module
    config: dict[str, Any]
    objective: Objective
    settings: dict[str, Any]


def prepare(recipe: Recipe, data: Dataset, device: torch.device) -> Prepared:
    """Network and objective of a recipe.

    Args:
        recipe: what to do.
        data: the images to train on (:func:`training_images`); their shape and classes have to be the network's.
        device: of the network.

    Raises:
        ConfigError: the network, the teacher or the model to start from do not fit the method or the data.
        CheckpointError: a model cannot be read.
    """
    families = {"diffusion": _diffusion, "distill": _distillation, "jem": _energy, "hybvit": _hybrid}
    make = families.get(recipe.method, _classifier)
    ready = make(recipe, data, device)
    if recipe.augment:
        config = with_augmentation_label(ready.network, ready.config, AUGMENTATION_LABEL)
        settings = {**ready.settings, "augment": recipe.augment}
        objective = Augmented(ready.objective, recipe.augment)
        ready = dataclasses.replace(ready, config=config, settings=settings, objective=objective)
    if recipe.init:
        begun = _start_from(recipe.init, ready.network, ready.config)
        ready = dataclasses.replace(ready, settings={**ready.settings, "init": begun})
    ready.network.to(device)
    return ready


def training_images(recipe: Recipe, data: Dataset) -> Dataset:
    """The images without the hold-out.

    Raises:
        ConfigError: images are moved further than they are large.
    """
    height, width = data.image_shape[1:]
    if not recipe.shift < min(height, width):  # before the folder of the run is made
        raise ConfigError(
            f"--shift: expected 0 or more, and fewer pixels than the image has ({height} x {width}); got {recipe.shift}"
        )
    return train_holdout(data, recipe.holdout)[0] if recipe.holdout else data


def held_out_of(folder: str | os.PathLike[str], data: Dataset) -> int | None:
    """How many images of ``data`` a finished or running training left out.

    Args:
        folder: where it lies, with its ``config.json``.
        data: the whole training split.

    Returns:
        The number, 0 for none; None: the folder has no run, or a run on other images.
    """
    try:
        said = read_json(Path(folder) / CONFIG, kind=dict)
        left_out, images = said["holdout"], said["data"]["crc32"]
        rest = train_holdout(data, left_out)[0] if left_out else data
    except (DataError, KeyError, TypeError):
        return None
    return left_out if fingerprint(rest.images, rest.labels) == images else None


def open_model(name: str) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """(network, its description, what is recorded about it) of a shipped model or of a path."""
    return load_shipped(name) if name in SINGLE else load_model(name)


def fingerprint(*tensors: Tensor) -> str:
    """CRC-32 of the tensors' bytes, as hexadecimal: tells data and teachers apart in a run's description."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), value)
    return f"{value:08x}"


# --- one for each family of methods -----------------------------------------------------------------------------------
def _diffusion(recipe: Recipe, data: Dataset, device: torch.device) -> Prepared:
    terms, levels = recipe.diffusion, recipe.noise
    assert terms is not None and levels is not None
    noise, config = levels.distribution(), _described(recipe, data)
    objective = ConditionalObjective(data.num_classes, noise, config["sigma_data"], **vars(terms))
    settings: dict[str, Any] = {
        "command": "train",
        "noise": [noise.mean, noise.std],
        "label_dropout": terms.label_dropout,
    }
    if terms.posterior_weight:
        names = ("posterior_weight", "wrong_classes", "posterior_scale")
        settings["posterior"] = {name: getattr(terms, name) for name in names}
    return Prepared(_with_noise(recipe, noise), _fresh(recipe, config), config, objective, settings)


def _classifier(recipe: Recipe, data: Dataset, device: torch.device) -> Prepared:
    terms, config = recipe.classifier, _described(recipe, data)
    assert terms is not None
    objective = ClassifierObjective(recipe.method, recipe.attack, terms.beta, terms.label_smoothing, recipe.shift)
    settings: dict[str, Any] = {"command": "train", "method": recipe.method}
    if recipe.attack is not None:
        settings["attack"] = recipe.attack.describe()
    if recipe.method in DEFAULT_BETA:
        settings["beta"] = objective.beta
    settings |= {"label_smoothing": terms.label_smoothing, "shift": recipe.shift}
    return Prepared(recipe, _fresh(recipe, config), config, objective, settings)


def _energy(recipe: Recipe, data: Dataset, device: torch.device) -> Prepared:
    terms, classifier, config = recipe.energy, recipe.classifier, _described(recipe, data)
    assert terms is not None and classifier is not None
    objective = EnergyObjective(data.image_shape, terms, recipe.schedule.seed, classifier.label_smoothing)
    settings: dict[str, Any] = {"command": "train", "method": recipe.method, "energy": dataclasses.asdict(terms)}
    settings["label_smoothing"] = classifier.label_smoothing
    return Prepared(recipe, _fresh(recipe, config), config, objective, settings)


def _hybrid(recipe: Recipe, data: Dataset, device: torch.device) -> Prepared:
    terms, classifier, config = recipe.hybrid, recipe.classifier, _described(recipe, data)
    assert terms is not None and classifier is not None
    objective = HybridObjective(terms, classifier.label_smoothing, recipe.shift)
    settings: dict[str, Any] = {"command": "train", "method": recipe.method, "hybrid": dataclasses.asdict(terms)}
    settings |= {"label_smoothing": classifier.label_smoothing, "shift": recipe.shift}
    return Prepared(recipe, _fresh(recipe, config), config, objective, settings)


def _distillation(recipe: Recipe, data: Dataset, device: torch.device) -> Prepared:
    terms, levels, train = recipe.distillation, recipe.noise, recipe.schedule
    assert terms is not None and levels is not None
    terms = terms.fitted(data.image_shape)
    recipe = dataclasses.replace(recipe, distillation=terms)
    teacher, taught, info = _teacher(recipe, data)
    student, config = teacher, taught  # nothing is asked of a teacher where there is none
    if recipe.teacher:
        with _seeded(train.seed):
            student, config = student_from_teacher(teacher, taught, recipe.wide_channels)
    noise = levels.distribution(*info.get("noise", ()))
    if device.type == "cuda" and train.memory_format == "channels_last":
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # like the student
    denoiser = make_denoiser(teacher.to(device), taught)
    if train.compile and recipe.teacher:
        denoiser.network.compile()  # in place: the teacher's passes are most of the work
    objective = Shifted(DistillationObjective(denoiser, noise, **vars(terms)), recipe.shift)
    settings: dict[str, Any] = {
        "command": "distill",
        "noise": [noise.mean, noise.std],
        "distillation": terms.describe(),
    }
    if recipe.teacher:
        settings["teacher"] = fingerprint(*teacher.state_dict().values())
    if recipe.shift:
        settings["shift"] = recipe.shift
    return Prepared(_with_noise(recipe, noise), student, config, objective, settings)


def _with_noise(recipe: Recipe, noise: NoiseDistribution) -> Recipe:
    return dataclasses.replace(recipe, noise=NoiseChoice(noise.mean, noise.std))


# --- networks ---------------------------------------------------------------------------------------------------------
def _described(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """Description of the network to train, which is of the method's kind and of the data's shape."""
    config = _named(recipe, data)
    diffusion, hybrid = recipe.method == "diffusion", recipe.method == "hybvit"
    expected = _KINDS["hybvit" if hybrid else "diffusion" if diffusion else "classifier"]
    if config["kind"] not in expected:
        example = "a classifier such as resnet-small-28"
        if diffusion or hybrid:
            example = "a diffusion network such as small-28" if diffusion else "a transformer such as vit-small-28"
        raise ConfigError(f"--network {recipe.network}: --method {recipe.method} trains {example}")
    if not _fits(config, data):
        expects, got = ("x".join(map(str, shape)) for shape in (config["image_shape"], data.image_shape))
        raise ConfigError(
            f"--network {recipe.network}: expected images of {expects}; {data!r} has {got}: choose --network "
            f"{', '.join(SIZES[:-1])} or {SIZES[-1]}, which take any size"
        )
    return config


def _named(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """The description that ``--network`` names: a size, a preset, or a file."""
    name, family = recipe.network, _FAMILIES.get(recipe.method, "resnet")
    if name in SIZES:
        return scaled_network(name, family, data.image_shape, data.num_classes)
    if name not in NETWORK_PRESETS and is_network_file(name):
        return read_network_file(name, family, data.image_shape, data.num_classes)
    try:
        return network_preset(name, data.num_classes)
    except ConfigError as error:
        raise ConfigError(
            f"network preset: expected one of {', '.join(SIZES)} (scaled to the images), {', '.join(NETWORK_PRESETS)}, or a "
            f".json or .toml file; got {name!r}{did_you_mean(name, [*SIZES, *NETWORK_PRESETS])}"
        ) from error


def fitted(recipe: Recipe, data: Dataset) -> Recipe:
    """The recipe, with the network "small" where its own preset is for images of another size; for a network that nobody has named."""
    preset = NETWORK_PRESETS.get(recipe.network)
    return recipe if preset is None or _fits(preset, data) else dataclasses.replace(recipe, network="small")


def _fits(config: dict[str, Any], data: Dataset) -> bool:
    return tuple(config["image_shape"]) == data.image_shape


def _fresh(recipe: Recipe, config: dict[str, Any]) -> nn.Module:
    with _seeded(recipe.schedule.seed):
        return build_network(config)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from ``seed``; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _teacher(recipe: Recipe, data: Dataset) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The teacher, its description and its record; where there is none the student to go on from stands for it."""
    option, name = ("--teacher", recipe.teacher) if recipe.teacher else ("--init", recipe.init)
    network, config, info = open_model(name)
    expected = (config["num_classes"], tuple(config["image_shape"]))
    if expected != (data.num_classes, data.image_shape):
        raise ConfigError(
            f"{option} {name}: expected data of {expected[0]} classes, images {expected[1]}; "
            f"{data!r} has {data.num_classes} classes, images {data.image_shape}"
        )
    if not recipe.teacher and config["kind"] != "multihead":
        raise ConfigError(f"--init {name}: expected a student (kind multihead); got kind {config['kind']}")
    return network, config, info


def _start_from(name: str, network: nn.Module, config: dict[str, Any]) -> str:
    """Give ``network`` the weights of another model; returns their fingerprint.

    Raises:
        ConfigError: that model is of another network.
    """
    loaded, theirs, _ = open_model(name)
    if (length := _label_length(config)) and not _label_length(theirs):
        theirs = with_augmentation_label(loaded, theirs, length)
    if theirs != config:
        differ = sorted(key for key in {*theirs, *config} if theirs.get(key) != config.get(key))
        raise ConfigError(
            f"--init {name}: expected a model of the same network; it differs in {', '.join(differ)}. "
            "Choose what that was made with, or leave --init out"
        )
    network.load_state_dict(loaded.state_dict())
    return fingerprint(*network.state_dict().values())


def _label_length(config: dict[str, Any]) -> int:
    return int(config.get("unet", {}).get("augment_dim", 0))
