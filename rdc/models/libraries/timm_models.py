"""``timm:NAME``: classifiers of the timm library (PyTorch Image Models)."""

from __future__ import annotations

import os
from typing import Any

import torch

from rdc.arguments.close_names import did_you_mean
from rdc.contracts import BaseDefence
from rdc.errors import ConfigError, one_line
from rdc.models.libraries.normalised import NormalisedModel, of_library
from rdc.models.libraries.weights import fill, lent, say_download
from rdc.models.packages import imported
from rdc.models.words import parse_weights

__all__ = ["load_timm"]


def load_timm(
    name: str,
    device: torch.device,
    settings: dict[str, Any],
    *,
    weights: str | None = None,
    classes: str | None = None,
    image: str | None = None,
) -> BaseDefence:
    """A classifier of timm, normalised as its ``pretrained_cfg`` says.

    Args:
        name: such as ``resnet18`` or, with the tag of its weights, ``resnet18.a1_in1k``.
        device: where to put it.
        settings: gradient, noise, noise_seed.
        weights: None: the model's own, from timm's caches or fetched, and then a line says so. "none": random ones, seed 0. A file: a
            state dict (safetensors or ``torch.save``).
        classes: K, for weights of your own; None: the model's.
        image: "CxHxW" of the images, which are resized to the model's size; None: that size.

    Raises:
        ConfigError: timm is not installed, has no such model, or a word does not fit.
        CheckpointError: weights that cannot be had, ask for code, or belong to another model.
    """
    timm: Any = imported("timm", "timm")
    place = f"timm:{name}"
    _known(timm, name, place)
    own, file, count = parse_weights(weights, classes, ("none",), place, "timm names weights in the model: NAME.TAG")
    if own:
        _say(timm, name)
    more = {} if count is None else {"num_classes": count}
    with lent(place, "Without a connection name a file: weights=FILE"):
        model = timm.create_model(name, pretrained=own is not None, **more)
        about = timm.data.resolve_model_data_config(model)
    if file is not None:
        fill(model, file, place)
    k = int(model.num_classes)
    if k < 2:
        raise ConfigError(f"{place}: expected a classifier; it has no classes (a network of features)")
    size = (int(about["input_size"][1]), int(about["input_size"][2]))
    made = NormalisedModel(model, about["mean"], about["std"], size, about["interpolation"] == "bicubic", place)
    return of_library(made, image, k, _names(timm, model, k) if own else None, device, settings)


def _known(timm: Any, name: str, place: str) -> None:
    """Refuse models and tags that timm does not have."""
    model, dot, _ = name.partition(".")
    if ":" in name or not timm.is_model(name):
        close = did_you_mean(model, timm.list_models())
        raise ConfigError(
            f"{one_line(place, 200)}: timm {timm.__version__} has no such model{close}; timm.list_models() has all"
        )
    tags = list(timm.list_pretrained(f"{model}.*")) if dot else []
    if dot and name not in tags:
        raise ConfigError(
            f"{one_line(place, 200)}: timm has no such weights; it has {', '.join(tags[:8]) or 'none of this model'}"
        )


def _names(timm: Any, model: Any, count: int) -> list[str] | None:
    """Of ImageNet's classes, where the weights are said to know these."""
    try:
        subset = timm.data.infer_imagenet_subset(model)
        info = timm.data.ImageNetInfo(subset) if subset else None
        return None if info is None else [str(info.index_to_description(number)) for number in range(count)]
    except Exception:  # of other classes it knows no names
        return None


def _say(timm: Any, name: str) -> None:
    """Say where weights are fetched from, unless they are in a cache."""
    cfg = timm.get_pretrained_cfg(name)
    about: dict[str, Any] = vars(cfg) if cfg is not None and not isinstance(cfg, dict) else cfg or {}
    hub, url = about.get("hf_hub_id"), about.get("url")
    if not hub and not url and not about.get("file"):
        raise ConfigError(f"timm:{name}: timm has no weights of it: say weights=FILE, or weights=none for random ones")
    if not hub:
        if url and not os.path.isfile(os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(str(url)))):
            say_download(f"timm:{name}", str(url))
        return
    cache: Any = imported("huggingface_hub", "huggingface_hub")
    repository = str(hub).partition("@")[0]
    files = ("model.safetensors", "pytorch_model.bin", about.get("hf_hub_filename"))
    if not any(isinstance(cache.try_to_load_from_cache(repository, file), str) for file in files if file):
        say_download(f"timm:{name}", f"Hugging Face, {repository}")
