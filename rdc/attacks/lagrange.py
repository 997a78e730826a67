"""Attacks that know a purifier's objective: class loss with the objective as a penalty, and the objective alone.

A purifier moves an input downhill in an objective P (for likelihood maximisation: the diffusion loss of the image
without its label) before it is classified. Two ways around it:

    lagrange            max  L(x') - c P(x')        the class is lost, and the purifier sees little to do
    objective_attack    max  P(x')  or  min P(x')   the purifier itself is led astray (or put to sleep)

over x' in the budget, both by APGD steps, every iterate classified by the real model.

The multiplier c, for each image by itself:

    unit     c_0 = ||grad L|| / ||grad P||, Euclidean, at the first iterate (the random start) of the first round where
             both are non-zero; a round whose first iterate has none runs with c = 0. Not at the clean image: a purifier
             often leaves that in place, its gradient of P is then nearly zero and c_0 useless.
    round 0  c = c_0
    after a round that did not break the image, with P* = P at the round's iterate of highest L - c P:
             P* is low, if P* <= P(x) + 0.1 max(0, P(first iterate of round 0) - P(x)), x the clean image:
             the purifier was pacified, yet the class was not lost: c was too large
             P* is not low: the purifier still had work to do: c was too small
    next     c was too small: c <- 4 c, or sqrt(c c_upper) once some c was too large; too large: c <- c / 4, or
             sqrt(c_lower c) (bisection in log c)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rdc.arguments.scalars import as_number, shown
from rdc.attacks.apgd import _rule
from rdc.attacks.entry import attack
from rdc.attacks.losses import Model, Objective
from rdc.attacks.options import SURROGATES, AscentOptions, integer, word
from rdc.attacks.per_image import AscentRule, LocatedEvaluation, PerImageObjective, extend_result
from rdc.attacks.pgd import run_attack
from rdc.attacks.threat_model import AttackResult, ThreatModel
from rdc.errors import ConfigError, InputError
from rdc.norm_balls import distance

__all__ = ["LagrangeOptions", "PenaltyOptions", "PenaltyResult", "lagrange", "objective_attack"]

GROWTH = 4.0
LOW = 0.1

Penalty = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PenaltyResult(AttackResult):
    """AttackResult of an attack that knows a penalty.

    Args:
        clean_penalty: [N] float64, penalty of the clean images.
        penalty: [N] float64, penalty of x_adv.
        multiplier: [N] float64, the last c tried; NaN where none was (``objective_attack``, misclassified when clean).
        penalty_evaluations: images sent through the penalty, with or without gradient.
    """

    clean_penalty: Tensor
    penalty: Tensor
    multiplier: Tensor
    penalty_evaluations: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PenaltyOptions(AscentOptions):
    """Options of :func:`objective_attack`.

    Args:
        restarts: >= 1, two runs each.
        loss: what ``best_loss`` and the choice of x_adv among robust images are measured in; not maximised.
        start: [N, C, H, W], where the first run begins in place of a random point.
        penalty: pixels [n, C, H, W] -> [n], differentiable; row i depends on image i only. The purifier's objective:
            low means that the purifier sees nothing to do.
    """

    penalty: Penalty


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LagrangeOptions(PenaltyOptions):
    """Options of :func:`lagrange`.

    Args:
        steps: APGD steps of each round.
        restarts: repetitions of the whole search, from c_0 again.
        loss: the class loss that is maximised.
        start: [N, C, H, W], where round 0 begins in place of a random point.
        multipliers: factors of c_0, one round each, in place of the search; a negative one raises the penalty together
            with the class loss, 0 is APGD.
        searches: rounds of the search in each restart; unused with ``multipliers``.
        surrogate: gives the class loss and its gradient in place of ``model``, e.g. the classifier without purifier;
            ``model`` is then asked for the class only (no gradient).
    """

    multipliers: Sequence[float] | None = None
    searches: int = integer(5, least=None, most=10_000)
    surrogate: Model | None = word(None, SURROGATES)

    def __post_init__(self) -> None:
        super().__post_init__()
        rounds = self.rounds
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise InputError(f"searches must be an integer >= 1, got {rounds!r}")

    @property
    def factors(self) -> list[float] | None:
        """``multipliers``, checked."""
        return _check_factors(self.multipliers)

    @property
    def rounds(self) -> int:
        """Runs of each restart."""
        factors = self.factors
        return self.searches if factors is None else len(factors)


@attack(LagrangeOptions)
def lagrange(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: LagrangeOptions) -> PenaltyResult:
    """Lagrange attack: maximise class loss - c * penalty, c searched for each image (module docstring).

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K], the whole defence; decides what is broken.
        x, y, threat: images [N, C, H, W] float32 in [0, 1], labels [N] int64, budget.
        options: LagrangeOptions; a call gives its fields as keywords. To ``progress`` each round is a restart.

    Returns:
        PenaltyResult; ``best_loss`` is the class loss without the penalty.

    Raises:
        InputError, ConfigError, RdcError: as for ``apgd``; a penalty that is not floating [n] or has no gradient; a
        multiplier that is not finite.

    Source: Carlini & Wagner 2017 (arXiv 1608.04644) for the searched trade-off; arXiv 2305.15241 for the likelihood
        objective as the constraint.
    """
    objective = _Lagrangian(model, options)

    def make_rule(clean: Tensor) -> AscentRule:
        objective.search.next_round()
        return AscentRule(_rule(clean, threat, options.steps))

    result = run_attack("lagrange", objective, x, y, threat, make_rule, options)
    return objective.report(result, objective.search.last)


@attack(PenaltyOptions)
def objective_attack(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: PenaltyOptions) -> PenaltyResult:
    """Attack the purifier's objective: each restart maximises it in a first run and minimises it in a second.

    Untargeted in the class: it asks where the purifier ends if its input is as bad (or as good) as the budget allows.
    For class loss and penalty together, see ``lagrange`` with negative ``multipliers``.

    Args:
        model: the whole defence; asked for logits only, no gradient.
        x, y, threat: as for ``apgd``.
        options: PenaltyOptions; a call gives its fields as keywords. To ``progress`` each run is a restart.

    Returns:
        PenaltyResult; ``gradient_evaluations`` is 0.

    Raises:
        As ``lagrange``.

    Source: the purifier's own objective as attack loss, as in Athalye et al. 2018 (arXiv 1802.00420), section 4.
    """
    objective = _PenaltyAlone(model, options)

    def make_rule(clean: Tensor) -> AscentRule:
        return AscentRule(_rule(clean, threat, options.steps))

    result = run_attack("lm-objective", objective, x, y, threat, make_rule, options)
    return objective.report(result, torch.full_like(objective.clean_penalty, math.nan))


class _WithPenalty(PerImageObjective):
    def __init__(self, model: Model, options: PenaltyOptions) -> None:
        super().__init__(model, options.loss, **options.scoring)
        penalty = options.penalty
        if not callable(penalty):
            raise InputError(f"penalty: expected a function pixels [n, C, H, W] -> [n], got {type(penalty).__name__}")
        self.penalty, self.penalty_evaluations = penalty, 0

    def begin(self, x: Tensor, y: Tensor) -> None:
        self.clean_penalty = self.penalise(x, gradient=False)[0]

    def penalise(self, x: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Penalty [n] float64 and its gradient [n, C, H, W] float64 with bad entries zero."""
        with torch.inference_mode(False), torch.set_grad_enabled(gradient):
            leaf = x.detach().clone().requires_grad_(gradient)
            value = self.penalty(leaf.clone())  # a copy: what it changes in place stays its own
            if not isinstance(value, Tensor) or value.shape != x.shape[:1] or not value.is_floating_point():
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"penalty: expected one floating number for each of {x.shape[0]} images, got {got}")
            slope = None
            if gradient:
                slope = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
                if slope is None:
                    raise InputError("the penalty does not depend differentiably on its input; drop no_grad or detach")
                slope = slope.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self.penalty_evaluations += x.shape[0]
        return value.detach().double(), slope

    def report(self, result: AttackResult, multiplier: Tensor) -> PenaltyResult:
        found = self.penalise(result.x_adv, gradient=False)[0]
        return extend_result(
            PenaltyResult,
            result,
            clean_penalty=self.clean_penalty,
            penalty=found,
            multiplier=multiplier,
            penalty_evaluations=self.penalty_evaluations,
        )


class _PenaltyAlone(_WithPenalty):
    runs = 2

    def evaluate(self, x: Tensor, y: Tensor, scale: Tensor, *, gradient: bool) -> LocatedEvaluation:
        found = self.plain(x, y, scale, gradient=False)
        value, slope = self.penalise(x, gradient=gradient)
        unusable, sign = found.unusable, 1.0 if self.run == 0 else -1.0
        if slope is not None:
            slope = sign * slope
            unusable = (slope == 0).flatten(1).all(dim=1)
        return dataclasses.replace(found, gradient=slope, unusable=unusable, ascent=sign * value)


class _Lagrangian(_WithPenalty):
    def __init__(self, model: Model, options: LagrangeOptions) -> None:
        super().__init__(model, options)
        self.factors, self.runs, other = options.factors, options.rounds, options.surrogate
        self.surrogate = None if other is None else Objective(other, options.loss, logit_scale=options.logit_scale)

    def begin(self, x: Tensor, y: Tensor) -> None:
        super().begin(x, y)
        self.search = _Search(self.clean_penalty, self.factors, self.runs)
        if self.surrogate is not None:
            self.surrogate_scale = self.surrogate.start(x, y)[2]
            self.forward_evaluations += x.shape[0]

    def evaluate(self, x: Tensor, y: Tensor, scale: Tensor, *, gradient: bool) -> LocatedEvaluation:
        found = self.plain(x, y, scale, gradient=gradient and self.surrogate is None)
        if self.surrogate is not None:
            before, of = self.surrogate.forward_evaluations, self.surrogate_scale[found.ids]
            other = self.surrogate.evaluate(x, y, of, gradient=gradient)
            self.forward_evaluations += self.surrogate.forward_evaluations - before
            found = dataclasses.replace(found, loss=other.loss, gradient=other.gradient, unusable=other.unusable)
            self.gradient_evaluations = self.surrogate.gradient_evaluations
        value, slope = self.penalise(x, gradient=gradient)
        c = self.search.multiplier(found.ids, found.gradient, slope, value)
        ascent = (found.loss - c * value).nan_to_num(nan=-math.inf)
        self.search.observe(found.ids, ascent, value)
        total, unusable = None, found.unusable
        if slope is not None and found.gradient is not None:
            total = found.gradient - c.view(-1, 1, 1, 1) * slope
            unusable = (total == 0).flatten(1).all(dim=1)
        return dataclasses.replace(found, gradient=total, unusable=unusable, ascent=ascent)


class _Search:
    """Multiplier of each of N images over the rounds; see the module docstring for the rule."""

    def __init__(self, clean: Tensor, factors: list[float] | None, rounds: int) -> None:
        nothing = torch.full_like(clean, math.nan)
        self.clean, self.factors, self.rounds, self.round = clean, factors, rounds, -1
        self.unit, self.last, self.first = nothing.clone(), nothing.clone(), nothing.clone()
        self.c, self.new = torch.zeros_like(clean), torch.ones_like(clean, dtype=torch.bool)
        self._reset()

    def _reset(self) -> None:
        self.factor = torch.ones_like(self.clean)
        self.lower, self.upper = torch.zeros_like(self.clean), torch.full_like(self.clean, math.inf)
        self.best = torch.full_like(self.clean, -math.inf)
        self.at_best = torch.full_like(self.clean, math.nan)

    def next_round(self) -> None:
        """Settle the last round and choose the next one's factors."""
        self.round += 1
        if self.round % self.rounds == 0:
            self._reset()
        elif self.factors is None:
            self._settle()
        if self.factors is not None:
            self.factor = torch.full_like(self.clean, self.factors[self.round % self.rounds])
        self.best.fill_(-math.inf)
        self.at_best.fill_(math.nan)
        self.new.fill_(True)

    def _settle(self) -> None:
        threshold = self.clean + LOW * (self.first - self.clean).clamp(min=0.0)
        tried = (self.c > 0) & ~self.at_best.isnan()
        low = tried & (self.at_best <= threshold)
        high = tried & ~low
        self.lower = torch.where(high, self.factor, self.lower)
        self.upper = torch.where(low, self.factor, self.upper)
        between = (self.lower * self.upper).sqrt()
        self.factor = torch.where(high, torch.where(self.upper.isinf(), GROWTH * self.factor, between), self.factor)
        self.factor = torch.where(low, torch.where(self.lower == 0, self.factor / GROWTH, between), self.factor)

    def multiplier(self, ids: Tensor, gradient: Tensor | None, slope: Tensor | None, value: Tensor) -> Tensor:
        """c [n] at this iterate; fixed at the first one of a round."""
        if gradient is not None and slope is not None:
            zero = torch.zeros_like(gradient)
            ratio = distance(gradient, zero, "l2") / distance(slope, zero, "l2")
            usable = ratio.isfinite() & (ratio > 0)
            self.unit[ids] = torch.where(self.unit[ids].isnan() & usable, ratio, self.unit[ids])
        new = self.new[ids]
        self.c[ids] = torch.where(new, (self.factor[ids] * self.unit[ids]).nan_to_num(nan=0.0), self.c[ids])
        self.first[ids] = torch.where(self.first[ids].isnan(), value, self.first[ids])
        self.new[ids] = False
        self.last[ids] = self.c[ids]
        return self.c[ids]

    def observe(self, ids: Tensor, ascent: Tensor, value: Tensor) -> None:
        """Take in an iterate's L - c P and P."""
        better = ascent > self.best[ids]
        self.best[ids] = torch.where(better, ascent, self.best[ids])
        self.at_best[ids] = torch.where(better, value, self.at_best[ids])


def _check_factors(multipliers: Sequence[float] | None) -> list[float] | None:
    if multipliers is None:
        return None
    listed = not isinstance(multipliers, str) and isinstance(multipliers, Iterable)
    factors: list[Any] = list(multipliers) if listed else [multipliers]
    for factor in factors:
        number = as_number(factor)
        if not listed or number is None or not math.isfinite(number):
            raise ConfigError(f"multipliers must be finite numbers (factors of c_0), got {shown(factor)}")
    if not factors:
        raise ConfigError("multipliers: expected at least one number, or None for the search; got an empty list")
    return [float(factor) for factor in factors]
