"""Projected gradient descent, and the loop over restarts and steps that every gradient attack here shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rdc.arguments.scalars import as_number
from rdc.attacks.entry import attack
from rdc.attacks.losses import Evaluation, Model, Objective
from rdc.attacks.threat_model import AttackRecord, AttackResult, ThreatModel, check_images
from rdc.errors import InputError
from rdc.norm_balls import project, random_start, steepest_direction

__all__ = ["Progress", "Rule", "Schedule", "pgd", "run_attack"]

Progress = Callable[[dict[str, object]], None]


class Rule(Protocol):
    """How an attack chooses the next iterate. All state is one row per image, so rows may leave at any time.

    A rule whose iterates may lie outside the budget also has ``counts(x)``, [n] bool: those that lie within. The others
    are evaluated for their gradient and forgotten.
    """

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        """The iterate after x [n, C, H, W] float32, within the budget."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows ([m] int64 indices into the current n) only."""


@attack
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
    start: Tensor | Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> AttackResult:
    """PGD: x <- project(x + step_size * direction), the gradient's sign (l_inf) or the unit gradient (l_2).

    For l_1 the direction is the sign in the 5 % of entries of largest gradient; use APGD for numbers there.

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
        start: [N, C, H, W], where restart 0 begins (projected into the budget) in place of its own start, or a list: one
            for each of the first restarts.
        progress: called after each step with attack, step, steps, restart, restarts, active, robust, total.

    Returns:
        AttackResult.

    Raises:
        InputError: an argument is not as above. ConfigError: unknown norm, loss or scale. RdcError: a budget was
        broken.

    Source: Madry et al. 2018 (arXiv 1706.06083).
    """
    if step_size is None:
        step_size = 2.5 * threat.eps / max(1, steps if isinstance(steps, int) else 1)
    elif as_number(step_size) is None or not 0 < step_size < math.inf:
        raise InputError(f"step_size must be > 0 in pixel units, got {step_size!r}")
    if not random_start and restarts != 1:
        raise InputError(
            f"{restarts} restarts without a random start would all be the same; use restarts=1 or random_start=True"
        )
    objective = Objective(model, loss, eot=eot, redraw=redraw, logit_scale=logit_scale)
    schedule = Schedule(seed, image_ids, steps, restarts, random_start, verify, progress, start)
    return run_attack("pgd", objective, x, y, threat, lambda clean: _PgdRule(clean, threat, step_size), schedule)


@dataclass(frozen=True)
class Schedule:
    """Restarts and steps of an attack and what its random starts are drawn from: ``pgd``'s arguments of these names.

    Raises:
        InputError: seed, steps or restarts are not integers in range.
    """

    seed: int
    image_ids: Sequence[int] | Tensor
    steps: int
    restarts: int
    random_start: bool
    verify: bool
    progress: Progress | None
    start: Tensor | Sequence[Tensor] | None = None

    @property
    def starts(self) -> list[Tensor]:
        """Where the first runs begin, [N, C, H, W] each; the runs after them begin as ``random_start`` says."""
        return [self.start] if isinstance(self.start, Tensor) else list(self.start or ())

    def __post_init__(self) -> None:
        for what, least in (("seed", 0), ("steps", 1), ("restarts", 1)):
            number = getattr(self, what)
            if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 2**64:
                raise InputError(f"{what} must be an integer >= {least}, got {number!r}")


def run_attack(
    name: str,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    make_rule: Callable[[Tensor], Rule],
    schedule: Schedule,
) -> AttackResult:
    """Run an attack's rule over restarts and steps, and record every iterate it makes.

    One pass through the model yields an iterate's loss, whether it is still classified right, and the gradient for the
    next. An image leaves with its first misclassified iterate, but stays to the end if the model is random. A targeted
    objective has one run for each target in every restart; each run has its own random start, and to ``progress`` each
    counts as a restart.

    Args:
        name: attack's name without the loss.
        objective: loss on the model; its counters end up in the result.
        x, y, threat: images [N, C, H, W] float32, labels [N] int64, norm and radius.
        make_rule: clean images [n, C, H, W] of a restart -> Rule.
        schedule: restarts, steps, seed, image ids.

    Returns:
        AttackResult, its budgets checked.

    Raises:
        InputError: see ``pgd``. RdcError: a budget was broken.
    """
    ids = check_images(x, y, schedule.image_ids)
    starts = schedule.starts
    if wrong := [list(given.shape) for given in starts if given.shape != x.shape]:
        raise InputError(f"start: expected images {list(x.shape)}, got {wrong[0]}")
    x, y = x.detach(), y.to(x.device)
    *clean, scale = objective.start(x, y)  # clean: right, NaN logits
    record = AttackRecord(x, *clean)
    steps, restarts, progress = schedule.steps, schedule.restarts, schedule.progress
    for run in range(restarts * objective.runs):
        restart, objective.run = divmod(run, objective.runs)
        rows = (record.clean_correct if objective.is_random else record.correct).nonzero()[:, 0]
        if rows.numel() == 0:
            break
        start = x[rows]
        if run < len(starts):
            start = project(starts[run][rows], start, threat.eps, threat.norm)
        elif schedule.random_start:
            of = [ids[row] for row in rows.tolist()]
            start = random_start(start, threat.eps, threat.norm, seed=schedule.seed, image_ids=of, restart=run)
        for step, active in _restart(objective, record, make_rule(x[rows]), start, rows, y, scale, steps, restart):
            if progress is not None:
                where = {"step": step, "steps": steps, "restart": run, "restarts": restarts * objective.runs}
                count = {"active": active, "robust": int(record.correct.sum()), "total": len(ids)}
                progress({"attack": objective.title(name), **where, **count})
    mismatches = None
    if schedule.verify and not objective.is_random:
        mismatches = record.verify(objective.evaluate(record.x_adv, y, scale, gradient=False).correct, steps, restarts)
    return record.result(
        x,
        threat,
        name=objective.title(name),
        loss=objective.loss,
        steps=steps,
        restarts=restarts,
        eot=objective.eot,
        forward_evaluations=objective.forward_evaluations,
        gradient_evaluations=objective.gradient_evaluations,
        verify_mismatches=mismatches,
    )


def _restart(
    objective: Objective,
    record: AttackRecord,
    rule: Rule,
    x: Tensor,
    rows: Tensor,
    y: Tensor,
    scale: Tensor,
    steps: int,
    restart: int,
) -> Iterator[tuple[int, int]]:
    """One restart from x [n, C, H, W], images rows [n] of all N (y, scale: [N]); yields (step, images left)."""
    for step in range(steps + 1):
        evaluation = objective.evaluate(x, y[rows], scale[rows], gradient=step < steps)
        correct = _record(record, rule, rows, x, evaluation, objective.aimed_at(scale[rows]), step, restart)
        record.non_finite_logits[rows] |= evaluation.non_finite
        record.zero_gradient_steps[rows] += evaluation.unusable & evaluation.correct
        if not objective.is_random and not bool(correct.all()):
            left = correct.nonzero()[:, 0]
            rows, x, evaluation = rows[left], x[left], evaluation.rows(left)
            rule.keep(left)
        yield step, rows.numel()
        if step == steps or rows.numel() == 0:
            return
        x = rule.next(x, evaluation)


def _record(
    record: AttackRecord,
    rule: Rule,
    rows: Tensor,
    x: Tensor,
    evaluation: Evaluation,
    aim: Tensor | None,
    step: int,
    restart: int,
) -> Tensor:
    """Take in what of an iterate lies within the budget; returns where nothing within it was misclassified, [n] bool."""
    loss, correct, counts = evaluation.loss, evaluation.correct, getattr(rule, "counts", None)
    if counts is None:
        record.add(rows, x, loss, correct, step=step, restart=restart, target=aim)
        return correct
    inside = counts(x)
    aim = None if aim is None else aim[inside]
    record.add(rows[inside], x[inside], loss[inside], correct[inside], step=step, restart=restart, target=aim)
    return correct | ~inside


class _PgdRule:
    def __init__(self, clean: Tensor, threat: ThreatModel, step_size: float) -> None:
        self.clean, self.threat, self.step_size = clean, threat, step_size

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        direction = steepest_direction(evaluation.gradient, self.threat.norm, max(1, x[0].numel() // 20))
        return project(x.double() + self.step_size * direction, self.clean, self.threat.eps, self.threat.norm)

    def keep(self, rows: Tensor) -> None:
        self.clean = self.clean[rows]
