"""Transfer: gradients from a surrogate, correctness from the real model.

Where a defence's own gradient is useless (shattered, detached, too long a chain) or dear, the gradient of a close relative
often is not: the same classifier without purification, with one step of it, without quantisation, with fresh noise.

    x^(k+1) = APGD step on L(surrogate(x))            every ``check_every``-th iterate is classified by the real model
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from rdc.attacks.apgd import _rule
from rdc.attacks.entry import attack
from rdc.attacks.losses import Evaluation, Model, Objective
from rdc.attacks.options import SURROGATES, AscentOptions, integer
from rdc.attacks.per_image import LocatedEvaluation, PerImageObjective
from rdc.attacks.pgd import Rule, RuleAround, run_attack
from rdc.attacks.threat_model import AttackResult, ThreatModel
from rdc.errors import InputError

__all__ = ["TransferOptions", "transfer"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TransferOptions(AscentOptions):
    """Options of :func:`transfer`.

    Args:
        steps: of each restart, >= 2: steps - 1 of APGD, then the best point.
        loss: maximised on the surrogate.
        eot, redraw: of the real model; with either it counts as random.
        verify: evaluate x_adv once more on the real model.
        gradient_model: not used: gradients are the surrogate's.
        surrogate: pixels [n, C, H, W] -> logits [n, K], differentiable.
        check_every: the real model sees iterates 0, check_every, 2 check_every, .., the last iterate of APGD and the
            surrogate's best point.
        surrogate_eot: surrogate calls averaged for each gradient.
        surrogate_redraw: called before each surrogate call; makes a random surrogate draw fresh noise.
    """

    surrogate: Model = dataclasses.field(metadata={"choices": SURROGATES})
    check_every: int = integer(1, most=1_000_000)
    surrogate_eot: int = integer(1)
    surrogate_redraw: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2:
            raise InputError(f"transfer needs steps >= 2 (the last one returns to the best point), got {self.steps}")


@attack(TransferOptions)
def transfer(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: TransferOptions) -> AttackResult:
    """APGD on a surrogate, classified by the real model; the last of the steps returns to the surrogate's best point.

    Args:
        model: the real model; asked for logits only, so it need not be differentiable.
        x, y, threat: as for ``apgd``.
        options: TransferOptions; a call gives its fields as keywords.

    Returns:
        AttackResult. ``correct``: right on every image the real model was asked about. ``best_loss``: on the surrogate.
        ``forward_evaluations``: images through either model without gradient; ``gradient_evaluations``: through the
        surrogate with gradient. ``zero_gradient_steps`` are the surrogate's.

    Raises:
        InputError, ConfigError, RdcError: as for ``apgd``; check_every < 1 or steps < 2.

    Source: Papernot et al. 2016 (arXiv 1605.07277); Athalye et al. 2018 (arXiv 1802.00420) for surrogates of parts.
    """
    steps, calls = (
        options.steps,
        {"eot": options.surrogate_eot, "redraw": options.surrogate_redraw, "gradient_model": None},
    )
    gradients = Objective(options.surrogate, options.loss, **{**options.scoring, **calls})
    objective = _TransferObjective(model, gradients, options)

    def make_rule(clean: Tensor) -> Rule:
        return _ReturnToBest(_rule(clean, threat, steps - 1), clean, steps)

    return run_attack("transfer", objective, x, y, threat, make_rule, options)


class _TransferObjective(PerImageObjective):
    def __init__(self, model: Model, surrogate: Objective, options: TransferOptions) -> None:
        super().__init__(model, surrogate.loss, eot=options.eot, redraw=options.redraw)
        self.surrogate, self.steps, self.check_every = surrogate, options.steps, options.check_every

    def begin(self, x: Tensor, y: Tensor) -> None:
        self.surrogate_scale = self.surrogate.start(x, y)[2]
        self.forward_evaluations += self.surrogate.forward_evaluations
        self.loss = self.surrogate.loss
        self.seen = torch.zeros_like(y)  # evaluations of each image: a surviving one has steps + 1 in each restart

    def evaluate(self, x: Tensor, y: Tensor, scale: Tensor, *, gradient: bool) -> LocatedEvaluation:
        before, ids = self.surrogate.forward_evaluations, scale[:, 1].long()
        step = self.seen[ids] % (self.steps + 1)
        self.seen[ids] += 1
        moves = gradient and not bool((step == self.steps - 1).all())  # after that iterate the best point follows
        found = self.surrogate.evaluate(x, y, self.surrogate_scale[ids], gradient=moves)
        self.forward_evaluations += self.surrogate.forward_evaluations - before
        self.gradient_evaluations = self.surrogate.gradient_evaluations
        correct, non_finite = torch.ones_like(found.correct), torch.zeros_like(found.correct)
        once = correct.clone()
        ask = (step % self.check_every == 0) | (step == self.steps - 1)
        rows = (ask if gradient else torch.ones_like(ask)).nonzero()[:, 0]
        if rows.numel():
            real = self.plain(x[rows], y[rows], scale[rows], gradient=False)
            correct[rows], non_finite[rows], once[rows] = real.correct, real.non_finite, real.right_once
        return LocatedEvaluation(
            found.loss, correct, found.gradient, found.unusable, non_finite, once, ids=ids, ascent=found.loss
        )


class _ReturnToBest(RuleAround):
    """A rule whose last iterate is the best one so far that lies within the budget."""

    def __init__(self, rule: Rule, clean: Tensor, steps: int) -> None:
        super().__init__(rule)
        self.left, self.best = steps, clean
        self.best_loss = torch.full_like(clean[:, 0, 0, 0], -math.inf, dtype=torch.float64)

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        better, inside = evaluation.loss > self.best_loss, self.counts(x)
        if inside is not None:
            better = better & inside
        self.best = torch.where(better.view(-1, 1, 1, 1), x, self.best)
        self.best_loss = torch.where(better, evaluation.loss, self.best_loss)
        self.left -= 1
        return self.best if self.left == 0 else self.rule.next(x, evaluation)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.best, self.best_loss = self.best[rows], self.best_loss[rows]
