"""The conditions of ``evaluation.flags``: run.json's identity and the run's totals -> evidence, or None when all is well."""

from __future__ import annotations

from typing import Any


def _has_lm(identity: dict[str, Any]) -> bool:
    lm = identity["classifier"]["lm"]
    return bool(lm) and lm != "none" and not (isinstance(lm, dict) and lm.get("steps") == 0)


def no_attack(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    return None if identity["settings"]["attacks"] else "attacks: none"


def training(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    return "split: train" if identity["settings"]["split"] == "train" else None


def zero_gradients(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    blind = [
        f"{attack['name']}: {attack['blind_images']} of {attack['attacked']} images"
        for attack in totals["attacks"]
        if attack["blind_images"]
    ]
    return "; ".join(blind) or None


def vanishing(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    share = _found(totals, "gradient", "zero_entries")
    return f"{100 * share:.0f} % of the entries of clean gradients are exactly 0" if share and share > 0.5 else None


def constant(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    cosine = _found(totals, "gradient", "constant")
    return f"cosine similarity along a path of 12 steps: {cosine:.6f}" if cosine and cosine > 0.9999 else None


def randomised(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    """Two calls differ though the noise is said to be fixed: a decision changed, or logits by 1e-4 of their spread."""
    checks = totals["checks"]
    moved, spread = checks["repeat_difference"], checks["logit_spread"]
    if identity["settings"]["noise"] == "fresh" or moved is None or spread is None:
        return None
    if checks["repeat_decisions_changed"] or moved > 1e-4 * spread:
        changed = checks["repeat_decisions_changed"]
        return f"logits moved by up to {moved:.3g} (their spread is {spread:.3g}); {changed} decisions changed"
    return None


def not_random(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    if identity["settings"]["noise"] != "fresh":
        return None
    return "two calls gave the same logits" if totals["checks"]["repeat_difference"] == 0 else None


def not_log_probabilities(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    if identity["classifier"].get("weighting") is None:  # not a diffusion classifier: plain logits are fine
        return None
    value = totals["checks"]["log_sum_exp"]
    if value is None:
        return "some log-sum-exp is not finite"
    return f"the largest |log-sum-exp| is {value:.3g}; it should be 0" if value > 1e-3 else None


def softmax(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    return "every output is >= 0 and each row sums to 1" if totals["checks"].get("probabilities") else None


def optimises(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    count = totals["checks"].get("gradients_inside", 0)
    return f"{count} calls of autograd inside one call of the model" if count else None


def unstable(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    count = totals["mismatches"] + sum(attack["verify_mismatches"] for attack in totals["attacks"])
    return f"{count} decisions" if count else None


def non_finite(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    count = totals["non_finite"] + sum(attack["non_finite_images"] for attack in totals["attacks"])
    return f"{count} images" if count else None


def bpda(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    modes = {attack["gradient"] for attack in totals["attacks"] if attack["attacked"]} - {None}
    return (
        "no attack had exact gradients, and the input is purified first"
        if modes == {"bpda"} and identity.get("purifies")
        else None
    )


def bpda_above(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    pair = _found(totals, "bpda")
    if not pair or pair["bpda"] - pair["exact"] <= 0.1:
        return None
    return f"short attack on {totals['sanity']['n']} images: BPDA leaves {_share(pair['bpda'])}, exact {_share(pair['exact'])}"


def known_below(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    """From the run's own scores where both noises were attacked, else from the short attacks."""
    pair = _found(totals, "fresh")
    scores = totals.get("scores", {})
    if identity["settings"]["noise"] == "all" and {"known", "average"} <= set(scores):
        known, fresh, n = scores["known"]["accuracy"], scores["average"]["accuracy"], totals["n"]
    elif pair:
        known, fresh, n = pair["known"], pair["fresh"], totals["sanity"]["n"]
    else:
        return None
    if fresh - known <= 0.1:
        return None
    return f"on {n} images: {_share(known)} against its own noise, {_share(fresh)} on average against fresh noise"


def anytime(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    rule = identity["classifier"].get("anytime")
    if not rule:
        return None
    looked = f", {rule['mean_levels']:.1f} of {rule['levels']} levels on average" if "mean_levels" in rule else ""
    return f"stated rate of decisions that differ from the full ones: {100 * rule['error_rate']:g} %{looked} on clean images"


def straight_through(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    lm = identity["classifier"]["lm"]
    through_sign = (
        _has_lm(identity) and isinstance(lm, dict) and lm.get("sign") and lm.get("optimizer", "momentum") == "momentum"
    )
    return (
        "LM steps take the sign of a gradient" if identity["settings"]["gradient"] == "exact" and through_sign else None
    )


def square(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    white = [attack for attack in totals["attacks"] if not attack["name"].startswith("square")]
    for place, attack in enumerate(totals["attacks"]):
        before = [other for other in totals["attacks"][:place] if other in white and other["attacked"]]
        if attack["name"].startswith("square") and before and attack["broken"] >= max(1, 0.002 * totals["n"]):
            return f"it broke {attack['broken']} of the {attack['attacked']} images that white-box attacks had left"
    return None


def no_effect(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    """Twice the radius: neither a lower accuracy nor a higher loss. (More steps may well bring nothing: convergence.)"""
    pair = _found(totals, "budgets")
    if not pair or pair[0]["accuracy"] == 0:
        return None
    first, last = pair
    if first["loss"] is None or last["loss"] is None:
        return None
    if last["accuracy"] < first["accuracy"] or last["loss"] > first["loss"] + 1e-3 * abs(first["loss"]):
        return None
    short, full = _found(totals, "steps")
    return (
        f"radius {first['eps']:.3g} and {last['eps']:.3g}: accuracy {_share(first['accuracy'])} and "
        f"{_share(last['accuracy'])}, mean loss {first['loss']:.3g} and {last['loss']:.3g}; {short['steps']} and "
        f"{full['steps']} steps: accuracy {_share(short['accuracy'])} and {_share(full['accuracy'])}"
    )


def large_eps(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    large = _found(totals, "large_eps")
    if not large or large["accuracy"] == 0:
        return None
    return f"radius {large['eps']:.3g}, {large['steps']} steps: {_share(large['accuracy'])} still right"


def not_monotone(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    path = _found(totals, "path")
    if path and path["gain"] is None:
        return "the loss along the gradient is not finite"
    if not path or path["falls"] is None or path["falls"] <= 0.3:
        return None
    return f"the loss fell in {100 * path['falls']:.0f} % of the steps along the gradient"


def unused(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    path = _found(totals, "path")
    if not path or path["used"] is None or path["used"] >= 0.8:
        return None
    return f"after {path['steps']} steps of eps/8 images have moved {100 * path['used']:.0f} % of eps"


def not_checked(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    if not identity["settings"]["attacks"]:
        return None
    sanity = totals.get("sanity") or {}
    if "error" in sanity:
        return sanity["error"]
    return None if sanity.get("n") else "no sanity checks were made (sanity 0, no image right, or another threat model)"


def _found(totals: dict[str, Any], *keys: str) -> Any:
    """A value of the sanity checks, None where it is missing."""
    value: Any = totals.get("sanity") or {}
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def wide(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    parts = []
    for what in ("clean", "robust"):
        interval = totals[what]["ci95"]
        if interval and interval[1] - interval[0] > 0.1:
            parts.append(f"{what} {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %")
    return f"n = {totals['n']}: {', '.join(parts)}" if parts else None


def few_steps(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    lengths = [a["steps"] for a in totals["attacks"] if a["gradient"] and a["attacked"]]
    return f"the longest attack had {max(lengths)} steps" if lengths and max(lengths) < 20 else None


def few_draws(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    settings = identity["settings"]
    return (
        f"eot: {settings['eot']}"
        if settings["attacks"] and settings["noise"] != "known" and settings["eot"] < 20
        else None
    )


def still_falling(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    late = [f"{name} broke {count} in its last tenth of steps" for name, count in totals["late"].items() if count]
    return "; ".join(late) or None


def few_classes(identity: dict[str, Any], totals: dict[str, Any]) -> str | None:
    swapped = [
        f"{a['name']} maximised {a['loss']}" for a in totals["attacks"] if a["loss"] == "margin" and "dlr" in a["name"]
    ]
    return "; ".join(swapped) or None
