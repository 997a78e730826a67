"""Attacks within a perceptual distance d (``rdc.attacks.perceptual_distance``): {x' in [0, 1] : d(x, x') <= bound}.

    PPGD   the step that gains most to first order for a move of length eta in d, eta = bound / 2 at first and a tenth of it
           at last (ours; other lengths break the same images), then back into the ball. With J the Jacobian of phi
           and g the loss's gradient the step is along (J^T J)^-1 g, found by conjugate gradients
    LPA    ascends L - c max(0, d - bound), c tenfold after every round that ends outside; each step has length eta in d,
           eta = bound at first and a tenth of it at the end of a round; a round ends back in the ball

"Back into the ball" is a point of the segment to the clean image, at 99 % of the bound or more: it keeps the box, and d <= bound holds at
the point itself. Directions of PPGD are float32, distances float64.

Source: Laidlaw, Singla & Feizi 2021 (arXiv 2006.12655), section 4, algorithms 1 and 2.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rdc.arguments.scalars import shown
from rdc.arguments.seeds import random
from rdc.attacks.entry import attack
from rdc.attacks.losses import AUTO_SPREAD, Evaluation, Model
from rdc.attacks.options import AscentOptions, integer
from rdc.attacks.per_image import LocatedEvaluation, PerImageObjective, extend_result
from rdc.attacks.perceptual_distance import INSIDE, FeatureDistance, PerceptualThreat, back_into_ball, length_of
from rdc.attacks.pgd import Rule, run_attack
from rdc.attacks.threat_model import AttackResult, ThreatModel, check_images
from rdc.errors import ConfigError, RdcError

__all__ = ["LpaOptions", "PerceptualResult", "PpgdOptions", "lpa", "ppgd"]

_ANYWHERE = ThreatModel("linf", 1.0)  # the box itself
_START_STREAM = 0x1B1_55EED  # word of the Philox counter that separates these draws from others of the same key
_NOISE = 0.01  # standard deviation of a random start, in pixels, as published
_PROBE = 1e-3  # l_2 length, in pixels, of the move that a step's length in d is measured by


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PerceptualResult(AttackResult):
    """AttackResult whose ``threat`` is a PerceptualThreat.

    Args:
        perceptual_distance: [N] float64, d between x_adv and x, at most the bound.
    """

    perceptual_distance: Tensor


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PpgdOptions(AscentOptions):
    """Options of :func:`ppgd`.

    Args:
        steps: of each restart; published: 40.
        restarts: restart 0 starts at the clean image, a later one at the clean image with noise of standard deviation 0.01, in the ball.
        solves: iterations of conjugate gradients in a step, each a product with J and one with its transpose; published: 5.
    """

    steps: int = integer(40, most=1_000_000)
    solves: int = integer(5, most=1000)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LpaOptions(AscentOptions):
    """Options of :func:`lpa`.

    Args:
        steps: of each restart, over all its rounds; published: 5 rounds of 20.
        restarts: as of :class:`PpgdOptions`.
        rounds: in how many rounds the penalty's weight may rise.
    """

    steps: int = integer(100, most=1_000_000)
    rounds: int = integer(5, most=1000)


@attack(PpgdOptions)
def ppgd(model: Model, x: Tensor, y: Tensor, threat: PerceptualThreat, options: PpgdOptions) -> PerceptualResult:
    """Perceptual projected gradient descent (module docstring).

    Args:
        model, x, y: as for ``apgd``.
        threat: bound and distance.
        options: PpgdOptions; a call gives its fields as keywords.

    Returns:
        PerceptualResult.

    Raises:
        InputError, ConfigError, RdcError: as for ``apgd``; a threat of another kind, features that are no layers.

    Source: Laidlaw, Singla & Feizi 2021 (arXiv 2006.12655), algorithm 1.
    """
    objective = _Scaled(model, options.loss, **options.scoring)
    return _run("ppgd", objective, x, y, threat, options, lambda clean: _PpgdRule(clean, threat, options))


@attack(LpaOptions)
def lpa(model: Model, x: Tensor, y: Tensor, threat: PerceptualThreat, options: LpaOptions) -> PerceptualResult:
    """Lagrangian perceptual attack (module docstring). Iterates outside of the ball are looked at for their gradient and not counted.

    Args:
        model, x, y: as for ``apgd``.
        threat: bound and distance.
        options: LpaOptions; a call gives its fields as keywords.

    Returns:
        PerceptualResult.

    Raises:
        As ``ppgd``.

    Source: Laidlaw, Singla & Feizi 2021 (arXiv 2006.12655), algorithm 2.
    """
    objective = _Scaled(model, options.loss, **options.scoring)
    return _run("lpa", objective, x, y, threat, options, lambda clean: _LpaRule(clean, threat, options))


def _run(
    name: str,
    objective: _Scaled,
    x: Tensor,
    y: Tensor,
    threat: PerceptualThreat,
    options: Any,
    make: Callable[[Tensor], _BallRule],
) -> PerceptualResult:
    if not isinstance(threat, PerceptualThreat):
        raise ConfigError(f"{name}: expected PerceptualThreat(bound, distance) as threat, got {shown(threat)}")
    ids, x = check_images(x, y, options.image_ids), x.detach()
    threat.distance.to(x.device)
    numbers = count()

    def make_rule(clean: Tensor) -> Rule:
        rule = make(clean)
        restart = next(numbers)
        if restart >= max(1, len(options.starts)):
            rule.jump = lambda rows: _noise(x[rows], options.seed, [ids[row] for row in rows.tolist()], restart)
        return rule

    inside = dataclasses.replace(options, image_ids=ids)
    found = run_attack(name, objective, x, y, _ANYWHERE, make_rule, inside, random_starts=False)
    distance = threat.distance(found.x_adv, x)
    if bool((wrong := ~(distance <= threat.bound)).any()):
        row = int(wrong.nonzero()[0])
        raise RdcError(
            f"the image in row {row} is {float(distance[row])!r} from its own for bound {threat.bound!r}; a bug in the attack"
        )
    return extend_result(PerceptualResult, found, threat=threat, perceptual_distance=distance)


class _Scaled(PerImageObjective):
    """The gradient as of logits whose clean spread is 10, whatever the loss: a penalty's weight means the same."""

    def evaluate(self, x: Tensor, y: Tensor, scale: Tensor, *, gradient: bool) -> LocatedEvaluation:
        found = self.plain(x, y, scale, gradient=gradient)
        if found.gradient is None or self.loss == "ce":
            return found
        weight = scale[:, 0] if self.loss == "margin" else AUTO_SPREAD * torch.ones_like(scale[:, 0])
        return dataclasses.replace(found, gradient=weight.view(-1, 1, 1, 1) * found.slope)


class _BallRule(Rule):
    """State of n images; iterate 0 is the clean image or what was given, iterate 1 the random start where there is one.

    Args:
        clean: [n, C, H, W] float32.
        threat: bound and distance.
        steps: of a restart.
    """

    def __init__(self, clean: Tensor, threat: PerceptualThreat, steps: int) -> None:
        self.clean, self.threat, self.steps, self.step = clean, threat, steps, 0
        self.jump: Callable[[Tensor], Tensor] | None = None
        with torch.no_grad():
            self.home = threat.distance.features(clean)

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        jump, self.jump = self.jump, None
        if jump is not None:
            assert isinstance(evaluation, LocatedEvaluation)
            self.step += 1
            return back_into_ball(jump(evaluation.ids), self.clean, self.threat)
        following = self.moved(x, evaluation.slope)
        self.step += 1
        return following

    @abstractmethod
    def moved(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The iterate after x."""

    def keep(self, rows: Tensor) -> None:
        self.clean, self.home = self.clean[rows], self.home[rows]

    def counts(self, x: Tensor) -> Tensor | None:
        with torch.no_grad():
            return length_of(self.threat.distance.features(x) - self.home) <= self.threat.bound * INSIDE


class _PpgdRule(_BallRule):
    def __init__(self, clean: Tensor, threat: PerceptualThreat, options: PpgdOptions) -> None:
        super().__init__(clean, threat, options.steps)
        self.solves = options.solves

    def moved(self, x: Tensor, gradient: Tensor) -> Tensor:
        jacobian = _Jacobian(self.threat.distance, x)
        direction = jacobian.solved(gradient, self.solves)
        length = length_of(jacobian.times(direction).flatten(1))
        eta = self.threat.bound / 2 * 0.1 ** (self.step / max(1, self.steps - 1))
        move = torch.where(length > 0, eta / length, 0.0).nan_to_num(nan=0.0, posinf=0.0)
        return back_into_ball(x.double() + move.view(-1, 1, 1, 1) * direction, self.clean, self.threat)


class _LpaRule(_BallRule):
    def __init__(self, clean: Tensor, threat: PerceptualThreat, options: LpaOptions) -> None:
        super().__init__(clean, threat, options.steps)
        self.length = max(1, -(-options.steps // options.rounds))  # of a round
        self.weight = torch.full_like(clean[:, 0, 0, 0], 0.01, dtype=torch.float64)

    def moved(self, x: Tensor, gradient: Tensor) -> Tensor:
        place, features = self.step % self.length, self.threat.distance.features
        with torch.enable_grad():
            leaf = x.detach().double().requires_grad_()
            here = features(leaf)
            distance = (here - self.home).square().sum(dim=1).clamp_min(1e-300).sqrt()
            slope = torch.autograd.grad(distance.sum(), leaf)[0]
        weight = torch.where(distance.detach() > self.threat.bound, self.weight, 0.0)
        direction = _unit(gradient - weight.view(-1, 1, 1, 1) * slope)
        with torch.no_grad():
            speed = length_of(features(x.double() + _PROBE * direction) - here.detach()) / _PROBE
            eta = self.threat.bound * 0.1 ** (place / self.length)
            move = torch.where(speed > 0, eta / speed, 0.0)
            following = (x.double() + move.view(-1, 1, 1, 1) * direction).clamp(0, 1).float()
            if place < self.length - 1 and self.step < self.steps - 1:
                return following
            outside = length_of(features(following) - self.home) > self.threat.bound
            self.weight = torch.where(outside, 10 * self.weight, self.weight)
        return back_into_ball(following, self.clean, self.threat)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.weight = self.weight[rows]


class _Jacobian:
    """J of phi at images x [n, C, H, W]: products with it (forward mode) and with its transpose."""

    def __init__(self, distance: FeatureDistance, x: Tensor) -> None:
        self.distance, self.x = distance, x.detach().float()
        with torch.enable_grad():
            self.leaf = self.x.clone().requires_grad_()
            self.value = self._features(self.leaf)

    def _features(self, x: Tensor) -> Tensor:
        return self.distance.features(x, torch.float32)

    def times(self, direction: Tensor) -> Tensor:
        """J v [n, F] of v [n, C, H, W]."""
        with torch.no_grad(), forward_ad.dual_level():
            found = forward_ad.unpack_dual(self._features(forward_ad.make_dual(self.x, direction.float()))).tangent
            return torch.zeros_like(self.value, dtype=torch.float64) if found is None else found.double()

    def transposed(self, upstream: Tensor) -> Tensor:
        """J^T u [n, C, H, W] of u [n, F]."""
        return torch.autograd.grad(self.value, self.leaf, upstream.float(), retain_graph=True)[0].double()

    def solved(self, wanted: Tensor, iterations: int) -> Tensor:
        """(J^T J)^-1 g [n, C, H, W] by conjugate gradients from 0; each image by itself."""
        residual = _unit(wanted)
        found, along = torch.zeros_like(residual), residual.clone()
        squared = residual.square().sum(dim=(1, 2, 3))
        for _ in range(iterations):
            product = self.transposed(self.times(along))
            curvature = (along * product).sum(dim=(1, 2, 3))
            step = torch.where(curvature > 0, squared / curvature, 0.0).nan_to_num(nan=0.0, posinf=0.0)
            found = found + step.view(-1, 1, 1, 1) * along
            residual = residual - step.view(-1, 1, 1, 1) * product
            before, squared = squared, residual.square().sum(dim=(1, 2, 3))
            ratio = torch.where(before > 0, squared / before, 0.0).nan_to_num(nan=0.0, posinf=0.0)
            along = residual + ratio.view(-1, 1, 1, 1) * along
        return found


def _unit(values: Tensor) -> Tensor:
    """Images [n, C, H, W] of length 1; zero stays zero."""
    length = values.double().square().sum(dim=(1, 2, 3)).sqrt().view(-1, 1, 1, 1)
    return values.double() / torch.where(length > 0, length, 1.0)


def _noise(x: Tensor, seed: int, image_ids: Sequence[int], restart: int) -> Tensor:
    """The images with noise of their own, fixed by (seed, image id, restart)."""
    made = [
        random(seed, image_id, (0, 0, _START_STREAM, restart)).standard_normal(tuple(x.shape[1:]))
        for image_id in image_ids
    ]
    return x.double() + _NOISE * torch.stack([torch.from_numpy(one) for one in made]).to(x.device)
