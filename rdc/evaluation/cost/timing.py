"""Seconds that calls of a model take here, measured on the first images of the run: a second or two, and no figure knows of it.

Everything is done with copies of the defence, and the global random generators are put back, so that what follows draws what it would
have drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.attacks.losses import Objective
from rdc.contracts import Defence
from rdc.evaluation.cost.calls import Call
from rdc.evaluation.cost.seconds import Seconds, timed
from rdc.method.classifier import DiffusionClassifier
from rdc.method.levels import NoiseLevels

__all__ = ["CallTimes", "untouched_generators"]

_EACH = 1.0  # seconds that one measured call should take at most
_LONGEST = 2.0  # seconds of a call on one image, beyond which parts of it are measured
_MOST = 32  # images of a measured call


class CallTimes:
    """Seconds of every kind of call, measured when first asked for.

    Args:
        classifier: the defence.
        pixels: [n, C, H, W], some images of the run.
        labels: [n].
    """

    def __init__(self, classifier: Defence, pixels: Tensor, labels: Tensor) -> None:
        self.classifier, self.pixels, self.labels = (
            classifier,
            pixels.to(classifier.device),
            labels.to(classifier.device),
        )
        self._points: dict[Call, tuple[Seconds, Seconds, int]] = {}
        self._warm: set[Call] = set()
        self.parts: _Parts | None = None
        if isinstance(classifier, DiffusionClassifier) and _too_long(classifier, self.pixels):
            self.parts = _Parts(self, classifier)

    def seconds(self, call: Call) -> Seconds:
        """Of one call."""
        kind = dataclasses.replace(call, images=1, every_class=call.every_class and _by_class(self.classifier))
        if kind not in self._points:
            self._points[kind] = self._measure(kind)
        one, several, count = self._points[kind]
        if call.images >= count:
            return several.times(call.images / count)
        slope = (several + one.times(-1)).times(1 / (count - 1))
        return (one + slope.times(call.images - 1)).positive

    def _measure(self, kind: Call) -> tuple[Seconds, Seconds, int]:
        """(seconds of one image, seconds of several together, how many): beyond these an image more takes what one of them takes."""
        if self.parts is not None:
            one = self.parts.seconds(kind)
            return one, one, 1
        one = self.once(self.classifier, kind, 1)
        count = min(_MOST, len(self.pixels), max(2, int(_EACH / max(one.own, 1e-9))))
        if count < 2 or one.own > _EACH:
            return one, one, 1
        return one, self.once(self.classifier, kind, count), count

    def once(self, classifier: Defence, kind: Call, count: int) -> Seconds:
        """One measured call on ``count`` images, after one that is not measured."""
        work = self._work(classifier, kind, count)
        if dataclasses.replace(kind, images=count) not in self._warm:
            self._warm.add(dataclasses.replace(kind, images=count))
            first = timed(work, classifier.device)
            if first.own > _LONGEST:
                return first
        found = [timed(work, classifier.device) for _ in range(3)]
        return sorted(found, key=lambda seconds: seconds.wall)[1]

    def _work(self, classifier: Defence, kind: Call, count: int) -> Callable[[], object]:
        mode = {} if kind.gradient is None else {"gradient": kind.gradient}
        model: Any = classifier.with_(**mode)
        if kind.role not in ("model", "penalty"):
            model = model.surrogates()[kind.role]
        pixels, labels = self.pixels[:count], self.labels[:count]
        if kind.role == "penalty":
            return lambda: _penalty(model, pixels, kind.gradient is not None)
        if kind.gradient is None:
            return lambda: _plain(model, pixels)
        objective = Objective(model, "ce" if kind.every_class else "margin")
        scale = torch.ones(count, dtype=torch.float64, device=pixels.device)
        return lambda: objective.evaluate(pixels, labels, scale, gradient=True)


def _plain(model: Defence, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pixels)


def _penalty(model: Defence, pixels: Tensor, gradient: bool) -> Tensor:
    leaf = pixels.clone().requires_grad_(gradient)
    value = model.penalty(leaf)
    return torch.autograd.grad(value.sum(), leaf)[0] if gradient else value


def _by_class(classifier: Defence) -> bool:
    """Whether a gradient through all classes takes longer than one through two."""
    return isinstance(classifier, DiffusionClassifier) and classifier.denoiser.passes_per_level > 1


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
        of_levels = self._once(("levels", kind.gradient, kind.every_class), self.bare, kind).times(
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
        both = self._once(
            ("both", mode), single, dataclasses.replace(kind, role="model", gradient=mode, every_class=False)
        )
        alone = self._once(
            ("levels", mode, False), self.bare, dataclasses.replace(kind, gradient=mode, every_class=False)
        )
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
