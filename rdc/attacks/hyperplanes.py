"""Nearest point of {hyperplane} intersected with the pixel box [0, 1] in l_inf, l_2 and l_1, exactly, for many at once.

With gain g = wanted change of <w, z>, only moves along sign(g) w help. Pixel i may move room_i and its magnitude m_i
earns |w_i| m_i; sum_i |w_i| m_i = |g| at the least norm is

    l_inf   m_i = min(t, room_i)             all move alike until the box stops them
    l_2     m_i = min(t |w_i|, room_i)       KKT conditions
    l_1     the pixels of largest |w_i| move as far as they can, one after another; the last one only as far as needed

and t is found in the sorted break points of a piecewise linear function (rdc.norm_balls.crossing). l_1 is the same
search over the number of pixels. Where the plane misses the box, the result is the corner of the box nearest to it in
the sense of <w, z>.

Source: Croce & Hein 2020 (arXiv 1907.02044), section 3.1 and appendix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rdc.errors import ConfigError
from rdc.norm_balls import NORMS, crossing, row_sum

__all__ = ["dual_norm", "step_to_hyperplane"]


def step_to_hyperplane(z: Tensor, w: Tensor, gain: Tensor, norm: str) -> Tensor:
    """Shortest step s with <w, s> = gain and z + s in [0, 1]; where there is none, the largest step towards it.

    Args:
        z: [n, D] float64 in [0, 1].
        w: [n, D] float64, finite.
        gain: [n] float64, either sign.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.

    Returns:
        [n, D] float64; zero where w is zero.

    Raises:
        ConfigError: unknown norm.

    Source: module docstring.
    """
    if norm not in NORMS:
        raise ConfigError(f"unknown norm {norm!r}; expected one of {', '.join(NORMS)}")
    scale = w.abs().amax(dim=1)
    scale = torch.where(scale > 0, scale, 1.0)  # w and gain may be of any size: 1e-300 must not underflow
    w, gain = w / scale[:, None], gain / scale
    side = w.sign() * torch.where(gain < 0, -1.0, 1.0)[:, None]
    room = torch.where(side > 0, 1.0 - z, torch.where(side < 0, z, 0.0))
    find = {"linf": _linf, "l2": _l2, "l1": _l1}[norm]
    return side * find(w.abs(), room, gain.abs())


def dual_norm(w: Tensor, norm: str) -> Tensor:
    """Norm q with 1/p + 1/q = 1, so that |gain| / ||w||_q is the distance to a hyperplane without the box.

    Args:
        w: [n, D] float64.
        norm: ``"linf"`` (q = 1), ``"l2"`` or ``"l1"`` (q = infinity).

    Returns:
        [n] float64.
    """
    if norm == "l1":
        return w.abs().amax(dim=1)
    return row_sum(w.abs()) if norm == "linf" else row_sum(w.square()).sqrt()


def _linf(size: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    def moved(t: Tensor) -> Tensor:
        return torch.minimum(t[:, None], room)

    breaks = torch.cat([torch.zeros_like(room[:, :1]), room], dim=1).sort(dim=1).values
    return moved(crossing(breaks, lambda t: row_sum(size * moved(t)), gain))


def _l2(size: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    def moved(t: Tensor) -> Tensor:
        return torch.minimum(t[:, None] * size, room)

    # room / size may overflow where size is tiny: such a pixel's break lies beyond every t that matters
    stops = torch.where(size > 0, room / torch.where(size > 0, size, 1.0), 0.0).clamp(max=1e300)
    breaks = torch.cat([torch.zeros_like(room[:, :1]), stops], dim=1).sort(dim=1).values
    return moved(crossing(breaks, lambda t: row_sum(size * moved(t)), gain))


def _l1(size: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    rank = size.argsort(dim=1, descending=True, stable=True).argsort(dim=1).double()

    def moved(count: Tensor) -> Tensor:  # the first pixels whole, the next by the fraction of count
        return room * (count[:, None] - rank).clamp(0.0, 1.0)

    breaks = torch.arange(size.shape[1] + 1, dtype=torch.float64, device=size.device).expand(len(size), -1)
    return moved(crossing(breaks, lambda count: row_sum(size * moved(count)), gain))
