"""Settings of a certification, checked when made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.defaults import CertificationDefaults
from rdc.arguments.scalars import as_integer, as_number, shown
from rdc.arguments.seeds import checked_seed
from rdc.certification.noised import METHODS
from rdc.certification.smoothing import radius_of
from rdc.errors import ConfigError

__all__ = ["CertificationSettings"]

_DEFAULT = CertificationDefaults()
#: least and largest value
_COUNTS = {
    "n_images": (1, 10**8),
    "start": (0, 10**8),
    "n0": (1, 10**8),
    "n": (1, 10**8),
    "noised_levels": (1, 10_000),
    "batch": (1, 1_000_000),
    "attack_steps": (1, 1_000_000),
    "attack_draws": (1, 100_000),
    "attack_votes": (1, 10**8),
}


@dataclasses.dataclass(frozen=True)
class CertificationSettings:
    """Settings of a certification. Equal settings, weights and images give equal figures.

    Args:
        model, dataset: as named; for reports.
        n_images: images, >= 1.
        split: "train" or "test".
        start: position of the first image.
        method: "epndc", "apndc" or "plain", see :mod:`rdc.certification.noised`.
        sigma: of the smoothing noise, in [0, 1] pixel units, > 0.
        n0: votes that select a class.
        n: votes that bound its probability, >= n0.
        alpha: in (0, 1): how probable a wrong certificate of an image may be.
        noised_levels: levels above s_tau of EPNDC and APNDC.
        noise: "fresh": every vote has its own draws at these levels; "known": all share one.
        seed: of all noise, any integer.
        batch: votes computed together.
        attack_radii: l_2 radii, rising, at which the smoothed classifier is attacked too; none: no attack.
        attack_steps: of each attack (APGD).
        attack_draws: draws averaged for a gradient.
        attack_votes: votes that judge an attacked image.
        levels, lm, lm_model, precision: what the command set in place of the model's own, for reports.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    model: str
    dataset: str
    n_images: int = _DEFAULT.n_images
    split: str = _DEFAULT.split
    start: int = _DEFAULT.start
    method: str = _DEFAULT.method
    sigma: float = _DEFAULT.sigma
    n0: int = _DEFAULT.n0
    n: int = _DEFAULT.n
    alpha: float = _DEFAULT.alpha
    noised_levels: int = _DEFAULT.noised_levels
    noise: str = _DEFAULT.noise
    seed: int = _DEFAULT.seed
    batch: int = _DEFAULT.batch
    attack_radii: tuple[float, ...] = ()
    attack_steps: int = _DEFAULT.attack_steps
    attack_draws: int = _DEFAULT.attack_draws
    attack_votes: int = _DEFAULT.attack_votes
    levels: str | None = None
    lm: str | None = None
    precision: str | None = None
    lm_model: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("split", ("test", "train")), ("method", METHODS), ("noise", ("fresh", "known"))):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                meant = did_you_mean(value, allowed)
                raise ConfigError(f"{name}: expected {' or '.join(allowed)}; got {shown(value)}{meant}")
        for name, (least, most) in _COUNTS.items():
            value = as_integer(getattr(self, name))
            if value is None or not least <= value <= most:
                raise ConfigError(
                    f"{name}: expected an integer of {least} to {most:,}; got {shown(getattr(self, name))}"
                )
            object.__setattr__(self, name, value)
        if self.n < self.n0:
            raise ConfigError(
                f"n: expected at least as many votes as select a class, n >= n0 = {self.n0}; got {self.n}. Raise n or lower n0"
            )
        self._number("alpha", 0, 1)
        self._number("sigma", 0, 1e6)
        object.__setattr__(self, "seed", checked_seed(self.seed))
        object.__setattr__(self, "attack_radii", _radii(self.attack_radii))

    def _number(self, name: str, low: float, high: float) -> None:
        value = as_number(getattr(self, name))
        if value is None or not low < value < high:
            raise ConfigError(
                f"{name}: expected a number above {low:g} and below {high:g}; got {shown(getattr(self, name))}"
            )
        object.__setattr__(self, name, value)

    @property
    def largest_radius(self) -> float:
        """What an image gets if every vote is for its class: no larger radius can be certified."""
        return radius_of(self.alpha ** (1 / self.n), self.sigma)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; without a second network no word of it."""
        values = {**dataclasses.asdict(self), "attack_radii": list(self.attack_radii)}
        return {name: value for name, value in values.items() if value is not None or name != "lm_model"}


def _radii(values: Any) -> tuple[float, ...]:
    try:
        found = [as_number(value) for value in values]
    except TypeError:
        found = [None]
    good = [value for value in found if value is not None and 0 < value < math.inf]
    if len(good) != len(found) or good != sorted(set(good)) or len(good) > 100:
        raise ConfigError(f"attack_radii: expected at most 100 rising numbers > 0; got {shown(values)}")
    return tuple(good)
