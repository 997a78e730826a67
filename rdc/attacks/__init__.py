"""Attacks on any callable pixels [N, C, H, W] -> logits [N, K], each giving an AttackResult (docs/threat_models.md)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rdc.attacks.apgd import apgd
from rdc.attacks.losses import LOSSES
from rdc.attacks.pgd import pgd
from rdc.attacks.threat_model import AttackResult, ThreatModel, parse_eps
from rdc.errors import ConfigError

__all__ = ["ATTACKS", "AttackResult", "ThreatModel", "apgd", "attack_named", "parse_eps", "pgd"]

ATTACKS: dict[str, Callable[..., AttackResult]] = {
    f"{name}-{loss}": partial(attack, loss=loss) for name, attack in (("pgd", pgd), ("apgd", apgd)) for loss in LOSSES
}


def attack_named(name: str) -> Callable[..., AttackResult]:
    """The attack of a name, with its loss set: ``attack_named("apgd-dlr")(model, x, y, threat, seed=0, image_ids=..)``.

    Args:
        name: ``"pgd-"`` or ``"apgd-"`` and ``"ce"``, ``"dlr"`` or ``"margin"``.

    Returns:
        The attack; its ``loss`` argument is set.

    Raises:
        ConfigError: unknown name.
    """
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack {name!r}; expected one of {', '.join(sorted(ATTACKS))}")
    return ATTACKS[name]
