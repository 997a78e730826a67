"""The smoothed classifier as a defence that attacks take, and its empirical robustness beside its certificate.

No attack may fall below the certificate: a class that is certified at x must be the smoothed classifier's at every attacked image
within the radius. :func:`attack_image` searches for one, by PGD with gradients averaged over noise that is drawn anew in every step
(arXiv 1906.04584).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rdc.attacks.losses import log_odds
from rdc.certification.noised import BaseClassifier
from rdc.certification.records import AttackedImage
from rdc.certification.smoothing import ATTACK, JUDGING, NoisyVotes
from rdc.contracts import BaseDefence, Component
from rdc.norm_balls import distance, project, steepest_direction

__all__ = ["SmoothedClassifier", "attack_image"]


class SmoothedClassifier(BaseDefence):
    """Soft smoothing: log of the mean, over draws of noise, of the base classifier's probabilities.

    A stand-in with gradients for the vote; under ``noise="fresh"`` every call draws anew.

    Args:
        base: what is smoothed.
        sigma: of the noise, in [0, 1] pixel units.
        draws: averaged in a call, >= 1.
        image: names the noise, with the seed.
        fresh_levels: see :class:`rdc.certification.smoothing.NoisyVotes`.
        settings: of :class:`rdc.contracts.BaseDefence`.

    Forward:
        pixels [N, C, H, W] in [0, 1] -> log-probabilities [N, K]; all images of a call share the noise.
    """

    stochastic = True
    head = "smoothed"

    def __init__(
        self,
        base: BaseClassifier,
        sigma: float,
        *,
        draws: int = 16,
        image: int = 0,
        fresh_levels: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(base.image_shape, base.num_classes, device=base.device, **settings)
        self.base, self.sigma, self.draws, self.image, self.fresh_levels = base, sigma, draws, image, fresh_levels

    def parts(self) -> tuple[Component, ...]:
        """None that it rules: what is smoothed is a function, whose noise is fixed or given with each vote."""
        return ()

    @property
    def evaluations_per_image(self) -> int:
        return self.draws * self.base.passes

    def forward(self, pixels: Tensor) -> Tensor:
        first = self._next_draw() * self.draws
        votes = NoisyVotes(self.base, self.sigma, seed=self.noise_seed, fresh=self.fresh_levels, batch=self.draws)
        rows = [votes.scores(one[None], self.image, ATTACK, first, self.draws) for one in pixels]
        self.network_evaluations += votes.network_evaluations
        mean = torch.log_softmax(torch.stack(rows), dim=2).logsumexp(1)
        return torch.log_softmax(mean, dim=1)


def attack_image(
    votes: NoisyVotes,
    pixels: Tensor,
    label: int,
    image: int,
    *,
    selected: int,
    radii: tuple[float, ...],
    steps: int,
    draws: int,
    judges: int,
) -> tuple[AttackedImage, ...]:
    """Attack the smoothed classifier at each radius; an image that fell at a smaller one is not attacked again.

    Args:
        votes: the smoothed classifier.
        pixels: [C, H, W] in [0, 1].
        label: true class.
        image: position in the data set.
        selected: the class that a certificate is about.
        radii: l_2, rising.
        steps: of PGD.
        draws: averaged for a gradient.
        judges: votes that decide about an adversarial image; the attack has not seen their noise.
    """
    model = SmoothedClassifier(
        votes.base,
        votes.sigma,
        draws=draws,
        image=image,
        fresh_levels=votes.fresh,
        noise="fresh",
        noise_seed=votes.seed,
    )
    found: list[AttackedImage] = []
    x, y = pixels[None].to(votes.base.device), torch.tensor([label], device=votes.base.device)
    worst = x
    counts = votes.count(pixels, image, JUDGING, judges)
    for radius in radii:
        if counts[label] == max(counts):  # still right
            worst = _climb(model, x, y, radius, steps)
            counts = votes.count(worst[0], image, JUDGING, judges)
        predicted = max(range(len(counts)), key=lambda k: (counts[k], k == label))
        far = float(distance(worst, x, "l2"))
        found.append(AttackedImage(radius, far, predicted, counts[selected], judges, predicted == label))
    return tuple(found)


def _climb(model: SmoothedClassifier, x: Tensor, y: Tensor, radius: float, steps: int) -> Tensor:
    """PGD on the log-odds against the label, 2.5 radius / steps a step; the last iterate, which no draw has chosen."""
    at = x
    for _ in range(steps):
        at = at.detach().requires_grad_()
        with torch.enable_grad():
            gradient = torch.autograd.grad(log_odds(model(at), y).sum(), at)[0]
        direction = steepest_direction(gradient.double().nan_to_num(), "l2")
        at = project(at.detach().double() + 2.5 * radius / steps * direction, x, radius, "l2")
    return at.detach()
