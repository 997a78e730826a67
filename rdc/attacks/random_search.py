"""Random search: proposals, one query each, kept where they do not lower the margin; what black boxes of this kind share.

The papers ask the margin max_{j != y} z_j - z_y to rise; with rounded logits that would stand still on every plateau.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from rdc.attacks.losses import Model, Objective
from rdc.attacks.options import AttackOptions, integer
from rdc.attacks.threat_model import AttackRecord, AttackResult, ThreatModel, check_images
from rdc.errors import ConfigError

__all__ = ["Proposals", "QueryOptions", "random_search"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class QueryOptions(AttackOptions):
    """Options of attacks that search at random.

    Args:
        queries: model calls for each image and restart, >= 1, the starting point included, the clean image not.
    """

    queries: int = integer(5000, most=10**9)


class Proposals(Protocol):
    """Where a restart begins and goes on, n images, one row each."""

    def start(self) -> Tensor:
        """The first points, [n, C, H, W] within the budget."""
        ...

    def took(self, better: Tensor) -> None:
        """Which of the last proposals are kept, [n] bool; of the starting point all."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        ...

    def next(self, best: Tensor, share: float, query: int) -> Tensor:
        """The proposals after ``query`` queries, from the best points so far, [n, C, H, W] within the budget; ``share`` of them changes."""
        ...


def random_search(
    name: str,
    norms: tuple[str, ...],
    make: Callable[[Tensor, list[int], int], Proposals],
    share: Callable[[int], float],
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    options: QueryOptions,
) -> AttackResult:
    """Run a search.

    Args:
        name: of the attack.
        norms: that it searches in.
        make: clean images [n, C, H, W], their ids and the number of the restart -> Proposals.
        share: query 1, 2, .. -> what the proposal after it changes.
        model, x, y, threat: as for ``apgd``.
        options: ``progress`` is called after each query.

    Returns:
        AttackResult: step k is the k-th query, ``steps`` is ``queries``.

    Raises:
        InputError, ConfigError: an argument is not as above. RdcError: a budget was broken.
    """
    if threat.norm not in norms:
        raise ConfigError(f"{name} attacks in {', '.join(norms)}, got {threat.norm}")
    ids = check_images(x, y, options.image_ids)
    queries, restarts, progress = options.queries, options.restarts, options.progress
    objective = Objective(model, "margin", **options.scoring)
    x, y = x.detach(), y.to(x.device)
    *clean, scale = objective.start(x, y)
    record = AttackRecord(x, *clean)
    for restart in range(restarts):
        rows = (record.clean_correct if objective.is_random else record.correct).nonzero()[:, 0]
        if rows.numel() == 0:
            break
        proposals = make(x[rows], [ids[row] for row in rows.tolist()], restart)
        for query, active in _restart(objective, record, proposals, share, rows, y, scale, queries, restart):
            if progress is not None:
                where = {"step": query, "steps": queries, "restart": restart, "restarts": restarts}
                count = {"active": active, "robust": int(record.correct.sum()), "total": len(ids)}
                progress({"attack": name, **where, **count})
    mismatches = None
    if options.verify and not objective.is_random:
        seen = objective.evaluate(record.x_adv, y, scale, gradient=False)
        mismatches = record.verify(seen.correct, queries, restarts)
    spent = {"forward_evaluations": objective.forward_evaluations, "gradient_evaluations": 0}
    about = {"name": name, "loss": "margin", "steps": queries, "restarts": restarts, "eot": options.eot}
    return record.result(x, threat, verify_mismatches=mismatches, **about, **spent)


def _restart(
    objective: Objective,
    record: AttackRecord,
    proposals: Proposals,
    share: Callable[[int], float],
    rows: Tensor,
    y: Tensor,
    scale: Tensor,
    queries: int,
    restart: int,
) -> Iterator[tuple[int, int]]:
    """One restart on images rows [n] of all N (y, scale: [N]); yields (query, images left)."""
    point, loss = proposals.start(), torch.full_like(scale[rows], -math.inf)
    best = point
    for query in range(1, queries + 1):
        seen = objective.evaluate(point, y[rows], scale[rows], gradient=False)
        record.ask(rows, objective.eot * len(rows))
        record.add(rows, point, seen.loss, seen.correct, step=query, restart=restart, right_once=seen.right_once)
        record.non_finite_logits[rows] |= seen.non_finite
        better = seen.loss >= loss
        proposals.took(better)
        best = torch.where(better.view(-1, 1, 1, 1), point, best)
        loss = torch.where(better, seen.loss, loss)
        if not objective.is_random and not bool(seen.correct.all()):
            left = seen.correct.nonzero()[:, 0]
            rows, best, loss = rows[left], best[left], loss[left]
            proposals.keep(left)
        yield query, rows.numel()
        if rows.numel() == 0 or query == queries:
            return
        point = proposals.next(best, share(query), query)
