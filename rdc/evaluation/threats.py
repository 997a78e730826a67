"""Several threats in one run: how they are written, and the settings of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rdc.arguments.scalars import shown
from rdc.attacks import parse_attack, parse_eps
from rdc.attacks.registry import SUITES
from rdc.errors import ConfigError
from rdc.evaluation.settings import NORMS, EvaluationSettings

__all__ = ["MOST_THREATS", "Threat", "attacks_within", "folder_of_threats", "parse_threats", "settings_of_threats"]

MOST_THREATS = 64  #: of one run
_LONGEST = 100  # letters of the threats in a folder's name
#: what attacks within a norm where the list names nothing that does
_DEFAULTS = {
    "flow": ("stadv",),
    "l0": ("sparse-pgd", "sparse-rs"),
    "lpips": ("ppgd", "lpa"),
    "corruption": ("corruptions",),
}
_WITHOUT_SUITES = ("flow", "lpips", "corruption")


@dataclasses.dataclass(frozen=True)
class Threat:
    """A norm and a radius.

    Args:
        norm: "linf", "l2", "l1", "l0", "flow", "lpips" or "corruption".
        eps: radius as text.
    """

    norm: str
    eps: str

    @property
    def radius(self) -> float:
        """eps as a number."""
        return parse_eps(self.eps, name=self.norm)

    @property
    def text(self) -> str:
        """As a list of threats has it."""
        return f"{self.norm}:{self.eps}"

    @property
    def folder(self) -> str:
        """Name of its folder within that of the run."""
        return f"{self.norm}-{self.eps.replace('/', '-')}"


def parse_threats(text: str, norm: str | None = None) -> tuple[Threat, ...]:
    """``"linf:8/255,l2:0.5,flow:0.05"`` -> threats, in this order; radii alone where a norm is given: ``"2/255,4/255"``.

    Args:
        text: with commas.
        norm: of all, for a list of radii.

    Raises:
        ConfigError: no such list, an unknown norm, no radius, or one of them twice.
    """
    found: list[Threat] = []
    for part in (part.strip() for part in text.split(",")):
        name, colon, eps = (norm, ":", part) if norm is not None else part.partition(":")
        if name not in NORMS or not colon:
            raise ConfigError(
                f"threats: expected norm:radius of {', '.join(NORMS)}, as in linf:8/255; got {shown(part)}"
            )
        threat = Threat(name, eps.strip())
        key = (name, threat.radius)
        same = [other for other in found if (other.norm, other.radius) == key]
        if same:
            raise ConfigError(f"threats: expected each once; got {same[0].text} and {threat.text}, which is the same")
        found.append(threat)
    if len(found) > MOST_THREATS:
        raise ConfigError(f"threats: expected at most {MOST_THREATS}; got {len(found)}")
    return tuple(found)


def attacks_within(norm: str, named: Sequence[str]) -> tuple[str, ...]:
    """Those of a list of attacks that a threat of this norm gets: all that know it; if none does, for a flow ``stadv``, for l_0
    ``sparse-pgd`` and ``sparse-rs``, for LPIPS ``ppgd`` and ``lpa``, for corruptions ``corruptions``.

    Args:
        norm: of the threat.
        named: attacks and suites; suites are for balls.

    Raises:
        ConfigError: none of them attacks in this ball.
    """
    mine = tuple(
        name
        for name in named
        if (norm not in _WITHOUT_SUITES if name in SUITES else norm in parse_attack(name).kind.norms)
    )
    if mine or norm in _DEFAULTS:
        return mine or _DEFAULTS[norm]
    raise ConfigError(f"attacks: none of {', '.join(named)} attacks in {norm}; name one that does, such as apgd-ce")


def settings_of_threats(
    base: EvaluationSettings, named: Sequence[str], threats: Sequence[Threat]
) -> tuple[EvaluationSettings, ...]:
    """The settings of each threat, in the order given.

    The sanity checks of ``base`` are those of the smallest radius of each norm; the others have none.

    Args:
        base: all but attacks, norm and radius.
        named: attacks and suites, as ``parse_attacks`` gives them.
        threats: at least one.

    Raises:
        ConfigError: there is no attack, none for a threat, or one that attacks in none of them.
    """
    if not named:
        raise ConfigError("attacks: none, but there are threats; name some, or leave the threats out")
    for name in named:
        if name not in SUITES and not any(threat.norm in parse_attack(name).kind.norms for threat in threats):
            norms = dict.fromkeys(threat.norm for threat in threats)
            raise ConfigError(f"attacks: {name} attacks in none of {', '.join(norms)}. Leave it out")
    smallest = {threat.norm: min(other.radius for other in threats if other.norm == threat.norm) for threat in threats}
    return tuple(
        dataclasses.replace(
            base,
            norm=threat.norm,
            eps=threat.eps,
            attacks=attacks_within(threat.norm, named),
            sanity=base.sanity if threat.radius == smallest[threat.norm] else 0,
        )
        for threat in threats
    )


def folder_of_threats(settings: EvaluationSettings, threats: Sequence[Threat]) -> Path:
    """Where a run goes that was given no folder: the name of a single threat's, with all of them."""
    one = "-".join(threat.folder for threat in threats)
    first = dataclasses.replace(settings, norm=threats[0].norm, eps=threats[0].eps).default_folder
    return first.with_name(first.name.replace(threats[0].folder, one[:_LONGEST], 1))
