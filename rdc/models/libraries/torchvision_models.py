"""``torchvision:NAME``: classifiers of torchvision."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from rdc.arguments.close_names import did_you_mean
from rdc.contracts import BaseDefence
from rdc.errors import ConfigError, one_line
from rdc.models.libraries.normalised import NormalisedModel, of_library
from rdc.models.libraries.weights import fill, lent, say_download
from rdc.models.packages import imported
from rdc.models.words import parse_weights

__all__ = ["load_torchvision"]


def load_torchvision(
    name: str,
    device: torch.device,
    settings: dict[str, Any],
    *,
    weights: str | None = None,
    classes: str | None = None,
    image: str | None = None,
) -> BaseDefence:
    """A classifier of torchvision, normalised as the transforms of its weights say.

    Args:
        name: such as ``resnet18``.
        device: where to put it.
        settings: gradient, noise, noise_seed.
        weights: a name of weights, such as ``IMAGENET1K_V1``, from torch's cache or fetched, and then a line says so; None:
            torchvision's DEFAULT. "none": random ones, seed 0. A file: a state dict (safetensors or ``torch.save``). Size and
            normalisation of the last two are those of DEFAULT.
        classes: K, for weights of your own; None: the model's.
        image: "CxHxW" of the images, which are resized to the model's size; None: that size.

    Raises:
        ConfigError: torchvision is not installed, has no such classifier or weights, or a word does not fit.
        CheckpointError: weights that cannot be had, or belong to another model.
    """
    models: Any = imported("torchvision.models", "torchvision")
    place = f"torchvision:{name}"
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f"{one_line(place, 200)}: torchvision has no such classifier{did_you_mean(name, known)}")
    kinds = models.get_model_weights(name)
    words = (*(entry.name for entry in kinds), "DEFAULT", "none")
    own, file, count = parse_weights(weights, classes, words, place, f"{place} has {', '.join(words[:-2])}")
    chosen = _entry(kinds, own)
    names = list(chosen.meta.get("categories", ()))
    count = count or len(names)
    if own and not os.path.isfile(os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(chosen.url))):
        say_download(place, chosen.url)
    with lent(place, "Without a connection name a file: weights=FILE"):
        if own:
            model = models.get_model(name, weights=chosen, progress=sys.stderr is not None)
        else:
            model = models.get_model(name, weights=None, num_classes=count, **_quick(name))
        about = chosen.transforms()
    if file is not None:
        fill(model, file, place)
    side = int(about.crop_size[0])
    bicubic = "bicubic" in str(about.interpolation).lower()
    made = NormalisedModel(model, about.mean, about.std, (side, side), bicubic, place)
    return of_library(made, image, count, names if own else None, device, settings)


def _entry(kinds: Any, word: str | None) -> Any:
    """Weights by name; DEFAULT where nothing else was said, for size and normalisation too."""
    return next((entry for entry in kinds if entry.name == word), kinds.DEFAULT)


def _quick(name: str) -> dict[str, Any]:
    """Options of two models that would else warn, or take minutes to draw weights."""
    return {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
