"""Projected gradient descent, and the loop over restarts and steps that every gradient attack here shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rdc.attacks.losses import Evaluation, Model, Objective
from rdc.attacks.threat_model import AttackRecord, AttackResult, ThreatModel, check_images
from rdc.errors import InputError
from rdc.norm_balls import project, random_start, steepest_direction

__all__ = ["Progress", "Rule", "pgd", "run_attack"]

Progress = Callable[[dict[str, object]], None]


class Rule(Protocol):
    """How an attack chooses the next iterate. All state is one row per image, so rows may leave at any time."""

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        """The iterate after x [n, C, H, W] float32, within the budget."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows ([m] int64 indices into the current n) only."""


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int,
    image_ids: Sequence[int] | Tensor,
    steps: int = 50,
    restarts: int = 1,
    loss: str = "ce",
    step_size: float | None = None,
    random_start: bool = True,
    eot: int = 1,
    redraw: Callable[[], object] | None = None,
    logit_scale: float | str = "auto",
    verify: bool = True,
    progress: Progress | None = None,
) -> AttackResult:
    """Projected gradient descent: x <- project(x + step_size * steepest direction), sign (l_inf) or unit gradient (l_2).

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only; in eval mode.
        x: [N, C, H, W] float32 in [0, 1].
        y: [N] int64 true labels.
        threat: norm and radius.
        seed: 0 <= seed < 2^64; with image id and restart it fixes the random start, and nothing else does.
        image_ids: N integers >= 0, e.g. positions in the data set.
        steps: steps of each restart, >= 1.
        restarts: >= 1; above 1 only with a random start.
        loss: ``"ce"``, ``"dlr"`` or ``"margin"`` (rdc.attacks.losses).
        step_size: in pixel units of the norm; default 2.5 * eps / steps.
        random_start: start from a random point of the ball, else from the clean image.
        eot: model calls averaged for each gradient; above 1, or with ``redraw``, the model counts as random.
        redraw: called before each model call, makes a random model draw fresh noise.
        logit_scale: ``"auto"`` or a number > 0, for ``ce``.
        verify: evaluate x_adv once more at the end (not for random models).
        progress: called after each step with attack, step, steps, restart, restarts, active, robust, total.

    Returns:
        AttackResult.

    Raises:
        InputError: an argument is not as above. ConfigError: unknown norm, loss or scale. RdcError: a budget was broken.

    Source: Madry et al. 2018 (arXiv 1706.06083).
    """
    if step_size is None:
        step_size = 2.5 * threat.eps / max(1, steps if isinstance(steps, int) else 1)
    elif not step_size > 0:
        raise InputError(f"step_size must be > 0 in pixel units, got {step_size!r}")
    if not random_start and restarts != 1:
        raise InputError(f"{restarts} restarts without a random start would all be the same; use restarts=1 or random_start=True")
    objective = Objective(model, loss, eot=eot, redraw=redraw, logit_scale=logit_scale)
    return run_attack(
        "pgd", objective, x, y, threat, lambda clean: _PgdRule(clean, threat, step_size),
        seed=seed, image_ids=image_ids, steps=steps, restarts=restarts, start_at_random=random_start, verify=verify, progress=progress,
    )  # fmt: skip


def run_attack(
    name: str,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    make_rule: Callable[[Tensor], Rule],
    *,
    seed: int,
    image_ids: Sequence[int] | Tensor,
    steps: int,
    restarts: int,
    start_at_random: bool,
    verify: bool,
    progress: Progress | None,
) -> AttackResult:
    """Run an attack's rule over restarts and steps, and record every iterate it makes.

    An iterate costs one pass through the model, which yields its loss, whether it is still classified right, and the
    gradient for the next; the last one needs no gradient. Against a deterministic model an image leaves with its first
    misclassified iterate. A random model (``objective.redraw`` or EOT) keeps all images to the end.

    Args:
        name: attack's name without the loss.
        objective: loss on the model; its counters end up in the result.
        x, y, threat, seed, image_ids, steps, restarts, verify, progress: as in ``pgd``.
        make_rule: clean images [n, C, H, W] of a restart -> Rule.
        start_at_random: start from a random point of the ball.

    Returns:
        AttackResult, its budgets checked.

    Raises:
        InputError: see ``pgd``.  RdcError: a budget was broken.
    """
    ids = check_images(x, y, image_ids)
    _check_counts(steps=steps, restarts=restarts, seed=seed)
    x, y = x.detach(), y.to(x.device)
    correct, non_finite, scale = objective.start(x, y)
    record = AttackRecord(x, correct, non_finite)
    random_model = objective.redraw is not None or objective.eot > 1
    for restart in range(restarts):
        rows = (record.clean_correct if random_model else record.correct).nonzero()[:, 0]
        if rows.numel() == 0:
            break
        start = x[rows]
        if start_at_random:
            start = random_start(start, threat.eps, threat.norm, seed=seed, image_ids=[ids[row] for row in rows.tolist()], restart=restart)
        about = {"attack": f"{name}-{objective.loss}", "steps": steps, "restart": restart, "restarts": restarts, "total": len(ids)}
        _run_restart(objective, record, make_rule(x[rows]), start, rows, y, scale, steps, restart, not random_model, progress, about)
    mismatches = None
    if verify and not random_model:
        mismatches = record.verify(objective.evaluate(record.x_adv, y, scale, gradient=False).correct, steps, restarts)
    return record.result(
        x, threat, name=f"{name}-{objective.loss}", loss=objective.loss, steps=steps, restarts=restarts, eot=objective.eot,
        forward_evaluations=objective.forward_evaluations, gradient_evaluations=objective.gradient_evaluations, verify_mismatches=mismatches,
    )  # fmt: skip


def _run_restart(
    objective: Objective,
    record: AttackRecord,
    rule: Rule,
    x: Tensor,
    rows: Tensor,
    y: Tensor,
    scale: Tensor,
    steps: int,
    restart: int,
    drop_broken: bool,
    progress: Progress | None,
    about: dict[str, object],
) -> None:
    """One restart from x [n, C, H, W], the images rows [n] of the record; y and scale are those of all N images."""
    for step in range(steps + 1):
        evaluation = objective.evaluate(x, y[rows], scale[rows], gradient=step < steps)
        record.add(rows, x, evaluation.loss, evaluation.correct, step=step, restart=restart)
        record.non_finite_logits[rows] |= evaluation.non_finite
        record.zero_gradient_steps[rows] += evaluation.unusable & evaluation.correct
        if drop_broken and not bool(evaluation.correct.all()):
            left = evaluation.correct.nonzero()[:, 0]
            rows, x, evaluation = rows[left], x[left], evaluation.rows(left)
            rule.keep(left)
        if progress is not None:
            progress({**about, "step": step, "active": rows.numel(), "robust": int(record.correct.sum())})
        if step == steps or rows.numel() == 0:
            return
        x = rule.next(x, evaluation)


def _check_counts(**numbers: int) -> None:
    for what, number in numbers.items():
        least = 0 if what == "seed" else 1
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 2**64:
            raise InputError(f"{what} must be an integer >= {least}, got {number!r}")


class _PgdRule:
    def __init__(self, clean: Tensor, threat: ThreatModel, step_size: float) -> None:
        self.clean, self.threat, self.step_size = clean, threat, step_size

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        direction = steepest_direction(evaluation.gradient, self.threat.norm)
        return project(x.double() + self.step_size * direction, self.clean, self.threat.eps, self.threat.norm)

    def keep(self, rows: Tensor) -> None:
        self.clean = self.clean[rows]
