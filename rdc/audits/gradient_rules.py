"""Rules about gradients: whether an attack that follows them can find anything. Most are flags of ``rdc evaluate``, word for word."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rdc.audits.rule import ERROR, WARNING, Outcome, Rule
from rdc.audits.short_attacks import ShortAttacks
from rdc.audits.slopes import Slopes
from rdc.evaluation.flags import FLAGS
from rdc.evaluation.report import RaisedFlag

__all__ = ["GRADIENT_RULES", "NO_GRADIENT", "SETTING_RULES"]


def _zero(found: Slopes) -> Outcome:
    words = f"{found.zero} of {found.n} gradients are zero everywhere"
    return Outcome(found.zero > 0, words, {"zero": found.zero, "n": found.n})


def _not_finite(found: Slopes) -> Outcome:
    words = f"{found.not_finite} of {found.n} gradients have an entry that is NaN or infinite"
    return Outcome(found.not_finite > 0, words, {"not finite": found.not_finite, "n": found.n})


def _wrong(found: Slopes) -> Outcome:
    if not found.compared:
        return Outcome(False, "no gradient could be compared with differences")
    words = (
        f"{found.wrong} of {found.compared} slopes along the gradient differ from it by more than half at steps of 0.003, 0.03 and 0.1; "
        f"{found.reversed} have the other sign; measured / promised is {found.ratio:.3g} in the median"
    )
    numbers = {"wrong": found.wrong, "reversed": found.reversed, "compared": found.compared, "ratio": found.ratio}
    return Outcome(2 * found.wrong > found.compared, words, numbers)


def _saturated(found: Slopes) -> Outcome:
    words = (
        f"{found.silent} of {found.n} images have a margin with a gradient, and a cross-entropy without one (float32); the softmax of "
        f"{found.confident} is exactly 1, the highest logit is ahead by {found.gap:.3g} in the median"
    )
    numbers = {"silent": found.silent, "n": found.n, "softmax of 1": found.confident, "lead": found.gap}
    return Outcome(4 * found.silent >= found.n, words, numbers)


_FEWEST = 2  # images that two shares must lie apart


def _slope(condition: str, shown: str) -> str:
    """The line of a rule about the gradients g [8, C, H, W]."""
    return f"z = 0.1 + 0.8 * x[:8]; g = rdc.audits.margin_gradient(model, z); print(bool({condition}), {shown})"


NO_GRADIENT = Rule(
    "no-gradient",
    ERROR,
    "the logits do not depend differentiably on the pixels",
    "The path is cut: no_grad, detach, NumPy. White-box attacks cannot run, and what else was run says little.",
    "Let the model compute with torch to the end; where it cannot, give the attack a differentiable stand-in.",
    "z = x[:4].clone().requires_grad_(); out = model(z); "
    "g = torch.autograd.grad(out.sum(), z, allow_unused=True)[0] if out.requires_grad else None; print(g is None)",
    "slopes",
    lambda found: Outcome(False, f"gradients of {found.n} images were taken"),
)

_OWN = (
    NO_GRADIENT,
    Rule(
        "zero-gradient",
        WARNING,
        "the gradient of an image's margin is zero everywhere",
        "The attack stands still there. Robustness that comes from masked gradients vanishes under another attack.",
        "Find what is flat: rounding, a detached branch, saturation. Attack a smooth stand-in, and with square.",
        _slope("(g == 0).flatten(1).all(1).any()", "int((g == 0).flatten(1).all(1).sum())"),
        "slopes",
        _zero,
    ),
    Rule(
        "non-finite-gradient",
        WARNING,
        "a gradient has an entry that is NaN or infinite",
        "An attack throws such entries away, or stops: it sees part of the model only.",
        "Find the root of 0, division by 0 or logarithm of 0 that is differentiated.",
        _slope("not g.isfinite().all()", "int((~g.isfinite()).flatten(1).any(1).sum())"),
        "slopes",
        _not_finite,
    ),
    Rule(
        "wrong-gradient",
        WARNING,
        "on more than half of the images no difference along the gradient agrees with it to within a half",
        "The gradient is another function's: a stand-in (BPDA), one with its sign turned, or one of ripples too "
        "fine to matter. An attack "
        "that follows it walks elsewhere.",
        "Use the derivative of what is computed; where there is none, average differences, or attack with square "
        "and by transfer.",
        _slope(
            "(r := rdc.audits.measured_slope(model, z, g, 0.03) / g.flatten(1).norm(dim=1)).sub(1).abs().median() > 0.5",
            "r.tolist()",
        ),
        "slopes",
        _wrong,
    ),
    Rule(
        "saturated-softmax",
        WARNING,
        "on a quarter of the images the cross-entropy has no gradient in float32, while the margin has one",
        "Logits so far apart round to a softmax of 0 and 1. Attacks on the cross-entropy, as most tools have "
        "them, stand still; rdc's own "
        "take log-odds and do not.",
        "Divide the logits by a constant, or attack margin and DLR: neither changes with their scale.",
        "z = x[:8].clone().requires_grad_(); l = torch.nn.functional.cross_entropy(model(z).float(), model(z).argmax(1)); "
        "g = torch.autograd.grad(l, z)[0]; n = int(((g == 0).flatten(1).float().mean(1) > 0.5).sum()); print(n > "
        "1, n, 'of', len(z))",
        "slopes",
        _saturated,
    ),
)


def _flag_check(name: str, raised_if: str) -> Callable[[Mapping[str, RaisedFlag]], Outcome]:
    def check(flags: Mapping[str, RaisedFlag]) -> Outcome:
        flag = flags.get(name)
        return Outcome(flag is not None, f"not so: {raised_if}" if flag is None else flag.evidence)

    return check


def _of_flag(name: str, of: str) -> Rule:
    """A flag of ``rdc evaluate`` as a rule; it is decided there and nowhere else."""
    flag = next(flag for flag in FLAGS if flag.name == name)
    check = _flag_check(name, flag.raised_if)
    show = (
        "r = rdc.evaluate(model, x[:4], y[:4], attacks='apgd-ce', steps=10, sanity=4); "
        f"print('{name}' in [f.name for f in r.figures.flags], [f.name for f in r.figures.flags])"
    )

    def of_attacks(found: ShortAttacks) -> Outcome:
        outcome, apart = check(found.flags), found.apart(name)
        if outcome.raised and apart is not None and apart < _FEWEST:
            return Outcome(False, f"{outcome.words}: less than two images' worth, which is chance", {"images": found.n})
        return Outcome(outcome.raised, outcome.words, {"images": found.n})

    judged = of_attacks if of == "short attacks" else check
    return Rule(name, flag.severity, flag.raised_if, flag.explanation, flag.what_to_do, show, of, judged)


_OF_ATTACKS = (
    "vanishing-gradient",
    "constant-gradient",
    "budget-without-effect",
    "large-eps-not-zero",
    "loss-not-monotone",
    "budget-not-used",
    "bpda-above-exact",
    "known-below-fresh",
)
_OF_SETTINGS = (
    "anytime-decisions",
    "class-elimination",
    "straight-through",
    "untrained-null-label",
    "null-label-unknown",
)

GRADIENT_RULES = (*_OWN, *(_of_flag(name, "short attacks") for name in _OF_ATTACKS))
SETTING_RULES = tuple(_of_flag(name, "settings") for name in _OF_SETTINGS)
