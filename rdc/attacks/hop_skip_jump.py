"""HopSkipJump: the nearest misclassified image by decisions alone, no logit and no gradient.

Chen, Jordan & Wainwright 2020 (arXiv 1904.02144). Let phi(z) be 1 where z is misclassified and -1 elsewhere, d the number of pixel
values, x the clean image and x_t the point on the boundary. From any misclassified image, for t = 1, 2, ..

    gradient    g = 1/B_t sum_b (phi(x_t + delta u_b) - mean phi) u_b,     u_b random of unit length, B_t = B sqrt(t), at most 100 B
                (where all are of one side: their mean with that sign); delta = dist / d, 0.1 at first
    step        x_t + xi v, with v = g / ||g||_2 (l_2, l_1) or sign g (l_inf); xi = dist / sqrt(t), halved until misclassified
    boundary    bisection between x and that point: along the segment (l_2, l_1), or by clipping to smaller balls (l_inf)

What only a decision is asked of cannot hide behind its gradient or its scores: an accuracy far below that of gradient attacks says
that these are blind. It needs thousands of queries and is weak where gradients work.

It begins at uniform noise, else at a black, grey or white image or the negative, the first that is misclassified. Numbers depend on
(seed, image id, restart, t) alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.seeds import random
from rdc.attacks.entry import attack
from rdc.attacks.losses import Model, Objective
from rdc.attacks.options import AttackOptions, integer
from rdc.attacks.threat_model import AttackRecord, AttackResult, ThreatModel, check_images
from rdc.errors import ConfigError
from rdc.norm_balls import NORMS, distance, project, row_sum

__all__ = ["HopSkipJumpOptions", "hop_skip_jump"]

_STREAM, _START_STREAM = 0x4053_4A01, 0x4053_4A02  # words of the Philox counter: directions, starting points
_NOISY = 20  # starting points of noise that are tried
_BISECTIONS, _HALVINGS = 12, 20
_ROWS = 256  # images of one model call
_AT_ONCE = 2**25  # pixel values of directions that are drawn together, where one image needs no more
_OF_ONE = 2**24  # likewise of one image: beyond, its directions are drawn in pieces
_FIRST_DELTA, _MOST_DRAWS = 0.1, 100
_PIECES = 2**24  # more steps than there are: pieces of a step have numbers of their own


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HopSkipJumpOptions(AttackOptions):
    """Options of :func:`hop_skip_jump`.

    Args:
        queries: model calls for each image and restart, >= 1; a step that is begun is ended.
        draws: B, directions of the first gradient, >= 1.
    """

    queries: int = integer(5000, most=10**9)
    draws: int = integer(100, most=100_000)


@attack(HopSkipJumpOptions)
def hop_skip_jump(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: HopSkipJumpOptions) -> AttackResult:
    """HopSkipJump: broken is what has a misclassified image within eps; black box, decisions alone.

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K], of which the largest alone counts; in eval mode.
        x: [N, C, H, W] float32 in [0, 1].
        y: [N] int64 true labels.
        threat: norm and radius.
        options: HopSkipJumpOptions; a call gives its fields as keywords. ``progress`` is called after each step.

    Returns:
        AttackResult: step k is the k-th query, ``steps`` is ``queries``; ``queries`` [N] counts them; ``minimal_distance`` is that of
        the nearest misclassified image found; ``best_loss`` is eps minus that distance. For robust images x_adv is that image
        drawn back into the budget.

    Raises:
        InputError: an argument is not as above. RdcError: a budget was broken.

    Source: module docstring.
    """
    if threat.norm not in NORMS:
        raise ConfigError(f"hop_skip_jump attacks in {', '.join(NORMS)}, got {threat.norm}")
    ids = check_images(x, y, options.image_ids)
    objective = Objective(model, "margin", **options.scoring)
    x, y = x.detach(), y.to(x.device)
    *clean, scale = objective.start(x, y)
    search = _Search(objective, x, y, scale, threat, AttackRecord(x, *clean))
    for restart in range(options.restarts):
        rows = (search.record.clean_correct if objective.is_random else search.record.correct).nonzero()[:, 0]
        if rows.numel() == 0:
            break
        for query, active in search.run(rows, ids, options, restart):
            if options.progress is not None:
                where = {"step": query, "steps": options.queries, "restart": restart, "restarts": options.restarts}
                count = {"active": active, "robust": int(search.record.correct.sum()), "total": len(ids)}
                options.progress({"attack": "hop-skip-jump", **where, **count})
    return search.result(options)


class _Search:
    """The attack on N images."""

    def __init__(
        self, objective: Objective, x: Tensor, y: Tensor, scale: Tensor, threat: ThreatModel, record: AttackRecord
    ) -> None:
        self.objective, self.x, self.y, self.scale, self.threat, self.record = objective, x, y, scale, threat, record
        self.spent = torch.zeros_like(record.broken_at)  # in this one
        self.nearest = torch.where(record.clean_correct, math.inf, 0.0).double()

    def run(self, rows: Tensor, ids: list[int], options: HopSkipJumpOptions, restart: int) -> Iterator[tuple[int, int]]:
        """One restart on images rows [n]; yields (queries so far, images left)."""
        self.spent.zero_()
        rows, point = self._begun(rows, ids, options, restart)
        step = 0
        while rows.numel():
            point = self._boundary(rows, point)
            self._seen(rows, point, options, restart)
            left = (self.spent[rows] < options.queries) & (self.record.correct[rows] | self.objective.is_random)
            rows, point = rows[left], point[left]
            yield min(int(self.spent.max()), options.queries), rows.numel()
            if rows.numel() == 0:
                return
            step += 1
            point = self._stepped(rows, point, [ids[row] for row in rows.tolist()], options, restart, step)

    def result(self, options: HopSkipJumpOptions) -> AttackResult:
        """What was found."""
        record, mismatches = self.record, None
        if options.verify and not self.objective.is_random:
            seen = self.objective.evaluate(record.x_adv, self.y, self.scale, gradient=False)
            mismatches = record.verify(seen.correct, options.queries, options.restarts)
        about = {"name": "hop-skip-jump", "loss": "distance", "steps": options.queries, "restarts": options.restarts}
        spent = {"forward_evaluations": self.objective.forward_evaluations, "gradient_evaluations": 0}
        found = {"minimal_distance": self.nearest, "verify_mismatches": mismatches}
        return record.result(self.x, self.threat, eot=options.eot, **about, **spent, **found)

    # --- questions ------------------------------------------------------------------------------------------------
    def _fooled(self, rows: Tensor, points: Tensor) -> Tensor:
        """Whether points [n, B, C, H, W] of images rows [n] are misclassified: [n, B] bool."""
        count, draws = points.shape[:2]
        flat, owners = points.flatten(0, 1), rows.repeat_interleave(draws)
        answers = []
        for images, owner in zip(flat.split(_ROWS), owners.split(_ROWS), strict=True):
            seen = self.objective.evaluate(images, self.y[owner], self.scale[owner], gradient=False)
            self.record.non_finite_logits[owner] |= seen.non_finite
            answers.append(~seen.correct)
        self.record.ask(rows, draws * self.objective.eot * count)
        self.spent[rows] += draws * self.objective.eot
        return torch.cat(answers).view(count, draws)

    def _begun(self, rows: Tensor, ids: list[int], options: HopSkipJumpOptions, restart: int) -> tuple[Tensor, Tensor]:
        """Images that a misclassified starting point was found for, and these points."""
        found = torch.zeros(len(rows), dtype=torch.bool, device=self.x.device)
        points = self.x[rows].clone()
        black = torch.zeros_like(points)
        others = (black, black + 0.5, black + 1, 1 - points)
        for tried in range(_NOISY + len(others)):
            open_ = (~found & (self.spent[rows] < options.queries)).nonzero()[:, 0]
            if open_.numel() == 0:
                break
            if tried < _NOISY:
                mine = [ids[row] for row in rows[open_].tolist()]
                candidate = self._numbers(_START_STREAM, mine, options.seed, restart, tried, 1, True)[:, 0]
            else:
                candidate = others[tried - _NOISY][open_]
            fooled = self._fooled(rows[open_], candidate[:, None])[:, 0]
            points[open_[fooled]] = candidate[fooled]
            found[open_[fooled]] = True
        return rows[found], points[found]

    def _boundary(self, rows: Tensor, point: Tensor) -> Tensor:
        """Misclassified images near the boundary, between the clean images and misclassified points."""
        clean = self.x[rows]
        away = distance(point, clean, self.threat.norm)
        low, high = torch.zeros_like(away), torch.ones_like(away)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            fooled = self._fooled(rows, self._between(clean, point, middle, away)[:, None])[:, 0]
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        whole = (high == 1).view(-1, 1, 1, 1)  # the point itself, not rounded anew
        return torch.where(whole, point, self._between(clean, point, high, away))

    def _between(self, clean: Tensor, point: Tensor, share: Tensor, away: Tensor) -> Tensor:
        share = share.view(-1, 1, 1, 1)
        moved = point.double() - clean.double()
        if self.threat.norm == "linf":
            most = share * away.view(-1, 1, 1, 1)
            moved = torch.maximum(torch.minimum(moved, most), -most)
        else:
            moved = share * moved
        return (clean.double() + moved).float().clamp(0, 1)

    def _seen(self, rows: Tensor, point: Tensor, options: HopSkipJumpOptions, restart: int) -> None:
        """Take in misclassified points: their distance; and their projections into the budget."""
        away = distance(point, self.x[rows], self.threat.norm)
        closer = away < self.nearest[rows]
        self.nearest[rows] = torch.minimum(away, self.nearest[rows])
        inside = project(point, self.x[rows], self.threat.eps, self.threat.norm)
        correct = ~self._fooled(rows, inside[:, None])[:, 0]
        loss = torch.where(closer | ~correct, self.threat.eps - away, -torch.inf)
        before = self.record.correct[rows]
        self.record.add(rows, inside, loss, correct, step=0, restart=restart)
        broken = rows[before & ~correct]
        self.record.broken_at[broken] = self.spent[broken].clamp(max=options.queries)

    # --- a step ---------------------------------------------------------------------------------------------------
    def _stepped(
        self, rows: Tensor, point: Tensor, ids: list[int], options: HopSkipJumpOptions, restart: int, step: int
    ) -> Tensor:
        draws = min(int(options.draws * math.sqrt(step)), _MOST_DRAWS * options.draws)
        size = max(1, _AT_ONCE // (draws * point[0].numel()))
        if len(rows) > size:
            places = torch.arange(len(rows), device=rows.device).split(size)
            parts = [(rows[place], point[place], [ids[row] for row in place.tolist()]) for place in places]
            return torch.cat([self._stepped(*part, options, restart, step) for part in parts])
        away = distance(point, self.x[rows], self.threat.norm)
        delta = torch.full_like(away, _FIRST_DELTA) if step == 1 else away / point[0].numel()
        gradient = self._gradient(rows, point, ids, options.seed, restart, step, draws, delta)
        if self.threat.norm == "linf":
            uphill = gradient.sign()
        else:
            uphill = gradient / _lengths(gradient).clamp_min(1e-30)
        return self._forward(rows, point, uphill, away / math.sqrt(step))

    def _gradient(
        self, rows: Tensor, point: Tensor, ids: list[int], seed: int, restart: int, step: int, draws: int, delta: Tensor
    ) -> Tensor:
        """g of the module's head, [n, C, H, W] float64, up to a factor; its directions in pieces that fit the memory."""
        weighted, plain = torch.zeros_like(point, dtype=torch.float64), torch.zeros_like(point, dtype=torch.float64)
        total = torch.zeros_like(delta)
        most = max(1, _OF_ONE // point[0].numel())
        wide = delta.float().view(-1, 1, 1, 1, 1)
        for piece, done in enumerate(range(0, draws, most)):
            count, part = min(most, draws - done), step + piece * _PIECES
            direction = self._numbers(_STREAM, ids, seed, restart, part, count, self.threat.norm == "linf")
            if self.threat.norm == "linf":
                direction = 2 * direction - 1
            direction = direction / _lengths(direction).clamp_min(1e-30)
            asked = (point[:, None] + wide * direction).clamp(0, 1)
            direction = (asked - point[:, None]) / wide  # what the box left of it
            sides = 2.0 * self._fooled(rows, asked).double() - 1.0
            weighted += (sides.view(*sides.shape, 1, 1, 1) * direction).sum(1)
            plain += direction.double().sum(1)
            total += sides.sum(1)
        mean = torch.where(total.abs() == draws, 0.0, total / draws)  # all of one side: their mean, with that sign
        return weighted - mean.view(-1, 1, 1, 1) * plain

    def _forward(self, rows: Tensor, point: Tensor, uphill: Tensor, length: Tensor) -> Tensor:
        """The longest of halved steps that ends misclassified; the point itself where none does."""
        found, open_ = point.clone(), torch.arange(len(rows), device=point.device)
        for _ in range(_HALVINGS):
            size = length[open_].view(-1, 1, 1, 1)
            candidate = (point[open_].double() + size * uphill[open_]).clamp(0, 1).float()
            fooled = self._fooled(rows[open_], candidate[:, None])[:, 0]
            found[open_[fooled]] = candidate[fooled]
            open_ = open_[~fooled]
            if open_.numel() == 0:
                break
            length = length / 2
        return found

    def _numbers(
        self, stream: int, ids: list[int], seed: int, restart: int, step: int, draws: int, uniform: bool
    ) -> Tensor:
        """[n, draws, C, H, W] float32: uniform in [0, 1) or standard normal."""
        out = np.empty((len(ids), draws, *self.x.shape[1:]), dtype=np.float32)
        for row, image_id in enumerate(ids):
            generator = random(seed, image_id, (0, step, stream, restart))
            make = generator.random if uniform else generator.standard_normal
            out[row] = make(out.shape[1:], dtype=np.float32)
        return torch.from_numpy(out).to(self.x.device)


def _lengths(values: Tensor) -> Tensor:
    """l_2 norms over the last three dimensions, kept as ones."""
    flat = values.flatten(0, -4) if values.dim() > 4 else values
    length = row_sum(flat.flatten(1).square()).sqrt()
    return length.view(*values.shape[:-3], 1, 1, 1)
