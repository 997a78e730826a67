"""A step of likelihood maximisation back into its ball, its derivative, and what attackers put in its place.

Outside of the ball the projection's derivative in x is 0: where most of a move ends at the ball's edge, the exact gradient sees the
input alone, and not what likelihood maximisation does with it. For an attacker the derivative may be softened: the step goes where it
went, to the last bit, and in the backward pass it counts

    y = s(e) x + (1 - s(e)) anchor + constant       s(e) = exp(-e / (softness eta))

with e what the projection cut off, in the units of eta (of the pixel box likewise). Softness 0 is the exact derivative, infinity
a straight-through one (Bengio et al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rdc.method.likelihood_maximization import LikelihoodMaximization

__all__ = ["SOFTENED", "lm_move", "lm_surrogates"]

#: surrogate -> its softness
SOFTENED = {"softened": 0.5, "softened-sharp": 0.1, "softened-wide": 2.0}
_SCALE = 8 / 255  # in place of eta, where there is none


def lm_move(anchor: Tensor, x: Tensor, direction: Tensor, settings: LikelihoodMaximization) -> Tensor:
    """One step along ``direction`` from x, back into the ball around ``anchor`` and into [-1, 1].

    Args:
        anchor: [N, C, H, W] in [-1, 1], the input of likelihood maximisation.
        x, direction: likewise, where it stands and where it goes.
        settings: eta, clamp, step_size and softness count.
    """
    x = x + 2 * settings.step_size * direction
    if settings.eta is not None:
        inside = torch.maximum(torch.minimum(x, anchor + 2 * settings.eta), anchor - 2 * settings.eta)
        x = _softened(inside, x, anchor, settings) if settings.softness else inside
    if not settings.clamp:
        return x
    inside = x.clamp(-1, 1)
    return _softened(inside, x, None, settings) if settings.softness else inside


def _softened(inside: Tensor, x: Tensor, anchor: Tensor | None, settings: LikelihoodMaximization) -> Tensor:
    """``inside`` to the last bit, with the softened derivative."""
    with torch.no_grad():
        cut = (x - inside).abs() / (2 * (settings.eta or _SCALE))
        share = torch.exp(-cut / settings.softness)
    soft = inside.detach() + share * (x - x.detach())
    return soft if anchor is None else soft + (1 - share) * (anchor - anchor.detach())


def lm_surrogates(lm: LikelihoodMaximization) -> dict[str, LikelihoodMaximization]:
    """What a transfer attack may climb in place of it.

    Args:
        lm: the defence's own.

    Returns:
        "one-step" (N = 1), and where it projects those of :data:`SOFTENED`, "straight-through" and "unclipped" (no ball at all, whose
        images are others').
    """
    found = {"one-step": dataclasses.replace(lm, steps=1, name="one step")}
    if lm.eta is not None or lm.clamp:
        for name, softness in SOFTENED.items():
            found[name] = dataclasses.replace(lm, softness=softness, name=name)
        found["straight-through"] = dataclasses.replace(lm, softness=math.inf, name="straight-through")
    if lm.eta is not None:
        found["unclipped"] = dataclasses.replace(lm, eta=None, name="unclipped")
    return found
