"""Looking for signs that an evaluation fails: checks of the output, and short extra attacks on a few images.

After the checks of AutoAttack (Croce & Hein 2020, arXiv 2003.01690), the checklist of Carlini et al. 2019 (arXiv
1902.06705) and "Indicators of Attack Failure" (Pintor et al. 2022, arXiv 2106.09947). Nothing here changes a figure of the
run; ``evaluation.flags`` reads what is found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from rdc.attacks import ThreatModel, apgd
from rdc.attacks.losses import Objective
from rdc.attacks.pgd import Progress
from rdc.contracts import Defence, GradientMode, NoisePolicy
from rdc.errors import InputError
from rdc.evaluation.attacking import Bench
from rdc.evaluation.records import OutputChecks
from rdc.evaluation.sanity_records import GradientPath, GradientShape, GradientShares, NoiseShares, Sanity, ShortAttack
from rdc.evaluation.settings import DEFAULT_EOT, EvaluationSettings
from rdc.norm_balls import distance, project, steepest_direction

__all__ = ["SHORT_STEPS", "check_output", "run_sanity"]

SHORT_STEPS = 20  # of the longest extra attack
_PROBED = 8  # images that are classified twice more, to see whether the classifier is what it says
_STRIDE = 8  # steps of the path that would cross the ball's radius
_PATH_STEPS = 12


def check_output(model: Callable[[Tensor], Tensor], pixels: Tensor) -> OutputChecks:
    """Call it twice: same answer? log-probabilities, probabilities? does it optimise while it classifies?

    Args:
        model: pixels -> logits.
        pixels: [n, C, H, W]; at most 8 are used.

    Returns:
        What was found; None where a figure is not finite.
    """
    pixels = pixels[:_PROBED]
    with torch.no_grad(), _counting_gradients() as counts:
        first = model(pixels).double()
    with torch.no_grad():
        second = model(pixels).double()
    centred = first - first.mean(1, keepdim=True)
    total = first.sum(1)
    return OutputChecks(
        repeat_difference=_finite((second - first).abs().max()),
        logit_spread=_finite(centred.square().mean().sqrt()),
        repeat_decisions_changed=int((first.argmax(1) != second.argmax(1)).sum()),
        log_sum_exp=_finite(torch.logsumexp(first, 1).abs().max()),
        probabilities=bool((first >= 0).all() and ((total - 1).abs() < 1e-3).all()),
        gradients_inside=counts[0],
    )


@contextlib.contextmanager
def _counting_gradients() -> Iterator[list[int]]:
    """How often anything asks autograd for a gradient meanwhile: a list of one number."""
    counts, names = [0], ("grad", "backward")
    real = {name: getattr(torch.autograd, name) for name in names}

    def counted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            counts[0] += 1
            return real[name](*arguments, **options)

        return call

    try:
        for name in names:
            setattr(torch.autograd, name, counted(name))
        yield counts
    finally:
        for name in names:
            setattr(torch.autograd, name, real[name])


def run_sanity(
    classifier: Defence,
    pixels: Tensor,
    labels: Tensor,
    ids: Tensor,
    settings: EvaluationSettings,
    progress: Progress | None = None,
) -> Sanity:
    """Short attacks on m images, in l_inf and l_2 alone (other threat models get an empty answer).

    Args:
        classifier: the defence.
        pixels, labels, ids: [m, C, H, W], [m], [m].
        settings: of the evaluation.
        progress: as of ``evaluate_batch``.

    Returns:
        What was found (None where a figure is not finite): ``n`` images that are right when clean, ``budgets`` and ``steps``
        (accuracy and mean loss for growing eps and growing length), ``large_eps``, ``path`` (does the loss rise, is the
        budget used), ``gradient`` (does it depend on the image, how many entries are zero), ``bpda`` and ``fresh``
        (accuracies beside each other).
    """
    if settings.norm not in ("linf", "l2") or not settings.sanity:
        return Sanity()
    pixels, labels = pixels.to(classifier.device), labels.to(classifier.device)
    bench = Bench(classifier, settings, 0, settings.policies[0])
    probe = _Probe(bench, settings, pixels, labels, ids, progress)
    if probe.n == 0:
        return Sanity(n=0)
    try:
        found = _short_attacks(probe, classifier, settings)
    except InputError as error:  # no gradient to be had
        found = Sanity(n=probe.n, error=str(error))
    return dataclasses.replace(found, network_evaluations=bench.evaluations + probe.extra)


def _short_attacks(probe: _Probe, classifier: Defence, settings: EvaluationSettings) -> Sanity:
    steps = min(SHORT_STEPS, max(4, settings.steps or SHORT_STEPS))
    eps = settings.radius
    whole, twice = (probe.attack(eps * factor, steps) for factor in (1.0, 2.0))
    short = probe.attack(eps, max(1, steps // 4))
    large = probe.attack(_large(probe.norm, probe.pixels), steps)
    path, gradient = probe.path(eps)
    found = Sanity(probe.n, (whole, twice), (short, whole), large, path, gradient)
    if classifier.purifies and settings.policies[0] == "known":
        exact, bpda = (
            probe.attack(eps, steps, gradient=mode).accuracy for mode in (GradientMode.EXACT, GradientMode.BPDA)
        )
        found = dataclasses.replace(found, bpda=GradientShares(exact, bpda))
    if classifier.stochastic and settings.noise == "known":
        found = dataclasses.replace(found, fresh=NoiseShares(whole.accuracy, probe.fresh(eps, steps)))
    return found


def _large(norm: str, pixels: Tensor) -> float:
    """A radius at which anything can be made of an image: grey in l_inf, as far in l_2."""
    return 0.5 if norm == "linf" else 0.5 * math.sqrt(pixels[0].numel())


class _Probe:
    """Short attacks on the images that are right when clean."""

    def __init__(
        self,
        bench: Bench,
        settings: EvaluationSettings,
        pixels: Tensor,
        labels: Tensor,
        ids: Tensor,
        progress: Progress | None,
    ) -> None:
        self.bench, self.settings, self.progress, self.extra = bench, settings, progress, 0
        assert settings.norm is not None
        self.norm: str = settings.norm
        self.fresh_policy = bench.policy == "fresh"
        with torch.no_grad():
            logits = bench.model()(pixels)
        right = ((logits.argmax(1) == labels) & ~logits.isnan().any(1)).nonzero()[:, 0]
        self.pixels, self.labels, self.ids, self.n = pixels[right], labels[right], ids[right.cpu()], len(right)

    def _arguments(self, model: Defence) -> dict[str, Any]:
        random = {"redraw": model.redraw, "eot": min(self.settings.eot or 1, 4)} if self.fresh_policy else {}
        return {"seed": self.settings.seed, "image_ids": self.ids, "progress": self.progress, **random}

    def attack(self, eps: float, steps: int, gradient: str | None = None) -> ShortAttack:
        """APGD on the margin: radius, steps, accuracy, mean loss of the image kept."""
        model = self.bench.model(gradient)
        threat = ThreatModel(self.norm, eps)
        result = apgd(model, self.pixels, self.labels, threat, steps=steps, loss="margin", **self._arguments(model))
        loss = result.best_loss.clamp(min=-1e30, max=1e30).mean()
        return ShortAttack(eps, steps, result.accuracy, _finite(loss))

    def fresh(self, eps: float, steps: int) -> float:
        """Accuracy, average of draws, where the defence draws fresh noise and the attacker averages a few."""
        model = self.bench.classifier.with_(noise=NoisePolicy.FRESH, noise_seed=1 + self.settings.seed)
        threat = ThreatModel(self.norm, eps)
        draws = min(4, DEFAULT_EOT)
        result = apgd(
            model,
            self.pixels,
            self.labels,
            threat,
            steps=steps,
            loss="margin",
            eot=draws,
            redraw=model.redraw,
            seed=self.settings.seed,
            image_ids=self.ids,
            progress=self.progress,
        )
        with torch.no_grad():
            right = torch.stack([model(result.x_adv).argmax(1) == self.labels for _ in range(draws)]).double()
        self.extra += model.network_evaluations
        return float(right.mean())

    def path(self, eps: float) -> tuple[GradientPath, GradientShape]:
        """Steps of eps/8 along the gradient from the clean image, no restart, no step-size rule: what a smooth loss allows."""
        model, norm = self.bench.model(), self.norm
        random = self._arguments(model)
        objective = Objective(model, "margin", eot=random.get("eot", 1), redraw=random.get("redraw"))
        x, losses, gradients = self.pixels, [], []
        _, _, scale = objective.start(x, self.labels)
        for _ in range(_PATH_STEPS):
            evaluation = objective.evaluate(x, self.labels, scale, gradient=True)
            losses.append(evaluation.loss)
            gradients.append(evaluation.slope)
            move = eps / _STRIDE * steepest_direction(evaluation.slope, norm)
            x = project(x.double() + move, self.pixels, eps, norm)
        losses.append(objective.evaluate(x, self.labels, scale, gradient=False).loss)
        loss = torch.stack(losses)  # [S + 1, m]
        falls = (loss[1:] < loss[:-1] - 1e-9 * loss.abs().amax().clamp_min(1e-12)).double().mean()
        first = gradients[0].flatten(1)
        path = GradientPath(
            falls=_finite(falls),
            gain=_finite((loss[-1] - loss[0]).clamp(-1e30, 1e30).mean()),
            used=_finite((distance(x, self.pixels, norm) / eps).mean()) if eps else 1.0,
            steps=_PATH_STEPS,
        )
        return path, GradientShape(_finite((first == 0).double().mean()), _finite(_constant(gradients)))


def _finite(value: Any) -> float | None:
    """A number as JSON can hold it; None for NaN and infinity."""
    value = float(value)
    return value if math.isfinite(value) else None


def _constant(gradients: list[Tensor]) -> float:
    """Mean cosine similarity of an image's gradients along its path: 1 where they never change."""
    stack = torch.stack([gradient.flatten(1) for gradient in gradients])  # [S, m, D]
    unit = stack / stack.norm(dim=2, keepdim=True).clamp_min(1e-300)
    return float((unit[1:] * unit[:1]).sum(2).mean())
