"""The images between the steps of likelihood maximisation, within a call of the classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from rdc.contracts import GradientMode, PurificationPath
from rdc.contracts.path import along
from rdc.errors import ConfigError
from rdc.images.pixels import checked_pixels
from rdc.method.class_gradients import joined
from rdc.method.likelihood_maximization import lm_evaluations, maximize_likelihood
from rdc.method.posterior import log_posterior

if TYPE_CHECKING:
    from rdc.method.classifier import DiffusionClassifier

__all__ = ["classifier_path", "lm_path"]


def lm_path(classifier: DiffusionClassifier, x0: Tensor, draw: int) -> Tensor:
    """Every image of likelihood maximisation: [N, C, H, W] in [-1, 1] -> [N, steps + 1, C, H, W], the input first; differentiable.

    Args:
        classifier: has likelihood maximisation; what it evaluates is counted there.
        x0: where it begins.
        draw: of the classifier.
    """
    lm, number = classifier.lm, classifier._lm_number(draw)
    assert lm is not None
    classifier.network_evaluations += len(x0) * lm_evaluations(lm)
    size, rows = classifier._lm_pieces(x0)
    parts = (
        maximize_likelihood(classifier.moved_by, part, lm, number, return_path=True, rows=rows)
        for part in x0.split(size)
    )
    return joined(parts, len(x0))


def classifier_path(classifier: DiffusionClassifier, pixels: Tensor) -> PurificationPath:
    """A call of the classifier with every image of likelihood maximisation; it takes a draw.

    Args:
        classifier: the classifier.
        pixels: [N, C, H, W] in [0, 1].

    Raises:
        ConfigError: it has no likelihood maximisation.
    """
    if classifier.lm is None:
        raise ConfigError(
            'purification_path: expected likelihood maximisation, e.g. lm="paper-v2"; this classifier has none'
        )
    pixels, draw = checked_pixels(pixels, classifier.image_shape), classifier._next_draw()

    def followed(x0: Tensor) -> Tensor:
        path = lm_path(classifier, x0, draw)[:, 1:]
        # rounded as a call's own answer under BPDA is
        return path if classifier.gradient == GradientMode.EXACT else x0[:, None] + (path - x0[:, None])

    def moved(pixels: Tensor) -> Tensor:
        return along(classifier.gradient, followed, 2 * pixels - 1)

    def classified(x0: Tensor) -> Tensor:
        inner = classifier.encoded(x0)
        losses = classifier._losses(inner, classifier.drawn(draw, inner))
        return log_posterior(losses, classifier.scale, classifier._log_prior)

    images = classifier._undisturbed(moved, pixels)
    return PurificationPath(
        (images + 1) / 2,
        classifier._undisturbed(classified, images[:, -1]),
        lambda pixels: classifier._undisturbed(lambda inner: classified(2 * inner - 1), pixels),
    )
