"""The network whose features a perceptual distance is measured by, from whatever a user names it with."""

from __future__ import annotations

import os

from torch import nn

from rdc.arguments.scalars import shown
from rdc.attacks.perceptual_distance import FeatureDistance
from rdc.contracts import BaseDefence
from rdc.defences.factory import is_factory
from rdc.defences.plain import PlainClassifier
from rdc.errors import ConfigError
from rdc.models.derived import is_derived
from rdc.networks.activations import Activations

__all__ = ["feature_distance"]


def feature_distance(model: object) -> FeatureDistance:
    """The perceptual distance by a classifier's features.

    Args:
        model: name for :func:`rdc.load` or path of a convolutional classifier: ``fashion-mnist-standard``, or
            ``torchvision:alexnet,image=3x32x32``, whose layers are those of LPIPS. Or such a module, a defence, or a distance, which is
            returned.

    Raises:
        ConfigError: there is no such model, or it is none that has features of images.
        CheckpointError: its weights cannot be had; the message says where they are looked for.
    """
    from rdc.models.zoo import load

    if isinstance(model, FeatureDistance):
        return model
    name = str(os.fspath(model)) if isinstance(model, (str, os.PathLike)) else None
    if name is not None and is_factory(name) and not is_derived(name):
        raise ConfigError(
            f"lpips_model: expected a model by its name, or a checkpoint; got {shown(model)}, whose code is not run for this. "
            "From Python hand a FeatureDistance to the attacks"
        )
    found = model if name is None else load(name, device="cpu")
    network, shape = (found.model, found.image_shape) if isinstance(found, PlainClassifier) else (found, None)
    if not isinstance(network, nn.Module) or isinstance(network, BaseDefence):
        raise ConfigError(
            "lpips_model: expected a convolutional classifier, such as fashion-mnist-standard or torchvision:alexnet,image=3x32x32; "
            f"got {shown(model)}"
        )
    return FeatureDistance(Activations(network), name or type(model).__name__, shape)
