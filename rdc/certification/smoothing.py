"""Randomised smoothing: votes under noise, and Cohen et al.'s certificate from them (arXiv 1902.02918).

The smoothed classifier g(x) is the class that the base classifier f gives most often to x + sigma n, n ~ N(0, I). If f gives class A with
probability at least p > 1/2, then g is A at every x' with ||x' - x||_2 < sigma Phi^-1(p). f may itself draw numbers, as long as every
vote has draws of its own: the theorem is about the probability of A as a function of the noisy image, whose values lie in [0, 1].

Votes come from counter-based noise: vote j of an image has its numbers whatever is computed with it.
"""

from __future__ import annotations

import dataclasses
from statistics import NormalDist

import torch
from torch import Tensor

from rdc.certification.noised import BaseClassifier
from rdc.method.noise import NoisePlan
from rdc.statistics import clopper_pearson_lower

__all__ = ["ATTACK", "ESTIMATION", "JUDGING", "SELECTION", "Certificate", "NoisyVotes", "certify_image", "radius_of"]

SELECTION, ESTIMATION, JUDGING, ATTACK = range(4)  #: uses of an image's noise; each has draws of its own
_STREAM = 0xCE27 << 32
_LEVELS = _STREAM - 1  # of the levels' draws where all votes share them


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is known of one image.

    Args:
        selected: the class that most of the selection's votes were for.
        votes: [K] votes of the estimation.
        p_lower: lower confidence bound of the probability of ``selected``.
        radius: l_2, in [0, 1] pixel units; 0 where it abstains.
        abstained: p_lower does not exceed 1/2: no class is given.
    """

    selected: int
    votes: tuple[int, ...]
    p_lower: float
    radius: float
    abstained: bool


class NoisyVotes:
    """Votes of a base classifier on an image under Gaussian noise.

    Args:
        base: what votes.
        sigma: of the noise, in [0, 1] pixel units.
        seed: of all noise.
        fresh: every vote has its own draws at the base classifier's levels; False: all share one, and the base is a function.
        batch: votes computed together, >= 1.
    """

    def __init__(self, base: BaseClassifier, sigma: float, *, seed: int, fresh: bool, batch: int) -> None:
        self.base, self.sigma, self.seed, self.fresh, self.batch = base, sigma, seed, fresh, batch
        self.network_evaluations = 0
        shared = NoisePlan(seed, stream=_LEVELS).normal(0, base.levels, base.image_shape) if base.levels else None
        self._shared = None if shared is None else shared.to(base.device)

    def count(self, pixels: Tensor, image: int, use: int, votes: int) -> list[int]:
        """Votes [K]; a vote with a score that is not a number is for nobody.

        Args:
            pixels: [C, H, W] in [0, 1].
            image: position in the data set, which names the noise.
            use: SELECTION, ESTIMATION or JUDGING.
            votes: how many, >= 1.
        """
        counts = torch.zeros(self.base.num_classes, dtype=torch.int64)
        with torch.no_grad():
            for first in range(0, votes, self.batch):
                scores = self.scores(pixels[None], image, use, first, min(self.batch, votes - first))
                valid = ~scores.isnan().any(1)
                counts += torch.bincount(scores[valid].argmax(1).cpu(), minlength=self.base.num_classes)
        return counts.tolist()

    def scores(self, pixels: Tensor, image: int, use: int, first: int, votes: int) -> Tensor:
        """Scores [votes, K] of pixels [1, C, H, W] under draws first .. first + votes - 1; differentiable in the pixels."""
        noise, draws = self._draws(image, use, first, votes)
        self.network_evaluations += votes * self.base.passes
        return self.base.scores(pixels.to(self.base.device) + self.sigma * noise, draws)

    def _draws(self, image: int, use: int, first: int, votes: int) -> tuple[Tensor, Tensor]:
        """Noise [votes, C, H, W] and the levels' draws [votes, T, C, H, W]."""
        base = self.base
        own = base.levels if self.fresh else 0
        plan = NoisePlan(self.seed, stream=_STREAM + 4 * image + use)
        rows = [plan.normal(vote, 1 + own, base.image_shape) for vote in range(first, first + votes)]
        drawn = torch.stack(rows).to(base.device)
        if base.levels and not self.fresh:
            assert self._shared is not None
            return drawn[:, 0], self._shared.expand(votes, -1, -1, -1, -1)
        return drawn[:, 0], drawn[:, 1:]


def certify_image(votes: NoisyVotes, pixels: Tensor, image: int, *, n0: int, n: int, alpha: float) -> Certificate:
    """Cohen et al.'s CERTIFY: a class is selected by n0 votes, its probability bounded from below by n others.

    The result is wrong (abstaining is not) with probability alpha at most.

    Args:
        votes: the smoothed classifier.
        pixels: [C, H, W] in [0, 1].
        image: position in the data set.
        n0, n: votes of selection and of estimation.
        alpha: in (0, 1).
    """
    chosen = votes.count(pixels, image, SELECTION, n0)
    selected = max(range(len(chosen)), key=lambda label: (chosen[label], -label))
    counts = votes.count(pixels, image, ESTIMATION, n)
    p_lower = clopper_pearson_lower(counts[selected], n, alpha)
    radius = radius_of(p_lower, votes.sigma)
    return Certificate(selected, tuple(counts), p_lower, radius, radius == 0)


def radius_of(p_lower: float, sigma: float) -> float:
    """sigma Phi^-1(p_lower), 0 for p_lower <= 1/2."""
    return sigma * NormalDist().inv_cdf(p_lower) if p_lower > 0.5 else 0.0
