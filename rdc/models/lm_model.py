"""The network that likelihood maximisation moves the input by, from whatever a user names it with."""

from __future__ import annotations

import os
from typing import Any

import torch

from rdc.arguments.scalars import shown
from rdc.contracts import BaseDefence
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import Denoiser
from rdc.models.derived import is_derived, optimal_denoiser
from rdc.models.single import load_denoiser

__all__ = ["checked_use", "lm_denoiser_of"]


def lm_denoiser_of(model: Any, device: torch.device) -> Denoiser | None:
    """The denoiser of a model; of an unconditional one, too.

    Args:
        model: name of a shipped diffusion model, path of a checkpoint, ``optimal:DATA``, a classifier or a denoiser; None.
        device: where a named one is put.

    Raises:
        ConfigError: there is no such model, or it is no diffusion model.
        CheckpointError: its file is damaged.
    """
    if model is None or isinstance(model, Denoiser):
        return model
    if isinstance(model, DiffusionClassifier):
        return model.denoiser
    if not isinstance(model, (str, os.PathLike)):
        raise ConfigError(
            f"lm_denoiser: expected the name of a diffusion model, the path of a checkpoint, a classifier or a denoiser; got {shown(model)}"
        )
    name = str(os.fspath(model))
    if not is_derived(name):
        return load_denoiser(name, device)
    prefix, _, rest = name.partition(":")
    if prefix != "optimal":
        raise ConfigError(
            f"lm_denoiser: expected a network, or optimal:DATA; got {shown(name)}. Name the network behind {prefix}:"
        )
    found = optimal_denoiser(rest, device)[0]
    found.source = name
    return found


def checked_use(made: BaseDefence, lm_denoiser: Denoiser | None) -> None:
    """Refuse a network for likelihood maximisation that nothing would ask.

    Raises:
        ConfigError: the model has no likelihood maximisation.
    """
    if lm_denoiser is not None and isinstance(made, DiffusionClassifier) and made.lm is None:
        raise ConfigError(
            "lm_denoiser (--lm-model): expected likelihood maximisation with it, such as lm=paper-v2 (--lm paper-v2); this model has none"
        )
