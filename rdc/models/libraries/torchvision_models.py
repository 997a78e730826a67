"""``torchvision:NAME``: classifiers of torchvision."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from rdc.arguments.close_names import did_you_mean
from rdc.contracts import BaseDefence
from rdc.errors import ConfigError, one_line
from rdc.models.discriminative import as_discriminative
from rdc.models.libraries.normalised import NormalisedModel
from rdc.models.libraries.weights import fill, lent, say_download
from rdc.models.packages import imported
from rdc.models.words import different_names, parse_count, parse_shape, weights_file

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
    shape, count = None if image is None else parse_shape(image), parse_count(classes)
    kinds = models.get_model_weights(name)
    file = None if weights in (None, "none") else weights_file(str(weights))
    own = weights != "none" and file is None
    chosen = _entry(kinds, weights, place) if own and weights is not None else kinds.DEFAULT
    if own and count is not None:
        raise ConfigError(
            "classes: expected with weights=FILE or weights=none; torchvision's own weights know how many classes they have"
        )
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
    wrapped = NormalisedModel(
        model, about.mean, about.std, (side, side), "bicubic" in str(about.interpolation).lower(), place
    )
    shape = shape or (3, side, side)
    if shape[0] != 3:
        raise ConfigError(f"image: expected 3 channels, which {place} takes; got {shape[0]}")
    return as_discriminative(
        wrapped.to(device).eval(),
        place,
        shape,
        count,
        different_names(names, count) if own else None,
        settings,
        place,
        "torchvision",
    )


def _entry(kinds: Any, weights: str, place: str) -> Any:
    """Weights by name; large and small letters are the same."""
    found = {entry.name: entry for entry in kinds}
    name = weights.rpartition(".")[2].upper()
    if name == "DEFAULT":
        return kinds.DEFAULT
    if name not in found:
        raise ConfigError(
            f"weights: {place} has {', '.join(found)}, none, or a file; got {one_line(weights, 60)}{did_you_mean(name, found)}"
        )
    return found[name]


def _quick(name: str) -> dict[str, Any]:
    """Options of two models that would else warn, or take minutes to draw weights."""
    return {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
