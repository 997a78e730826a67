"""In what a classifier, as it describes itself, differs from a version of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rdc.arguments.paper_presets import PaperPreset
from rdc.method.levels import parse_levels
from rdc.method.likelihood_maximization import LM_PRESETS

__all__ = ["deviations"]


def deviations(preset: PaperPreset, described: Mapping[str, Any], noise: str) -> tuple[str, ...]:
    """Every setting of the classifier that is not the preset's, in words; () where it is the preset as it stands.

    Args:
        preset: a version of the paper.
        described: what the classifier says of itself (``Defence.describe``).
        noise: policy of the evaluation: "known", "fresh" or "all".

    Returns:
        Texts such as ``"levels: 2, log, sigma 0.5 to 1, in place of 125, systematic, sigma 0.0001 to 2.98"``.
    """
    found = [*_levels(preset, described), *_lm(preset, described)]
    if noise != preset.noise:
        found.append(f"noise: {noise} in place of {preset.noise}")
    if (head := described.get("head")) != "conditional":
        found.append(f"network: {head}, in place of a class-conditional one")
    return tuple(found)


def _levels(preset: PaperPreset, described: Mapping[str, Any]) -> list[str]:
    theirs, ours = parse_levels(preset.levels), described.get("levels")
    if not isinstance(ours, Mapping):
        return [f"levels: none in place of {_level_words(theirs.describe())}"]
    found = []
    if tuple(ours.get("sigma", ())) != theirs.sigma:
        found.append(f"levels: {_level_words(ours)} in place of {_level_words(theirs.describe())}")
    if (weighting := described.get("weighting")) != theirs.weighting:
        found.append(f"weighting: {weighting} in place of {theirs.weighting}")
    elif not found and tuple(ours.get("weight", ())) != theirs.weight:
        found.append(f"weighting: not the weights of {theirs.weighting}")
    return found


def _level_words(levels: Mapping[str, Any]) -> str:
    sigma = levels.get("sigma") or ()
    low, high = levels.get("sigma_min", min(sigma, default=0)), levels.get("sigma_max", max(sigma, default=0))
    count, scheme = levels.get("count", len(sigma)), levels.get("scheme", "custom")
    return f"{count} ({scheme}, sigma {low:.3g} to {high:.3g})"


def _lm(preset: PaperPreset, described: Mapping[str, Any]) -> list[str]:
    ours = described.get("lm")
    if not isinstance(ours, Mapping):
        return [f"likelihood maximisation: none in place of {preset.lm}"]
    found = []
    for name, theirs in LM_PRESETS[preset.lm].describe().items():
        if name != "name" and not _same(value := ours.get(name), theirs):
            found.append(f"likelihood maximisation, {name}: {_plain(value)} in place of {_plain(theirs)}")
    if not described.get("lm_network"):
        found.append(
            "likelihood maximisation: by the classifier's own network without a label, in place of a separate unconditional one "
            "(--lm-model)"
        )
    return found


def _same(ours: Any, theirs: Any) -> bool:
    """Equal, as JSON has it: a list is a tuple."""
    return bool(_listed(ours) == _listed(theirs))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return _level_words(value)
    if isinstance(value, (list, tuple)):
        return " to ".join(_plain(item) for item in value)
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else str(value).lower()
        if value in (None, True, False)
        else str(value)
    )
