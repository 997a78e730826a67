"""Reasons to doubt a robustness figure, each with what raised it, what it means and what to do.

After the checks of AutoAttack (Croce & Hein 2020, arXiv 2003.01690) and of "Indicators of Attack Failure"
(Pintor et al. 2022, arXiv 2106.09947).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

__all__ = ["FLAGS", "Flag", "raise_flags"]


@dataclasses.dataclass(frozen=True)
class Flag:
    """One reason.

    Args:
        name: short, stable.
        severity: "warning": do not quote the figure without dealing with this; "note": say it beside the figure.
        raised_if: the condition.
        explanation: what it means.
        what_to_do: next step.
        check: run.json's identity and totals (summed over batches) -> evidence, or None when all is well.
    """

    name: str
    severity: str
    raised_if: str
    explanation: str
    what_to_do: str
    check: Callable[[dict[str, Any], dict[str, Any]], str | None]


def raise_flags(identity: dict[str, Any], totals: dict[str, Any]) -> list[dict[str, str]]:
    """The flags that hold, warnings first, as plain values for report.json."""
    found = []
    for flag in sorted(FLAGS, key=lambda flag: flag.severity != "warning"):
        evidence = flag.check(identity, totals)
        if evidence is not None:
            fields = {
                field.name: getattr(flag, field.name) for field in dataclasses.fields(flag) if field.name != "check"
            }
            found.append({**fields, "evidence": evidence})
    return found


def _has_lm(identity: dict[str, Any]) -> bool:
    lm = identity["classifier"]["lm"]
    return bool(lm) and lm != "none" and not (isinstance(lm, dict) and lm.get("steps") == 0)


def _no_attack(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    return None if identity["settings"]["attacks"] else "attacks: none"


def _training(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    return "split: train" if identity["settings"]["split"] == "train" else None


def _zero_gradients(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    blind = [
        f"{attack['name']}: {attack['blind_images']} of {attack['attacked']} images"
        for attack in totals["attacks"]
        if attack["blind_images"]
    ]
    return "; ".join(blind) or None


def _randomised(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    checks = totals["checks"]
    moved, spread = checks["repeat_difference"], checks["logit_spread"]
    if identity["settings"]["noise"] == "fresh" or moved is None or spread is None:
        return None
    if checks["repeat_decisions_changed"] or moved > 1e-4 * spread:
        changed = checks["repeat_decisions_changed"]
        return f"logits moved by up to {moved:.3g} (their spread is {spread:.3g}); {changed} decisions changed"
    return None


def _not_random(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    if identity["settings"]["noise"] == "known":
        return None
    return "two calls gave the same logits" if totals["checks"]["repeat_difference"] == 0 else None


def _not_log_probabilities(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    value = totals["checks"]["log_sum_exp"]
    if value is None:
        return "some log-sum-exp is not finite"
    return f"the largest |log-sum-exp| is {value:.3g}; it should be 0" if value > 1e-3 else None


def _unstable(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    count = totals["mismatches"] + sum(attack["verify_mismatches"] for attack in totals["attacks"])
    return f"{count} decisions" if count else None


def _non_finite(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    count = totals["non_finite"] + sum(attack["non_finite_images"] for attack in totals["attacks"])
    return f"{count} images" if count else None


def _bpda(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    return (
        "gradient: bpda, with likelihood maximisation"
        if identity["settings"]["gradient"] == "bpda" and _has_lm(identity)
        else None
    )


def _straight_through(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    lm = identity["classifier"]["lm"]
    through_sign = (
        _has_lm(identity) and isinstance(lm, dict) and lm.get("sign") and lm.get("optimizer", "momentum") == "momentum"
    )
    return (
        "LM steps take the sign of a gradient" if identity["settings"]["gradient"] == "exact" and through_sign else None
    )


def _wide(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    parts = []
    for what in ("clean", "robust"):
        interval = totals[what]["ci95"]
        if interval and interval[1] - interval[0] > 0.1:
            parts.append(f"{what} {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %")
    return f"n = {totals['n']}: {', '.join(parts)}" if parts else None


def _few_steps(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    steps = identity["settings"]["steps"]
    return f"steps: {steps}" if steps is not None and steps < 20 else None


def _few_draws(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    settings = identity["settings"]
    return (
        f"eot: {settings['eot']}"
        if settings["attacks"] and settings["noise"] == "fresh" and settings["eot"] < 20
        else None
    )


def _still_falling(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    late = [f"{name} broke {count} in its last tenth of steps" for name, count in totals["late"].items() if count]
    return "; ".join(late) or None


def _few_classes(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    swapped = [
        f"{a['name']} maximised {a['loss']}"
        for a in totals["attacks"]
        if a["loss"] and not a["name"].endswith(f"-{a['loss']}")
    ]
    return "; ".join(swapped) or None


FLAGS = (
    Flag(
        name="no-attack",
        severity="note",
        raised_if="the run has no attack",
        explanation="Only clean accuracy was measured; nothing here speaks about robustness.",
        what_to_do="Run with --attacks apgd-ce,apgd-dlr.",
        check=_no_attack,
    ),
    Flag(
        name="training-images",
        severity="warning",
        raised_if="the images are from the training split",
        explanation="The model has seen these images; accuracy on new ones is lower.",
        what_to_do="Quote figures on the test split only.",
        check=_training,
    ),
    Flag(
        name="zero-gradients",
        severity="warning",
        raised_if="at some step the gradient of a still robust image was zero everywhere or not finite",
        explanation=(
            "The attack was blind there, so these images were not attacked as meant. Robustness that comes "
            "from masked gradients vanishes under another attack."
        ),
        what_to_do=(
            "Attack with another loss (dlr and margin need no scale), check saturated logits, and add a "
            "black-box attack."
        ),
        check=_zero_gradients,
    ),
    Flag(
        name="randomised-output",
        severity="warning",
        raised_if="noise is said to be known and fixed, yet two calls on the same images differ",
        explanation=(
            "The attack works on one function and is scored on another; single-draw gradients underrate the attacker."
        ),
        what_to_do="Evaluate with --noise fresh --eot 20, or find what is not deterministic.",
        check=_randomised,
    ),
    Flag(
        name="not-random",
        severity="note",
        raised_if="noise is said to be fresh, yet two calls agree to the last bit",
        explanation="Averaging gradients over draws cost time and changed nothing.",
        what_to_do="Evaluate with --noise known.",
        check=_not_random,
    ),
    Flag(
        name="not-log-probabilities",
        severity="warning",
        raised_if="the log-sum-exp over classes of some output is not 0",
        explanation=(
            "The outputs are no log-probabilities: probabilities and confidences in this report mean nothing,"
            " and attacks that need a scale may stall."
        ),
        what_to_do="Normalise the model's output with log_softmax.",
        check=_not_log_probabilities,
    ),
    Flag(
        name="unstable-decisions",
        severity="warning",
        raised_if="an image's decision changed when it was evaluated again, alone or in another batch",
        explanation=(
            "Results depend on the batch or on rounding at the decision boundary. Such images count as not robust."
        ),
        what_to_do=("A few among thousands are rounding. More: the model mixes images of a batch, or is random."),
        check=_unstable,
    ),
    Flag(
        name="non-finite-logits",
        severity="warning",
        raised_if="the model returned NaN or infinity",
        explanation="These images count as misclassified; the model is broken on them.",
        what_to_do="Check the weights and the precision (bfloat16 or float16 overflow).",
        check=_non_finite,
    ),
    Flag(
        name="bpda-gradient",
        severity="warning",
        raised_if="the attacker took the Jacobian of likelihood maximisation as the identity",
        explanation=(
            "The robust accuracy is an upper bound: an attacker with exact gradients can do better, and often"
            " does by far."
        ),
        what_to_do="Quote the figure of --gradient exact.",
        check=_bpda,
    ),
    Flag(
        name="straight-through",
        severity="note",
        raised_if="exact gradients pass through sign steps of likelihood maximisation",
        explanation=(
            "The derivative of sign is zero almost everywhere; it is replaced by the identity, so for these "
            "steps 'exact' is an approximation."
        ),
        what_to_do="Compare with an LM preset without sign steps and with a black-box attack.",
        check=_straight_through,
    ),
    Flag(
        name="wide-interval",
        severity="note",
        raised_if="a 95 % interval is wider than 10 points (±5)",
        explanation="So few images cannot tell classifiers apart that differ by less than the interval.",
        what_to_do="Evaluate more images: 512 give ±4 points, 1000 give ±3.",
        check=_wide,
    ),
    Flag(
        name="few-steps",
        severity="warning",
        raised_if="an attack had fewer than 20 steps",
        explanation="The attack had little time; robustness is overrated.",
        what_to_do="Use --steps 50 or more.",
        check=_few_steps,
    ),
    Flag(
        name="few-draws",
        severity="warning",
        raised_if="noise is fresh and gradients average fewer than 20 draws",
        explanation="The attacker's gradient is noisy, which overrates robustness.",
        what_to_do="Use --eot 20 or more, or --noise known.",
        check=_few_draws,
    ),
    Flag(
        name="still-falling",
        severity="note",
        raised_if="an attack still broke images in the last tenth of its steps",
        explanation="The attack had not converged: more steps would break more.",
        what_to_do="Double --steps until the figure stays.",
        check=_still_falling,
    ),
    Flag(
        name="loss-replaced",
        severity="note",
        raised_if="an attack could not use its loss and took another",
        explanation="DLR needs three classes; below that the margin was used.",
        what_to_do="Nothing; the attack's name says more than it did.",
        check=_few_classes,
    ),
)
