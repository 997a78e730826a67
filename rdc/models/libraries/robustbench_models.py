"""``robustbench:NAME:THREAT``: entries of RobustBench's model zoo. They take pixels in [0, 1] and normalise these themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from rdc.arguments.close_names import did_you_mean
from rdc.contracts import BaseDefence
from rdc.data import cifar10, cifar100
from rdc.errors import CheckpointError, ConfigError, one_line
from rdc.models.discriminative import as_discriminative
from rdc.models.libraries.normalised import NormalisedModel
from rdc.models.libraries.weights import lent, say_download
from rdc.models.packages import imported
from rdc.storage.home import cache_folder, expanded

__all__ = ["load_robustbench"]

_CLASSES = {"cifar10": cifar10.CLASS_NAMES, "cifar100": cifar100.CLASS_NAMES, "imagenet": None}


def load_robustbench(
    name: str, device: torch.device, settings: dict[str, Any], *, data: str = "cifar10", folder: str | None = None
) -> BaseDefence:
    """A model of RobustBench, loaded by its own loader, whose ``torch.load`` takes tensors alone.

    Args:
        name: ``NAME:THREAT``, as on RobustBench's page: ``Wang2023Better_WRN-28-10:Linf``; threats are Linf, L2, corruptions.
        device: where to put it.
        settings: gradient, noise, noise_seed.
        data: cifar10, cifar100 or imagenet: what it classifies.
        folder: where its weights lie or are put, as RobustBench's ``model_dir``; None: ``models``, where RobustBench puts them, if they are
            there, else ``~/.cache/rdc/robustbench``.

    Raises:
        ConfigError: robustbench is not installed, or has no such model.
        CheckpointError: weights that cannot be had, or ask for code.
    """
    entry, _, threat = name.rpartition(":")
    loader: Any = imported("robustbench.utils", "robustbench")
    zoo: Any = imported("robustbench.model_zoo", "robustbench").model_dicts
    place = f"robustbench:{name}"
    _known(zoo, entry, threat, data, place)
    models = _folder(folder, data, threat, entry)
    if not any((models / data / threat).glob(f"{_escaped(entry)}.pt*")):
        say_download(place, f"RobustBench's servers, into {models}")
    with lent(
        place, f"Without a connection put its weights into {models / data / threat}, or name their folder: folder=DIR"
    ):
        model = loader.load_model(model_name=entry, model_dir=str(models), dataset=data, threat_model=threat)
        side = 32 if data != "imagenet" else _side(entry, threat)
    names = _CLASSES[data]
    count = 1000 if names is None else len(names)
    wrapped = NormalisedModel(model, (0.0,), (1.0,), (side, side), False, place)
    return as_discriminative(
        wrapped.to(device).eval(), place, (3, side, side), count, names, settings, place, "robustbench"
    )


def _known(zoo: Any, entry: str, threat: str, data: str, place: str) -> None:
    """Refuse what RobustBench does not have."""
    sets = {kind.value: threats for kind, threats in zoo.items()}
    if data not in sets or data not in _CLASSES:
        raise ConfigError(f"data: expected {', '.join(_CLASSES)}; got {one_line(data, 60)}")
    threats = {kind.value: models for kind, models in sets[data].items()}
    if not entry or threat not in threats:
        raise ConfigError(
            f"{one_line(place, 200)}: expected robustbench:NAME:THREAT, THREAT one of {', '.join(threats)} for {data}"
            f"{did_you_mean(threat, threats)}"
        )
    if entry not in threats[threat]:
        elsewhere = [
            f"{other}, data={kind}"
            for kind, found in sets.items()
            for other, models in _named(found)
            if entry in models
        ]
        where = f"; it is there for {'; '.join(elsewhere[:4])}" if elsewhere else did_you_mean(entry, threats[threat])
        raise ConfigError(f"{one_line(place, 200)}: RobustBench has no such model for {threat}, data={data}{where}")


def _named(threats: Any) -> list[tuple[str, Any]]:
    return [(kind.value, models) for kind, models in threats.items()]


def _folder(folder: str | None, data: str, threat: str, entry: str) -> Path:
    if folder is not None:
        return expanded(folder, CheckpointError)
    usual = Path("models")  # where robustbench itself puts them
    if any((usual / data / threat).glob(f"{_escaped(entry)}.pt*")):
        return usual
    return cache_folder("robustbench") or usual


def _escaped(text: str) -> str:
    """A name as a part of a pattern of files."""
    import glob

    return glob.escape(text.replace(os.sep, "_"))


def _side(entry: str, threat: str) -> int:
    """Side of the square images that a model of ImageNet takes: what its preprocessing crops to."""
    found: Any = imported("robustbench.data", "robustbench")
    kinds: Any = imported("robustbench.model_zoo.enums", "robustbench")
    steps = found.get_preprocessing(
        kinds.BenchmarkDataset("imagenet"), kinds.ThreatModel(threat), entry, None
    ).transforms
    sizes = [step.size for step in steps if hasattr(step, "size")]
    if not sizes:
        raise CheckpointError(f"robustbench:{entry}:{threat}: expected a preprocessing with a size; it has none")
    size = sizes[-1]
    return int(size[0] if isinstance(size, (list, tuple)) else size)
