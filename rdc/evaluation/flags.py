"""Reasons to doubt a robustness figure, each with what raised it, what it means and what to do (docs/evaluation_flags.md).

After the checks of AutoAttack (Croce & Hein 2020, arXiv 2003.01690), the checklist of Carlini et al. 2019 (arXiv
1902.06705) and "Indicators of Attack Failure" (Pintor et al. 2022, arXiv 2106.09947). What is found by whom:
``sanity.check_output`` on the first batch, ``sanity.run_sanity`` on a few images, the run's own attacks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rdc.evaluation import flag_checks as checks
from rdc.evaluation.records import Identity
from rdc.evaluation.report import RaisedFlag
from rdc.evaluation.totals import RunTotals

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
        check: a run's identity and totals (summed over batches) -> evidence, or None when all is well.
    """

    name: str
    severity: str
    raised_if: str
    explanation: str
    what_to_do: str
    check: Callable[[Identity, RunTotals], str | None]


def raise_flags(identity: Identity, totals: RunTotals) -> tuple[RaisedFlag, ...]:
    """The flags that hold, warnings first."""
    found = []
    for flag in sorted(FLAGS, key=lambda flag: flag.severity != "warning"):
        evidence = flag.check(identity, totals)
        if evidence is not None:
            words = (flag.name, flag.severity, flag.raised_if, flag.explanation, flag.what_to_do)
            found.append(RaisedFlag(*words, evidence))
    return tuple(found)


FLAGS = (
    Flag(
        name="no-attack",
        severity="note",
        raised_if="the run has no attack",
        explanation="Only clean accuracy was measured; nothing here speaks about robustness.",
        what_to_do="Run with --attacks apgd-ce,apgd-dlr.",
        check=checks.no_attack,
    ),
    Flag(
        name="training-images",
        severity="warning",
        raised_if="the images are from the training split",
        explanation="The model has seen these images; accuracy on new ones is lower.",
        what_to_do="Quote figures on the test split only.",
        check=checks.training,
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
        check=checks.zero_gradients,
    ),
    Flag(
        name="vanishing-gradient",
        severity="warning",
        raised_if="more than half of the entries of the clean images' gradients are exactly zero",
        explanation=(
            "Something on the way is flat (rounding, thresholds, saturation, a detached branch). The attack sees only "
            "part of the model."
        ),
        what_to_do="Attack a smooth surrogate (transfer), give the flat part a differentiable stand-in, add square.",
        check=checks.vanishing,
    ),
    Flag(
        name="constant-gradient",
        severity="note",
        raised_if="the gradient does not change along an attack path (mean cosine similarity above 0.9999)",
        explanation=(
            "The model is linear, or its gradient is not its own: a stand-in that ignores where the image is. A "
            "stand-in's direction is right in one place at most."
        ),
        what_to_do="If the model is not linear, find what replaces its gradient; add square, which needs none.",
        check=checks.constant,
    ),
    Flag(
        name="randomised-output",
        severity="warning",
        raised_if="noise is said to be known and fixed, yet two calls on the same images differ",
        explanation=(
            "The attack works on one function and is scored on another; single-draw gradients underrate the attacker."
        ),
        what_to_do="Evaluate with --noise fresh --eot 20, or find what is not deterministic.",
        check=checks.randomised,
    ),
    Flag(
        name="not-random",
        severity="note",
        raised_if="noise is said to be fresh, yet two calls agree to the last bit",
        explanation="Averaging gradients over draws cost time and changed nothing.",
        what_to_do="Evaluate with --noise known.",
        check=checks.not_random,
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
        check=checks.not_log_probabilities,
    ),
    Flag(
        name="uncalibrated-confidence",
        severity="note",
        raised_if="no held-out image has set the logit scale with which the run was made",
        explanation="Accuracies stand; the probabilities in this report are no more than a ranking of the classes.",
        what_to_do="Fit the scale: rdc calibrate --model NAME --write. It changes no decision.",
        check=checks.uncalibrated_confidence,
    ),
    Flag(
        name="softmax-output",
        severity="warning",
        raised_if="the outputs are probabilities: not negative, each row sums to one",
        explanation=("Where a probability rounds to 0 or 1 its gradient vanishes, and losses made for logits stall."),
        what_to_do="Return logits, or log-probabilities computed by log_softmax.",
        check=checks.softmax,
    ),
    Flag(
        name="test-time-optimisation",
        severity="note",
        raised_if="the model asks autograd for gradients while it classifies",
        explanation=(
            "It optimises its input (or itself) first. Attacks that do not go through that, or stop at detached "
            "gradients, overrate it."
        ),
        what_to_do="Use exact gradients, and the adaptive attacks: --attacks autoattack,adaptive.",
        check=checks.optimises,
    ),
    Flag(
        name="square-beats-white-box",
        severity="warning",
        raised_if="Square or HopSkipJump, which see no gradient, broke at least 0.2 % of the images (one at least) after white-box attacks",
        explanation="A black-box attack knows less and should find less: the gradients were masked or the attacks too short.",
        what_to_do="More steps and restarts, other losses, adaptive attacks; do not quote the white-box figure.",
        check=checks.square,
    ),
    Flag(
        name="budget-without-effect",
        severity="warning",
        raised_if="twice the radius neither lowers accuracy nor raises the loss of a short attack",
        explanation="More freedom must help an attacker that works. This one does not follow the model.",
        what_to_do="Look for masked gradients: constant, zero or random ones. Add square and adaptive attacks.",
        check=checks.no_effect,
    ),
    Flag(
        name="large-eps-not-zero",
        severity="warning",
        raised_if="with a radius that allows any image (l_inf 0.5) a short attack leaves some images right",
        explanation="At that radius every image can be turned into grey, so accuracy must fall to 0. The attack fails.",
        what_to_do="Look for masked gradients; attack with more steps, other losses, square, adaptive attacks.",
        check=checks.large_eps,
    ),
    Flag(
        name="loss-not-monotone",
        severity="warning",
        raised_if="small steps along the gradient lower the attack's loss in more than 30 % of the cases",
        explanation="The gradient does not predict what the model does next to the image: noise, or shattered gradients.",
        what_to_do="Average over draws (eot), use a smooth surrogate, add square.",
        check=checks.not_monotone,
    ),
    Flag(
        name="budget-not-used",
        severity="warning",
        raised_if="twelve steps of eps/8 along the gradient move images by less than 80 % of eps",
        explanation="The attack walks in circles or stands still: its gradients vanish or turn at every step.",
        what_to_do="Larger steps, random starts, another loss; look for flat or oscillating parts of the model.",
        check=checks.unused,
    ),
    Flag(
        name="sanity-not-checked",
        severity="note",
        raised_if="attacks were run, but the sanity checks were not",
        explanation="Signs of masked gradients were not looked for, beyond what the attacks themselves show.",
        what_to_do="Run with --sanity 8 (l_inf or l_2).",
        check=checks.not_checked,
    ),
    Flag(
        name="unstable-decisions",
        severity="warning",
        raised_if="an image's decision changed when it was evaluated again, alone or in another batch",
        explanation=(
            "Results depend on the batch or on rounding at the decision boundary. Such images count as not robust."
        ),
        what_to_do=("A few among thousands are rounding. More: the model mixes images of a batch, or is random."),
        check=checks.unstable,
    ),
    Flag(
        name="non-finite-logits",
        severity="warning",
        raised_if="the model returned NaN or infinity",
        explanation="These images count as misclassified; the model is broken on them.",
        what_to_do="Check the weights and the precision (bfloat16 or float16 overflow).",
        check=checks.non_finite,
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
        check=checks.bpda,
    ),
    Flag(
        name="bpda-above-exact",
        severity="warning",
        raised_if="a short attack with BPDA leaves more than 10 points more than the same with exact gradients",
        explanation="Taking the purifier's Jacobian as the identity misleads the attacker here: BPDA figures are far too high.",
        what_to_do="Quote exact gradients only, here and wherever this defence is compared.",
        check=checks.bpda_above,
    ),
    Flag(
        name="known-below-fresh",
        severity="warning",
        raised_if="accuracy against known noise is more than 10 points below the average against fresh noise",
        explanation=(
            "Much of the robustness against fresh noise is the attacker's noisy gradient. Who fixes or learns the "
            "noise, or submits often, gets the lower figure."
        ),
        what_to_do="Quote the known-noise figure (--noise all reports every scoring); raise eot.",
        check=checks.known_below,
    ),
    Flag(
        name="anytime-decisions",
        severity="warning",
        raised_if="the model stops looking at noise levels as soon as it holds its decision for settled",
        explanation=(
            "The stopping rule was calibrated on images that nobody had tampered with; its error rate says nothing about adversarial "
            "ones, and a figure measured with it is not that of the full classifier."
        ),
        what_to_do="Attack and quote the full classifier; keep anytime decisions for clean inference.",
        check=checks.anytime,
    ),
    Flag(
        name="class-elimination",
        severity="warning",
        raised_if="the model was told to leave classes out under attack, too",
        explanation=(
            "Which classes are dropped after few noise levels is control flow: gradients see only those that were kept, and attackers can "
            "look for images of which the right class is dropped early. The figure is not that of the full classifier."
        ),
        what_to_do="Attack and quote the full classifier, which an eliminating one is unless under_attack is set.",
        check=checks.class_elimination,
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
        check=checks.straight_through,
    ),
    Flag(
        name="untrained-null-label",
        severity="warning",
        raised_if="likelihood maximisation or a purifier asks a network without a label, and its training never did",
        explanation=(
            "A class-conditional network trained with labels alone answers without one all the same, but what it says there was never "
            "learnt: the input is not moved uphill in likelihood."
        ),
        what_to_do="Move the input by an unconditional network (--lm-model), or train with label dropout.",
        check=checks.untrained_null_label,
    ),
    Flag(
        name="null-label-unknown",
        severity="note",
        raised_if="likelihood maximisation or a purifier asks a network without a label, and nobody knows if its training ever did",
        explanation="Of a network that never was trained so, the answer without a label means nothing.",
        what_to_do="Find out how it was trained; or move the input by an unconditional network (--lm-model).",
        check=checks.unknown_null_label,
    ),
    Flag(
        name="wide-interval",
        severity="note",
        raised_if="a 95 % interval is wider than 10 points (±5)",
        explanation="So few images cannot tell classifiers apart that differ by less than the interval.",
        what_to_do="Evaluate more images: 512 give ±4 points, 1000 give ±3.",
        check=checks.wide,
    ),
    Flag(
        name="few-steps",
        severity="warning",
        raised_if="no gradient attack had 20 steps or more",
        explanation="The attacks had little time; robustness is overrated.",
        what_to_do="Use --steps 50 or more.",
        check=checks.few_steps,
    ),
    Flag(
        name="few-draws",
        severity="warning",
        raised_if="noise is fresh and gradients average fewer than 20 draws",
        explanation="The attacker's gradient is noisy, which overrates robustness.",
        what_to_do="Use --eot 20 or more, or --noise known.",
        check=checks.few_draws,
    ),
    Flag(
        name="still-falling",
        severity="note",
        raised_if="an attack still broke images in the last tenth of its steps",
        explanation="The attack had not converged: more steps would break more.",
        what_to_do="Double --steps until the figure stays.",
        check=checks.still_falling,
    ),
    Flag(
        name="loss-replaced",
        severity="note",
        raised_if="an attack could not use its loss and took another",
        explanation="DLR needs three classes; below that the margin was used.",
        what_to_do="Nothing; the attack's name says more than it did.",
        check=checks.few_classes,
    ),
)
