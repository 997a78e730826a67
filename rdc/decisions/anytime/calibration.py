"""In which order to look at the levels, and how large a lead settles a decision.

With score s_k = sum_t w_t loss_t,k - log prior_k / scale, the lead after some levels is the second smallest score minus the smallest. A
decision is settled at look j when the lead reaches c_j = z * sigma_j, where sigma_j is how much the levels still to come move small
leads (root mean square, in standard deviations of a Gaussian the chance of a turn is then about Phi(-z)).

- The order (levels that move leads most come first) and sigma_j come from one part of the calibration images.
- z comes from the other part: from large z downwards, as long as the number of decisions that differ from the full one is so small
  that a true rate above ``error_rate`` is refused at the stated confidence. This is fixed-sequence testing, so that with probability
  ``confidence`` over the calibration images the true rate is at most ``error_rate``, without any assumption but that the images to come
  are drawn as those were. No labels are used.

Source: Wald 1945, "Sequential tests of statistical hypotheses" (the idea of stopping); Angelopoulos et al. 2021, arXiv 2110.01052,
"Learn then test" (fixed-sequence calibration).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.contracts import NoisePolicy
from rdc.errors import ConfigError, InputError, one_line
from rdc.method.classifier import DiffusionClassifier
from rdc.method.levels import MOST_LEVELS
from rdc.statistics import sequential_stops
from rdc.storage.reading import reading
from rdc.storage.structure import integer, number, record, sequence, text

__all__ = ["AnytimeCalibration", "Stopping", "calibrate_anytime", "fingerprint", "images_needed", "simulate_stopping"]

_GRID = np.linspace(6.0, 0.0, 121)  # z, from the strictest
_MOST_LOOKS = 16
_MANY_CLASSES = (
    100  # from here on a network with a pass for every class looks after 1, 2, 4, ... levels: the first costs most
)
_SHAPE_EVERY = 4  # every fourth image is for the order and sigma_j, so that images sorted by class do no harm
_FEWEST = 40


def _lead(value: Any, where: str) -> None:
    """A boundary: a number, or infinity, which no lead reaches."""
    if value != math.inf:
        number(0)(value, where)


_PARTS = record(
    {
        **dict.fromkeys(("error_rate", "confidence", "z", "mean_levels", "mean_passes"), number(0)),
        **dict.fromkeys(("images", "differing"), integer(0)),
        **dict.fromkeys(("order", "looks"), sequence(integer(0), 1, MOST_LEVELS)),
        "boundary": sequence(_lead, 0, MOST_LEVELS),
        "fingerprint": text(),
    }
)


@dataclasses.dataclass(frozen=True)
class AnytimeCalibration:
    """A calibrated stopping rule.

    Args:
        error_rate: stated largest rate of decisions that differ from the full one.
        confidence: with which the rate holds, over the draw of calibration images.
        order: positions in the classifier's levels, in the order of looking.
        looks: how many levels have been looked at when each look is taken; the last is T.
        boundary: lead that settles a decision at each look but the last.
        z: boundary in standard deviations of what is to come.
        images: calibration images that z was tested on.
        differing: of them, decisions that differed.
        mean_levels: of them, levels looked at on average.
        mean_passes: of them, network passes on average.
        fingerprint: of the classifier it belongs to.
    """

    error_rate: float
    confidence: float
    order: tuple[int, ...]
    looks: tuple[int, ...]
    boundary: tuple[float, ...]
    z: float
    images: int
    differing: int
    mean_levels: float
    mean_passes: float
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for :meth:`from_json`."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, content: Any) -> AnytimeCalibration:
        """The inverse of :meth:`to_json`.

        Raises:
            ConfigError: it is no such object, or its parts do not make a rule.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(content, dict) or set(content) != set(names):
            got = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ConfigError(f"anytime calibration: expected an object with {', '.join(names)}; got {one_line(got)}")
        with reading("anytime calibration", ConfigError, "what to_json gave"):
            _PARTS(content, "anytime calibration")
        parts: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
        made = cls(**parts)
        made._check()
        return made

    def _check(self) -> None:
        """What the parts must be for a rule: an order of all levels, looks that grow up to them, a boundary at each look but the last."""
        order, looks = self.order, self.looks
        rule = {
            "0 < error_rate < 0.5 and 0 < confidence < 1": 0 < self.error_rate < 0.5 and 0 < self.confidence < 1,
            "order to name every level once": sorted(order) == list(range(len(order))),
            "looks that grow": looks[0] >= 1 and all(a < b for a, b in itertools.pairwise(looks)),
            "the last look to be the last level": looks[-1] == len(order),
            "a boundary at each look but the last": len(self.boundary) == len(looks) - 1,
            "differing <= images": self.differing <= self.images,
        }
        for words, holds in rule.items():
            if not holds:
                raise ConfigError(
                    f"anytime calibration: expected {words}; it is damaged or was changed. Calibrate again"
                )

    def describe(self) -> dict[str, Any]:
        """For reports."""
        return {
            "error_rate": self.error_rate,
            "confidence": self.confidence,
            "mean_levels": self.mean_levels,
            "levels": len(self.order),
        }


def images_needed(error_rate: float, confidence: float = 0.95) -> int:
    """The fewest calibration images with which ``error_rate`` can be stated at all (no decision differing among those tested)."""
    tested = math.ceil(math.log(1 - confidence) / math.log(1 - error_rate))
    return max(_FEWEST, math.ceil(tested * _SHAPE_EVERY / (_SHAPE_EVERY - 1)) + 1)


def calibrate_anytime(
    classifier: DiffusionClassifier,
    pixels: Tensor,
    error_rate: float = 0.01,
    *,
    confidence: float = 0.95,
    batch: int = 32,
    progress: bool = False,
) -> AnytimeCalibration:
    """Find the stopping rule of a classifier on held-out images.

    Args:
        classifier: with noise "fixed".
        pixels: [n, C, H, W] in [0, 1], images like those to be classified; not these themselves. Every fourth shapes the rule, the
            others test it.
        error_rate: largest rate of decisions that differ from the full decision, in (0, 0.5).
        confidence: with which it holds.
        batch: images in a call.
        progress: draw a bar on stderr.

    Raises:
        ConfigError: noise is fresh; error_rate or confidence out of range; too few images to state that rate.
    """
    _check_settings(classifier, error_rate, confidence)
    needed = images_needed(error_rate, confidence)
    if len(pixels) < needed:
        raise ConfigError(
            f"anytime calibration: expected at least {needed} images for a rate of {error_rate:g} at confidence {confidence:g}; "
            f"got {len(pixels)}. Give more images, or state a larger rate"
        )
    losses = _losses(classifier, pixels, batch, progress)
    return calibrate_from_losses(
        losses,
        classifier.levels.weight,
        prior_scores(classifier),
        error_rate,
        confidence,
        eliminate=classifier.denoiser.passes_per_level > 1,
        fingerprint=fingerprint(classifier),
    )


def calibrate_from_losses(
    losses: np.ndarray,
    weight: Sequence[float],
    prior: np.ndarray,
    error_rate: float,
    confidence: float,
    *,
    eliminate: bool,
    fingerprint: str,
) -> AnytimeCalibration:
    """The same from unweighted losses [n, T, K], as ``DiffusionClassifier.losses_per_level`` gives them.

    Args:
        weight: [T].
        prior: [K], added to the scores: - log prior / scale.
        eliminate: classes are dropped one by one (a conditional network); otherwise all go on until the image is settled.
        fingerprint: to write down.
    """
    weighted = losses * np.asarray(weight, dtype=np.float64)[:, None]
    shaping = np.arange(len(weighted)) % _SHAPE_EVERY == 0
    order = _order(weighted[shaping], prior)
    looks = _looks(len(order), doubling=eliminate and losses.shape[2] >= _MANY_CLASSES)
    spread = _spread(_scores(weighted[shaping], order, looks, prior))
    tested = _scores(weighted[~shaping], order, looks, prior)
    full = tested[:, -1].argmin(1)
    chosen = None
    for z in _GRID:
        stopping = simulate_stopping(tested, z * spread, looks, eliminate=eliminate)
        differing = int((stopping.decision != full).sum())
        if _binomial_cdf(differing, len(full), error_rate) > 1 - confidence:
            break
        chosen = (float(z), stopping, differing)
    assert chosen is not None, "at z = 6 no lead turns, and images_needed were given"
    z, stopping, differing = chosen
    return AnytimeCalibration(
        error_rate=error_rate,
        confidence=confidence,
        order=tuple(int(t) for t in order),
        looks=tuple(looks),
        boundary=tuple(float(c) for c in z * spread),
        z=z,
        images=len(full),
        differing=differing,
        mean_levels=round(float(stopping.levels.mean()), 4),
        mean_passes=round(float(stopping.passes.mean()), 4),
        fingerprint=fingerprint,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Stopping:
    """What a rule does to n images.

    Args:
        decision: [n] classes.
        levels: [n] levels looked at.
        passes: [n] network passes (one a level, or one a level and class still alive).
    """

    decision: np.ndarray
    levels: np.ndarray
    passes: np.ndarray


def simulate_stopping(scores: np.ndarray, boundary: np.ndarray, looks: Sequence[int], *, eliminate: bool) -> Stopping:
    """Apply a stopping rule to recorded scores.

    Args:
        scores: [n, looks, K], cumulated over the levels in order of looking.
        boundary: [looks - 1].
        looks: levels done at each look.
        eliminate: as of :func:`calibrate_from_losses`.
    """
    count, rows, done = len(scores), np.arange(len(scores)), np.asarray(looks)
    if not eliminate:
        two = np.partition(scores, 1, axis=2)
        stop = sequential_stops(two[..., 1] - two[..., 0], np.append(boundary, 0.0))
        return Stopping(scores[rows, stop].argmin(1), done[stop], done[stop])
    alive = np.ones((count, scores.shape[2]), dtype=bool)
    levels, passes = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    before = 0
    for look, until in enumerate(looks):
        active = alive.sum(1) > 1
        levels[active] = until
        passes += np.where(active, (until - before) * alive.sum(1), 0)
        now = np.where(alive, scores[:, look], np.inf)
        behind = now - now.min(1, keepdims=True)
        limit = boundary[look] if look < len(boundary) else np.nextafter(0.0, 1.0)
        alive &= ~(active[:, None] & (behind >= limit) & (behind > 0))
        before = until
    return Stopping(np.where(alive, scores[:, -1], np.inf).argmin(1), levels, passes)


def prior_scores(classifier: DiffusionClassifier) -> np.ndarray:
    """[K]: what the class prior adds to the scores."""
    if classifier.class_prior is None:
        return np.zeros(classifier.num_classes)
    prior = np.asarray(classifier.class_prior, dtype=np.float64)
    scores: np.ndarray = -np.log(prior / prior.sum()) / classifier.scale
    return scores


def fingerprint(classifier: DiffusionClassifier) -> str:
    """What a calibration belongs to: weights, levels, noise, likelihood maximisation, prior and scale (16 hexadecimal digits)."""
    import hashlib
    import json

    from rdc.provenance.run import weights_digest

    settings = {key: value for key, value in classifier.describe().items() if key != "gradient"}
    prior = None if classifier.class_prior is None else [float(p) for p in classifier.class_prior]
    parts = [weights_digest(classifier.denoiser), settings, prior]
    if classifier.lm is not None and classifier.lm_denoiser is not None:
        parts.append(weights_digest(classifier.lm_denoiser))
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- parts ----------------------------------------------------------------------------------------------------------


def _check_settings(classifier: DiffusionClassifier, error_rate: float, confidence: float) -> None:
    if not isinstance(classifier, DiffusionClassifier):
        raise ConfigError(f"anytime decisions: expected a DiffusionClassifier; got {type(classifier).__name__}")
    if classifier.noise_policy != NoisePolicy.FIXED:
        raise ConfigError('anytime decisions: expected noise="fixed", so that there is one full decision; got "fresh"')
    if not 0 < error_rate < 0.5 or not 0 < confidence < 1:
        raise ConfigError(
            f"anytime decisions: expected 0 < error_rate < 0.5 and 0 < confidence < 1; got {error_rate} and {confidence}"
        )


def _losses(classifier: DiffusionClassifier, pixels: Tensor, batch: int, progress: bool) -> np.ndarray:
    from rdc.terminal.progress import bar

    found = []
    with torch.no_grad():
        for part in bar(pixels.split(batch), desc="anytime calibration", unit="batch", enabled=progress):
            found.append(classifier.losses_per_level(part.to(classifier.device)).double().cpu().numpy())
    losses = np.concatenate(found)
    if not np.isfinite(losses).all():
        raise InputError(
            "anytime calibration: expected finite losses; the classifier gives NaN or infinity on some image"
        )
    return losses


def _order(weighted: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Levels by how much they move the lead of the full decision over its runner-up, the strongest first."""
    total = weighted.sum(1) + prior
    best = np.argsort(total, axis=1, kind="stable")[:, :2]
    first, second = (np.take_along_axis(weighted, best[:, None, i : i + 1], axis=2)[..., 0] for i in (0, 1))
    return np.argsort(-np.square(second - first).mean(0), kind="stable")


def _looks(count: int, doubling: bool = False) -> list[int]:
    """Levels done at each look: every level, or about sixteen looks where there are more levels; or doubling ones."""
    if doubling:
        return sorted({*(2**power for power in range(count.bit_length())), count})
    return sorted(
        {int(round(look)) for look in np.linspace(count / min(count, _MOST_LOOKS), count, min(count, _MOST_LOOKS))}
    )


def _scores(weighted: np.ndarray, order: np.ndarray, looks: Sequence[int], prior: np.ndarray) -> np.ndarray:
    """Cumulated scores [n, looks, K]."""
    scores: np.ndarray = np.cumsum(weighted[:, order], axis=1)[:, [look - 1 for look in looks]] + prior
    return scores


def _spread(scores: np.ndarray) -> np.ndarray:
    """sigma_j [looks - 1]: how much what is to come moves the lead of the leader over the runner-up, among the smaller leads."""
    count, rows = scores.shape[1], np.arange(len(scores))
    spread = np.empty(count - 1)
    for look in range(count - 1):
        best = np.argsort(scores[:, look], axis=1, kind="stable")[:, :2]
        lead = scores[rows, look, best[:, 1]] - scores[rows, look, best[:, 0]]
        last = scores[rows, -1, best[:, 1]] - scores[rows, -1, best[:, 0]]
        small = lead <= np.median(lead)
        spread[look] = np.sqrt(np.square(last - lead)[small].mean())
    return spread


def _binomial_cdf(successes: int, trials: int, chance: float) -> float:
    """P(Bin(trials, chance) <= successes)."""
    log = math.lgamma
    terms = (
        log(trials + 1) - log(k + 1) - log(trials - k + 1) + k * math.log(chance) + (trials - k) * math.log1p(-chance)
        for k in range(successes + 1)
    )
    return min(1.0, sum(math.exp(term) for term in terms))
