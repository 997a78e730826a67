"""Sparse-RS: random search over which pixels change, and to which corner of the colour cube (l_0); needs logits only.

An image's state is a set M of K places and their colours, each channel 0 or 1. It starts at random places with random colours. A proposal
exchanges k = max(1, round(share K)) of them for places outside of M, with new random colours; the others keep theirs. Where there are no
places outside, colours alone are drawn anew. A proposal is kept where it does not lower the margin (``rdc.attacks.random_search``). After
query i of N the share is p_init / d, with i scaled to 10,000 queries:

    i up to   50   200   500   1000   2000   4000   6000   8000   10,000
    d          2     4     5      6      8     10     12     15       20

Query q of an image draws numbers that depend on (seed, image id, restart, q) only, by Philox's counter.

Source: Croce, Andriushchenko, Singh, Flammarion & Hein 2022 (arXiv 2006.12834), Algorithm 1 and its l_0 variant; written from the paper.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.seeds import random
from rdc.attacks.entry import attack
from rdc.attacks.losses import Model
from rdc.attacks.options import number
from rdc.attacks.random_search import QueryOptions, random_search
from rdc.attacks.threat_model import AttackResult, ThreatModel
from rdc.errors import InputError

__all__ = ["SparseRsOptions", "exchanged_share", "sparse_rs"]

_UP_TO = (50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
_DIVISORS = (2, 4, 5, 6, 8, 10, 12, 15, 20)
_STREAM = 0x5352_5330  # word of the Philox counter


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SparseRsOptions(QueryOptions):
    """Options of :func:`sparse_rs`.

    Args:
        p_init: share of the places that is exchanged at first, times two, in (0, 1].
    """

    p_init: float = number(0.3, most=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.p_init
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise InputError(f"p_init must be in (0, 1], got {share!r}")


@attack(SparseRsOptions)
def sparse_rs(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: SparseRsOptions) -> AttackResult:
    """Sparse-RS with the margin loss; black box.

    Args:
        model, x, y: as for ``apgd``; no gradient is asked for.
        threat: ``"l0"`` and a number of pixels.
        options: SparseRsOptions; a call gives its fields as keywords. ``progress`` is called after each query.

    Returns:
        AttackResult: step k is the k-th query, ``steps`` is ``queries``.

    Raises:
        InputError, ConfigError: an argument is not as above; another norm. RdcError: a budget was broken.
    """

    def make(clean: Tensor, ids: list[int], restart: int) -> _Places:
        return _Places(clean, int(threat.eps), options.seed, ids, restart)

    def share(query: int) -> float:
        return exchanged_share(query, options.queries, options.p_init)

    return random_search("sparse-rs", ("l0",), make, share, model, x, y, threat, options)


def exchanged_share(query: int, queries: int, p_init: float) -> float:
    """Share of the places that the proposal after ``query`` of ``queries`` exchanges.

    Args:
        query: 1 .. queries.
        queries: N.
        p_init: as of :class:`SparseRsOptions`.
    """
    at = query * 10_000 // queries
    return p_init / _DIVISORS[sum(at > last for last in _UP_TO)]


class _Places:
    """State of n images, one row each: places in a random order, those changed first, and a colour for each of these."""

    def __init__(self, clean: Tensor, pixels: int, seed: int, ids: list[int], restart: int) -> None:
        self.clean, self.seed, self.ids, self.restart = clean, seed, ids, restart
        self.size = clean.shape[2] * clean.shape[3]
        self.pixels = min(pixels, self.size)
        drawn = [self._generator(row, 0) for row in range(len(ids))]
        self.order = np.stack([generator.permutation(self.size) for generator in drawn])  # [n, H W]
        shape = (self.pixels, clean.shape[1])
        self.colours = np.stack([generator.integers(0, 2, shape) for generator in drawn])  # [n, K, C]
        self.proposed = self.order, self.colours

    def start(self) -> Tensor:
        return self._images()

    def took(self, better: Tensor) -> None:
        rows = better.cpu().numpy()[:, None]
        self.order = np.where(rows, self.proposed[0], self.order)
        self.colours = np.where(rows[..., None], self.proposed[1], self.colours)

    def keep(self, rows: Tensor) -> None:
        left = rows.tolist()
        self.clean, self.ids = self.clean[rows], [self.ids[row] for row in left]
        self.order, self.colours = self.order[left], self.colours[left]

    def next(self, best: Tensor, share: float, query: int) -> Tensor:
        count = min(self.pixels, max(1, round(share * self.pixels)))
        fresh = min(count, self.size - self.pixels)  # places there are to exchange for
        order, colours = self.order.copy(), self.colours.copy()
        for row in range(len(order)):
            generator = self._generator(row, query)
            given = generator.permutation(self.pixels)[:count]
            taken = self.pixels + generator.permutation(self.size - self.pixels)[:fresh]
            order[row, given[:fresh]], order[row, taken] = self.order[row, taken], self.order[row, given[:fresh]]
            colours[row, given] = generator.integers(0, 2, (count, colours.shape[2]))
        self.proposed = order, colours
        return self._images()

    def _images(self) -> Tensor:
        """The proposed images."""
        order, colours = self.proposed
        count, channels = self.clean.shape[:2]
        places = torch.from_numpy(order[:, : self.pixels]).to(self.clean.device)[:, None].expand(-1, channels, -1)
        values = torch.from_numpy(colours).to(self.clean.device, self.clean.dtype).transpose(1, 2)
        return self.clean.flatten(2).scatter(2, places, values).view_as(self.clean)

    def _generator(self, row: int, query: int) -> np.random.Generator:
        return random(self.seed, self.ids[row], (0, query, _STREAM, self.restart))
