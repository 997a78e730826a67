"""What one evaluation is: everything that decides its figures, checked when made."""

from __future__ import annotations

import dataclasses
from typing import Any

from rdc.attacks import ATTACKS, ThreatModel, parse_eps
from rdc.errors import ConfigError

__all__ = ["DEFAULT_EOT", "EvaluationSettings", "parse_attacks"]

DEFAULT_EOT = 20  # model calls averaged per gradient against fresh noise
_SHORT = {"pgd": "pgd-ce", "apgd": "apgd-ce"}
_ATTACK_FIELDS = ("norm", "eps", "steps", "restarts", "gradient", "eot")


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation. Two runs with equal settings, weights and images give equal figures.

    Args:
        model: preset name or path, as given.
        dataset: data-set name or path, as given.
        n: images, >= 1.
        split: "train" or "test".
        start: position of the first image.
        attacks: names, run one after another, each on the images still robust; () for clean accuracy alone.
        norm: "linf" or "l2".
        eps: radius in [0, 1] pixel units: a number or text such as "8/255".
        steps: of each restart.
        restarts: random starts of each attack.
        gradient: "exact", or "bpda": the attacker takes the Jacobian of likelihood maximisation as the identity.
        noise: "known": the classifier keeps one fixed draw and the attacker has that very draw; "fresh": it draws anew
            in every call, the attacker averages over draws, and each adversarial image is submitted several times.
        eot: model calls averaged for each gradient; None: 1 for known noise, 20 for fresh.
        resubmissions: with fresh noise, how often each image is scored.
        seed: of random starts, and of the draws when noise is fresh.
        batch: images worked on together; also what is lost at most when the process is killed.
        levels: noise levels in place of the model's own: preset name or scheme:count:min:max:weighting.
        lm: likelihood maximisation in place of the model's own: preset name or "none".

    Raises:
        ConfigError: a setting is unknown, out of range, or does not go with another.
    """

    model: str
    dataset: str
    n: int = 256
    split: str = "test"
    start: int = 0
    attacks: tuple[str, ...] = ("apgd-ce", "apgd-dlr")
    norm: str | None = "linf"
    eps: str | float | None = "8/255"
    steps: int | None = 50
    restarts: int | None = 1
    gradient: str | None = "exact"
    noise: str = "known"
    eot: int | None = None
    resubmissions: int = 10
    seed: int = 0
    batch: int = 32
    levels: str | None = None
    lm: str | None = None

    def __post_init__(self) -> None:
        _choice("split", self.split, ("test", "train"))
        _choice("noise", self.noise, ("known", "fresh"))
        for name, least in (("n", 1), ("start", 0), ("seed", 0), ("batch", 1), ("resubmissions", 1)):
            _count(name, getattr(self, name), least)
        if self.seed >= 2**64:
            raise ConfigError(f"seed: expected less than 2^64; got {self.seed}")
        if self.noise == "known":
            object.__setattr__(self, "resubmissions", 1)
        object.__setattr__(self, "attacks", tuple(self.attacks))
        if not self.attacks:
            for name in _ATTACK_FIELDS:
                object.__setattr__(self, name, None)
            return
        self._check_attacks()

    def _check_attacks(self) -> None:
        for name in self.attacks:
            _choice("attacks", name, tuple(sorted(ATTACKS)))
        if len(set(self.attacks)) < len(self.attacks):
            raise ConfigError(
                f"attacks: expected each name once; got {', '.join(self.attacks)}. For more tries use restarts"
            )
        _choice("norm", self.norm, ("linf", "l2"))
        _choice("gradient", self.gradient, ("exact", "bpda"))
        if isinstance(self.eps, (int, float)):
            object.__setattr__(self, "eps", repr(float(self.eps)))
        ThreatModel(self.norm, self.radius)
        _count("steps", self.steps, 1)
        _count("restarts", self.restarts, 1)
        if self.eot is None:
            object.__setattr__(self, "eot", 1 if self.noise == "known" else DEFAULT_EOT)
        _count("eot", self.eot, 1)
        if self.noise == "known" and self.eot != 1:
            raise ConfigError(
                f"eot: expected 1 with known noise, where every call gives the same; got {self.eot}. "
                "Averaging needs noise fresh"
            )

    @property
    def radius(self) -> float:
        """eps as a number."""
        return parse_eps(self.eps)

    @property
    def threat(self) -> ThreatModel:
        """Norm and radius."""
        return ThreatModel(self.norm, self.radius)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "attacks": list(self.attacks)}


def parse_attacks(text: str) -> tuple[str, ...]:
    """``"apgd-ce,apgd-dlr"`` -> names; ``"none"`` -> (); ``"pgd"`` and ``"apgd"`` mean their ``-ce`` version.

    Raises:
        ConfigError: an empty list or an unknown name.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    if not names:
        raise ConfigError(f"attacks: expected names separated by commas, or none; got {text!r}")
    names = [_SHORT.get(name, name) for name in names]
    for name in names:
        _choice("attacks", name, (*sorted(ATTACKS), "none"))
    if "none" in names:
        raise ConfigError(f'attacks: "none" stands alone; got {text!r}')
    return tuple(names)


def _choice(what: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what}: expected one of {', '.join(allowed)}; got {value!r}")


def _count(what: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{what}: expected an integer >= {least}; got {value!r}")
