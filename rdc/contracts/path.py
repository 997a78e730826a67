"""A call of a defence that purifies, taken apart: what attacks look at between the purifier's steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from rdc.contracts.modes import GradientMode

__all__ = ["PurificationPath", "along"]


@dataclasses.dataclass(frozen=True, eq=False)
class PurificationPath:
    """One call on N images, all of it under one draw.

    Args:
        images: [N, S, C, H, W] after each of S >= 1 steps of the purification, differentiable in the pixels as the defence's
            ``gradient`` says; of a diffusion what the step takes the clean image to be. Values in [0, 1], or slightly beyond. The last
            one is classified.
        logits: [N, K], the call's answer to the last bit.
        classify: images [n, C, H, W] -> logits [n, K], what answers behind the purification, under the same draw; of
            ``images[:, -1]`` the answer to rounding.
    """

    images: Tensor
    logits: Tensor
    classify: Callable[[Tensor], Tensor]


def along(mode: GradientMode, follow: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A path [N, S, ...] of x [N, ...] with the gradient that a mode stands for: under BPDA the identity's at every step."""
    if mode == GradientMode.EXACT:
        return follow(x)
    return follow(x.detach()).detach() + (x - x.detach())[:, None]
