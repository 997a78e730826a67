"""How an audit is made: on which images, in which threat model, how much of it."""

from __future__ import annotations

import dataclasses

from rdc.arguments.defaults import AuditDefaults
from rdc.arguments.scalars import as_integer, as_number, shown
from rdc.arguments.seeds import checked_seed
from rdc.attacks import parse_eps
from rdc.errors import ConfigError

__all__ = ["AuditSettings"]

_DEFAULT = AuditDefaults()
_NORMS = ("linf", "l2")
_MOST = 10_000  # images, and steps


@dataclasses.dataclass(frozen=True)
class AuditSettings:
    """Settings of an audit. Two audits with equal settings, model and images say the same.

    Args:
        n: images, >= 8.
        split: "test" or "train".
        start: position of the first image.
        norm: "linf" or "l2", of the short attacks.
        eps: their radius in [0, 1] pixel units: a number or text such as "8/255".
        sanity: images under short attacks; 0: none, and the rules about them are not checked.
        steps: of the longest short attack.
        seed: of small changes of the images, of random starts, and of the generators that a random model draws from.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    n: int = _DEFAULT.n
    split: str = _DEFAULT.split
    start: int = _DEFAULT.start
    norm: str = _DEFAULT.norm
    eps: str | float = _DEFAULT.eps
    sanity: int = _DEFAULT.sanity
    steps: int = _DEFAULT.steps
    seed: int = _DEFAULT.seed

    def __post_init__(self) -> None:
        for name, least, most in (("n", 8, _MOST), ("start", 0, 10**12), ("sanity", 0, _MOST), ("steps", 1, _MOST)):
            value = as_integer(getattr(self, name))
            if value is None or not least <= value <= most:
                raise ConfigError(
                    f"{name}: expected an integer from {least} to {most:,}; got {shown(getattr(self, name))}"
                )
            object.__setattr__(self, name, value)
        for name, allowed in (("split", ("test", "train")), ("norm", _NORMS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}: expected one of {', '.join(allowed)}; got {shown(getattr(self, name))}")
        if (number := as_number(self.eps)) is not None:
            object.__setattr__(self, "eps", repr(number))
        if self.radius == 0:
            raise ConfigError(f"eps: expected a radius > 0; got {shown(self.eps)}")
        object.__setattr__(self, "seed", checked_seed(self.seed))

    @property
    def radius(self) -> float:
        """eps as a number."""
        return parse_eps(self.eps, name="eps")
