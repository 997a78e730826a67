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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rdc.attacks.losses import Evaluation, Model, Objective
from rdc.attacks.pgd import Progress, Schedule, run_attack
from rdc.attacks.threat_model import AttackResult, ThreatModel
from rdc.norm_balls import project, steepest_direction

__all__ = ["apgd", "checkpoints"]

MOMENTUM = 0.75  # alpha
RHO = 0.75


def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int,
    image_ids: Sequence[int] | Tensor,
    steps: int = 100,
    restarts: int = 1,
    loss: str = "ce",
    eot: int = 1,
    redraw: Callable[[], object] | None = None,
    logit_scale: float | str = "auto",
    verify: bool = True,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Auto-PGD with the cross-entropy, DLR or margin loss; every restart starts at random, unless ``start`` is given.

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only; in eval mode.
        x: [N, C, H, W] float32 in [0, 1].
        y: [N] int64 true labels.
        threat: norm and radius.
        seed: 0 <= seed < 2^64; with image id and restart it fixes the random start, and nothing else does.
        image_ids: N integers >= 0, e.g. positions in the data set.
        steps: steps of each restart, >= 1.
        restarts: >= 1; later ones attack only what is still robust.
        loss: ``"ce"``, ``"dlr"`` (with two classes: ``"margin"``) or ``"margin"``.
        eot: model calls averaged for each gradient; above 1, or with ``redraw``, the model counts as random.
        redraw: called before each model call, makes a random model draw fresh noise.
        logit_scale: ``"auto"`` or a number > 0, for ``ce``.
        verify: evaluate x_adv once more at the end (not for random models).
        start: [N, C, H, W], where restart 0 begins (projected into the budget) in place of a random point.
        progress: called after each step with attack, step, steps, restart, restarts, active, robust, total.

    Returns:
        AttackResult.

    Raises:
        InputError: an argument is not as above. ConfigError: unknown norm, loss or scale. RdcError: a budget was
        broken.

    Source: Croce & Hein 2020 (arXiv 2003.01690), Algorithm 1; see the module docstring.
    """
    objective = Objective(model, loss, eot=eot, redraw=redraw, logit_scale=logit_scale)
    schedule = Schedule(seed, image_ids, steps, restarts, True, verify, progress, start)
    return run_attack("apgd", objective, x, y, threat, lambda clean: _ApgdRule(clean, threat, steps), schedule)


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


class _ApgdRule:
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
        assert evaluation.gradient is not None
        gradient = evaluation.gradient
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
