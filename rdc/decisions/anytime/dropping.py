"""Class by class: a network that needs a pass for every class looks at fewer and fewer of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rdc.method.classifier import DiffusionClassifier
from rdc.method.draw import Draw

__all__ = ["drop_classes"]


def drop_classes(
    classifier: DiffusionClassifier,
    x0: Tensor,
    draw: Draw,
    prior: Tensor,
    looks: Sequence[tuple[slice, Callable[[Tensor, Tensor], Tensor]]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [N, K], levels looked at [N] and passes [N]; an image leaves when one class is left.

    Args:
        classifier: of a conditional network.
        x0: [N, c, h, w], what the denoiser noises.
        draw: levels in the order of looking.
        prior: scores that classes begin with [K].
        looks: the levels of each look, and which classes are dropped after it: (how far behind the leader [N, K], which are alive
            [N, K] bool) -> [N, K] bool. After the last level none is.
    """
    count, classes = len(x0), classifier.num_classes
    scores = prior.expand(count, -1).clone()
    behind_when_dropped = torch.zeros_like(scores)
    alive = torch.ones(count, classes, dtype=torch.bool, device=x0.device)
    levels = torch.zeros(count, dtype=torch.int64, device=x0.device)
    passes = torch.zeros(count, dtype=torch.int64, device=x0.device)
    for part, dropped in looks:
        active = alive.sum(1) > 1
        if not active.any():
            break
        images, labels = (alive & active[:, None]).nonzero(as_tuple=True)
        added = _pair_losses(classifier, x0, images, labels, draw[part])
        scores = scores.index_put((images, labels), added, accumulate=True)
        levels[active] = part.stop
        passes += torch.where(active, alive.sum(1) * (part.stop - part.start), 0)
        if part.stop == len(draw):
            break
        behind = scores - scores.masked_fill(~alive, torch.inf).amin(1, keepdim=True)
        drop = alive & active[:, None] & dropped(behind.detach(), alive)
        behind_when_dropped = torch.where(drop, behind, behind_when_dropped)
        alive = alive & ~drop
    lowest = scores.masked_fill(~alive, torch.inf).amin(1, keepdim=True)
    return torch.where(alive, scores, lowest + behind_when_dropped), levels, passes


def _pair_losses(classifier: DiffusionClassifier, x0: Tensor, images: Tensor, labels: Tensor, draw: Draw) -> Tensor:
    """Weighted losses [P] of pairs (image, class) over some levels."""
    size = max(1, classifier.rows_that_fit(x0) // len(draw))
    parts = zip(images.split(size), labels.split(size), strict=True)
    return torch.cat([classifier.denoiser.losses_of_labels(x0[rows], draw, classes) for rows, classes in parts])
