"""How figures and settings are worded in every report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rdc.evaluation import Evaluation
from rdc.evaluation.records import SettingsRecord
from rdc.evaluation.report import PresetReport, Rate, Report, RobustRate
from rdc.storage.json_records import ABSENT, Absent, JsonObject, given

__all__ = ["NORM_WORDS", "UNITS", "Wording", "interval", "network_words", "percent", "rate", "seconds_words", "wording"]

#: norm -> as reports write it
NORM_WORDS = {
    "linf": "l∞",
    "l2": "l2",
    "l1": "l1",
    "l0": "l0",
    "flow": "flow",
    "lpips": "LPIPS",
    "corruption": "corruptions, severity",
}
_PIXELS = " in [0, 1] pixel units"
#: norm -> what stands behind a radius in a sentence
UNITS = {"linf": _PIXELS, "l2": _PIXELS, "l1": _PIXELS, "l0": " pixels", "flow": " in the [-1, 1] grid"}


@dataclasses.dataclass(frozen=True)
class Wording:
    """What every report says of a run, in the same words.

    Args:
        levels: "8 levels, sigma 0.8 to 4, log, weighting flat", as far as it is known.
        lm: likelihood maximisation: "none", or the preset's name with steps and radius.
        budget: what an attack may change: "l∞ 8/255".
        noise: "known noise", or "fresh noise, EOT 20, worst of 10".
        plain: it has no noise levels and maximises no likelihood: nothing is said of either.
        silent: it draws no noise, and none was asked for: nothing is said of noise.
        defence: "multi-head network", levels, "likelihood maximisation: none"; of a plain one the network alone.
        threat: "l∞ 8/255, exact gradient, known noise".
        restarts: "1 restart".
        time: of the whole run: "1 min 15 s".
        times: of each attack, in order.
        preset: "paper-v2", "paper-v2, but for noise: known in place of fresh", or "" where none was named.
    """

    levels: str
    lm: str
    budget: str
    noise: str
    plain: bool
    silent: bool
    defence: tuple[str, ...]
    threat: str
    restarts: str
    time: str
    times: tuple[str, ...]
    preset: str


def wording(evaluation: Evaluation) -> Wording:
    """The words for a finished run; of one without attacks only levels, likelihood maximisation and noise mean anything."""
    report, settings = evaluation.figures, evaluation.record.identity.settings
    classifier = report.classifier
    plain = classifier.get("levels") is None and not classifier.get("lm")
    silent = settings.noise == "known" and classifier.get("noise") == "none"
    levels, lm = _level_words(classifier), _lm_words(classifier)
    head = f"{classifier['head']} network"
    by = f" by {settings.lpips_model}" if settings.norm == "lpips" and settings.lpips_model is not ABSENT else ""
    budget = f"{NORM_WORDS.get(str(settings.norm), settings.norm)} {settings.eps}{by}"
    noise = _noise_words(settings)
    return Wording(
        levels,
        lm,
        budget,
        noise,
        plain=plain,
        silent=silent,
        defence=(head,) if plain else (head, levels, f"likelihood maximisation: {lm}"),
        threat=f"{budget}, {settings.gradient} gradient{_rounded(settings, classifier)}"
        + ("" if silent else f", {noise}"),
        restarts=f"{settings.restarts} restart{'s' if (settings.restarts or 1) > 1 else ''}",
        time=seconds_words(report.seconds),
        times=tuple(seconds_words(attack.seconds) for attack in report.attacks),
        preset=_preset_words(report.preset),
    )


def network_words(report: Report) -> tuple[str, ...]:
    """A line for each network where there are several: its use, name, kind, weights and digest, and what its null label is worth."""
    networks = given(report.networks) or ()
    if len(networks) < 2:
        return ()
    lines = []
    for network in networks:
        name = f"{network.name}, " if network.name else ""
        null = f"; null label: {network.null_label}" if network.null_label and network.kind != "unconditional" else ""
        lines.append(
            f"{network.role}: {name}{network.kind}, {network.parameters:,} weights, digest {network.weights}{null}"
        )
    return tuple(lines)


def percent(value: float | None, digits: int = 1) -> str:
    """0.7148 -> "71.5 %"; None -> "–"."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def interval(ends: Sequence[float] | None) -> str:
    """[0.65, 0.76] -> "[65.0, 76.0]"; None -> "–"."""
    return "–" if ends is None else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def rate(value: Rate | RobustRate) -> str:
    """A figure with its interval: "71.5 % [65.0, 76.0]"."""
    return "not attacked" if value.accuracy is None else f"{percent(value.accuracy)} {interval(value.ci95)}"


def _rounded(settings: SettingsRecord, classifier: JsonObject) -> str:
    """ " in bfloat16, decisions in float32", where attacks compute in a precision of their own."""
    if settings.attack_precision is ABSENT:
        return ""
    return f" in {settings.attack_precision}, decisions in {classifier.get('precision') or 'float32'}"


def _noise_words(settings: SettingsRecord) -> str:
    """ "known noise", or "fresh noise, EOT 20, worst of 10"."""
    if settings.noise == "known":
        return "known noise"
    eot = f", EOT {settings.eot}" if settings.eot else ""
    if settings.noise == "all":
        return f"known noise, then fresh noise{eot}, worst of {settings.resubmissions}"
    return f"fresh noise{eot}, worst of {settings.resubmissions}"


def _preset_words(preset: PresetReport | Absent) -> str:
    """The preset's name, and all that differs from it."""
    if isinstance(preset, Absent):
        return ""
    return f"{preset.name}, but for {'; '.join(preset.deviations)}" if preset.deviations else preset.name


def _level_words(classifier: JsonObject) -> str:
    """ "8 levels, sigma 0.8 to 4, log, weighting flat" as far as it is known."""
    levels = classifier.get("levels")
    if levels is None:
        return "no noise levels"
    if not isinstance(levels, dict):
        return str(levels)
    sigma = levels.get("sigma") or []
    count = levels.get("count", len(sigma))
    parts = [f"{count} level{'' if count == 1 else 's'}"]
    low, high = levels.get("sigma_min", min(sigma, default=None)), levels.get("sigma_max", max(sigma, default=None))
    if low is not None and high is not None:
        parts.append(f"sigma {low:.3g} to {high:.3g}" if low != high else f"sigma {low:.3g}")
    if levels.get("scheme"):
        parts.append(str(levels["scheme"]))
    if levels.get("noise"):
        parts.append(f"{levels['noise']} noise")
    return ", ".join([*parts, f"weighting {classifier.get('weighting')}"])


def _lm_words(classifier: JsonObject) -> str:
    """ "none", or the preset's name with steps and radius."""
    lm = classifier.get("lm")
    if not lm:
        return "none"
    if not isinstance(lm, dict):
        return str(lm)
    if lm.get("name") == "diffpure":
        return f"DiffPure, sigma {lm['sigma']:.3g}, {lm['steps']} steps, {lm['sampler']}"
    parts = [str(lm.get("name", "custom")), f"{lm.get('steps')} steps of {lm.get('optimizer')}"]
    if lm.get("eta") is not None:
        parts.append(f"within {255 * lm['eta']:.3g}/255")
    return ", ".join(parts)


def seconds_words(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
