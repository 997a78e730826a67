"""Networks that classify without a diffusion model, as defences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from rdc.contracts import BaseDefence
from rdc.errors import ConfigError

__all__ = ["as_discriminative"]


def as_discriminative(
    network: nn.Module,
    name: str,
    image_shape: Sequence[int],
    num_classes: int,
    class_names: Sequence[str] | None,
    settings: dict[str, Any],
    where: str,
    what: str,
) -> BaseDefence:
    """A network with the interface of a defence, its weights frozen.

    Args:
        network: pixels [N, C, H, W] in [0, 1] -> logits [N, K].
        name: for reports.
        image_shape, num_classes, class_names: as of :class:`rdc.contracts.BaseDefence`.
        settings: gradient, noise, noise_seed; it has no others.
        where, what: its file or name, and its kind, for errors.

    Raises:
        ConfigError: a setting of a diffusion classifier.
    """
    from rdc.defences import PlainClassifier

    if unknown := set(settings) - {"gradient", "noise", "noise_seed"}:
        raise ConfigError(
            f"{where}: a discriminative network ({what}) has no {', '.join(sorted(unknown))}; leave "
            "it out. For likelihood maximisation in front of it see rdc.defences.PurifiedClassifier"
        )
    return PlainClassifier(
        network.requires_grad_(False),
        image_shape=image_shape,
        num_classes=num_classes,
        class_names=class_names,
        name=name,
        **settings,
    )
