"""Purifiers of this project's diffusion models in front of any classifier: LM + ResNet, DiffPure + ResNet.

>>> from rdc.models.joined import diffpure_in_front, lm_in_front
>>> resnet = rdc.load("runs/standard")  # of rdc train --method standard
>>> defence = lm_in_front(resnet, "fashion-mnist", lm="paper-v2")

For ``rdc evaluate --model my_module:make`` write a function without arguments that returns one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rdc.contracts import Defence
from rdc.defences.purified import PurifiedClassifier
from rdc.defences.purifiers import DiffusionPurifier, LikelihoodPurifier, Purifier
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import Denoiser
from rdc.models.single import load_denoiser, load_single

__all__ = ["JOINED", "Joined", "diffpure_in_front", "lm_in_front", "load_joined"]


def lm_in_front(
    classifier: nn.Module,
    diffusion: DiffusionClassifier | Denoiser | str = "fashion-mnist",
    *,
    lm: Any = "paper-v2",
    **settings: Any,
) -> PurifiedClassifier:
    """Likelihood maximisation by a diffusion model, then a discriminative classifier (arXiv 2305.15241, section 4.3).

    Args:
        classifier: pixels [N, C, H, W] -> logits [N, K], with ``num_classes``, ``image_shape`` and ``class_names`` as
            ``rdc.load`` and ``rdc.defences.PlainClassifier`` give. Any defence will do; its noise is the whole's.
        diffusion: whose label-free network is used: a classifier, a denoiser, or the name or path of either (an unconditional one, too).
        lm: see ``rdc.method.likelihood_maximization``.
        settings: ``gradient``, ``noise``, ``noise_seed``.

    Raises:
        ConfigError: the two do not take the same images, or a setting is unknown.
    """
    source = _denoiser(diffusion)
    return _joined(LikelihoodPurifier(source, lm), classifier, source, "LM", settings)


def diffpure_in_front(
    classifier: nn.Module,
    diffusion: DiffusionClassifier | Denoiser | str = "fashion-mnist",
    *,
    sigma: float = 0.34,
    steps: int = 20,
    sampler: str = "sde",
    **settings: Any,
) -> PurifiedClassifier:
    """DiffPure (arXiv 2205.07460): forward diffusion to sigma, the reverse process, then a discriminative classifier.

    Args:
        classifier, diffusion, settings: as of :func:`lm_in_front`.
        sigma, steps, sampler: see :class:`rdc.defences.DiffusionPurifier`.

    Raises:
        ConfigError: the two do not take the same images, or a setting is unknown.
    """
    source = _denoiser(diffusion)
    purifier = DiffusionPurifier(source, sigma=sigma, steps=steps, sampler=sampler)
    return _joined(purifier, classifier, source, "DiffPure", settings)


@dataclass(frozen=True)
class Joined:
    """A shipped model made of two others.

    Args:
        about: what it is.
        join: :func:`lm_in_front` or :func:`diffpure_in_front`.
        classifier, diffusion: names of models of one network.
        takes: settings it has beside those of every defence.
    """

    about: str
    join: Callable[..., PurifiedClassifier]
    classifier: str
    diffusion: str
    takes: frozenset[str] = frozenset()


#: Shipped models made of two others.
JOINED = {
    "fashion-mnist-lm-resnet": Joined(
        "likelihood maximisation by fashion-mnist-teacher, then fashion-mnist-standard",
        lm_in_front,
        "fashion-mnist-standard",
        "fashion-mnist-teacher",
        frozenset({"lm", "lm_denoiser"}),
    ),
    "fashion-mnist-diffpure": Joined(
        "DiffPure by fashion-mnist-teacher, then fashion-mnist-standard",
        diffpure_in_front,
        "fashion-mnist-standard",
        "fashion-mnist-teacher",
    ),
}


def load_joined(name: str, device: torch.device, settings: dict[str, Any]) -> PurifiedClassifier:
    """A purifier in front of a discriminative network, by its name in :data:`JOINED`.

    Raises:
        ConfigError: a setting that this model does not have.
    """
    model = JOINED[name]
    if unknown := set(settings) - model.takes - {"gradient", "noise", "noise_seed"}:
        raise ConfigError(
            f"{name}: expected no {', '.join(sorted(unknown))}, this model has none; leave it out, or put one together with "
            f"rdc.models.joined.{model.join.__name__}"
        )
    given = dict(settings)
    moved_by = given.pop("lm_denoiser", None) or load_denoiser(model.diffusion, device)
    return model.join(load_single(model.classifier, device, {}), moved_by, **given)


def _denoiser(diffusion: Any) -> Denoiser:
    found = load_denoiser(diffusion, torch.device("cpu")) if isinstance(diffusion, str) else diffusion
    found = found.denoiser if isinstance(found, DiffusionClassifier) else found
    if not isinstance(found, Denoiser):
        raise ConfigError(f"diffusion: expected a diffusion model, got {type(found).__name__} ({diffusion!r})")
    return found


def _joined(
    purifier: Purifier, classifier: Any, source: Denoiser, name: str, settings: dict[str, Any]
) -> PurifiedClassifier:
    if tuple(classifier.image_shape) != tuple(source.image_shape):
        raise ConfigError(
            f"the diffusion model takes images {list(source.image_shape)}, the classifier {list(classifier.image_shape)}; "
            "choose two for the same images"
        )
    head = classifier.head if isinstance(classifier, Defence) else type(classifier).__name__
    about = {"num_classes": classifier.num_classes, "class_names": classifier.class_names, "name": f"{name} + {head}"}
    return PurifiedClassifier(purifier, classifier, **about, **settings)
