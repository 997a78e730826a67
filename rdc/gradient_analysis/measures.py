"""Numbers from stacks of gradients, and what they are over images: mean, median, quantiles, bootstrap intervals.

A number that is not defined (the direction of a zero gradient) is NaN here, null in JSON, and is counted, never replaced.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from rdc.errors import InputError

__all__ = ["cosines", "gradient_agreement", "image_cosines", "redraw_measures", "size_measures", "summarize_images"]

BOOTSTRAP = 2000  # resamples
QUANTILES = (5, 25, 75, 95)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarity of vectors along the last axis, [..., D] and [..., D] -> [...] float64; NaN where one is zero."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine: np.ndarray = (_unit(a) * _unit(b)).sum(-1)
        return cosine


def size_measures(gradients: np.ndarray) -> dict[str, np.ndarray]:
    """Sizes of gradients.

    Args:
        gradients: [..., n, D], in loss units per pixel unit.

    Returns:
        ``norm_l2``, ``norm_l1`` (the dual norm of l_inf) and ``zero_fraction`` (entries that are exactly 0), each [n], the
        mean over leading axes; NaN where the gradient holds NaN.
    """
    g = np.asarray(gradients, dtype=np.float64)
    g = g.reshape(-1, *g.shape[-2:])
    return {
        "norm_l2": np.sqrt(np.square(g).sum(-1)).mean(0),
        "norm_l1": np.abs(g).sum(-1).mean(0),
        "zero_fraction": np.where(np.isnan(g), np.nan, g == 0).mean(-1).mean(0),
    }


def redraw_measures(gradients: np.ndarray) -> dict[str, np.ndarray]:
    """How much the gradients of one image agree over redraws of a stochastic model.

    Args:
        gradients: [R, n, D], R >= 2 draws.

    Returns:
        [n] each: ``cosine``, mean over all pairs of draws (draws with zero gradient left out); ``relative_variance``, trace
        of the covariance (R - 1 in the denominator) over the squared l_2 norm of the mean gradient: the noise-to-signal
        ratio of one draw, of which averaging over n draws leaves 1/n; ``sign_agreement``, share of pairs and pixels where
        both entries have the same sign, zeros left out; and ``size_measures``.

    Raises:
        InputError: fewer than two draws.
    """
    g = np.asarray(gradients, dtype=np.float64)
    if g.ndim != 3 or len(g) < 2:
        raise InputError(f"gradients: expected [R, n, D] with R >= 2 draws; got shape {list(g.shape)}")
    units = _unit(g)
    usable = ~np.isnan(units).any(-1)  # [R, n]
    count = usable.sum(0)
    total = np.where(usable[..., None], units, 0).sum(0)
    mean = g.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (np.square(total).sum(-1) - count) / (count * (count - 1))
        variance = np.square(g - mean).sum((0, 2)) / (len(g) - 1) / np.square(mean).sum(-1)
    cosine = np.where(count < 2, np.nan, np.clip(cosine, -1, 1))  # rounding may leave 1 + 1e-16
    variance = np.where(np.square(mean).sum(-1) > 0, variance, np.nan)
    return {
        "cosine": cosine,
        "relative_variance": variance,
        "sign_agreement": _sign_agreement(g),
        **size_measures(g),
    }


def gradient_agreement(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Two gradients of each image against one another, [n, D] and [n, D].

    Returns:
        [n] each: ``cosine``; ``sign_agreement``; ``norm_ratio``, l_2 norm of b over that of a.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.linalg.norm(b, axis=-1) / np.linalg.norm(a, axis=-1)
    ratio = np.where(np.isfinite(ratio), ratio, np.nan)
    return {"cosine": cosines(a, b), "sign_agreement": _sign_agreement(np.stack([a, b])), "norm_ratio": ratio}


def image_cosines(gradients: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of different images against one another, [n, D].

    Returns:
        [n] each: ``cosine_abs`` and ``cosine``, mean over the other images of the absolute and of the plain cosine; NaN for
        a zero gradient or a single image. Gradients that hardly depend on the image (a universal direction) give values
        near 1; random directions in D dimensions about sqrt(2 / (pi D)).
    """
    units = _unit(np.asarray(gradients, dtype=np.float64))
    usable = ~np.isnan(units).any(-1)
    found = {name: np.full(len(units), np.nan) for name in ("cosine_abs", "cosine")}
    if usable.sum() > 1:
        gram = units[usable] @ units[usable].T
        np.fill_diagonal(gram, 0.0)
        others = len(gram) - 1
        found["cosine_abs"][usable], found["cosine"][usable] = np.abs(gram).sum(1) / others, gram.sum(1) / others
    return found


def summarize_images(values: np.ndarray, *, seed: int, name: str) -> dict[str, Any]:
    """A measure over images as plain JSON values.

    Args:
        values: [n]; NaN where not defined.
        seed: of the bootstrap; with ``name`` it decides the resamples.
        name: of the measure.

    Returns:
        ``n`` (defined values), ``undefined``, ``mean``, ``median``, ``q05`` .. ``q95``, ``min``, ``max``, and ``mean_ci95``,
        ``median_ci95``: percentile-bootstrap intervals over images (2000 resamples), None with fewer than two values.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentile intervals).
    """
    values = np.asarray(values, dtype=np.float64)
    good = values[np.isfinite(values)]
    found: dict[str, Any] = {"n": len(good), "undefined": len(values) - len(good)}
    keys = ("mean", "median", *(f"q{q:02d}" for q in QUANTILES), "min", "max", "mean_ci95", "median_ci95")
    if len(good) == 0:
        return {**found, **dict.fromkeys(keys)}
    found |= {"mean": float(good.mean()), "median": float(np.median(good))}
    found |= {f"q{q:02d}": float(np.percentile(good, q)) for q in QUANTILES}
    found |= {"min": float(good.min()), "max": float(good.max()), "mean_ci95": None, "median_ci95": None}
    if len(good) > 1:
        means, medians = _resampled(good, seed, name)
        found["mean_ci95"] = [float(end) for end in np.percentile(means, (2.5, 97.5))]
        found["median_ci95"] = [float(end) for end in np.percentile(medians, (2.5, 97.5))]
    return found


def _resampled(values: np.ndarray, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Means and medians of resamples, in pieces of bounded size."""
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, word], dtype=np.uint64)))
    means, medians = [], []
    piece = max(1, min(BOOTSTRAP, 2**20 // len(values)))
    for begin in range(0, BOOTSTRAP, piece):
        drawn = values[generator.integers(0, len(values), (min(piece, BOOTSTRAP - begin), len(values)))]
        means.append(drawn.mean(1))
        medians.append(np.median(drawn, axis=1))
    return np.concatenate(means), np.concatenate(medians)


def _unit(g: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis; NaN where zero or not finite."""
    largest = np.abs(g).max(-1, keepdims=True)  # first, so that squares neither underflow nor overflow
    with np.errstate(invalid="ignore", divide="ignore"):
        g = g / largest
        unit: np.ndarray = g / np.sqrt(np.square(g).sum(-1, keepdims=True))
        return unit


def _sign_agreement(g: np.ndarray) -> np.ndarray:
    """[R, n, D] -> [n]: of all pairs of draws and pixels whose two entries are not 0, the share of equal signs."""
    up, down = (g > 0).sum(0).astype(np.float64), (g < 0).sum(0).astype(np.float64)
    same = (up * (up - 1) + down * (down - 1)).sum(-1)
    either = up + down
    pairs = (either * (either - 1)).sum(-1)
    return np.where(pairs > 0, same / np.where(pairs > 0, pairs, 1), np.nan)
