"""Which calls of the model an evaluation makes: the evaluation itself, run on a stand-in that costs nothing and counts.

No attack is described a second time here: every one of them is run as it is, on grey images that the stand-in never gives up. Long
attacks are run with two short lengths, and the calls of a step, which is all that grows, are counted from the difference.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rdc.attacks.registry import AttackSpec, parse_attack
from rdc.contracts import BaseDefence, Defence, GradientMode, PurificationPath
from rdc.evaluation.batch import evaluate_batch
from rdc.evaluation.cost.seconds import Seconds, timed
from rdc.evaluation.sanity import run_sanity
from rdc.evaluation.settings import EvaluationSettings
from rdc.norm_balls import BUDGETS, distance

__all__ = ["Call", "CallPlan", "plan_calls", "plan_sanity", "with_length"]

_SHORT, _LONGER = 10, 20  # steps, or queries, of an attack that is run in place of a longer one
_REPEATS, _QUICK = 3, 0.2  # so often a run on the stand-in is timed, as long as it takes fewer seconds


@dataclasses.dataclass(frozen=True)
class Call:
    """A kind of call, on so many images together.

    Args:
        role: "model", "penalty", or a surrogate's name.
        images: n.
        gradient: its mode where one is taken ("exact", "bpda"), else None.
        classes: that a gradient goes through, mean over the images, to the nearest: 2 for a margin, all for cross-entropy; else 0.
    """

    role: str
    images: int
    gradient: str | None = None
    classes: int = 0


@dataclasses.dataclass(frozen=True)
class CallPlan:
    """Calls of one batch, or of several, and what lies between them.

    Args:
        calls: how often each.
        overhead: of everything but the model.
    """

    calls: collections.Counter[Call]
    overhead: Seconds = Seconds()

    def __add__(self, other: CallPlan) -> CallPlan:
        calls = collections.Counter(self.calls)
        for call, count in other.calls.items():
            calls[call] += count
        return CallPlan(calls, self.overhead + other.overhead)

    def times(self, factor: float) -> CallPlan:
        """So many of it."""
        found: Any = {call: count * factor for call, count in self.calls.items()}
        return CallPlan(collections.Counter(found), self.overhead.times(factor))


def plan_calls(classifier: Defence, settings: EvaluationSettings, size: int, right: int) -> CallPlan:
    """The calls of one batch.

    Args:
        classifier: what is attacked; only what it says of itself is asked.
        settings: of the evaluation, as they are for this classifier.
        size: images of the batch.
        right: how many of them the attacks work on, to their end; the others count as wrong when clean.
    """
    specs = settings.specs
    lengths = [_length(spec, settings) for spec in specs]
    longest = [length if spec.kind.even else 0 for spec, length in zip(specs, lengths, strict=True)]  # 0: run as it is
    short = [min(_SHORT, even) if even > _LONGER else length for even, length in zip(longest, lengths, strict=True)]
    found = shortest = _run(classifier, settings, specs, short, size, right)
    for length in sorted({length for length in longest if length > _LONGER}):
        longer = [_LONGER if of == length else least for of, least in zip(longest, short, strict=True)]
        more = _run(classifier, settings, specs, longer, size, right) + shortest.times(-1)
        found = found + more.times((length - _SHORT) / (_LONGER - _SHORT))
    return CallPlan(collections.Counter({call: n for call, n in found.calls.items() if n > 0}), found.overhead.positive)


def plan_sanity(classifier: Defence, settings: EvaluationSettings, right: int) -> CallPlan:
    """The calls of the sanity checks, on so many images that are right when clean."""
    images = _grey(classifier, right)
    return _counted(classifier, settings, lambda stand_in: run_sanity(stand_in, *images, settings))


def _run(
    classifier: Defence,
    settings: EvaluationSettings,
    specs: tuple[AttackSpec, ...],
    lengths: list[int],
    size: int,
    right: int,
) -> CallPlan:
    """The calls of one batch with attacks of these lengths."""
    attacks = tuple(with_length(spec, length) for spec, length in zip(specs, lengths, strict=True))
    plain = dataclasses.replace(settings, attack_precision=None)  # the same calls, in one precision
    short = dataclasses.replace(plain, attacks=attacks, n=max(2, size), batch=size, sanity=0 if attacks else None)
    pixels, labels, ids = _grey(classifier, size)
    labels[right:] = 1
    return _counted(classifier, settings, lambda stand_in: evaluate_batch(stand_in, pixels, labels, ids, short, 1))


def _counted(classifier: Defence, settings: EvaluationSettings, work: Callable[[_StandIn], object]) -> CallPlan:
    """What a stand-in sees of the work, and the time of the quickest of some runs.

    A long attack's overhead is that of ten steps many times over, and with it whatever else the machine did meanwhile.
    """
    threat = (settings.norm or "", settings.radius if settings.attacks else 0.0)
    found: list[CallPlan] = []
    while len(found) < _REPEATS and (not found or found[-1].overhead.own < _QUICK):
        stand_in = _StandIn(classifier, threat)
        overhead = timed(functools.partial(work, stand_in), classifier.device)
        found.append(CallPlan(stand_in.seen, overhead))
    return min(found, key=lambda plan: plan.overhead.own)


def _grey(classifier: Defence, count: int) -> tuple[Tensor, Tensor, Tensor]:
    pixels = torch.full((count, *classifier.image_shape), 0.5, device=classifier.device)
    return pixels, torch.zeros(count, dtype=torch.long, device=classifier.device), torch.arange(count)


def _option(spec: AttackSpec) -> str:
    """The option that says how long an attack is."""
    return "steps" if spec.kind.white_box else "queries"


def _length(spec: AttackSpec, settings: EvaluationSettings) -> int:
    if spec.kind.white_box:
        return int(spec.get("steps", settings.steps))
    declared = {field.name: field.default for field in dataclasses.fields(spec.kind.attack.options)}
    return int(spec.get("queries", declared.get("queries", 0)))


def with_length(spec: AttackSpec, length: int) -> str:
    """The attack's text with another number of steps, or queries; as it is where it has neither."""
    if _option(spec) not in spec.kind.takes:
        return spec.text
    kept = tuple((name, value) for name, value in spec.options if name != _option(spec))
    return parse_attack(AttackSpec(spec.name, (*kept, (_option(spec), length))).text).text


class _StandIn(BaseDefence):
    """Says that it is what the real defence is, and answers class 0 for whatever is within the budget of a grey image."""

    def __init__(self, real: Defence, threat: tuple[str, float]) -> None:
        super().__init__(
            real.image_shape,
            max(2, real.num_classes),
            gradient=real.gradient,
            noise=real.noise_policy,
            device=real.device,
        )
        self.stochastic, self.head = real.stochastic, real.head
        self._real_purifies, self._real_penalty, self._names = real.purifies, real.has_penalty, tuple(real.surrogates())
        self._length = real.purification_length
        self.role, self.threat = "model", threat
        self.seen: collections.Counter[Call] = collections.Counter()
        self.slope = 1e-3 * torch.arange(max(2, real.num_classes), device=real.device) ** 0.5

    @property
    def purifies(self) -> bool:
        return self._real_purifies

    @property
    def has_penalty(self) -> bool:
        return self._real_penalty

    @property
    def purification_length(self) -> int:
        return self._length

    def purification_path(self, pixels: Tensor) -> PurificationPath:
        """One call of the model, by whatever a gradient comes back; its images are classified as by the plain surrogate."""
        self._next_draw()
        call, classes, base = Call(self.role, len(pixels)), [self.num_classes], pixels * 1.0
        self.seen[call] += 1
        self.network_evaluations += len(pixels)
        logits = self._logits(base)
        if base.requires_grad:
            logits.register_hook(lambda upstream: classes.append(self._classes(upstream)))
            base.register_hook(lambda _: self._gone_back(call, classes[-1]))  # once, after all that came from it
        images = base[:, None].expand(-1, self._length, -1, -1, -1)
        return PurificationPath(images, logits, lambda images: self._counted("plain", self._logits(images)))

    def surrogates(self) -> dict[str, Defence]:
        found: dict[str, Defence] = {}
        for name in self._names:
            made = copy.copy(self)
            made.role = name
            found[name] = made
        return found

    def penalty(self, pixels: Tensor) -> Tensor:
        return self._counted("penalty", pixels.flatten(1).mean(1))

    def forward(self, pixels: Tensor) -> Tensor:
        self._next_draw()
        return self._counted(self.role, self._logits(pixels))

    def _logits(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).mean(1, keepdim=True) * self.slope + self._decision(pixels)

    def _decision(self, pixels: Tensor) -> Tensor:
        """[n, K]: class 0, but class 1 where an image is far out of the budget, as in the sanity checks."""
        norm, eps = self.threat
        pixels = pixels.detach()
        far = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        if norm in BUDGETS:
            far = distance(pixels, torch.full_like(pixels, 0.5), norm) > 1.5 * eps
        decision = pixels.new_zeros(len(pixels), self.num_classes)
        decision[torch.arange(len(pixels)), far.long()] = 1.0
        return decision

    def _counted(self, role: str, answer: Tensor) -> Tensor:
        call = Call(role, len(answer))
        self.seen[call] += 1
        self.network_evaluations += len(answer)
        if answer.requires_grad:
            answer.register_hook(lambda upstream: self._went_back(call, upstream))
        return answer

    def _went_back(self, call: Call, upstream: Tensor) -> None:
        """The call was one with a gradient."""
        self._gone_back(call, 0 if upstream.ndim == 1 else self._classes(upstream))

    def _classes(self, upstream: Tensor) -> int:
        return round(float((upstream != 0).double().mean()) * self.num_classes)

    def _gone_back(self, call: Call, classes: int) -> None:
        self.seen[call] -= 1
        self.seen[dataclasses.replace(call, gradient=str(GradientMode(self.gradient)), classes=classes)] += 1
