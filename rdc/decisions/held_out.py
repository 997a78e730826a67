"""What held-out images say of a diffusion classifier: the scale of its logits, and how far images of its kind go in likelihood.

A record, plain JSON, that a checkpoint keeps under ``info.calibration``:

    logit_scale               fitted (rdc.decisions.calibration.fit_logit_scale); null: not fitted, and ``why``
    images, split             how many held-out images, and of which split
    negative_log_likelihood   of them, {"before": at scale 1, "after": at the fitted one}
    accuracy                  on them; no scale changes it
    all_right                 every image was right: no finite scale is best, and the cautious one was taken
    levels, lm, noise_seed    that it was fitted with: it says nothing of others
    likelihood_score          coefficients, whitening (rdc.decisions.calibration.LikelihoodScore), ``fitted_on`` images; and from
                              ``images`` others the ``threshold`` that a new image of their kind exceeds with probability
                              ``exceeded_by`` at most (the conformal quantile); null where there were too few
    seen_by                   after training: teacher and first weights that were trained on some of these images (else absent)
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.seeds import random
from rdc.data import Dataset
from rdc.decisions.calibration import (
    LikelihoodScore,
    SeparableError,
    cautious_logit_scale,
    fit_likelihood_score,
    fit_logit_scale,
    log_softmax,
    negative_log_likelihood,
)
from rdc.errors import InputError
from rdc.method.classifier import DiffusionClassifier
from rdc.storage.structure import integer, number, record, sequence
from rdc.terminal.progress import bar

__all__ = ["FEWEST", "KnownKind", "fit_held_out", "known_kind", "level_losses", "record_of_losses"]

FEWEST = 20  #: images that one number is fitted on
_RATES = (
    0.01,
    0.05,
)  # of images of the model's own kind that exceed the threshold; the first for which there are enough
_SCORE = record(
    {
        "coefficients": sequence(sequence(number(), 1, 4096), 3, 3),
        "whitening": sequence(sequence(number(), 1, 4096), 1, 4096),
        "threshold": number(0),
        "exceeded_by": number(0, 1),
        "images": integer(1),
        "fitted_on": integer(1),
    }
)


@dataclasses.dataclass(frozen=True)
class KnownKind:
    """The images that a classifier knows, by the likelihood of its losses.

    Args:
        score: large for images unlike them.
        threshold: that a share of at most ``rate`` of such images exceeds.
        rate: in (0, 1).
        images: held-out images that the threshold was taken from.
    """

    score: LikelihoodScore
    threshold: float
    rate: float
    images: int

    def scores(self, classifier: DiffusionClassifier, pixels: Tensor) -> np.ndarray:
        """Scores [N] of pixels [N, C, H, W] in [0, 1] under the classifier that it was fitted to."""
        with torch.no_grad():
            losses = classifier.losses_per_level(pixels.to(classifier.device)).cpu().double().numpy()
        return self.score(losses.min(2), pixels.cpu().numpy())

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the checkpoint keeps them."""
        return {
            **{key: [list(row) for row in rows] for key, rows in self.score.to_json().items()},
            "threshold": self.threshold,
            "exceeded_by": self.rate,
            "images": self.images,
        }


def fit_held_out(
    classifier: DiffusionClassifier, held: Dataset, *, batch: int = 50, progress: bool = False
) -> dict[str, Any]:
    """The record of these images; see the module's head. The same images give the same record.

    Args:
        classifier: its logit scale does not matter.
        held: images that training did not see.
        batch: images at once.
        progress: draw a bar on stderr.

    Raises:
        InputError: a loss is not finite.
    """
    if len(held) < FEWEST:  # not worth the losses
        return record_of_losses(classifier, np.zeros((len(held), len(classifier.levels), classifier.num_classes)), held)
    losses = level_losses(classifier, held.pixels(), batch, "calibration", progress)
    return record_of_losses(classifier, losses, held)


def record_of_losses(classifier: DiffusionClassifier, losses: np.ndarray, held: Dataset) -> dict[str, Any]:
    """The record of these images, whose unweighted class losses [N, T, K] are known."""
    about = {"images": len(held), "split": held.split, **_settings(classifier)}
    if len(held) < FEWEST:
        why = f"{len(held)} held-out images are too few; expected {FEWEST} or more"
        return {"logit_scale": None, "why": why, **about, "likelihood_score": None}
    found = _fit_scale(classifier, np.einsum("ntk,t->nk", losses, np.array(classifier.levels.weight)), held)
    return {**found, **about, "likelihood_score": _fit_kind(losses.min(2), held.pixels().numpy())}


def level_losses(
    classifier: DiffusionClassifier, pixels: Tensor, batch: int, what: str, progress: bool = True
) -> np.ndarray:
    """Unweighted class losses [N, T, K] float64 of pixels [N, C, H, W].

    Args:
        batch: images at once.
        what: what the images are, for the bar and for errors.
        progress: draw a bar on stderr.

    Raises:
        InputError: a loss is not finite.
    """
    parts = []
    with torch.no_grad():
        for part in bar(pixels.split(batch), desc=what, unit="batch", enabled=progress):
            found = classifier.losses_per_level(part.to(classifier.device))
            parts.append(found.cpu().double().numpy())  # there: Apple's GPUs have no float64
    losses = np.concatenate(parts)
    wrong = int((~np.isfinite(losses)).any((1, 2)).sum())
    if wrong:
        raise InputError(
            f"calibrate: expected finite losses; {wrong} of {len(losses)} images ({what}) have NaN or infinity: the weights or the noise "
            "levels are damaged or far out of range"
        )
    return losses


def known_kind(calibration: object, classifier: DiffusionClassifier) -> KnownKind | None:
    """What a checkpoint's record says of the images that it knows; None where it says nothing, or something of other levels.

    Args:
        calibration: ``info.calibration`` of the checkpoint, as it was read.
        classifier: as it is set now.

    Raises:
        InputError: the record is damaged.
    """
    if not isinstance(calibration, Mapping) or calibration.get("likelihood_score") is None:
        return None
    lent = (
        classifier.lm is not None and classifier.lm_denoiser is not None
    )  # LM by another network, which no record names
    if lent or any(calibration.get(key) != value for key, value in _settings(classifier).items()):
        return None
    found = calibration["likelihood_score"]
    try:
        _SCORE(found, "likelihood_score")
        features = len(classifier.levels)
        rows = [*found["coefficients"], *found["whitening"]]
        if len(found["whitening"]) != features or any(len(row) != features for row in rows):
            raise ValueError(f"likelihood_score: expected numbers for {features} levels")
    except (ValueError, TypeError) as error:
        raise InputError(f"the checkpoint's info.calibration: {error}; run rdc calibrate --write again") from error
    score = LikelihoodScore(tuple(map(tuple, found["coefficients"])), tuple(map(tuple, found["whitening"])))
    return KnownKind(score, float(found["threshold"]), float(found["exceeded_by"]), int(found["images"]))


def _settings(classifier: DiffusionClassifier) -> dict[str, Any]:
    """What decides an image's losses beside the network, as JSON has it."""
    lm = None if classifier.lm is None else classifier.lm.describe()
    settings = {"levels": classifier.levels.to_json(), "lm": lm, "noise_seed": classifier.noise_seed}
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _fit_scale(classifier: DiffusionClassifier, losses: np.ndarray, held: Dataset) -> dict[str, Any]:
    """The scale of losses [N, K], and what it is worth on the images that it was fitted on."""
    labels = held.labels.numpy()
    prior = None if classifier.class_prior is None else np.log(np.array(classifier.class_prior, np.float64))

    def cost(scale: float) -> float:
        scores = -scale * losses + (0 if prior is None else prior)
        return negative_log_likelihood(log_softmax(scores), labels)

    right = (-losses + (0 if prior is None else prior)).argmax(1) == labels
    try:
        scale, all_right = fit_logit_scale(losses, labels, prior), False
    except SeparableError:
        scale, all_right = cautious_logit_scale(losses, labels, prior), True
    if math.log(scale) < -18:  # the least there is: the losses say nothing of the classes
        return {"logit_scale": None, "why": "its losses tell the classes of held-out images no better than chance"}
    return {
        "logit_scale": scale,
        "negative_log_likelihood": {"before": cost(1.0), "after": cost(scale)},
        "accuracy": float(right.mean()),
        "all_right": all_right,
    }


def _fit_kind(features: np.ndarray, pixels: np.ndarray) -> dict[str, Any] | None:
    """Score and threshold, each from its own half of the images; None where there are too few."""
    fitted = random(0).permutation(len(features)) % 2 == 0
    others = ~fitted
    count, least = int(others.sum()), 4 * features.shape[1] + 12
    rates = [rate for rate in _RATES if count >= round(1 / rate) - 1]
    if int(fitted.sum()) < least or not rates:
        return None
    score = fit_likelihood_score(features[fitted], pixels[fitted])
    ranked = np.sort(score(features[others], pixels[others]))
    place = math.ceil((1 - rates[0]) * (count + 1)) - 1
    return {**KnownKind(score, float(ranked[place]), rates[0], count).to_json(), "fitted_on": int(fitted.sum())}
