"""What a loaded network came from: the description and the information of its checkpoint, kept with it, copies of it included."""

from __future__ import annotations

from typing import Any

from torch import nn

from rdc.contracts import Defence
from rdc.errors import ConfigError

__all__ = ["mark", "network_of", "origin_of"]

_KEY = "rdc_origin"


def mark(network: nn.Module, config: dict[str, Any], info: dict[str, Any]) -> None:
    """Keep with a network what its checkpoint says of it."""
    vars(network)[_KEY] = (config, info)


def origin_of(network: nn.Module) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(config, info) of the checkpoint that a network was loaded from; None of one that was made otherwise."""
    found: tuple[dict[str, Any], dict[str, Any]] | None = vars(network).get(_KEY)
    return found


def network_of(classifier: Defence) -> nn.Module:
    """The one network of a classifier.

    Raises:
        ConfigError: it is made of several parts, or of somebody's function.
    """
    from rdc.defences import PlainClassifier
    from rdc.method.classifier import DiffusionClassifier

    if isinstance(classifier, DiffusionClassifier):
        if classifier.lm is not None and classifier.lm_denoiser is not None:
            raise ConfigError(
                "save_pretrained: expected a classifier of one network; this one has two. Save it with lm_denoiser=None, the other alone"
            )
        return classifier.denoiser.network
    if isinstance(classifier, PlainClassifier) and isinstance(classifier.model, nn.Module):
        return classifier.model
    raise ConfigError(
        f"save_pretrained: expected a classifier of one network, as rdc.load gives it; got a {type(classifier).__name__}"
    )
