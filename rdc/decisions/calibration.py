"""Calibrated confidence, abstention, and images unlike the training data. NumPy only.

    temperature   log p(y|x) = log_softmax_y( scale f_y + log prior_y ); the one number ``scale`` that minimises the
                  cross-entropy of held-out images (Guo et al. 2017, arXiv 1706.04599; scale = 1 / temperature). It
                  never changes a decision under a uniform prior.
    calibration   ECE: how far accuracy lies from confidence, on average over bins of confidence
    abstention    risk-coverage curve: error rate among the most confident share of the images
                  (Geifman and El-Yaniv 2017, arXiv 1705.08500)
    unlike        a typicality score: how far an image's losses lie from those of held-out images of like complexity

The last needs a reason. The likelihood alone is known to fail: simple images get high likelihood wherever they come
from (Nalisnick et al. 2019, arXiv 1810.09136). Two corrections are joined here: the loss expected of an image is
predicted from its coded length (Serra et al. 2020, arXiv 1909.11480), and both tails of the remainder count, not only
the unlikely one (typicality; Nalisnick et al. 2019, arXiv 1906.02994).
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from rdc.errors import InputError
from rdc.statistics.proportions import wilson_interval
from rdc.statistics.reliability import reliability_rows

__all__ = [
    "LikelihoodScore",
    "SeparableError",
    "area_under_risk_coverage",
    "auroc",
    "cautious_logit_scale",
    "coded_length",
    "expected_calibration_error",
    "fit_likelihood_score",
    "fit_logit_scale",
    "log_softmax",
    "negative_log_likelihood",
    "reliability",
    "risk_coverage",
    "threshold_for_risk",
]


# --- temperature ----------------------------------------------------------------------------------------------------


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities [N, K] of scores [N, K], float64."""
    scores = np.asarray(scores, np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_probabilities: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def negative_log_likelihood(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Cross-entropy: mean of -log p(label) over log-probabilities [N, K], labels [N]."""
    return float(-np.asarray(log_probabilities, np.float64)[np.arange(len(labels)), labels].mean())


class SeparableError(InputError):
    """Every held-out image is classified right at any scale, so that none is best."""


def fit_logit_scale(losses: np.ndarray, labels: np.ndarray, log_prior: np.ndarray | None = None) -> float:
    """The scale that minimises the cross-entropy of log_softmax(-scale * losses + log_prior).

    Args:
        losses: class losses [N, K] of held-out images; for a fit of the temperature of given log-probabilities, minus these.
        labels: [N] in 0..K-1.
        log_prior: [K]; None: uniform.

    Returns:
        scale in [1e-8, 1e8]; the temperature is its inverse.

    Raises:
        SeparableError: every image is right at any scale, so that none is best; see :func:`cautious_logit_scale`.
        InputError: shapes do not fit, or values are not finite.

    Source: Guo et al. 2017, arXiv 1706.04599. The cross-entropy is convex in the scale: its derivative is bisected.
    """
    losses, labels = _scores(losses, labels)
    prior = np.zeros(losses.shape[1]) if log_prior is None else np.asarray(log_prior, np.float64)
    right = losses[np.arange(len(labels)), labels]

    def slope(log_scale: float) -> float:
        p = np.exp(log_softmax(-math.exp(log_scale) * losses + prior))
        return float((right - (p * losses).sum(axis=1)).mean())

    low, high = math.log(1e-8), math.log(1e8)
    if slope(high) <= 0:
        raise SeparableError(
            "logit scale: every held-out image is classified right, so no scale is best; use more images"
        )
    if slope(low) > 0:
        return math.exp(low)  # the losses say less than nothing
    return math.exp(_bisected(slope, low, high))


def cautious_logit_scale(losses: np.ndarray, labels: np.ndarray, log_prior: np.ndarray | None = None) -> float:
    """A scale for N held-out images that are all right: their mean confidence is (N + 1) / (N + 2).

    That is the accuracy to expect of a classifier that was right N times of N (Laplace's rule of succession).

    Args:
        losses, labels, log_prior: as of :func:`fit_logit_scale`.

    Returns:
        scale in [1e-8, 1e8].

    Raises:
        InputError: shapes do not fit, values are not finite, or an image is wrong.
    """
    losses, labels = _scores(losses, labels)
    prior = np.zeros(losses.shape[1]) if log_prior is None else np.asarray(log_prior, np.float64)
    rows, count = np.arange(len(labels)), len(labels)
    if (losses[rows, labels] > losses.min(axis=1)).any():
        raise InputError("logit scale: expected images that are all classified right; use fit_logit_scale")

    def missing(log_scale: float) -> float:
        log_p = log_softmax(-math.exp(log_scale) * losses + prior)[rows, labels]
        return float(np.exp(log_p).mean()) - (count + 1) / (count + 2)  # grows with the scale

    return math.exp(_bisected(missing, math.log(1e-8), math.log(1e8)))


def _bisected(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that grows passes zero."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2


# --- calibration ----------------------------------------------------------------------------------------------------


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict[str, list[float]]:
    """What a reliability diagram shows: images by confidence, in bins of equal width.

    Args:
        probabilities: [N, K], rows sum to one.
        labels: [N].
        bins: of [0, 1].

    Returns:
        ``low``, ``high`` (edges), ``count``, ``confidence``, ``accuracy`` (means) of the bins that are not empty.

    Raises:
        InputError: shapes do not fit, values are not finite, or bins < 1.
    """
    probabilities, labels = _scores(probabilities, labels)
    return reliability_rows(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """ECE: mean over images of |accuracy - confidence| of their bin; arguments as of :func:`reliability`.

    An estimate from N images is biased upward: of a calibrated classifier it is up to about 0.4 sqrt(bins / N), not 0.

    Source: Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599, section 2.
    """
    rows = {name: np.array(values) for name, values in reliability(probabilities, labels, bins).items()}
    return float((rows["count"] * np.abs(rows["accuracy"] - rows["confidence"])).sum() / rows["count"].sum())


# --- abstention -----------------------------------------------------------------------------------------------------


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Error rate among the most confident images, for every share of them; images of equal confidence enter together.

    Args:
        confidence: [N]; any increasing function of it gives the same curve.
        right: [N] bool, whether the decision is right.

    Returns:
        coverage in (0, 1] ascending, and risk in [0, 1]: one entry for each distinct confidence.
    """
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, bool)
    if confidence.ndim != 1 or confidence.shape != right.shape or not len(right) or not np.isfinite(confidence).all():
        raise InputError(
            f"risk-coverage: expected confidence and right [N], finite; got {confidence.shape}, {right.shape}"
        )
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, wrong = confidence[order], np.cumsum(~right[order])
    last = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)
    count = np.arange(1, len(right) + 1)
    return count[last] / len(right), wrong[last] / count[last]


def area_under_risk_coverage(confidence: np.ndarray, right: np.ndarray) -> float:
    """AURC: the mean risk over all coverages; arguments as of :func:`risk_coverage`."""
    coverage, risk = risk_coverage(confidence, right)
    return float((np.diff(coverage, prepend=0.0) * risk).sum())


def threshold_for_risk(confidence: np.ndarray, right: np.ndarray, risk: float) -> tuple[float, float]:
    """The confidence below which to abstain, so that the error rate of what is decided is at most ``risk``.

    The upper end of the 95 % Wilson interval of the error rate of these images has to be at most ``risk``; the
    threshold is chosen on the same images, so check it on others.

    Args:
        confidence, right: [N], held-out images.
        risk: in (0, 1).

    Returns:
        threshold, and the share of the images decided; (infinity, 0) where no threshold will do.
    """
    if not 0 < risk < 1:
        raise InputError(f"risk: expected a number between 0 and 1; got {risk}")
    coverage, rate = risk_coverage(confidence, right)
    counts = np.rint(coverage * len(right))
    good = [i for i, (n, r) in enumerate(zip(counts, rate, strict=True)) if wilson_interval(r * n, int(n))[1] <= risk]
    if not good:
        return math.inf, 0.0
    distinct = np.unique(np.asarray(confidence, np.float64))[::-1]
    return float(distinct[good[-1]]), float(coverage[good[-1]])


# --- images unlike the training data ----------------------------------------------------------------------------------


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive's score exceeds a negative's, ties counting half: the area under the ROC curve.

    Args:
        positive, negative: scores [P], [N], finite.

    Source: Mann and Whitney 1947; Hanley and McNeil 1982.
    """
    positive, negative = np.asarray(positive, np.float64), np.sort(np.asarray(negative, np.float64))
    if not (positive.size and negative.size and np.isfinite(positive).all() and np.isfinite(negative).all()):
        raise InputError(f"AUROC: expected finite scores of both kinds; got {positive.shape} and {negative.shape}")
    below, upto = np.searchsorted(negative, positive, "left"), np.searchsorted(negative, positive, "right")
    return float((below + upto).mean() / (2 * len(negative)))


def coded_length(pixels: np.ndarray) -> np.ndarray:
    """Bits per pixel value of each image under a lossless code: differences to the left neighbour, then zlib.

    Args:
        pixels: [N, C, H, W], uint8 or floating in [0, 1] (rounded to 8 bits).

    Returns:
        [N] float64.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 4 or pixels.size == 0:
        raise InputError(f"coded length: expected pixels [N, C, H, W]; got shape {list(pixels.shape)}")
    if pixels.dtype != np.uint8:
        pixels = np.rint(255 * pixels).astype(np.uint8)
    differences = np.diff(pixels, axis=3, prepend=np.zeros_like(pixels[..., :1]))
    values = pixels[0].size
    return np.array([8 * len(zlib.compress(image.tobytes(), 9)) / values for image in differences])


@dataclasses.dataclass(frozen=True)
class LikelihoodScore:
    """How unlike the training data an image is: Mahalanobis length of what its features have left after complexity is accounted for.

    Args:
        coefficients: [3, F], of 1, b and b^2 (b the coded length): the features expected.
        whitening: [F, F]: inverse root of the remainders' covariance.
    """

    coefficients: tuple[tuple[float, ...], ...]
    whitening: tuple[tuple[float, ...], ...]

    def __call__(self, features: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Score [N], large for unlike images.

        Args:
            features: [N, F], as those that were fitted.
            pixels: [N, C, H, W].
        """
        rest = _features(features) - self.expected(coded_length(pixels))
        distances: np.ndarray = np.sqrt(np.square(rest @ np.array(self.whitening)).sum(axis=1))
        return distances

    def expected(self, length: np.ndarray) -> np.ndarray:
        """Features [N, F] expected of training data with these coded lengths [N]."""
        values: np.ndarray = _powers(length) @ np.array(self.coefficients)
        return values

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def fit_likelihood_score(features: np.ndarray, pixels: np.ndarray) -> LikelihoodScore:
    """Fit :class:`LikelihoodScore` to images like the training data.

    Args:
        features: [N, F] or [N]: minus log-likelihoods, losses, one column for each thing looked at (e.g. each noise level).
        pixels: [N, C, H, W], the images.

    Raises:
        InputError: fewer than 4 F + 12 images, or values that are not finite.
    """
    features = _features(features)
    if len(features) < 4 * features.shape[1] + 12 or len(pixels) != len(features):
        raise InputError(
            f"likelihood score: expected at least {4 * features.shape[1] + 12} images for {features.shape[1]} features, as many "
            f"features as pixels; got {len(features)} and {len(pixels)}"
        )
    powers = _powers(coded_length(pixels))
    coefficients = np.linalg.lstsq(powers, features, rcond=None)[0]
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(features - powers @ coefficients, rowvar=False)))
    whitening = vectors / np.sqrt(np.maximum(values, 1e-6 * values.max() + 1e-30))
    return LikelihoodScore(tuple(map(tuple, coefficients.tolist())), tuple(map(tuple, whitening.tolist())))


def _powers(b: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(b), b, b * b], axis=1)


def _features(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"likelihood score: expected finite features [N, F]; got shape {list(values.shape)}")
    return values


def _scores(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    fits = scores.ndim == 2 and labels.shape == scores.shape[:1] and len(labels) and labels.dtype.kind in "iu"
    if not fits or not np.isfinite(scores).all() or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise InputError(
            f"calibration: expected finite scores [N, K] and integer labels [N] in 0..K-1; got shapes {list(scores.shape)} and "
            f"{list(labels.shape)}"
        )
    return scores, labels
