"""Projected gradient descent, and the loop over restarts and steps that every gradient attack here shares."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from rdc.arguments.scalars import as_number
from rdc.attacks.entry import attack
from rdc.attacks.losses import Evaluation, Model, Objective
from rdc.attacks.options import AscentOptions, Progress, integer, number
from rdc.attacks.threat_model import AttackRecord, AttackResult, ThreatModel, check_images
from rdc.errors import InputError
from rdc.norm_balls import project, random_start, steepest_direction

__all__ = ["PgdOptions", "Progress", "Rule", "RuleAround", "pgd", "run_attack"]


class Rule(ABC):
    """How an attack chooses the next iterate. All state is one row per image, so rows may leave at any time."""

    @abstractmethod
    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        """The iterate after x [n, C, H, W] float32, within the budget unless ``counts`` says otherwise."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with these rows ([m] int64 indices into the current n) only."""

    def counts(self, x: Tensor) -> Tensor | None:
        """Which of the iterates x lie within the budget, [n] bool; None: all. The others are evaluated and forgotten."""
        return None


class RuleAround(Rule):
    """A rule that hands on to another one.

    Args:
        rule: the other one.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        return self.rule.next(x, evaluation)

    def keep(self, rows: Tensor) -> None:
        self.rule.keep(rows)

    def counts(self, x: Tensor) -> Tensor | None:
        return self.rule.counts(x)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PgdOptions(AscentOptions):
    """Options of :func:`pgd`.

    Args:
        restarts: >= 1; above 1 only with a random start.
        step_size: in pixel units of the norm; None: 2.5 * eps / steps.
        random_start: start from a random point of the ball, else from the clean image.
    """

    steps: int = integer(50, most=1_000_000)
    step_size: float | None = number(None)
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None and (as_number(self.step_size) is None or not 0 < self.step_size < math.inf):
            raise InputError(f"step_size must be > 0 in pixel units, got {self.step_size!r}")
        if not self.random_start and self.restarts != 1:
            raise InputError(
                f"{self.restarts} restarts without a random start would all be the same; use restarts=1 or random_start=True"
            )


@attack(PgdOptions)
def pgd(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: PgdOptions) -> AttackResult:
    """PGD: x <- project(x + step_size * direction), the gradient's sign (l_inf) or the unit gradient (l_2).

    For l_1 the direction is the sign in the 5 % of entries of largest gradient; use APGD for numbers there.

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only; in eval mode.
        x: [N, C, H, W] float32 in [0, 1].
        y: [N] int64 true labels.
        threat: norm and radius.
        options: PgdOptions; a call gives its fields as keywords.

    Returns:
        AttackResult.

    Raises:
        InputError: an argument is not as above. ConfigError: unknown norm, loss or scale. RdcError: a budget was
        broken.

    Source: Madry et al. 2018 (arXiv 1706.06083).
    """
    step_size = 2.5 * threat.eps / options.steps if options.step_size is None else options.step_size
    objective = Objective(model, options.loss, **options.scoring)

    def make_rule(clean: Tensor) -> Rule:
        return _PgdRule(clean, threat, step_size)

    return run_attack("pgd", objective, x, y, threat, make_rule, options, random_starts=options.random_start)


def run_attack(
    name: str,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    make_rule: Callable[[Tensor], Rule],
    options: AscentOptions,
    *,
    random_starts: bool = True,
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
        options: restarts, steps, seed, image ids, given starts.
        random_starts: whether a run that is given no start begins at a random point; else at the clean image.

    Returns:
        AttackResult, its budgets checked.

    Raises:
        InputError: see ``pgd``. RdcError: a budget was broken.
    """
    ids = check_images(x, y, options.image_ids)
    if wrong := [list(given.shape) for given in options.starts if given.shape != x.shape]:
        raise InputError(f"start: expected images {list(x.shape)}, got {wrong[0]}")
    x, y = x.detach(), y.to(x.device)
    *clean, scale = objective.start(x, y)  # clean: right, NaN logits
    record = AttackRecord(x, *clean)
    steps, restarts, progress = options.steps, options.restarts, options.progress
    for run in range(restarts * objective.runs):
        restart, objective.run = divmod(run, objective.runs)
        rows = (record.clean_correct if objective.is_random else record.correct).nonzero()[:, 0]
        if rows.numel() == 0:
            break
        start = _start(x[rows], rows, threat, options, ids, run, random_starts)
        for step, active in _restart(objective, record, make_rule(x[rows]), start, rows, y, scale, steps, restart):
            if progress is not None:
                where = {"step": step, "steps": steps, "restart": run, "restarts": restarts * objective.runs}
                count = {"active": active, "robust": int(record.correct.sum()), "total": len(ids)}
                progress({"attack": objective.title(name), **where, **count})
    return _result(objective.title(name), objective, record, x, y, scale, threat, options)


def _start(
    x: Tensor, rows: Tensor, threat: ThreatModel, options: AscentOptions, ids: Sequence[int], run: int, at_random: bool
) -> Tensor:
    """Where a run begins: at the point given for it, at a random one, or at the clean images x [n, C, H, W] (rows [n] of all N)."""
    if run < len(options.starts):
        return project(options.starts[run][rows], x, threat.eps, threat.norm)
    if not at_random:
        return x
    of = [ids[row] for row in rows.tolist()]
    return random_start(x, threat.eps, threat.norm, seed=options.seed, image_ids=of, restart=run)


def _result(
    title: str,
    objective: Objective,
    record: AttackRecord,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    threat: ThreatModel,
    options: AscentOptions,
) -> AttackResult:
    """What the record has, its images classified once more if they are to be verified and the model is not random."""
    steps, restarts, mismatches = options.steps, options.restarts, None
    if options.verify and not objective.is_random:
        mismatches = record.verify(objective.evaluate(record.x_adv, y, scale, gradient=False).correct, steps, restarts)
    return record.result(
        x,
        threat,
        name=title,
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
        before = objective.calls
        evaluation = objective.evaluate(x, y[rows], scale[rows], gradient=step < steps)
        record.ask(rows, objective.calls - before)
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
    loss, correct, once, inside = evaluation.loss, evaluation.correct, evaluation.right_once, rule.counts(x)
    about = {"step": step, "restart": restart}
    if inside is None:
        record.add(rows, x, loss, correct, target=aim, right_once=once, **about)
        return correct
    aim = None if aim is None else aim[inside]
    record.add(rows[inside], x[inside], loss[inside], correct[inside], target=aim, right_once=once[inside], **about)
    return correct | ~inside


class _PgdRule(Rule):
    def __init__(self, clean: Tensor, threat: ThreatModel, step_size: float) -> None:
        self.clean, self.threat, self.step_size = clean, threat, step_size

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        direction = steepest_direction(evaluation.slope, self.threat.norm, max(1, x[0].numel() // 20))
        return project(x.double() + self.step_size * direction, self.clean, self.threat.eps, self.threat.norm)

    def keep(self, rows: Tensor) -> None:
        self.clean = self.clean[rows]
