"""Auto-PGD: momentum, a step size that halves when progress stalls, and a return to the best point when it does.

Croce & Hein 2020 (arXiv 2003.01690), Algorithm 1, with the constants of the paper. For step k of N, P the projection
and d the steepest direction of the gradient:

    z^(k+1) = P(x^(k) + eta d^(k))
    x^(k+1) = P(x^(k) + alpha (z^(k+1) - x^(k)) + (1 - alpha) (x^(k) - x^(k-1)))
    alpha = 0.75,  x^(1) = z^(1),  eta^(0) = 2 eps

At the checkpoints w_j = ceil(p_j N), p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), each image
for itself:

    condition 1   fewer than rho = 0.75 of the steps since w_(j-1) raised the loss
    condition 2   eta did not change at w_(j-1), and the best loss has not risen since

Either one: eta is halved and x^(k) becomes the best point so far (its gradient is kept: no extra evaluation).

For l_1, Croce & Hein 2021 (arXiv 2103.01208, Algorithm 1), no momentum: x^(k+1) = P(x^(k) + eta d^(k)), d^(k) of equal
steps in the n largest entries of the gradient. Every ceil(0.04 N) steps, with x_max the best point,

    n = max(1, ||x_max - x||_0 / 1.5)
    n <= 0.95 n before:  eta = eps, and x^(k) = x_max            else  eta = max(eta / 1.5, eps / 10)

at first n = 0.2 pixels, eta = eps. It is run with radius 3 eps for 30 % of the steps, 2 eps for 30 % and eps for the
rest, each from the projected best point of the one before (their section 3.4); iterates outside eps do not count.
Entries that the box holds back (at 1 and to rise, at 0 and to fall) are passed over when the largest are chosen; that
is ours.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor

from rdc.attacks.entry import attack
from rdc.attacks.losses import Evaluation, Model, Objective
from rdc.attacks.options import AscentOptions, integer, word
from rdc.attacks.pgd import Rule, run_attack
from rdc.attacks.targeted import ORDERS, TARGETS, TargetedObjective
from rdc.attacks.threat_model import AttackResult, ThreatModel
from rdc.norm_balls import distance, project, steepest_direction

__all__ = ["TargetedOptions", "apgd", "apgd_targeted", "checkpoints"]

MOMENTUM = 0.75  # alpha
RHO = 0.75


@attack(AscentOptions)
def apgd(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: AscentOptions) -> AttackResult:
    """Auto-PGD with the cross-entropy, DLR or margin loss; every restart starts at random, unless ``start`` is given.

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only; in eval mode.
        x: [N, C, H, W] float32 in [0, 1].
        y: [N] int64 true labels.
        threat: norm and radius.
        options: AscentOptions (``rdc.attacks.options``); a call gives its fields as keywords.

    Returns:
        AttackResult.

    Raises:
        InputError: an argument is not as above. ConfigError: unknown norm, loss or scale. RdcError: a budget was
        broken.

    Source: Croce & Hein 2020 (arXiv 2003.01690), Algorithm 1; see the module docstring.
    """
    objective = Objective(model, options.loss, **options.scoring)
    return run_attack("apgd", objective, x, y, threat, lambda clean: _rule(clean, threat, options.steps), options)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TargetedOptions(AscentOptions):
    """Options of :func:`apgd_targeted`.

    Args:
        restarts: >= 1; each of ``min(targets, K - 1)`` runs.
        loss: ``"dlr"`` (with three classes ``"dlr3"``, with two ``"margin"``), ``"ce"`` or ``"margin"``, all targeted
            (rdc.attacks.targeted).
        targets: classes to aim at, >= 1.
        order: which of them first: ``"logit"``, the highest, or ``"distance"``, those whose boundary is nearest to first order
            (``rdc.attacks.targeted``); that finds with few targets what the other needs many for.
        start: [N, C, H, W], where the first run begins (projected into the budget) in place of a random point.
    """

    loss: str = "dlr"
    targets: int = integer(TARGETS, most=1_000_000)
    order: str = word("logit", ORDERS)


@attack(TargetedOptions)
def apgd_targeted(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: TargetedOptions) -> AttackResult:
    """Targeted Auto-PGD: in every restart one run for each of the highest wrong classes of the clean image.

    A run attacks only what is still robust and starts from its own random point. The result says which class an image
    was broken for (``broken_target``); an image counts as broken when *any* other class wins.

    Args:
        model, x, y, threat: as for ``apgd``.
        options: TargetedOptions; a call gives its fields as keywords.

    Returns:
        AttackResult; its ``name`` is ``"apgd-t"`` for DLR, else ``"apgd-ce-t"`` or ``"apgd-margin-t"``.

    Raises:
        InputError: an argument is not as above. ConfigError: unknown norm, loss or scale. RdcError: a budget was
        broken.

    Source: Croce & Hein 2020 (arXiv 2003.01690), Algorithm 1 and eq. (7).
    """
    aimed = functools.partial(TargetedObjective, targets=options.targets, order=options.order, norm=threat.norm)
    objective = aimed(model, options.loss, **options.scoring)
    return run_attack("apgd", objective, x, y, threat, lambda clean: _rule(clean, threat, options.steps), options)


def checkpoints(steps: int) -> list[int]:
    """Steps w_1 < w_2 < .. < steps at which APGD may halve its step size.

    Args:
        steps: N >= 1.

    Returns:
        ceil(p_j N) without repeats; the p_j are kept in hundredths, so no rounding moves a checkpoint.
    """
    before, now, found = 0, 22, []
    while now <= 100:
        found.append(-(-now * steps // 100))
        before, now = now, now + max(now - before - 3, 6)
    return sorted({step for step in found if step < steps})


def _rule(clean: Tensor, threat: ThreatModel, steps: int) -> Rule:
    return (_SparseRule if threat.norm == "l1" else _ApgdRule)(clean, threat, steps)


class _ApgdRule(Rule):
    """State of n images, one row each; ``step`` counts the iterates seen."""

    def __init__(self, clean: Tensor, threat: ThreatModel, steps: int) -> None:
        count, device = clean.shape[0], clean.device
        self.clean, self.threat = clean, threat
        self.checkpoints, self.step, self.last_checkpoint = set(checkpoints(steps)), 0, 0
        self.eta = torch.full((count,), 2.0 * threat.eps, dtype=torch.float64, device=device)
        self.previous = clean  # x^(k-1)
        self.best, self.best_gradient = clean, torch.zeros_like(clean, dtype=torch.float64)
        self.best_loss = torch.full((count,), -math.inf, dtype=torch.float64, device=device)
        self.loss = self.best_loss.clone()
        self.rises = torch.zeros(count, dtype=torch.int64, device=device)
        self.best_loss_then = self.best_loss.clone()  # at the last checkpoint
        self.halved_then = torch.zeros(count, dtype=torch.bool, device=device)

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        gradient = evaluation.slope
        self._observe(x, evaluation.loss, gradient)
        if self.step in self.checkpoints:
            halve = self._checkpoint()
            where = halve.view(-1, 1, 1, 1)
            x, gradient = torch.where(where, self.best, x), torch.where(where, self.best_gradient, gradient)
            self.loss = torch.where(halve, self.best_loss, self.loss)
        here = x.double()
        move = self.eta.view(-1, 1, 1, 1) * steepest_direction(gradient, self.threat.norm)
        following = self._project(here + move)
        if self.step > 0:
            inertia = here - self.previous.double()
            following = self._project(here + MOMENTUM * (following.double() - here) + (1.0 - MOMENTUM) * inertia)
        self.previous = x
        self.step += 1
        return following

    def keep(self, rows: Tensor) -> None:
        for name in (
            "clean",
            "eta",
            "previous",
            "best",
            "best_gradient",
            "best_loss",
            "loss",
            "rises",
            "best_loss_then",
            "halved_then",
        ):
            setattr(self, name, getattr(self, name)[rows])

    def _observe(self, x: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Take in iterate number ``step``."""
        if self.step > 0:
            self.rises += loss > self.loss
        self.loss = loss
        better = (loss > self.best_loss) | (self.step == 0)
        where = better.view(-1, 1, 1, 1)
        self.best, self.best_gradient = (
            torch.where(where, x, self.best),
            torch.where(where, gradient, self.best_gradient),
        )
        self.best_loss = torch.where(better, loss, self.best_loss)
        if self.step == 0:
            self.best_loss_then = self.best_loss

    def _checkpoint(self) -> Tensor:
        """Apply both conditions, halve eta where one holds; returns where, [n] bool."""
        stalled = self.rises < RHO * (self.step - self.last_checkpoint)
        stuck = ~self.halved_then & (self.best_loss <= self.best_loss_then)
        halve = stalled | stuck
        self.eta = torch.where(halve, self.eta / 2.0, self.eta)
        self.halved_then, self.best_loss_then = halve, self.best_loss
        self.rises = torch.zeros_like(self.rises)
        self.last_checkpoint = self.step
        return halve

    def _project(self, x: Tensor) -> Tensor:
        return project(x, self.clean, self.threat.eps, self.threat.norm)


class _SparseRule(Rule):
    """l_1: state of n images, one row each; ``step`` counts the iterates seen."""

    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor

    def __init__(self, clean: Tensor, threat: ThreatModel, steps: int) -> None:
        self.clean, self.threat, self.step = clean, threat, 0
        early = int(0.3 * steps)
        # first step: (radius in eps, steps); with early = 0 all three begin at step 0, and the last of them stays
        self.phases = {0: (3.0, early), early: (2.0, early), 2 * early: (1.0, steps - 2 * early)}
        self._begin(torch.full((len(clean),), max(1, int(0.2 * clean[0].numel())), device=clean.device))

    def counts(self, x: Tensor) -> Tensor:
        """Which of x [n, C, H, W] lie within the budget, [n] bool."""
        return distance(x, self.clean, "l1") <= self.threat.eps

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        gradient = evaluation.slope
        better = evaluation.loss > self.best_loss
        where = better.view(-1, 1, 1, 1)
        self.best, self.best_gradient = (
            torch.where(where, x, self.best),
            torch.where(where, gradient, self.best_gradient),
        )
        self.best_loss = torch.where(better, evaluation.loss, self.best_loss)
        self.step += 1
        if self.step in self.phases:
            following = project(self.best, self.clean, self.phases[self.step][0] * self.threat.eps, "l1")
            self._begin(self._changed(following))
            return following
        if (self.step - self.since) % self.every == 0:
            where = self._adapt().view(-1, 1, 1, 1)
            x, gradient = torch.where(where, self.best, x), torch.where(where, self.best_gradient, gradient)
        held = ((x >= 1.0) & (gradient > 0)) | ((x <= 0.0) & (gradient < 0))
        unit = steepest_direction(torch.where(held, 0.0, gradient), "l1", self.moving)
        return project(x.double() + self.eta.view(-1, 1, 1, 1) * unit, self.clean, self.eps, "l1")

    def keep(self, rows: Tensor) -> None:
        for name in ("clean", "best", "best_gradient", "best_loss", "eta", "moving"):
            setattr(self, name, getattr(self, name)[rows])

    def _begin(self, moving: Tensor) -> None:
        """Start a phase with so many moving entries, [n] int64."""
        factor, length = self.phases[self.step]
        self.eps, self.since, self.every = factor * self.threat.eps, self.step, max(1, -(-4 * length // 100))
        self.moving = moving
        self.eta = torch.full((len(self.clean),), self.eps, dtype=torch.float64, device=self.clean.device)
        self.best, self.best_gradient = self.clean, torch.zeros_like(self.clean, dtype=torch.float64)
        self.best_loss = torch.full_like(self.eta, -math.inf)

    def _adapt(self) -> Tensor:
        """New number of moving entries and step size; returns where to go on from the best point, [n] bool."""
        moving = self._changed(self.best)
        sparser = moving <= 0.95 * self.moving
        self.eta = torch.where(sparser, self.eps, (self.eta / 1.5).clamp(min=self.eps / 10.0))
        self.moving = moving
        return sparser

    def _changed(self, x: Tensor) -> Tensor:
        return ((x != self.clean).flatten(1).sum(dim=1) / 1.5).long().clamp(min=1)
