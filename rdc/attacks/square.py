"""Square: random search with square-shaped changes; needs logits only, so no masked gradient can stop it.

Andriushchenko et al. 2020 (arXiv 1912.00049) for l_inf (Algorithm 2) and l_2 (Algorithm 3); l_1 is l_2's scheme with
l_1 lengths and the exact projection (Croce & Hein 2021, arXiv 2103.01208, section 4). A proposal is kept where it does
not lower the margin (``rdc.attacks.random_search``). For query i of N, a share p(i) of the pixels changes, in a square of side
round(sqrt(p H W)): p_init, halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries, these
numbers scaled to N.

    l_inf      start: vertical stripes of +-eps. Proposal: the square is set to +-eps, a sign for each channel; signs that
               would change nothing are drawn again.
    l_2, l_1   start: 5 x 5 tiles of the bump pattern, a sign for each tile and channel, scaled to eps. Proposal: one
               square's share of the budget, another's, and what is unused go into the first, as (pattern + what was
               there, both of unit length); the second becomes zero. The pattern is a bump of each sign, side by side or
               one above the other:  bump(r, s) = sum_{k=0}^{M} 1 / (n + 1 - k)^2,  n = floor(max(h1, h2) / 2),
               M = n - max(|r - floor(h1 / 2) - 1|, |s - floor(h2 / 2) - 1|),  r = 1..h1, s = 1..h2.

Query q of an image draws numbers that depend on (seed, image id, restart, q) only, by Philox's counter.
"""

from __future__ import annotations

import dataclasses
import functools
import math

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
from rdc.norm_balls import NORMS, linf_bounds, project, row_sum

__all__ = ["SquareOptions", "changed_share", "square"]

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
_TILES = 5
_BLOCK = 128  # queries whose numbers are drawn at once
_STREAM, _START_STREAM = 0x5157_A2E0, 0x5157_A2E1  # words of the Philox counter: proposals, starting points


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SquareOptions(QueryOptions):
    """Options of :func:`square`.

    Args:
        p_init: share of the pixels that the first proposals change, in (0, 1].
    """

    p_init: float = number(0.8, most=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.p_init
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise InputError(f"p_init must be in (0, 1], got {share!r}")


@attack(SquareOptions)
def square(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: SquareOptions) -> AttackResult:
    """Square attack with the margin loss; black box.

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only; in eval mode.
        x: [N, C, H, W] float32 in [0, 1].
        y: [N] int64 true labels.
        threat: norm and radius.
        options: SquareOptions; a call gives its fields as keywords. ``progress`` is called after each query.

    Returns:
        AttackResult: step k is the k-th query, ``steps`` is ``queries``; ``queries`` [N] counts them for each image.

    Raises:
        InputError: an argument is not as above. RdcError: a budget was broken.

    Source: module docstring.
    """

    def make(clean: Tensor, ids: list[int], restart: int) -> _Proposals:
        return _Proposals(clean, threat, options.seed, ids, restart)

    def share(query: int) -> float:
        return changed_share(query, options.queries, options.p_init)

    return random_search("square", NORMS, make, share, model, x, y, threat, options)


def changed_share(query: int, queries: int, p_init: float) -> float:
    """Share of the pixels that the proposal after ``query`` changes.

    Args:
        query: 1 .. queries.
        queries: N.
        p_init: share at the start.

    Returns:
        p_init / 2^j, j the number of 10, 50, 200, .. below query * 10,000 / N.
    """
    at = query * 10_000 // queries
    return p_init / 2.0 ** sum(at > after for after in _HALVED_AFTER)


class _Proposals:
    """Random proposals for n images, one row each."""

    def __init__(self, clean: Tensor, threat: ThreatModel, seed: int, ids: list[int], restart: int) -> None:
        self.clean, self.norm, self.eps = clean, threat.norm, threat.eps
        self.seed, self.ids, self.restart = seed, ids, restart
        self.bounds = linf_bounds(clean, threat.eps)
        self.drawn: np.ndarray | None = None  # [n, _BLOCK, numbers] of the current block

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.clean, self.bounds = self.clean[rows], (self.bounds[0][rows], self.bounds[1][rows])
        left = rows.tolist()
        self.ids = [self.ids[row] for row in left]
        self.drawn = None if self.drawn is None else self.drawn[left]

    def took(self, better: Tensor) -> None:
        """Nothing follows from it here."""

    def start(self) -> Tensor:
        """Stripes (l_inf) or tiles (l_2, l_1), [n, C, H, W] within the budget."""
        _, channels, height, width = self.clean.shape
        if self.norm == "linf":
            stripes = _signs(self._numbers(_START_STREAM, 0, (channels, 1, width)))
            return self._extreme(stripes.to(self.clean.device).expand(self.clean.shape))
        tiles = (min(_TILES, height), min(_TILES, width))
        signs = _signs(self._numbers(_START_STREAM, 0, (channels, *tiles)))
        offset = torch.zeros(self.clean.shape, dtype=torch.float64)
        rows, columns = (
            np.linspace(0, size, parts + 1).astype(int) for size, parts in zip((height, width), tiles, strict=True)
        )
        for i in range(tiles[0]):
            for j in range(tiles[1]):
                bump = _bump(rows[i + 1] - rows[i], columns[j + 1] - columns[j])
                tile = signs[:, :, i, j, None, None] * bump
                offset[:, :, rows[i] : rows[i + 1], columns[j] : columns[j + 1]] = tile
        length = _length(offset.flatten(1), self.norm)
        offset = (offset * (self.eps / length)[:, None, None, None]).to(self.clean.device)
        return project(self.clean.double() + offset, self.clean, self.eps, self.norm)

    def next(self, best: Tensor, share: float, query: int) -> Tensor:
        """Proposal number ``query`` from the best points [n, C, H, W] so far."""
        channels, height, width = self.clean.shape[1:]
        block, place = divmod(query, _BLOCK)
        if self.drawn is None or place == 0:
            self.drawn = self._numbers(_STREAM, block, (_BLOCK, 6 + channels))
        numbers = self.drawn[:, place]
        side = max(1, round(math.sqrt(share * height * width)))
        if self.norm == "linf":
            return self._linf(best, numbers, min(side, height), min(side, width))
        return self._round(best, numbers, max(3, side + (side + 1) % 2))

    def _linf(self, best: Tensor, numbers: np.ndarray, rows: int, columns: int) -> Tensor:
        window = self._window(numbers[:, 0], numbers[:, 1], rows, columns)
        signs = torch.from_numpy(np.where(numbers[:, 6:] < 0.5, -1.0, 1.0)).to(best.device)
        point = torch.where(window, self._extreme(signs[:, :, None, None].expand(best.shape)), best)
        same = (point == best).flatten(1).all(dim=1)
        if bool(same.any()):  # any other choice of signs is as likely as the next
            other = 1 + (numbers[:, 2] * (2.0 ** signs.shape[1] - 1.0)).astype(np.int64)
            flipped = (other[:, None] >> np.arange(signs.shape[1])) & 1
            signs = torch.where(same[:, None], signs * torch.from_numpy(1.0 - 2.0 * flipped).to(best.device), signs)
            point = torch.where(window, self._extreme(signs[:, :, None, None].expand(best.shape)), best)
        return point

    def _round(self, best: Tensor, numbers: np.ndarray, side: int) -> Tensor:
        """The l_2 and l_1 proposal."""
        count, channels, height, width = best.shape
        rows, columns = min(side, height), min(side, width)
        first = self._window(numbers[:, 0], numbers[:, 1], rows, columns)
        second = self._window(numbers[:, 2], numbers[:, 3], rows, columns)
        moved = best.double() - self.clean.double()
        pattern = self._pattern(numbers, rows, columns)
        signs = torch.from_numpy(np.where(numbers[:, 6:] < 0.5, -1.0, 1.0)).to(best.device)[:, :, None, None]
        there = torch.where(first, moved, 0.0)
        mixed = signs * pattern + there / self._by_channel(there)
        mixed = torch.where(first, mixed, 0.0)
        power = 2 if self.norm == "l2" else 1
        budget = self._by_channel(torch.where(first | second, moved, 0.0), least=0.0) ** power
        unused = self.eps**power - _length(moved.flatten(1), self.norm) ** power
        available = (budget + unused.clamp(min=0.0).view(-1, 1, 1, 1) / channels) ** (1.0 / power)
        filled = mixed / self._by_channel(mixed) * available
        moved = torch.where(first, filled, torch.where(second, 0.0, moved))
        return project(self.clean.double() + moved, self.clean, self.eps, self.norm)

    def _by_channel(self, values: Tensor, least: float = 1e-300) -> Tensor:
        """[n, C, H, W] -> lengths [n, C, 1, 1]."""
        count, channels = values.shape[:2]
        length = _length(values.reshape(count * channels, -1), self.norm).clamp(min=least)
        return length.view(count, channels, 1, 1)

    def _pattern(self, numbers: np.ndarray, rows: int, columns: int) -> Tensor:
        """Two bumps of opposite sign, together of unit length, where the first window is: [n, 1, H, W]."""
        down, across = self._into_window(numbers[:, 0], numbers[:, 1], rows, columns)
        which = (numbers[:, 4] < 0.5).astype(int)[:, None, None]
        pair = _bump_pairs(rows, columns, self.norm)
        there = pair[which, down.clip(0, rows - 1)[:, :, None], across.clip(0, columns - 1)[:, None, :]]
        inside = ((down >= 0) & (down < rows))[:, :, None] & ((across >= 0) & (across < columns))[:, None, :]
        return torch.from_numpy(np.where(inside, there, 0.0))[:, None].to(self.clean.device)

    def _into_window(self, top: np.ndarray, left: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [n, H] and columns [n, W] counted from each window's corner; top and left are uniform in [0, 1)."""
        height, width = self.clean.shape[2:]
        down = np.arange(height) - (top * (height - rows + 1)).astype(np.int64)[:, None]
        return down, np.arange(width) - (left * (width - columns + 1)).astype(np.int64)[:, None]

    def _window(self, top: np.ndarray, left: np.ndarray, rows: int, columns: int) -> Tensor:
        """Where each image's window is, [n, 1, H, W] bool."""
        down, across = self._into_window(top, left, rows, columns)
        inside = ((down >= 0) & (down < rows))[:, :, None] & ((across >= 0) & (across < columns))[:, None, :]
        return torch.from_numpy(inside)[:, None].to(self.clean.device)

    def _extreme(self, signs: Tensor) -> Tensor:
        lower, upper = self.bounds
        return torch.where(signs > 0, upper, lower)

    def _numbers(self, stream: int, block: int, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform numbers [n, *shape] that depend on (seed, image id, restart, stream, block) only."""
        out = np.empty((len(self.ids), *shape))
        for row, image_id in enumerate(self.ids):
            out[row] = random(self.seed, image_id, (0, block, stream, self.restart)).random(shape)
        return out


def _signs(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(np.where(numbers < 0.5, -1.0, 1.0))


def _length(values: Tensor, norm: str) -> Tensor:
    """[n, D] float64 -> [n], l_2 or l_1."""
    return row_sum(values.square()).sqrt() if norm == "l2" else row_sum(values.abs())


def _bump(rows: int, columns: int) -> Tensor:
    """The pattern of the module docstring, n from the longer side, [rows, columns] float64."""
    half = max(rows, columns) // 2
    down = np.abs(np.arange(1, rows + 1) - rows // 2 - 1)
    across = np.abs(np.arange(1, columns + 1) - columns // 2 - 1)
    terms = np.cumsum([1.0 / (half + 1 - k) ** 2 for k in range(half + 1)])
    return torch.from_numpy(terms[half - np.maximum(down[:, None], across[None, :])])


@functools.lru_cache(maxsize=256)
def _bump_pairs(rows: int, columns: int, norm: str) -> np.ndarray:
    """A bump above another of opposite sign, and two side by side, each pair of unit length: [2, rows, columns]."""

    def stacked(height: int, width: int) -> Tensor:
        upper = height // 2
        return torch.cat([_bump(upper, width), -_bump(height - upper, width)]) if upper else _bump(height, width)

    pair = torch.stack([stacked(rows, columns), stacked(columns, rows).T])
    return (pair / _length(pair.flatten(1), norm)[:, None, None]).numpy()
