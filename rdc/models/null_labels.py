"""Whether a checkpoint's network was trained without a label: what it says itself, or what its description lets one conclude."""

from __future__ import annotations

from typing import Any

from rdc.arguments.scalars import as_number
from rdc.method.null_label import NullLabel

__all__ = ["null_label_of"]


def null_label_of(config: dict[str, Any], info: dict[str, Any], where: str) -> NullLabel:
    """What is known of the null label of a network.

    Args:
        config: its description.
        info: what its checkpoint records; ``null_label`` where ``rdc convert`` or training wrote it, other entries of older files.
        where: the file, for errors.

    Raises:
        CheckpointError: the entry ``null_label`` is damaged.
    """
    if not config.get("num_classes"):
        return NullLabel(True, "the network takes no label")
    if "null_label" in info:
        return NullLabel.from_json(info["null_label"], where)
    for found in (_of_diffusers(config), _of_training(info), _of_description(config, info)):
        if found is not None:
            return found
    return NullLabel()


def _of_diffusers(config: dict[str, Any]) -> NullLabel | None:
    vp = config.get("vp")
    if not isinstance(vp, dict):
        return None
    null = vp.get("null_label")
    if null == "mean":
        return NullLabel(False, "the mean of the class embeddings stands in for it")
    if null is None:
        return NullLabel(False, "the network has none")
    return NullLabel(True, f"embedding {null} was named as the one trained for it")


def _of_training(info: dict[str, Any]) -> NullLabel | None:
    """Of our own training; also of files that were written before it recorded this in so many words."""
    if info.get("command") == "train":
        rate = as_number(info.get("label_dropout"))
        return None if rate is None else _of_rate(rate, "of rdc train")
    terms = info.get("distillation")
    if info.get("command") == "distill" and isinstance(terms, dict):
        if as_number(terms.get("posterior_weight")):
            return NullLabel(True, "rdc distill trained a head for it on every image")
        return NullLabel(None, "rdc distill took its head from the teacher, of which nothing is recorded")
    return None


def _of_description(config: dict[str, Any], info: dict[str, Any]) -> NullLabel | None:
    """Of EDM's networks, which say how they were made; their own default is a label dropout of 0."""
    unet, origin = config.get("unet"), info.get("converted_from")
    rate = as_number(unet.get("label_dropout")) if isinstance(unet, dict) else None
    if rate is not None:
        return _of_rate(rate, "in the network's description")
    if isinstance(origin, dict) and origin.get("kind") == "edm-pickle":
        return NullLabel(False, "label dropout 0, EDM's default: the pickle names no other")
    return None


def _of_rate(rate: float, where: str) -> NullLabel:
    return NullLabel(rate > 0, f"label dropout {rate:g} {where}")
