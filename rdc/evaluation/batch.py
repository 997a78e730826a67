"""One batch: clean decisions, then attacks one after another, each on what is still robust, then the final score.

Against known noise an image is robust if it is right when clean and right on every image that any attack tried.

Against fresh noise an image is *submitted* R times, each time under another draw, when clean and after each attack.
Two figures come of it: the average share of right answers, and worst of R: right all R times. Later attacks go on with
images that were right at least once; each attack gives one adversarial image, and that with the fewest right answers is
kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.attacks import AttackResult, attack_named
from rdc.evaluation.settings import EvaluationSettings

__all__ = ["BatchResult", "evaluate_batch"]

_PROBED = 8  # images that are classified twice more, to see whether the classifier is what it says

Progress = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """What a batch of n images leaves behind.

    Args:
        images: n records for results.jsonl.
        totals: seconds, network evaluations, checks: one record that closes the batch.
        arrays: ``x_adv`` [n, C, H, W]; ``clean_logits``, ``adversarial_logits`` [n, K] (mean over draws); all float32.
    """

    images: list[dict[str, Any]]
    totals: dict[str, Any]
    arrays: dict[str, np.ndarray]


def evaluate_batch(
    classifier: Any,
    pixels: Tensor,
    labels: Tensor,
    ids: Tensor,
    settings: EvaluationSettings,
    index: int,
    progress: Progress | None = None,
) -> BatchResult:
    """Evaluate one batch. The result depends on the arguments only, never on batches done before.

    Args:
        classifier: a DiffusionClassifier.
        pixels: [n, C, H, W] float32 in [0, 1].
        labels: [n] int64.
        ids: [n] int64, positions in the data set.
        settings: what to do.
        index: number of the batch; batch 0 also checks the classifier's output.
        progress: called with attack, step, steps, restart, restarts, active, robust, total.
    """
    begun = time.monotonic()
    model = _player(classifier, settings, index)
    pixels, labels = pixels.to(model.device), labels.to(model.device)
    clean = _submit(model, pixels, labels, settings.resubmissions)
    checks = _check_output(model, pixels) if index == 0 else {}
    share, x_adv = clean.share.clone(), pixels.clone()
    histories: list[list[dict[str, Any]]] = [[] for _ in labels]
    attacks = []
    for name in settings.attacks:
        at = time.monotonic()
        rows = (share > 0).nonzero()[:, 0]
        result = None
        if len(rows):
            result = _attack(model, pixels[rows], labels[rows], ids[rows.cpu()], settings, name, progress)
            found = _share_after(model, result, labels[rows], settings)
            keep = rows[found <= share[rows]]
            x_adv[keep] = result.x_adv[found <= share[rows]]
            share[rows] = torch.minimum(share[rows], found)
            for place, row in enumerate(rows.tolist()):
                histories[row].append(_history(name, result, place, float(found[place]), settings))
        attacks.append(_attack_totals(name, result, share, time.monotonic() - at))
    final, mismatches = clean, 0
    if settings.attacks:
        final = _submit(model, x_adv, labels, settings.resubmissions)
        if settings.noise == "known":
            mismatches = int(((final.share > 0) != (share > 0)).sum())
        share = torch.minimum(share, final.share)
    images = [
        {
            "image": int(ids[row]),
            "label": int(labels[row]),
            "clean": {"predicted": int(clean.predicted[row]), "right": float(clean.share[row])},
            "attacks": histories[row],
            "adversarial": {"predicted": int(final.predicted[row]), "right": float(share[row])}
            if settings.attacks
            else None,
            "robust": bool(share[row] == 1) if settings.attacks else None,
        }
        for row in range(len(labels))
    ]
    totals = {
        "attacks": attacks,
        "checks": checks,
        "mismatches": mismatches,
        "non_finite": int((~torch.isfinite(clean.logits)).any(1).sum() + (~torch.isfinite(final.logits)).any(1).sum()),
        "network_evaluations": int(model.network_evaluations),
        "seconds": time.monotonic() - begun,
    }
    arrays = {"x_adv": x_adv, "clean_logits": clean.logits, "adversarial_logits": final.logits}
    return BatchResult(images, totals, {name: value.float().cpu().numpy() for name, value in arrays.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class _Score:
    share: Tensor  # [n] float64, fraction of submissions that were right
    logits: Tensor  # [n, K], mean over submissions
    predicted: Tensor  # [n] int64, of the mean logits


def _player(classifier: Any, settings: EvaluationSettings, index: int) -> Any:
    """A copy of the classifier whose draws start anew, so that a batch does not depend on the ones before."""
    changes: dict[str, Any] = {"noise": "fixed"}
    if settings.noise == "fresh":
        word = hashlib.sha256(f"rdc evaluation {settings.seed} {index}".encode()).digest()[:8]
        changes = {"noise": "fresh", "noise_seed": int.from_bytes(word, "little")}
    if settings.gradient is not None:
        changes["gradient"] = settings.gradient
    player = classifier.with_(**changes)
    player.network_evaluations = 0
    return player.eval()


def _submit(model: Any, pixels: Tensor, labels: Tensor, times: int) -> _Score:
    with torch.no_grad():
        draws = torch.stack([model(pixels) for _ in range(times)])
    right = (draws.argmax(2) == labels) & ~draws.isnan().any(2)
    mean = draws.mean(0)
    return _Score(right.double().mean(0), mean, mean.argmax(1))


def _attack(
    model: Any,
    pixels: Tensor,
    labels: Tensor,
    ids: Tensor,
    settings: EvaluationSettings,
    name: str,
    progress: Progress | None,
) -> AttackResult:
    return attack_named(name)(
        model,
        pixels,
        labels,
        settings.threat,
        seed=settings.seed,
        image_ids=ids,
        steps=settings.steps,
        restarts=settings.restarts,
        eot=settings.eot,
        redraw=model.redraw if settings.noise == "fresh" else None,
        progress=progress,
    )


def _share_after(model: Any, result: AttackResult, labels: Tensor, settings: EvaluationSettings) -> Tensor:
    if settings.noise == "known":
        return result.correct.double()
    return _submit(model, result.x_adv, labels, settings.resubmissions).share


def _history(name: str, result: AttackResult, place: int, share: float, settings: EvaluationSettings) -> dict[str, Any]:
    """One image in one attack; ``step`` and ``restart`` say when it was first misclassified (-1: never)."""
    return {
        "name": name,
        "right": share,
        "step": int(result.broken_at[place]),
        "restart": int(result.broken_restart[place]),
        "blind_steps": int(result.zero_gradient_steps[place]),
    }


def _attack_totals(name: str, result: AttackResult | None, share: Tensor, seconds: float) -> dict[str, Any]:
    return {
        "name": name,
        "loss": None if result is None else result.loss,
        "attacked": 0 if result is None else len(result.correct),
        "survivors": int((share == 1).sum()),
        "right": float(share.sum()),
        "blind_images": 0 if result is None else result.zero_gradient_images,
        "non_finite_images": 0 if result is None else int(result.non_finite_logits.sum()),
        "verify_mismatches": 0 if result is None else int(result.verify_mismatches or 0),
        "seconds": seconds,
    }


def _check_output(model: Any, pixels: Tensor) -> dict[str, float | None]:
    """Call it twice: does an image get the same answer, are the answers log-probabilities? None: not finite."""
    with torch.no_grad():
        first, second = (model(pixels[:_PROBED]) for _ in range(2))
    centred = first - first.mean(1, keepdim=True)
    found = {
        "repeat_difference": float((second - first).abs().max()),
        "logit_spread": float(centred.square().mean().sqrt()),
        "repeat_decisions_changed": int((first.argmax(1) != second.argmax(1)).sum()),
        "log_sum_exp": float(torch.logsumexp(first.double(), 1).abs().max()),
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
