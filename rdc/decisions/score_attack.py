"""Attacks on the likelihood score: images of another kind that pass for the training data's, and the other way round.

The score (:class:`rdc.decisions.calibration.LikelihoodScore`) is a length, sqrt |W (f(x) - C(b(x)))|^2, of the losses f of
every noise level and the coded length b. Auto-PGD goes down (or up) its exact gradient with b
recomputed at every iterate; b itself is a byte count and has no gradient, which is taken as zero. So the
accuracy of telling kinds apart under this attack is an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rdc.attacks import ThreatModel
from rdc.attacks.apgd import apgd
from rdc.decisions.calibration import LikelihoodScore, coded_length
from rdc.method.classifier import DiffusionClassifier

__all__ = ["attack_score", "differentiable_score"]

_FAR = 1e6  # more than any score: the attack that raises it never counts as finished


def differentiable_score(classifier: DiffusionClassifier, score: LikelihoodScore) -> Callable[[Tensor], Tensor]:
    """``score`` of the smallest class loss at every level, as a function of pixels.

    Args:
        classifier: whose losses the score was fitted to, one feature a level.
        score: fitted by ``rdc.decisions.calibration.fit_likelihood_score``.

    Returns:
        pixels [N, C, H, W] in [0, 1] -> [N] float64, differentiable but for the coded length.
    """

    def scores(pixels: Tensor) -> Tensor:
        features = classifier.losses_per_level(pixels).double().amin(2)
        expected = score.expected(coded_length(pixels.detach().cpu().numpy()))
        rest = features - torch.from_numpy(expected).to(features.device)
        far: Tensor = (rest @ torch.tensor(score.whitening, dtype=torch.float64, device=rest.device)).norm(dim=1)
        return far

    return scores


def attack_score(
    classifier: DiffusionClassifier,
    score: LikelihoodScore,
    pixels: Tensor,
    threat: ThreatModel,
    *,
    lower: bool,
    steps: int = 20,
    seed: int = 0,
    batch: int = 32,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Perturb images so that their likelihood score falls (they pass for training data), or rises.

    Args:
        classifier, score: as of :func:`differentiable_score`.
        pixels: [N, C, H, W] in [0, 1].
        threat: norm and radius.
        lower: make the score small; else large.
        steps: of Auto-PGD, one random start.
        seed: of the start.
        batch: images at once.
        progress: called with the number of images finished in each batch.

    Returns:
        Scores [N] of the images found, float64; never worse for the attacker than those of ``pixels``.
    """
    scores = differentiable_score(classifier, score)

    def logits(x: Tensor) -> Tensor:  # class 0 is right while it is positive; the attack makes it small
        value = scores(x) if lower else _FAR - scores(x)
        return torch.stack([value, torch.zeros_like(value)], dim=1)

    found = []
    for begin in range(0, len(pixels), batch):
        part = pixels[begin : begin + batch].to(classifier.device)
        ids = torch.arange(begin, begin + len(part))
        labels = torch.zeros(len(part), dtype=torch.int64, device=part.device)
        result = apgd(logits, part, labels, threat, seed=seed, image_ids=ids, steps=steps, loss="margin", verify=False)
        with torch.no_grad():
            before, after = scores(part), scores(result.x_adv)
        found.append(torch.minimum(before, after) if lower else torch.maximum(before, after))
        if progress is not None:
            progress(len(part))
    return torch.cat(found).cpu().numpy()
