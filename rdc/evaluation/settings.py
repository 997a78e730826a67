"""What one evaluation is: everything that decides its figures, checked when made."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.defaults import EvaluationDefaults
from rdc.arguments.paper_presets import paper_preset
from rdc.arguments.scalars import as_integer, as_number, shown
from rdc.attacks import ThreatModel, parse_attack, parse_attacks, parse_eps
from rdc.attacks.options import SteppedOptions
from rdc.attacks.registry import SUITES, AttackSpec, applies, expand_attacks
from rdc.contracts import Defence, GradientMode
from rdc.errors import ConfigError

__all__ = ["DEFAULT_EOT", "NORMS", "EvaluationSettings", "parse_attacks"]

_DEFAULT = EvaluationDefaults()
DEFAULT_EOT = _DEFAULT.eot  # model calls averaged per gradient against fresh noise
NORMS = ("linf", "l2", "l1", "l0", "flow", "lpips", "corruption")
_POLICIES = {"known": ("known",), "fresh": ("fresh",), "all": ("known", "fresh")}
#: largest values; n and start are bounded by the data
_MOST: dict[str, int] = {"batch": 1_000_000, "resubmissions": 100_000, "sanity": 1_000_000} | {
    field.name: field.metadata["most"] for field in dataclasses.fields(SteppedOptions) if field.metadata.get("most")
}
_ATTACK_FIELDS = ("norm", "eps", "steps", "restarts", "gradient", "eot", "sanity", "attack_precision")
#: where they are None, as in folders of earlier versions
_UNSAID = ("preset", "lm_model", "attack_precision", "lpips_model")


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation. Two runs with equal settings, weights and images give equal figures.

    Args:
        model: preset name, path or ``package.module:factory``, as given.
        dataset: data-set name or path, as given.
        n: images, >= 1.
        split: "train" or "test".
        start: position of the first image.
        attacks: texts such as ``"apgd-ce:gradient=bpda:steps=20"`` (``rdc.attacks.registry``), run one after another, each
            on the images still robust; suites are written out; () for clean accuracy alone. Or one text with commas.
        norm: "linf", "l2", "l1", "l0" (eps pixels), "flow": spatial transformations, eps bounds the flow (``rdc.attacks.stadv``),
            "lpips": eps bounds a distance of features (``rdc.attacks.perceptual_distance``), or "corruption": eps is the largest
            severity, 1 to 5 (``rdc.attacks.corruptions``).
        eps: radius in [0, 1] pixel units: a number or text such as "8/255".
        steps: of each restart.
        restarts: random starts of each attack.
        gradient: "exact", or "bpda": the attacker takes the Jacobian of likelihood maximisation as the identity.
        noise: "known": the classifier keeps one fixed draw and the attacker has that very draw; "fresh": it draws anew
            in every call, the attacker averages over draws, and each adversarial image is submitted several times;
            "all": both, one after the other, the lowest score counts.
        eot: model calls averaged for each gradient against fresh noise (default 20).
        resubmissions: how often an image is submitted to fresh noise.
        sanity: images on which short extra attacks look for signs of a failing evaluation (``evaluation.sanity``).
        seed: of random starts, and of the draws when noise is fresh.
        batch: images worked on together; also what is lost at most when the process is killed.
        levels: noise levels in place of the model's own: preset name or scheme:count:min:max:weighting.
        lm: likelihood maximisation in place of the model's own: preset name or "none".
        lm_model: the diffusion model that likelihood maximisation moves the input by: preset name, path or ``optimal:DATA``; None: the
            model's own network.
        precision: what a diffusion model's network computes in, "float32", "bfloat16" or "auto" (the report names what it
            chose, and why); None: the model's own.
        attack_precision: what the network computes the attacks' gradients in, "float32" or "bfloat16"; decisions, black-box attacks and
            sanity checks stay in ``precision``. None: everything does.
        lpips_model: the classifier whose features measure the distance of "lpips": preset name, path or ``torchvision:NAME``; other norms
            leave it alone.
        preset: version of the paper that the run is to follow (``rdc.arguments.paper_presets``); it sets nothing here, and the report
            names what differs from it.

    Raises:
        ConfigError: a setting is unknown, out of range, or does not go with another.
    """

    model: str
    dataset: str
    n: int = _DEFAULT.n
    split: str = _DEFAULT.split
    start: int = _DEFAULT.start
    attacks: tuple[str, ...] = _DEFAULT.attacks
    norm: str | None = _DEFAULT.norm
    eps: str | float | None = _DEFAULT.eps
    steps: int | None = _DEFAULT.steps
    restarts: int | None = _DEFAULT.restarts
    gradient: str | None = _DEFAULT.gradient
    noise: str = _DEFAULT.noise
    eot: int | None = None
    resubmissions: int = _DEFAULT.resubmissions
    sanity: int | None = _DEFAULT.sanity
    seed: int = _DEFAULT.seed
    batch: int = _DEFAULT.batch
    levels: str | None = None
    lm: str | None = None
    precision: str | None = None
    preset: str | None = None
    lm_model: str | None = None
    attack_precision: str | None = None
    lpips_model: str | None = None

    def __post_init__(self) -> None:
        _choice("split", self.split, ("test", "train"))
        _choice("noise", self.noise, tuple(_POLICIES))
        for name in ("model", "dataset", "levels", "lm", "lm_model", "precision", "lpips_model"):
            self._text(name, optional=name not in ("model", "dataset"))
        for name, least in (("n", 1), ("start", 0), ("seed", 0), ("batch", 1), ("resubmissions", 1)):
            self._count(name, least, _MOST.get(name))
        if self.seed >= 2**64:
            raise ConfigError(f"seed: expected less than 2^64; got {shown(self.seed)}")
        if self.preset is not None:
            paper_preset(self.preset)
        object.__setattr__(self, "attacks", expand_attacks(_names(self.attacks), self.norm))
        if self.attack_precision is not None:
            _choice("attack_precision", self.attack_precision, ("float32", "bfloat16"))
        if not self.attacks:
            if self.noise == "known":
                object.__setattr__(self, "resubmissions", 1)
            for name in _ATTACK_FIELDS:
                object.__setattr__(self, name, None)
            return
        self._check_attacks()

    def _check_attacks(self) -> None:
        _choice("norm", self.norm, NORMS)
        object.__setattr__(self, "gradient", GradientMode.of(self.gradient, "gradient"))
        if (number := as_number(self.eps)) is not None:
            object.__setattr__(self, "eps", repr(number))
        (self.radius if self.norm == "lpips" else self.threat)  # noqa: B018
        if self.norm == "lpips" and self.lpips_model is None:
            raise ConfigError(
                "norm lpips: expected the classifier whose features measure the distance; name one by lpips_model (--lpips-model), such as "
                "fashion-mnist-standard or torchvision:alexnet,image=3x32x32"
            )
        for name, least in (("steps", 1), ("restarts", 1), ("sanity", 0)):
            self._count(name, least, _MOST.get(name))
        if self.eot is None:
            object.__setattr__(self, "eot", 1 if self.noise == "known" else DEFAULT_EOT)
        self._count("eot", 1, _MOST["eot"])
        if self.noise == "known" and self.eot != 1:
            raise ConfigError(
                f"eot: expected 1 with known noise, where every call gives the same; got {self.eot}. "
                "Averaging needs noise fresh"
            )

    def _text(self, name: str, optional: bool) -> None:
        """Check a text or path, and keep it as text."""
        value = getattr(self, name)
        if isinstance(value, os.PathLike):
            object.__setattr__(self, name, value := os.fspath(value))
        if not isinstance(value, str) and not (optional and value is None):
            words = f"text, as the option --{name} takes it, or None" if optional else "a name or a path"
            raise ConfigError(f"{name}: expected {words}; got {shown(value)}")

    def _count(self, name: str, least: int, most: int | None = None) -> None:
        """Check an integer field, and keep it as Python's own."""
        value = as_integer(getattr(self, name))
        if value is None or value < least or (most is not None and value > most):
            limit = "" if most is None else f", at most {most:,}"
            raise ConfigError(f"{name}: expected an integer >= {least}{limit}; got {shown(getattr(self, name))}")
        object.__setattr__(self, name, value)

    @property
    def radius(self) -> float:
        """eps as a number."""
        eps: Any = self.eps  # None, where nothing attacks, is refused there
        return parse_eps(eps, name="eps")

    @functools.cached_property
    def threat(self) -> Any:
        """Norm and radius, as attacks take them; "lpips" loads its network."""
        if self.norm == "lpips":
            from rdc.attacks.perceptual_distance import PerceptualThreat
            from rdc.models.perceptual import feature_distance

            return PerceptualThreat(self.radius, feature_distance(self.lpips_model))
        if self.norm == "flow":
            from rdc.attacks.stadv import FlowThreat

            return FlowThreat(self.radius)
        if self.norm == "corruption":
            from rdc.attacks.corruptions import CorruptionThreat

            return CorruptionThreat(self.radius)
        norm: Any = self.norm  # None, where nothing attacks, is refused there
        return ThreatModel(norm, self.radius)

    @property
    def policies(self) -> tuple[str, ...]:
        """The noise policies under which attacks are run: "known", "fresh" or both."""
        return _POLICIES[self.noise]

    @property
    def specs(self) -> tuple[AttackSpec, ...]:
        """The attacks, parsed."""
        return tuple(parse_attack(text) for text in self.attacks)

    @property
    def default_folder(self) -> Path:
        """Where a run goes that was given no folder: ``runs/MODEL-DATA-N-NORM-EPS-GRADIENT-NOISE``, or ``-clean``."""
        parts: list[object] = [Path(self.model).name, Path(self.dataset).name, self.n]
        parts += [self.norm, self.eps, self.gradient, self.noise] if self.attacks else ["clean"]
        return Path("runs") / "-".join(_plain(part) for part in parts)

    def for_defence(self, defence: Defence, named: tuple[str, ...] | None = None) -> EvaluationSettings:
        """Leave out attacks of a suite that this defence does not offer; refuse those that were named themselves.

        Args:
            defence: what will be attacked.
            named: what ``parse_attacks`` gave, suites not written out; None: every attack counts as named.

        Raises:
            ConfigError: a named attack cannot be run under any noise policy, with the reason.
        """
        if not self.attacks:
            return self
        if named is not None:
            named = tuple(parse_attack(name).text for name in named if name not in SUITES)
        kept = []
        for spec in self.specs:
            reasons = [applies(spec, defence, self.norm, policy) for policy in self.policies]
            if None in reasons:
                kept.append(spec.text)
            elif named is None or spec.text in named:
                raise ConfigError(f"attacks: {reasons[0]}. Leave it out")
        if not kept:
            raise ConfigError(f"attacks: none of {', '.join(self.attacks)} can be run on this model in {self.norm}")
        return dataclasses.replace(self, attacks=tuple(kept))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; without a preset, a second network, or a precision of the attacks, no word of it."""
        values = {**dataclasses.asdict(self), "attacks": list(self.attacks)}
        return {name: value for name, value in values.items() if value is not None or name not in _UNSAID}


def _choice(what: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        meant = did_you_mean(value, allowed)
        raise ConfigError(f"{what}: expected one of {', '.join(allowed)}; got {shown(value)}{meant}")


def _names(attacks: Any) -> tuple[str, ...]:
    """Attacks as a tuple of texts."""
    if isinstance(attacks, str):
        return parse_attacks(attacks)
    names = tuple(attacks) if isinstance(attacks, (list, tuple)) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f'attacks: expected names such as ("apgd-ce", "square"), or () for none; got {shown(attacks)}'
        )
    return names


def _plain(text: object) -> str:
    """What a folder may be called everywhere."""
    kept = (character if character.isalnum() or character in ".-" else "-" for character in str(text)[:60])
    return "".join(kept).strip("-")
