"""Losses that aim at one wrong class, and the objective that goes through the most likely of them, one in each run.

For logits z, label y and target t; > 0 only where t beats y (``ce``: where t outweighs all others together):

    margin    z_t - z_y
    dlr       (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)                         Croce & Hein 2020, eq. (7); K >= 4
    dlr3      (z_t - z_y) / (z_(1) - (z_(2) + z_(3)) / 2)                         the same idea for K = 3
    ce        u_t = s z_t - log sum_{j != t} exp(s z_j),  the log-odds of t       targeted cross-entropy is softplus(-u_t)

dlr3: z_(1) - z_(3) would not do, since the loss is constant (-1) where y is first and t third. With two classes every
such quotient is constant and the margin is used. Targeted cross-entropy -log softmax(s z)_t = softplus(-u_t) falls
strictly as u_t rises, and d u_t/dz = (one-hot of t) - (softmax over the others) never vanishes. While y leads, that
softmax is nearly the one-hot of y and the gradient that of z_t - z_y; once another wrong class overtakes, it is pushed
down too (by then the image is broken, and has left).

Scales as in rdc.attacks.losses.

Which classes are aimed at first: those of the highest logits, or those whose boundary is nearest to first order,

    (z_y - z_t) / || grad (z_t - z_y) ||_dual                                     Melamed, Yehudai & Shamir 2024 (MALT), arXiv 2407.02240

with the dual of the threat's norm (theirs is the l_2 norm). A class with a low logit and a steep gradient may be the one that gives way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rdc.attacks.hyperplanes import dual_norm
from rdc.attacks.losses import Model, Objective, _at_label, _without_label, log_odds
from rdc.errors import ConfigError, InputError

__all__ = ["ORDERS", "TARGETS", "TargetedObjective", "targeted_dlr", "targeted_log_odds", "targeted_margin"]

TARGETS = 9  #: classes aimed at unless told otherwise, as in AutoAttack
ORDERS = ("logit", "distance")  #: which class is aimed at first
CANDIDATES = 100  #: classes of the highest logits whose distance is asked for, as in MALT


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Target's logit minus the label's, z_t - z_y.

    Args:
        logits: [N, K].
        labels: [N] int64.
        targets: [N] int64, classes to aim at.

    Returns:
        [N] float64.
    """
    logits = logits.double()
    return _at_label(logits, targets) - _at_label(logits, labels)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio; no shift or scale of the logits changes it.

    The denominator is z_(1) - (z_(3) + z_(4)) / 2, with three classes z_(1) - (z_(2) + z_(3)) / 2; where it is zero the
    loss is the targeted margin.

    Args:
        logits: [N, K], K >= 3.
        labels: [N] int64.
        targets: [N] int64.

    Returns:
        [N] float64.

    Raises:
        ConfigError: fewer than three classes.

    Source: Croce & Hein 2020 (arXiv 2003.01690), eq. (7); three classes: module docstring.
    """
    classes = logits.shape[1]
    if classes < 3:
        raise ConfigError(f"targeted dlr needs at least 3 classes, got {classes}; use margin")
    top = logits.double().topk(min(classes, 4), dim=1).values
    spread = top[:, 0] - (top[:, -2] + top[:, -1]) / 2.0
    return targeted_margin(logits, labels, targets) / torch.where(spread > 0, spread, 1.0)


def targeted_log_odds(logits: Tensor, targets: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Log-odds of the target, s z_t - log sum_{j != t} exp(s z_j); targeted cross-entropy is softplus of its negative.

    Args:
        logits: [N, K], K >= 2.
        targets: [N] int64.
        scale: [N] or a number, s > 0.

    Returns:
        [N] float64.

    Source: module docstring.
    """
    return -log_odds(logits, targets, scale)


class TargetedObjective(Objective):
    """A targeted loss; run ``r`` of a restart aims at each image's r-th highest wrong class of its clean logits.

    ``start`` hands out [N, 1 + runs] float64: the scale, then the classes (exact in float64) in that order.

    Args:
        model, eot, redraw, logit_scale, gradient_model: as for Objective.
        loss: ``"ce"``, ``"dlr"`` (with three classes it becomes ``"dlr3"``, with two ``"margin"``) or ``"margin"``.
        targets: most classes to aim at, >= 1; ``runs`` becomes min(targets, K - 1).
        order: one of :data:`ORDERS`; "distance" costs a gradient for each candidate class, K - 1 of them, at most 100.
        norm: of the threat, for "distance".

    Raises:
        ConfigError: unknown loss or logit_scale. InputError: eot or targets < 1.
    """

    def __init__(
        self,
        model: Model,
        loss: str,
        *,
        targets: int = TARGETS,
        order: str = "logit",
        norm: str = "l2",
        eot: int = 1,
        redraw: Callable[[], object] | None = None,
        logit_scale: float | str = "auto",
        gradient_model: Model | None = None,
    ) -> None:
        super().__init__(model, loss, eot=eot, redraw=redraw, logit_scale=logit_scale, gradient_model=gradient_model)
        if isinstance(targets, bool) or not isinstance(targets, int) or targets < 1:
            raise InputError(f"targets must be an integer >= 1, got {targets!r}")
        if order not in ORDERS:
            raise ConfigError(f"order: expected one of {', '.join(ORDERS)}; got {order!r}")
        self.targets, self.asked, self.order, self.norm = targets, loss, order, norm

    def title(self, attack: str) -> str:
        """``apgd-t`` for the DLR loss, whatever becomes of it with few classes; ``apgd-ce-t``, ``apgd-margin-t``."""
        return f"{attack}-t" if self.asked == "dlr" else f"{attack}-{self.loss}-t"

    def start(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        correct, non_finite, fixed = super().start(x, y)
        if self.order == "logit" or fixed.shape[1] < 3:
            return correct, non_finite, fixed
        rows = correct.nonzero()[:, 0]  # the others are not attacked
        if len(rows):
            classes = fixed[rows, 1:].long()
            away = torch.stack([self._distance(x[rows], y[rows], target) for target in classes.unbind(1)], dim=1)
            nearest = away.argsort(dim=1, stable=True)
            fixed[rows, 1:] = classes.gather(1, nearest).double()
        return correct, non_finite, fixed[:, : 1 + self.runs]

    def _distance(self, x: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """[n] float64: how far the boundary to a class is, to first order; infinity where no gradient leads there."""
        margins, slopes = [], []
        for _ in range(self.eot):
            with torch.inference_mode(False), torch.enable_grad():
                leaf = x.detach().clone().requires_grad_()
                value = targeted_margin(self._draw(leaf, grad=True), y.clone(), target.clone())
                slopes.append(torch.autograd.grad(value.sum(), leaf)[0].double())
            margins.append(value.detach())
        steep = dual_norm(torch.stack(slopes).mean(0).flatten(1), self.norm)
        usable = steep.isfinite() & (steep > 0)
        return torch.where(usable, -torch.stack(margins).mean(0) / torch.where(usable, steep, 1.0), torch.inf)

    def aimed_at(self, scale: Tensor) -> Tensor:
        return scale[:, 1 + self.run].long()

    def _fix(self, logits: Tensor, y: Tensor) -> Tensor:
        classes = logits.shape[1]
        self.runs, self.run = min(self.targets, classes - 1), 0
        if self.loss == "dlr" and classes < 4:
            self.loss = "dlr3" if classes == 3 else "margin"
        ranked = _without_label(logits, y).argsort(dim=1, descending=True, stable=True)
        ranked = ranked[ranked != y[:, None]].view(-1, classes - 1)  # the label is last, or among other -inf
        count = self.runs if self.order == "logit" else min(max(self.runs, CANDIDATES), classes - 1)
        return torch.cat([super()._fix(logits, y)[:, None], ranked[:, :count].double()], dim=1)

    def _value(self, logits: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        target = self.aimed_at(scale)
        if self.loss == "ce":
            return targeted_log_odds(logits, target, scale[:, 0])
        return targeted_margin(logits, y, target) if self.loss == "margin" else targeted_dlr(logits, y, target)
