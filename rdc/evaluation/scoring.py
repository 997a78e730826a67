"""How submissions are scored: share of right answers, votes, and which of two adversarial images is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Score", "has_majority", "is_kept", "submit"]


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """n images, each submitted R times.

    Args:
        share: [n] float64, fraction of submissions that were right.
        majority: [n] bool, the label has more votes than any other class.
        logits: [n, K], mean over submissions.
        predicted: [n] int64, of the mean logits.
    """

    share: Tensor
    majority: Tensor
    logits: Tensor
    predicted: Tensor


def submit(model: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor, times: int) -> Score:
    """Classify [n, C, H, W] pixels ``times`` times; an answer with NaN is no vote, and wrong."""
    with torch.no_grad():
        draws = torch.stack([model(pixels) for _ in range(times)])
    nan = draws.isnan().any(2)
    decided = draws.argmax(2)
    right = (decided == labels) & ~nan
    votes = torch.nn.functional.one_hot(decided, draws.shape[2]).masked_fill(nan[:, :, None], 0).sum(0)
    mean = draws.mean(0)
    return Score(right.double().mean(0), has_majority(votes, labels) & right.any(0), mean, mean.argmax(1))


def has_majority(votes: Tensor, labels: Tensor) -> Tensor:
    """Whether the label has more votes than any other class; a tie is none.

    Args:
        votes: [n, K] int64.
        labels: [n] int64.

    Returns:
        [n] bool.
    """
    others = votes.scatter(1, labels[:, None], -1).amax(1)
    return votes.gather(1, labels[:, None])[:, 0] > others


def is_kept(found: Tensor, share: Tensor) -> Tensor:
    """Whether a new adversarial image replaces the one before: it is right no more often. Of equals the last is kept.

    Args:
        found, share: [n] share of right answers to the new one and to the one before.

    Returns:
        [n] bool.
    """
    return found <= share
