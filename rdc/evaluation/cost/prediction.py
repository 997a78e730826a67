"""How long an evaluation will take, before it starts."""

from __future__ import annotations

import collections
import dataclasses
import math

import torch

from rdc.contracts import Defence
from rdc.data import Dataset
from rdc.evaluation.attacking import Bench, run_attack
from rdc.evaluation.cost.calls import Call, CallPlan, plan_calls, plan_sanity, with_length
from rdc.evaluation.cost.seconds import Seconds
from rdc.evaluation.cost.timing import CallTimes, untouched_generators
from rdc.evaluation.settings import EvaluationSettings

__all__ = ["Prediction", "predict"]

_MEASURED = 32  # images that calls are measured on, at most
_PROBED = 16  # images that a short attack tells how many stand
_PROBE_STEPS = 5
_PROBE_SECONDS = 4.0  # it may take


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of a whole evaluation on this device.

    Args:
        at_most: if every image is right when clean and stands to the end of every attack.
        likely: where a short attack told how many do; else None.
        standing: share of the probed images that are right, and stand after it.
        calls: of the model, of any kind, on as many images together as there are; at most.
    """

    at_most: Seconds
    likely: Seconds | None
    standing: float | None
    calls: int

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
    part = slice(settings.start, settings.start + min(settings.n, settings.batch, _MEASURED))
    times = CallTimes(classifier, dataset.pixels(part), dataset.labels[part])
    share = _standing(times, settings)
    whole = _whole(classifier, settings, 1.0, finished, processes)
    at_most = _seconds(whole, times)
    mean = None if share is None else _mean_share(share, settings)
    likely = None if mean is None else _seconds(_whole(classifier, settings, mean, finished, processes), times)
    return Prediction(at_most, likely, share, round(sum(whole.calls.values())))


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


def _mean_share(share: float, settings: EvaluationSettings) -> float:
    """Share of the images that is attacked at a time, mean over an attack, from the share that stands after a short one.

    In a ball what falls falls early: the first steps are as long as the radius. A flow grows from nothing, and images go on falling as
    they did in the short attack: exp(-h t) of them stand at step t, whose mean over N steps is (1 - exp(-h N)) / (h N).
    """
    if settings.norm != "flow":
        return share
    fallen = -math.log(max(share, 0.01)) * (settings.steps or 1) / _PROBE_STEPS  # h N
    return -math.expm1(-fallen) / fallen if fallen else 1.0


def _part(size: int, share: float) -> int:
    return max(1, round(size * share))


def _seconds(plan: CallPlan, times: CallTimes) -> Seconds:
    total = plan.overhead
    for call, count in plan.calls.items():
        total = total + times.seconds(call).times(count)
    return total


def _standing(times: CallTimes, settings: EvaluationSettings) -> float | None:
    """Share of some images that are right and stand after a short attack; None where that would take too long.

    Under fresh noise no image leaves an attack before its end, and the next attack goes on with all that are ever right: there the
    share that is right when clean counts.
    """
    if times.parts is not None or not settings.attacks:
        return None
    policy = settings.policies[0]
    steps = _PROBE_STEPS if policy == "known" else 0
    one = times.once(times.classifier, Call("model", 1, str(settings.gradient)), 1)
    count = min(len(times.pixels), _PROBED, int(_PROBE_SECONDS / max(1e-9, one.own * (steps + 1))))
    if count < min(4, len(times.pixels)):
        return None
    bench = Bench(times.classifier, settings, 0, policy)
    pixels, labels, ids = times.pixels[:count], times.labels[:count], torch.arange(count)
    if not steps:
        with torch.no_grad():
            return float((bench.model()(pixels).argmax(1) == labels).double().mean())
    spec = with_length(settings.specs[0], steps) if settings.norm == "flow" else f"apgd-margin:steps={steps}"
    short = dataclasses.replace(settings, restarts=1, attacks=(spec,))
    return float(run_attack(bench, short.specs[0], pixels, labels, ids, short, [], None).accuracy)
