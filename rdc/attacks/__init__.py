"""Attacks on any callable pixels [N, C, H, W] -> logits [N, K], each giving an AttackResult (docs/threat_models.md)."""

from __future__ import annotations

from rdc.arguments.close_names import did_you_mean
from rdc.attacks.apgd import apgd
from rdc.attacks.entry import Attack, ConfiguredAttack
from rdc.attacks.options import AttackOptions
from rdc.attacks.pgd import pgd
from rdc.attacks.registry import ATTACKS, SUITES, AttackSpec, parse_attack, parse_attacks
from rdc.attacks.threat_model import AttackResult, ThreatModel, parse_eps
from rdc.errors import ConfigError

__all__ = [
    "ATTACKS",
    "SUITES",
    "Attack",
    "AttackOptions",
    "AttackResult",
    "AttackSpec",
    "ConfiguredAttack",
    "ThreatModel",
    "apgd",
    "attack_named",
    "parse_attack",
    "parse_attacks",
    "parse_eps",
    "pgd",
]


def attack_named(name: str) -> Attack[..., AttackResult]:
    """The attack of a name, with its loss set: ``attack_named("apgd-dlr")(model, x, y, threat, seed=0, image_ids=..)``.

    Args:
        name: a key of :data:`ATTACKS`.

    Returns:
        The attack; what the name stands for (its loss, say) is set.

    Raises:
        ConfigError: unknown name.
    """
    if name not in ATTACKS:
        raise ConfigError(
            f"unknown attack {name!r}{did_you_mean(name, ATTACKS)}; expected one of {', '.join(sorted(ATTACKS))}"
        )
    return ATTACKS[name].attack
