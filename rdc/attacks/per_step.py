"""Per-step losses: the class loss, and one at the images that the purifier passes through on its way.

Through a long purification the gradient of the last image's loss arrives weakened, and noisy with what all steps add. A loss at the
image after step k comes back through k steps only. With x_1(x'), .., x_S(x') the images after the purifier's steps, z = classifier, L the
class loss and x the clean image:

    class       J(x') = L(z(x_S(x')))  +  weight * mean over k of L(z(x_k(x')))
    deviation   J(x') = L(z(x_S(x')))  +  weight * c * mean over k of ||x_k(x') - x_k(x)||^2 / (C H W)

    c = ||grad L||_2 / ||grad mean deviation||_2   of each image, at the first iterate of a restart where both are non-zero

k: ``looks`` of the S - 1 steps before the last, evenly spread (``deviation``: of all S). APGD maximises J; losses that are recorded, and
decisions, are those of the defence itself. Gradients are exact, step by step rebuilt (``rdc.contracts.PurificationPath``), and one
backward pass is enough for all terms.

Which: ``class``, the default, pulls every intermediate image across the boundary; ``deviation`` (DiffAttack's kind: there between the
diffused and the reconstructed image of a step) pulls it away from the clean path in no direction of its own, and needs no classifier
between the steps. Paths are compared under one draw: under known noise the defence's own, the clean path computed once; under fresh noise
clean and adversarial images go through each draw together.

Source: Kang, Song & Li 2023 (DiffAttack, arXiv 2311.16124), section 3.2, for losses at intermediate steps; weights and ``class`` are ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from rdc.attacks.apgd import _rule
from rdc.attacks.entry import attack
from rdc.attacks.losses import Model
from rdc.attacks.options import AscentOptions, integer, number, word
from rdc.attacks.per_image import AscentRule, LocatedEvaluation, PerImageObjective
from rdc.attacks.pgd import run_attack
from rdc.attacks.threat_model import AttackResult, ThreatModel
from rdc.contracts import PurificationPath
from rdc.errors import ConfigError, InputError
from rdc.norm_balls import distance

__all__ = ["MEASURES", "PerStepOptions", "per_step"]

MEASURES = ("class", "deviation")

Path = Callable[[Tensor], PurificationPath]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PerStepOptions(AscentOptions):
    """Options of :func:`per_step`.

    Args:
        path: pixels [n, C, H, W] -> PurificationPath, a call of the same model with its images on the way
            (``Defence.purification_path``).
        measure: ``"class"`` or ``"deviation"``.
        weight: of the mean over the steps, > 0.
        looks: steps looked at, >= 1; there may be fewer.
    """

    path: Path
    measure: str = word("class", MEASURES)
    weight: float = number(1.0, most=1e6)
    looks: int = integer(4, most=10_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.path):
            raise InputError(
                f"path: expected a function pixels [n, C, H, W] -> PurificationPath; got {type(self.path).__name__}"
            )
        if self.measure not in MEASURES:
            raise ConfigError(f"unknown measure {self.measure!r}; expected one of {', '.join(MEASURES)}")
        weight = self.weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ConfigError(f"weight must be a finite number > 0; got {weight!r}")


@attack(PerStepOptions)
def per_step(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: PerStepOptions) -> AttackResult:
    """APGD on the class loss and a loss at the purifier's intermediate images (module docstring).

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K], the whole defence.
        x, y, threat: as for ``apgd``.
        options: PerStepOptions; a call gives its fields as keywords.

    Returns:
        AttackResult; ``best_loss`` is the class loss of the defence. Calls of ``path`` count as evaluations of the model.

    Raises:
        InputError, ConfigError, RdcError: as for ``apgd``; a path that does not fit the images.
    """
    objective = _PerStep(model, options)

    def make_rule(clean: Tensor) -> AscentRule:
        objective.new_restart()
        return AscentRule(_rule(clean, threat, options.steps))

    return run_attack("per-step", objective, x, y, threat, make_rule, options)


def chosen_steps(length: int, looks: int) -> list[int]:
    """Which of ``length`` steps, from 0, are looked at: ``looks`` of them, evenly spread, or all where there are fewer."""
    if length <= looks:
        return list(range(length))
    return sorted({round((place + 1) * length / (looks + 1)) for place in range(looks)})


class _PerStep(PerImageObjective):
    """The class loss at the end; the gradient, and what is climbed, of J."""

    def __init__(self, model: Model, options: PerStepOptions) -> None:
        super().__init__(model, options.loss, **options.scoring)
        self.path, self.measure, self.weight, self.looks = options.path, options.measure, options.weight, options.looks
        self.kept: Tensor | None = None  # clean images at the steps looked at, [N, k, C, H, W]

    def begin(self, x: Tensor, y: Tensor) -> None:
        self.clean = x
        self.new_restart()
        if self.measure == "deviation" and not self.is_random:
            with torch.no_grad():
                self.kept = self._looked_at(self._taken(x.clone()).images)
            self.forward_evaluations += len(x)

    def new_restart(self) -> None:
        """Forget the units c."""
        self.unit = torch.full((len(self.clean),), math.nan, dtype=torch.float64, device=self.clean.device)

    def evaluate(self, x: Tensor, y: Tensor, scale: Tensor, *, gradient: bool) -> LocatedEvaluation:
        self.ids, self.values = scale[:, 1].long(), list[Tensor]()
        found = self.plain(x, y, scale, gradient=gradient)
        if not gradient:
            return found
        ascent = torch.stack(self.values).mean(dim=0).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        return dataclasses.replace(found, ascent=ascent)

    def _with_gradient(self, x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and class loss of the defence at x, and the gradient of J, of one draw."""
        if self.redraw is not None:
            self.redraw()
        self.gradient_evaluations += len(x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            random = self.measure == "deviation" and self.is_random
            taken = self._taken(torch.cat([leaf, self.clean[self.ids]]) if random else leaf.clone())
            images, logits = taken.images[: len(x)], taken.logits[: len(x)]
            loss = self._value(logits, y.clone(), scale.clone())
            if self.measure == "class":
                more = self._class_loss(taken, y, scale)
            else:
                clean = taken.images[len(x) :].detach() if random else None
                more = self._deviation(images, clean)
                more = more * self._unit(leaf, loss, more)
            total = loss + self.weight * more
            slope = torch.autograd.grad(total.sum(), leaf, allow_unused=True)[0] if total.requires_grad else None
        if slope is None:
            raise InputError("the path does not depend differentiably on its input; drop no_grad or detach")
        self.values.append(total.detach())
        return logits, loss, slope

    def _taken(self, x: Tensor) -> PurificationPath:
        taken = self.path(x)
        images = taken.images
        if images.dim() != 5 or len(images) != len(x) or images.shape[2:] != x.shape[1:] or not images.shape[1]:
            channels, height, width = x.shape[1:]
            raise InputError(
                f"path: expected images [{len(x)}, S, {channels}, {height}, {width}] of S steps; got {list(images.shape)}"
            )
        return taken

    def _looked_at(self, images: Tensor) -> Tensor:
        return images[:, chosen_steps(images.shape[1], self.looks)]

    def _class_loss(self, taken: PurificationPath, y: Tensor, scale: Tensor) -> Tensor:
        """Mean class loss [n] of the images looked at; the last one is in the loss itself."""
        before = self._looked_at(taken.images[:, :-1])
        n, count = before.shape[:2]
        if not count:
            return torch.zeros_like(scale)
        logits = taken.classify(before.flatten(0, 1))
        losses = self._value(logits, y.repeat_interleave(count), scale.repeat_interleave(count))
        return losses.view(n, count).mean(dim=1)

    def _deviation(self, images: Tensor, clean: Tensor | None) -> Tensor:
        there = self._looked_at(images)
        if clean is None:
            assert self.kept is not None
            here = self.kept[self.ids]
        else:
            here = self._looked_at(clean)
        return (there.double() - here.double()).square().flatten(1).mean(dim=1)

    def _unit(self, leaf: Tensor, loss: Tensor, deviation: Tensor) -> Tensor:
        """c [n], found at the first iterate where both gradients are non-zero; 0 until then."""
        unit = self.unit[self.ids]
        if bool(unit.isnan().any()):
            each = [
                torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)[0]
                for value in (loss, deviation)
            ]
            zero = torch.zeros_like(leaf)
            lengths = [distance(zero if slope is None else slope, zero, "l2") for slope in each]
            ratio = lengths[0] / lengths[1]
            unit = torch.where(unit.isnan() & ratio.isfinite() & (ratio > 0), ratio, unit)
            self.unit[self.ids] = unit
        return unit.nan_to_num(nan=0.0)
