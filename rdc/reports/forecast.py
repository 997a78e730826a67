"""What is said of an evaluation before it starts: how long it will take here, and what it will do."""

from __future__ import annotations

from rdc.arguments.paper_presets import PAPER_PRESETS
from rdc.contracts import Defence
from rdc.errors import one_line
from rdc.evaluation.cost import Prediction
from rdc.evaluation.settings import EvaluationSettings
from rdc.method.deviations import deviations

__all__ = ["about", "forecast_line", "plan_text"]

_LONG = 600.0  # seconds from which on a smaller run is suggested
_PART = 8  # it has this part of the images


def about(seconds: float) -> str:
    """A time in round numbers: "40 s", "12 min", "1 h 45 min", "14 h", "3 days"."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 10 * 60:
        hours, rest = divmod(5 * round(minutes / 5), 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    hours = round(minutes / 60)
    return f"{hours} h" if hours < 72 else f"{round(hours / 24)} days"


def forecast_line(prediction: Prediction, settings: EvaluationSettings) -> str:
    """One line, such as ``"about 14 h on this device at most; --n 64 takes 1 h 45 min"``."""
    longest = prediction.at_most.wall
    text = f"about {about(longest)} on this device at most"
    if prediction.likely is not None and prediction.likely.wall < 0.9 * longest:
        what = "stand after a short attack" if prediction.attacked else "are right when clean"
        share = f"{100 * (prediction.standing or 0):.0f} %"
        text += f", likely {about(prediction.likely.wall)} (of the first images {share} {what})"
    smaller = settings.n // _PART
    if longest > _LONG and smaller:
        text += f"; --n {smaller} takes {about(longest * smaller / settings.n)}"
    return text


def plan_text(prediction: Prediction, settings: EvaluationSettings, classifier: Defence) -> str:
    """What ``--dry-run`` prints: model, images, attacks, time; text that ends in a line break."""
    described = classifier.describe()
    levels = described.get("levels") or {}
    count = levels.get("count", len(levels.get("sigma", ()))) if isinstance(levels, dict) else 0
    lm = described.get("lm")
    images = f"{settings.n} of {one_line(settings.dataset)}, {settings.split} split, from {settings.start} on"
    rows = [
        ("model", f"{one_line(settings.model)}, {described['head']}, {classifier.evaluations_per_image:,} network passes a decision"),
        ("levels", f"{count}, weighting {described.get('weighting')}" if count else "none"),
        ("likelihood maximisation", lm.get("name", "custom") if isinstance(lm, dict) else "none"),
        ("images", f"{images}; batches of {settings.batch}"),
        ("attacks", ", ".join(settings.attacks) or "none"),
    ]  # fmt: skip
    if settings.attacks:
        eot = f", EOT {settings.eot}" if settings.noise != "known" else ""
        rows += [
            ("threat", f"{settings.norm} {settings.eps}, {settings.gradient} gradient, noise {settings.noise}{eot}"),
            ("steps x restarts", f"{settings.steps} x {settings.restarts}; sanity checks on {settings.sanity} images"),
        ]
    if settings.preset is not None:
        differs = deviations(PAPER_PRESETS[settings.preset], described, settings.noise)
        rows.append(("preset", settings.preset + (", but for" if differs else "")))
        rows += [("", one_line(text, 400)) for text in differs]
    rows += [("calls of the model", f"{prediction.calls:,} at most"), ("time", forecast_line(prediction, settings))]
    return "\n".join(f"{name:<24} {text}".rstrip() for name, text in rows) + "\nNothing was run (--dry-run).\n"
