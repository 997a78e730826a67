"""How long an evaluation will take, before it starts."""

from __future__ import annotations

import collections
import dataclasses
import math

import torch

from rdc.contracts import Defence, NoisePolicy
from rdc.data import Dataset
from rdc.evaluation.attacking import Bench, run_attack
from rdc.evaluation.cost.calls import Call, CallPlan, plan_calls, plan_sanity, with_length
from rdc.evaluation.cost.seconds import Seconds
from rdc.evaluation.cost.timing import CallTimes, untouched_generators
from rdc.evaluation.settings import EvaluationSettings

__all__ = ["Prediction", "predict"]

_MEASURED = 512  # images that calls are measured on, at most: as many as a call of the run has
_PROBED, _FEWEST = (
    128,
    8,
)  # images that a short attack, or none, tells how many stand: at most; and at least, unless the run has fewer
_PROBE_STEPS = (5, 2, 1)  # of the short attack: the most that there is time for
_LEAST = 0.01  # share that counts as standing where none does
_IN_A_FLOW = 32  # images of it, where there is time for more steps than those
_GRADUAL = ("flow", "l0", "lpips")  # images go on falling to the end of an attack
_PROBE_SECONDS, _PROBE_PART = 10.0, 1 / 10  # it may take so long, and this part of the run


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of a whole evaluation on this device.

    Args:
        at_most: if every image is right when clean and stands to the end of every attack.
        likely: where some images told how many do; else None.
        standing: share of them that are right, and stand after a short attack where there was time for one.
        calls: of the model, of any kind, on as many images together as there are; at most.
        attacked: there was.
    """

    at_most: Seconds
    likely: Seconds | None
    standing: float | None
    calls: int
    attacked: bool = True

    @property
    def best(self) -> Seconds:
        """The likely time where there is one, else the longest."""
        return self.at_most if self.likely is None else self.likely


def predict(
    classifier: Defence, dataset: Dataset, settings: EvaluationSettings, *, finished: int = 0, processes: int = 1
) -> Prediction:
    """Measure, count, multiply. Nothing that follows is changed by it.

    Args:
        classifier: what will be evaluated.
        dataset: its images.
        settings: as they are for this classifier.
        finished: batches that a run before this start has finished.
        processes: that share the batches.
    """
    with untouched_generators():
        return _predict(classifier, dataset, settings, finished, processes)


def _predict(
    classifier: Defence, dataset: Dataset, settings: EvaluationSettings, finished: int, processes: int
) -> Prediction:
    count = min(settings.n, max(settings.batch, _PROBED), _MEASURED)
    part = slice(settings.start, settings.start + count)
    noisiest = classifier.with_(noise=NoisePolicy(settings.policies[-1]))
    times = CallTimes(noisiest, dataset.pixels(part), dataset.labels[part], settings.attack_precision)
    whole = _whole(classifier, settings, 1.0, finished, processes)
    times.expect(whole.calls)
    at_most = _seconds(whole, times)
    calls, curve = round(sum(whole.calls.values())), _standing(times, settings, at_most)
    if curve is None:
        return Prediction(at_most, None, None, calls)
    plan = _whole(classifier, settings, _mean_share(curve, settings), finished, processes)
    return Prediction(at_most, _seconds(plan, times), curve[-1], calls, len(curve) > 1)


def _whole(classifier: Defence, settings: EvaluationSettings, share: float, finished: int, processes: int) -> CallPlan:
    """All batches, and the sanity checks, where this share of the images is attacked to the end."""
    full, rest = divmod(settings.n, settings.batch)
    found = CallPlan(collections.Counter())
    if settings.attacks and settings.sanity and not finished:
        found = found + plan_sanity(classifier, settings, _part(min(settings.sanity, settings.n), share))
    for size, count in ((settings.batch, max(0, full - finished)), (rest, 1)):
        if size and count:
            found = found + plan_calls(classifier, settings, size, _part(size, share)).times(
                math.ceil(count / processes)
            )
    return found


def _mean_share(curve: list[float], settings: EvaluationSettings) -> float:
    """Share of the images that is attacked at a time, mean over an attack of N steps.

    In a ball what falls falls early, for the first steps are as long as the radius: it is the share that stands at the end of the short
    attack. A flow grows from nothing, a set of pixels is sought, and images go on falling: behind the s steps that were seen as in their
    second half, exp(-h t), whose sum over the N - s steps that are left is (1 - exp(-h (N - s))) / h.

    Args:
        curve: share that stands after 0, 1, .. s steps of a short attack.
        settings: of the evaluation.
    """
    steps, whole = len(curve) - 1, settings.steps or 1
    if settings.norm not in _GRADUAL or not steps:
        return curve[-1]
    left, half = max(0, whole - steps), steps // 2
    falling = math.log(max(curve[half], _LEAST) / max(curve[steps], _LEAST)) / (steps - half)  # h
    later = curve[steps] * (-math.expm1(-falling * left) / falling if falling > 0 else left)
    return (sum(curve[: min(steps, whole)]) + later) / whole


def _part(size: int, share: float) -> int:
    return max(1, round(size * share))


def _seconds(plan: CallPlan, times: CallTimes) -> Seconds:
    total = plan.overhead
    for call, count in plan.calls.items():
        total = total + times.seconds(call).times(count)
    return total


def _standing(times: CallTimes, settings: EvaluationSettings, at_most: Seconds) -> list[float] | None:
    """Share of some images that are right and stand after 0, 1, .. steps of a short attack.

    Where an attack would take too long the share that is right when clean counts (0 steps); None where that would, too. Under fresh noise
    no image leaves an attack before its end, and the next attack goes on with all that are ever right: there it is that share as well,
    and so it is where no attack of the run has gradients, for a short attack with gradients breaks what a black box does not.
    """
    if times.parts is not None or not settings.attacks:
        return None
    allowed, size = min(_PROBE_SECONDS, _PROBE_PART * at_most.own), min(settings.batch, len(times.pixels))
    slope, plain = (
        max(1e-9, times.seconds(call).own / size)
        for call in (Call("model", size, str(settings.gradient), 2), Call("model", size))
    )
    follows = any(spec.kind.white_box for spec in settings.specs)  # the short attack follows gradients, Square does not
    lengths = (*_PROBE_STEPS, 0) if settings.policies[0] == "known" and follows else (0,)
    if settings.norm in _GRADUAL and len(lengths) > 1:
        several = int((allowed / min(_IN_A_FLOW, len(times.pixels)) - 2 * plain) / slope)
        lengths = (max(_PROBE_STEPS[0], min(several, settings.steps or 1)), *lengths[1:])
    for steps in lengths:
        each = steps * slope + (2 if steps else 1) * plain  # an attack asks at its beginning and at its end
        count = min(len(times.pixels), _PROBED, int(allowed / each))
        if count >= min(_FEWEST, settings.n):
            return _curve(times, settings, count, steps)
    return None


def _curve(times: CallTimes, settings: EvaluationSettings, count: int, steps: int) -> list[float]:
    """Of so many images, in batches of the run's size: the share that stands after each step, from 0 on."""
    bench = Bench(times.classifier, settings, 0, settings.policies[0])
    right = [0.0] * (steps + 1)
    for first in range(0, count, settings.batch):
        part = slice(first, min(count, first + settings.batch))
        pixels, labels, ids = times.pixels[part], times.labels[part], torch.arange(count)[part]
        if steps:
            sought = next(spec for spec in settings.specs if spec.kind.white_box)
            spec = with_length(sought, steps) if settings.norm in _GRADUAL else f"apgd-margin:steps={steps}"
            short = dataclasses.replace(settings, restarts=1, attacks=(spec,))
            found = run_attack(bench, short.specs[0], pixels, labels, ids, short, [], None)
            shares = found.accuracy_per_step
        else:
            with torch.no_grad():
                shares = [float((bench.model()(pixels).argmax(1) == labels).double().mean())]
        right = [so_far + share * len(pixels) for so_far, share in zip(right, shares, strict=True)]
    return [found / count for found in right]
