"""Seconds that calls of a model take here, measured on the first images of the run: a second or two, and no figure knows of it.

Everything is done with copies of the defence, and the global random generators are put back, so that what follows draws what it would
have drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.contracts import Component, Defence
from rdc.evaluation.attacking import in_precision
from rdc.evaluation.cost.calls import Call
from rdc.evaluation.cost.seconds import Seconds, timed
from rdc.execution.upstream import all_classes_carry
from rdc.method.classifier import DiffusionClassifier
from rdc.method.levels import NoiseLevels

__all__ = ["CallTimes", "untouched_generators"]

_EACH = 1.0  # seconds that a measured call on several images should take at most
_LONGEST = 2.0  # seconds of a call on one image, beyond which parts of it are measured
_MOST = 32  # images of a measured call, where nobody said how many the run's calls have
_REPEATS, _MOST_REPEATS, _ENOUGH = (
    3,
    30,
    0.3,
)  # a call is measured so often, where there is time: more often until it took so many seconds
_PART, _MOST_SECONDS = (
    1 / 20,
    10.0,
)  # a call of the run's own size may take this part of all such calls, and so many seconds


class CallTimes:
    """Seconds of every kind of call, measured when first asked for.

    Args:
        classifier: the defence.
        pixels: [n, C, H, W], some images of the run.
        labels: [n].
        gradient_precision: what gradients are computed in; None: as everything.
    """

    def __init__(
        self, classifier: Defence, pixels: Tensor, labels: Tensor, gradient_precision: str | None = None
    ) -> None:
        self.gradient_precision = gradient_precision
        self.classifier, device = classifier, classifier.device
        self.pixels, self.labels = pixels.to(device), labels.to(device)
        self._expected: dict[Call, tuple[int, float]] = {}
        self._points: dict[Call, list[tuple[int, Seconds]]] = {}
        self.parts: _Parts | None = None
        if isinstance(classifier, DiffusionClassifier) and _too_long(classifier, self.pixels):
            self.parts = _Parts(self, classifier)

    def expect(self, calls: Mapping[Call, float]) -> None:
        """Say what will be asked for, before it is: calls are then measured on as many images as the run's have, where that pays.

        Args:
            calls: how often each, in the whole run.
        """
        for call, count in calls.items():
            largest, images = self._expected.get(self._kind(call), (0, 0.0))
            self._expected[self._kind(call)] = max(largest, call.images), images + call.images * count

    def seconds(self, call: Call) -> Seconds:
        """Of one call."""
        kind = self._kind(call)
        if kind not in self._points:
            self._points[kind] = self._measure(kind)
        points = self._points[kind]
        above = next((place for place, (count, _) in enumerate(points) if count >= call.images), None)
        if above is None:  # an image more takes what one of the largest call takes
            count, several = points[-1]
            return several.times(call.images / count)
        if not above:
            return points[0][1]
        (few, least), (many, most) = points[above - 1 : above + 1]
        slope = (most + least.times(-1)).times(1 / (many - few))
        return (least + slope.times(call.images - few)).positive

    def _kind(self, call: Call) -> Call:
        """The call without its number of images, and of its classes what matters here."""
        classes = max(2, call.classes) if call.gradient is not None else 0
        if call.role == "penalty" or not _by_class(self.classifier):
            classes = min(2, classes)
        return dataclasses.replace(call, images=1, classes=classes)

    def _measure(self, kind: Call) -> list[tuple[int, Seconds]]:
        """(images, seconds of a call on them): of one image, and of several, as many as the run's calls have where there is time."""
        if self.parts is not None:
            return [(1, self.parts.seconds(kind))]
        points = [(1, self.once(self.classifier, kind, 1))]
        largest, images = self._expected.get(kind, (_MOST, 0.0))
        largest = min(largest, len(self.pixels))
        while (last := points[-1])[0] < largest:
            each = last[1].own / last[0]
            allowed = max(_EACH, min(_MOST_SECONDS, _PART * each * images))
            count = largest if each * largest <= allowed else min(largest, 2 * last[0])
            if each * count > allowed:
                break
            points.append((count, self.once(self.classifier, kind, count, allowed)))
        return points

    def once(self, classifier: Defence, kind: Call, count: int, allowed: float = _LONGEST) -> Seconds:
        """One measured call on ``count`` images: the middle of some, after one that counts only where there is no time for another."""
        work = self._work(classifier, kind, count)
        first = timed(work, classifier.device)
        found: list[Seconds] = []
        while len(found) < (_REPEATS if len(found) * first.own >= _ENOUGH else _MOST_REPEATS):
            if (len(found) + 2) * first.own > allowed:
                break
            found.append(timed(work, classifier.device))
        found = found or [first]
        return Seconds(statistics.median(each.wall for each in found), statistics.median(each.cpu for each in found))

    def _work(self, classifier: Defence, kind: Call, count: int) -> Callable[[], object]:
        mode = {} if kind.gradient is None else {"gradient": kind.gradient}
        model: Any = classifier.with_(**mode)
        if mode and self.gradient_precision is not None:
            model = in_precision(model, self.gradient_precision)
        if kind.role not in ("model", "penalty"):
            model = model.surrogates()[kind.role]
        pixels = self.pixels[:count]
        if kind.role == "penalty":
            return lambda: _penalty(model, pixels, kind.gradient is not None)
        if kind.gradient is None:
            return lambda: _plain(model, pixels)
        return lambda: _slope(model, pixels, kind.classes)


def _slope(model: Defence, pixels: Tensor, classes: int) -> Tensor:
    """The gradient of a difference of so many logits: the largest, less the mean of those that follow it."""
    leaf = pixels.clone().requires_grad_()
    with all_classes_carry(classes >= model.num_classes):  # as the attack says that made the call
        logits = model(leaf)
    largest = logits.topk(min(classes, logits.shape[1]), dim=1).values
    difference = largest[:, 0] - largest[:, 1:].mean(1) if largest.shape[1] > 1 else largest[:, 0]
    return torch.autograd.grad(difference.sum(), leaf)[0]


def _plain(model: Defence, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pixels)


def _penalty(model: Defence, pixels: Tensor, gradient: bool) -> Tensor:
    leaf = pixels.clone().requires_grad_(gradient)
    value = model.penalty(leaf)
    return torch.autograd.grad(value.sum(), leaf)[0] if gradient else value


def _by_class(component: object) -> bool:
    """Whether a gradient through all classes takes longer than one through two."""
    if isinstance(component, DiffusionClassifier):
        return component.denoiser.passes_per_level > 1
    return isinstance(component, Component) and any(_by_class(part) for part in component.parts())


def _too_long(classifier: DiffusionClassifier, pixels: Tensor) -> bool:
    """Whether a decision about one image would take longer than measuring may, by what one pass through the network takes."""
    x_t, sigma = 2 * pixels[:1] - 1, pixels.new_ones(1)
    passes = classifier.evaluations_per_image

    def one() -> None:
        with torch.no_grad():
            classifier.denoiser.denoise(x_t, sigma, torch.zeros(1, dtype=torch.long, device=x_t.device))

    one()
    return timed(one, classifier.device).own * passes > _LONGEST


class _Parts:
    """Seconds of one image, from one noise level and one step of likelihood maximisation.

    Args:
        times: measures calls.
        classifier: the same, by its own type.
    """

    def __init__(self, times: CallTimes, classifier: DiffusionClassifier) -> None:
        self.times, self.classifier = times, classifier
        self.bare = self.classifier.with_(levels=_first(self.classifier.levels, 1), lm=None)
        self.lm: Any = self.classifier.lm
        self._known: dict[Any, Seconds] = {}

    def seconds(self, kind: Call) -> Seconds:
        """Of a call on one image."""
        lm, steps = self.lm, 0 if self.lm is None else self.lm.steps
        if kind.role == "penalty":
            return self._step(kind).times(steps)
        if kind.role == "plain" or lm is None:
            steps = 0
        if kind.role == "one-step":
            steps = min(steps, 1)
        of_levels = self._once(("levels", kind.gradient, kind.classes), self.bare, kind).times(
            len(self.classifier.levels)
        )
        return of_levels if not steps else of_levels + self._step(kind).times(steps)

    def _step(self, kind: Call) -> Seconds:
        """One step of likelihood maximisation, its gradient included where it has one."""
        lm, looked = self.lm, 1 if self.lm.levels is None else len(self.lm.levels)
        changes = {"steps": 1} if lm.levels is None else {"steps": 1, "levels": _first(lm.levels, 1)}
        single = self.bare.with_(lm=dataclasses.replace(lm, **changes))
        if kind.role == "penalty":
            return self._once(("penalty", kind.gradient), single, kind).times(looked)
        exact = kind.gradient == "exact"
        mode = kind.gradient if exact else None
        both = self._once(("both", mode), single, dataclasses.replace(kind, role="model", gradient=mode, classes=2))
        alone = self._once(("levels", mode, 2), self.bare, dataclasses.replace(kind, gradient=mode, classes=2))
        return (both + alone.times(-1)).positive.times(looked)

    def _once(self, key: Any, classifier: Any, kind: Call) -> Seconds:
        if key not in self._known:
            role = kind.role if kind.role == "penalty" else "model"
            self._known[key] = self.times.once(classifier, dataclasses.replace(kind, role=role), 1)
        return self._known[key]


def _first(levels: NoiseLevels, count: int) -> NoiseLevels:
    return NoiseLevels(levels.sigma[:count], (1.0,) * min(count, len(levels)))


@contextlib.contextmanager
def untouched_generators() -> Iterator[None]:
    """Put the global random generators back afterwards: of torch (all devices), NumPy and Python."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
