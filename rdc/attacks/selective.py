"""Selective EOT: gradients are spent on the noise draws that can be broken and are not broken yet.

Averaging gradients over all draws (EOT) fails where draws disagree: one group pulls one way, another the other, and the
sum helps against neither. Yet a random defence is lost as soon as *some* draws are: resubmission finds them.

Let v_i(x) be the loss of draw i (> 0: misclassified, log-odds for ``"ce"``), p_i = sigmoid(v_i / temperature) the soft
indicator of a failure, i = 1 .. M. Each step

    select     v_i of all M draws, without gradient; weights w_i; the ``eot`` draws of largest weight
    ascend     along sum_i w_i grad v_i over those, by APGD

    objective  maximised                               w_i (normalised)      may be selected
    average    log (1/M) sum_i p_i                     p_i (1 - p_i)         draws still classified right
    worst      log -log prod_i (1 - p_i)               p_i                   all draws

``average`` is expectation-maximisation for the hidden draw that fails: responsibilities r_i = p_i / sum_j p_j given the
image, then ascent of sum_i r_i log p_i, whose gradient is sum_i r_i (1 - p_i) grad v_i. Draws out of reach weigh nothing
and block nothing; broken ones need nothing more. ``worst`` is the chance that at least one of these very M draws fails.

Grafted gradients. Of a defence z(P_i(x)), a purification P_i under draw i and then a classifier, sum_i w_i grad v_i is
sum_i w_i J_i(x)^T g_i, with g_i the gradient of v_i at the purified image and J_i the Jacobian of P_i. Only the J_i are dear.
``gradients="grafted"`` takes J_r^T sum_i w_i g_i: every g_i is taken behind the purification, which itself is computed without gradient,
and the weighted sum goes back through one draw alone, the r of largest weight. With M draws, ``eot`` selected and one gradient through the
purification worth G of its passes: M + eot G passes become M + 2 eot + G. Right as far as draws differ in where they lead and not in their
Jacobians; with one draw selected it is the full gradient.

Which: against draws that nobody can foresee use ``average``, for the worst-of-N figure too (an image whose draws fail
with frequency p survives N resubmissions with (1 - p)^N, and p is what ``average`` raises). ``worst`` is for a known,
finite set of draws, of which the attacker needs one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from rdc.arguments.scalars import as_integer
from rdc.attacks.apgd import _ApgdRule
from rdc.attacks.entry import attack
from rdc.attacks.losses import AUTO_SPREAD, Evaluation, Model
from rdc.attacks.options import AscentOptions, integer, number, word
from rdc.attacks.per_image import AscentRule, LocatedEvaluation, PerImageObjective, extend_result
from rdc.attacks.pgd import run_attack
from rdc.attacks.threat_model import AttackResult, ThreatModel
from rdc.contracts import PurificationPath
from rdc.errors import ConfigError, InputError

__all__ = ["SelectiveOptions", "SelectiveResult", "selective"]

OBJECTIVES = ("average", "worst")
GRADIENTS = ("full", "grafted")
FIRST_DRAW = 2**20


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SelectiveResult(AttackResult):
    """AttackResult over M noise draws.

    Args:
        draws: M, the draws each iterate is classified under.
        failures: [N] int64, how many of them misclassified x_adv.
        objective: ``"average"`` or ``"worst"``.
    """

    draws: int
    failures: Tensor
    objective: str


def _read_draws(draws: Any) -> Any:
    """A number, or the numbers of a list, as Python's own."""
    if isinstance(draws, int) or as_integer(draws) is not None:
        return as_integer(draws)
    try:
        listed = [draws] if isinstance(draws, (str, bytes)) else list(draws)
    except TypeError:
        listed = [draws]
    return [draw if as_integer(draw) is None else as_integer(draw) for draw in listed]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SelectiveOptions(AscentOptions):
    """Options of :func:`selective`.

    Args:
        eot: gradients taken for each image and step, >= 1; at most M count.
        verify: evaluate x_adv once more under all draws (``"worst"`` only).
        set_draw: ``set_draw(i)`` makes the next model call use draw i: same i, same function of the pixels. The pool
            stays fixed during the attack; then the model is left at the draw after its highest, so that calls which
            go on from there do not meet the pool again.
        redraw: used where there is no ``set_draw``: called before each model call, fresh noise. Each step then takes
            gradients of ``eot`` fresh draws, weighted as in the module docstring; no draw is left out.
        draws: M: draws 2^20 .. 2^20 + M - 1, far from those of a counter that began at 0; or their numbers. With
            ``redraw`` only the clean image sees M draws.
        objective: ``"average"`` or ``"worst"`` (needs ``set_draw``).
        temperature: > 0, in units of the loss scaled to a clean spread of 10; large values weigh all draws alike.
        gradients: ``"full"``, or ``"grafted"`` (needs ``set_draw`` and ``path``).
        path: pixels [n, C, H, W] -> PurificationPath, a call of the same model under its current draw
            (``Defence.purification_path``).
    """

    eot: int = integer(5, most=100_000)
    set_draw: Callable[[int], object] | None = None
    draws: int | Sequence[int] = dataclasses.field(default=20, metadata={"read": _read_draws, "most": 100_000})
    objective: str = "average"
    temperature: float = number(1.0)
    gradients: str = word("full", GRADIENTS)
    path: Callable[[Tensor], PurificationPath] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.set_draw is None and self.redraw is None:
            raise InputError(
                "selective needs set_draw(i) or redraw(), to move a random model from draw to draw; got neither"
            )
        pool = self.pool
        fine = all(isinstance(draw, int) and not isinstance(draw, bool) and draw >= 0 for draw in pool)
        if not pool or not fine or len(set(pool)) < len(pool):
            raise InputError(f"draws: expected an integer >= 1 or different numbers >= 0, got {self.draws!r}")
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"unknown objective {self.objective!r}; expected one of {', '.join(OBJECTIVES)}")
        if self.objective == "worst" and self.set_draw is None:
            raise ConfigError('objective "worst" needs set_draw: with fresh noise no draw can be asked for twice')
        if self.gradients not in GRADIENTS:
            raise ConfigError(f"unknown gradients {self.gradients!r}; expected one of {', '.join(GRADIENTS)}")
        if self.gradients == "grafted" and (self.set_draw is None or self.path is None):
            raise ConfigError(
                "grafted gradients need set_draw(i) and path(pixels): the same draw is asked for its purified image, then for a gradient"
            )
        warm = self.temperature
        if not isinstance(warm, (int, float)) or isinstance(warm, bool) or not 0 < warm < math.inf:
            raise ConfigError(f"temperature must be a finite number > 0, got {warm!r}")

    @property
    def pool(self) -> list[int]:
        """Numbers of the draws."""
        if isinstance(self.draws, bool):
            return []
        return list(range(FIRST_DRAW, FIRST_DRAW + self.draws) if isinstance(self.draws, int) else self.draws)


@attack(SelectiveOptions)
def selective(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: SelectiveOptions) -> SelectiveResult:
    """APGD over a set of noise draws that spends gradients on the draws worth it (module docstring).

    Args:
        model: random: pixels [n, C, H, W] -> logits [n, K] under its current draw.
        x, y, threat: as for ``apgd``.
        options: SelectiveOptions; a call gives its fields as keywords.

    Returns:
        SelectiveResult. ``average``: an image counts as misclassified where at least half of the draws say so, none
        leaves early, x_adv is the iterate of most failures. ``worst``: misclassified where any draw says so; leaves
        then. ``best_loss`` = failures + mean p / 2 at x_adv.

    Raises:
        InputError, ConfigError, RdcError: as for ``apgd``; neither set_draw nor redraw; numbers out of range.

    Source: the ideas of a selective attack on resolvable draws and of gradient grafting are DiffHammer's (Wang et al., NeurIPS 2024);
        weights derived above.
    """
    of_draws = _Selection(model, options)
    result = run_attack(
        "selective", of_draws, x, y, threat, lambda clean: AscentRule(_ApgdRule(clean, threat, options.steps)), options
    )
    if options.set_draw is not None:
        options.set_draw(max(of_draws.pool) + 1)
    failures = torch.where(result.best_loss.isinf(), of_draws.clean_failures, result.best_loss.floor().long())
    more = {"draws": of_draws.count, "objective": options.objective, "eot": of_draws.selected}
    return extend_result(SelectiveResult, result, failures=failures, **more)


class _Selection(PerImageObjective):
    def __init__(self, model: Model, options: SelectiveOptions) -> None:
        pool, set_draw = options.pool, options.set_draw
        self.now = pool[0]
        place = options.redraw if set_draw is None else (lambda: set_draw(self.now))
        super().__init__(
            model, options.loss, redraw=place, logit_scale=options.logit_scale, gradient_model=options.gradient_model
        )
        self.pool, self.fixed, self.selected = pool, set_draw is not None, min(options.eot, len(pool))
        self.objective, self.temperature = options.objective, float(options.temperature)
        self.count = len(pool) if self.fixed else self.selected
        self.is_random = self.objective == "average"
        self.path = options.path if options.gradients == "grafted" else None

    def start(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clean images under every draw: failures, NaN, mean scale."""
        found = []
        for draw in self.pool:
            self.now = draw
            found.append(super().start(x, y))
        right = torch.stack([correct for correct, _, _ in found])
        self.clean_failures = (~right).sum(dim=0)
        scale = torch.stack([place for _, _, place in found]).mean(dim=0)
        non_finite = torch.stack([bad for _, bad, _ in found]).any(dim=0)
        return self._right(self.clean_failures, len(self.pool)), non_finite, scale

    def evaluate(self, x: Tensor, y: Tensor, scale: Tensor, *, gradient: bool) -> LocatedEvaluation:
        gradient_now = gradient and not self.fixed
        each = []
        for draw in self.pool if self.fixed else self.pool[: self.selected]:
            self.now = draw
            each.append(self.plain(x, y, scale, gradient=gradient_now))
        values = torch.stack([found.loss * self._sharpness(scale[:, 0]) for found in each])  # [M, n]
        wrong = torch.stack([~found.correct for found in each])
        failures = wrong.sum(dim=0)
        log_p, log_q = logsigmoid(values), logsigmoid(-values)
        if self.objective == "average":
            ascent = torch.logsumexp(log_p, dim=0) - math.log(len(each))
            log_weight = log_p + log_q
            if self.fixed:
                log_weight = torch.where(wrong, -math.inf, log_weight)
        else:
            ascent, log_weight = softplus(values).sum(dim=0).log(), log_p
        slope, unusable = None, torch.zeros_like(wrong[0])
        if gradient:
            weight = self._weights(log_weight)
            slope = self._slope(x, y, scale, weight, each)
            unusable = (slope == 0).flatten(1).all(dim=1)
        return LocatedEvaluation(
            loss=failures + log_p.exp().mean(dim=0) / 2.0,
            correct=self._right(failures, len(each)),
            gradient=slope,
            unusable=unusable,
            non_finite=torch.stack([found.non_finite for found in each]).any(dim=0),
            ids=each[0].ids,
            ascent=ascent,
        )

    def _right(self, failures: Tensor, count: int) -> Tensor:
        return 2 * failures < count if self.objective == "average" else failures == 0

    def _sharpness(self, scale: Tensor) -> Tensor:
        """Factor from the loss to units in which the clean spread of logits is 10 (dlr: its largest value is 10)."""
        factor = {"ce": torch.ones_like(scale), "margin": scale, "dlr": torch.full_like(scale, AUTO_SPREAD)}[self.loss]
        return factor / self.temperature

    def _weights(self, log_weight: Tensor) -> Tensor:
        """[M, n]: the largest ``selected`` of each column, summing to 1; zero where nothing may be selected."""
        kept, which = log_weight.topk(min(self.selected, log_weight.shape[0]), dim=0)
        top = kept[:1]
        share = torch.where(top.isinf(), 0.0, (kept - torch.where(top.isinf(), 0.0, top)).exp())
        total = share.sum(dim=0, keepdim=True)
        share = share / torch.where(total > 0, total, 1.0)
        return torch.zeros_like(log_weight).scatter(0, which, share)

    def _slope(self, x: Tensor, y: Tensor, scale: Tensor, weight: Tensor, each: Sequence[Evaluation]) -> Tensor:
        if self.path is not None:
            return self._grafted(self.path, x, y, scale[:, 0], weight)
        slope = torch.zeros_like(x, dtype=torch.float64)
        for place in range(weight.shape[0]):
            self.now = self.pool[place]
            rows = (weight[place] > 0).nonzero()[:, 0]
            if rows.numel() == 0:
                continue
            if self.fixed:
                found = self.plain(x[rows], y[rows], scale[rows], gradient=True).slope
            else:
                found = each[place].slope[rows]
            slope[rows] += weight[place, rows].view(-1, 1, 1, 1) * found
        return slope

    def _grafted(
        self, path: Callable[[Tensor], PurificationPath], x: Tensor, y: Tensor, scale: Tensor, weight: Tensor
    ) -> Tensor:
        """J_r^T sum_i w_i g_i of the module docstring, [n, C, H, W] float64; bad entries zero."""
        behind, slope = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.float64)
        for place, rows in self._of_draws(weight > 0):
            with torch.no_grad():
                taken = path(x[rows].clone())
            self.forward_evaluations += len(rows)
            with torch.inference_mode(False), torch.enable_grad():
                purified = taken.images[:, -1].detach().clone().requires_grad_()
                loss = self._value(taken.classify(purified), y[rows], scale[rows])
                found = torch.autograd.grad(loss.sum(), purified)[0].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            behind[rows] += weight[place, rows].view(-1, 1, 1, 1).to(x.dtype) * found
        first = weight == weight.amax(dim=0)
        first &= first.cumsum(dim=0) == 1  # the first of equals
        for _, rows in self._of_draws(first & (weight > 0)):
            with torch.inference_mode(False), torch.enable_grad():
                leaf = x[rows].detach().clone().requires_grad_()
                moved = path(leaf.clone()).images[:, -1]
                slope[rows] = torch.autograd.grad(moved, leaf, behind[rows])[0].double()
            self.gradient_evaluations += len(rows)
        return slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def _of_draws(self, chosen: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Where a draw is chosen [M, n] bool: its place in the pool, the model set to it, and the rows."""
        for place in range(len(chosen)):
            rows = chosen[place].nonzero()[:, 0]
            if rows.numel():
                self.now = self.pool[place]
                if self.redraw is not None:
                    self.redraw()
                yield place, rows
