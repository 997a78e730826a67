"""The conditions of ``evaluation.flags``: a run's identity and totals -> evidence, or None when all is well."""

from __future__ import annotations

from collections.abc import Mapping

from rdc.decisions.answers import uncalibrated
from rdc.evaluation.records import Identity
from rdc.evaluation.totals import RunTotals
from rdc.storage.json_records import JsonObject, given


def _has_lm(classifier: JsonObject) -> bool:
    lm = classifier["lm"]
    return bool(lm) and lm != "none" and not (isinstance(lm, Mapping) and lm.get("steps") == 0)


def no_attack(identity: Identity, totals: RunTotals) -> str | None:
    return None if identity.settings.attacks else "attacks: none"


def training(identity: Identity, totals: RunTotals) -> str | None:
    return "split: train" if identity.settings.split == "train" else None


def zero_gradients(identity: Identity, totals: RunTotals) -> str | None:
    blind = [
        f"{total.name}: {total.blind_images} of {total.attacked} images"
        for total in totals.of_attacks
        if total.blind_images
    ]
    return "; ".join(blind) or None


def vanishing(identity: Identity, totals: RunTotals) -> str | None:
    gradient = totals.sanity.gradient
    share = gradient.zero_entries if gradient else None
    return f"{100 * share:.0f} % of the entries of clean gradients are exactly 0" if share and share > 0.5 else None


def constant(identity: Identity, totals: RunTotals) -> str | None:
    gradient = totals.sanity.gradient
    cosine = gradient.constant if gradient else None
    return f"cosine similarity along a path of 12 steps: {cosine:.6f}" if cosine and cosine > 0.9999 else None


def randomised(identity: Identity, totals: RunTotals) -> str | None:
    """Two calls differ though the noise is said to be fixed: a decision changed, or logits by 1e-4 of their spread."""
    moved, spread = given(totals.checks.repeat_difference), given(totals.checks.logit_spread)
    if identity.settings.noise == "fresh" or moved is None or spread is None:
        return None
    changed = given(totals.checks.repeat_decisions_changed)
    if changed or moved > 1e-4 * spread:
        return f"logits moved by up to {moved:.3g} (their spread is {spread:.3g}); {changed} decisions changed"
    return None


def not_random(identity: Identity, totals: RunTotals) -> str | None:
    if identity.settings.noise != "fresh":
        return None
    return "two calls gave the same logits" if totals.checks.repeat_difference == 0 else None


def not_log_probabilities(identity: Identity, totals: RunTotals) -> str | None:
    if identity.classifier.get("weighting") is None:  # not a diffusion classifier: plain logits are fine
        return None
    value = given(totals.checks.log_sum_exp)
    if value is None:
        return "some log-sum-exp is not finite"
    return f"the largest |log-sum-exp| is {value:.3g}; it should be 0" if value > 1e-3 else None


def uncalibrated_confidence(identity: Identity, totals: RunTotals) -> str | None:
    """Of diffusion classifiers, whose description has a logit scale."""
    if "logit_scale" not in identity.classifier:
        return None
    settings = identity.settings
    own = all(given(value) is None for value in (settings.levels, settings.lm, settings.lm_model))
    return uncalibrated(identity.classifier["logit_scale"], own) or None


def softmax(identity: Identity, totals: RunTotals) -> str | None:
    return "every output is >= 0 and each row sums to 1" if totals.checks.probabilities else None


def optimises(identity: Identity, totals: RunTotals) -> str | None:
    count = totals.checks.gradients_inside
    return f"{count} calls of autograd inside one call of the model" if count else None


def unstable(identity: Identity, totals: RunTotals) -> str | None:
    count = totals.mismatches + sum(total.verify_mismatches for total in totals.of_attacks)
    return f"{count} decisions" if count else None


def non_finite(identity: Identity, totals: RunTotals) -> str | None:
    count = totals.non_finite + sum(total.non_finite_images for total in totals.of_attacks)
    return f"{count} images" if count else None


def bpda(identity: Identity, totals: RunTotals) -> str | None:
    modes = {total.gradient for total in totals.of_attacks if total.attacked} - {None}
    return (
        "no attack had exact gradients, and the input is purified first"
        if modes == {"bpda"} and identity.purifies
        else None
    )


def bpda_above(identity: Identity, totals: RunTotals) -> str | None:
    pair = totals.sanity.bpda
    if not pair or pair.bpda - pair.exact <= 0.1:
        return None
    return f"short attack on {totals.sanity.n} images: BPDA leaves {_share(pair.bpda)}, exact {_share(pair.exact)}"


def known_below(identity: Identity, totals: RunTotals) -> str | None:
    """From the run's own scores where both noises were attacked, else from the short attacks."""
    pair, scores = totals.sanity.fresh, totals.scores
    n: int | None = totals.n
    if identity.settings.noise == "all" and scores.known and scores.average:
        known, fresh = scores.known.accuracy, scores.average.accuracy
    elif pair:
        known, fresh, n = pair.known, pair.fresh, given(totals.sanity.n)
    else:
        return None
    if fresh - known <= 0.1:
        return None
    return f"on {n} images: {_share(known)} against its own noise, {_share(fresh)} on average against fresh noise"


def anytime(identity: Identity, totals: RunTotals) -> str | None:
    rule = identity.classifier.get("anytime")
    if not rule:
        return None
    looked = f", {rule['mean_levels']:.1f} of {rule['levels']} levels on average" if "mean_levels" in rule else ""
    return f"stated rate of decisions that differ from the full ones: {100 * rule['error_rate']:g} %{looked} on clean images"


def class_elimination(identity: Identity, totals: RunTotals) -> str | None:
    rule = identity.classifier.get("elimination")
    if not rule or not rule["under_attack"]:
        return None
    share = 100 * rule["passes"] / rule["full_passes"]
    return f"{rule['passes']:,} of {rule['full_passes']:,} passes ({share:.1f} %), schedule {rule['schedule']}, in every call"


def straight_through(identity: Identity, totals: RunTotals) -> str | None:
    lm = identity.classifier["lm"]
    signs = isinstance(lm, Mapping) and lm.get("sign") and lm.get("optimizer", "momentum") == "momentum"
    through_sign = _has_lm(identity.classifier) and signs
    return "LM steps take the sign of a gradient" if identity.settings.gradient == "exact" and through_sign else None


def untrained_null_label(identity: Identity, totals: RunTotals) -> str | None:
    return _null_labels(identity, "never trained")


def unknown_null_label(identity: Identity, totals: RunTotals) -> str | None:
    return _null_labels(identity, "unknown")


def _null_labels(identity: Identity, state: str) -> str | None:
    named = [
        f"{network.name or network.kind}, {network.role}: {network.why}"
        for network in given(identity.networks) or ()
        if network.null_label == state
    ]
    return "; ".join(named) or None


def square(identity: Identity, totals: RunTotals) -> str | None:
    white_box = False  # has one attacked before
    for attack in totals.attacks:
        if not attack.totals.name.startswith(("square", "hop-skip-jump")):
            white_box = white_box or bool(attack.totals.gradient and attack.totals.attacked)
        elif white_box and attack.broken >= max(1, 0.002 * totals.n):
            return f"it broke {attack.broken} of the {attack.totals.attacked} images that white-box attacks had left"
    return None


def no_effect(identity: Identity, totals: RunTotals) -> str | None:
    """Twice the radius: neither a lower accuracy nor a higher loss. (More steps may well bring nothing: convergence.)"""
    budgets, steps = totals.sanity.budgets, totals.sanity.steps
    if not budgets or not steps or budgets[0].accuracy == 0:
        return None
    (first, last), (short, full) = budgets, steps
    if first.loss is None or last.loss is None:
        return None
    if last.accuracy < first.accuracy or last.loss > first.loss + 1e-3 * abs(first.loss):
        return None
    return (
        f"radius {first.eps:.3g} and {last.eps:.3g}: accuracy {_share(first.accuracy)} and "
        f"{_share(last.accuracy)}, mean loss {first.loss:.3g} and {last.loss:.3g}; {short.steps} and "
        f"{full.steps} steps: accuracy {_share(short.accuracy)} and {_share(full.accuracy)}"
    )


def large_eps(identity: Identity, totals: RunTotals) -> str | None:
    large = totals.sanity.large_eps
    if not large or large.accuracy == 0:
        return None
    return f"radius {large.eps:.3g}, {large.steps} steps: {_share(large.accuracy)} still right"


def not_monotone(identity: Identity, totals: RunTotals) -> str | None:
    path = totals.sanity.path
    if path and path.gain is None:
        return "the loss along the gradient is not finite"
    if not path or path.falls is None or path.falls <= 0.3:
        return None
    return f"the loss fell in {100 * path.falls:.0f} % of the steps along the gradient"


def unused(identity: Identity, totals: RunTotals) -> str | None:
    path = totals.sanity.path
    if not path or path.used is None or path.used >= 0.8:
        return None
    return f"after {path.steps} steps of eps/8 images have moved {100 * path.used:.0f} % of eps"


def not_checked(identity: Identity, totals: RunTotals) -> str | None:
    if not identity.settings.attacks:
        return None
    error = given(totals.sanity.error)
    if error is not None:
        return error
    return None if totals.sanity.n else "no sanity checks were made (sanity 0, no image right, or another threat model)"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def wide(identity: Identity, totals: RunTotals) -> str | None:
    parts = []
    for what, interval in (("clean", totals.clean.ci95), ("robust", totals.robust.ci95)):
        if interval and interval[1] - interval[0] > 0.1:
            parts.append(f"{what} {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %")
    return f"n = {totals.n}: {', '.join(parts)}" if parts else None


def few_steps(identity: Identity, totals: RunTotals) -> str | None:
    lengths = [total.steps for total in totals.of_attacks if total.gradient and total.attacked]
    return f"the longest attack had {max(lengths)} steps" if lengths and max(lengths) < 20 else None


def few_draws(identity: Identity, totals: RunTotals) -> str | None:
    settings, eot = identity.settings, given(identity.settings.eot)
    return f"eot: {eot}" if settings.attacks and settings.noise != "known" and eot is not None and eot < 20 else None


def still_falling(identity: Identity, totals: RunTotals) -> str | None:
    late = [f"{name} broke {count} in its last tenth of steps" for name, count in totals.late.items() if count]
    return "; ".join(late) or None


def few_classes(identity: Identity, totals: RunTotals) -> str | None:
    swapped = [
        f"{total.name} maximised {total.loss}"
        for total in totals.of_attacks
        if total.loss == "margin" and "dlr" in total.name
    ]
    return "; ".join(swapped) or None
