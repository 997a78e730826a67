"""Attacks by name: what each is, which options it takes, what it needs of a defence; and lists of attacks as text.

An attack in a list is ``name`` or ``name:option=value:option=value``, for example ``apgd-ce:gradient=bpda:steps=20``.
``autoattack``, ``autoattack-plus``, ``autoattack-rand`` and ``adaptive`` stand for several.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import as_number, shown
from rdc.attacks.entry import Attack
from rdc.attacks.suites import SUITES, suite
from rdc.contracts import Defence, GradientMode
from rdc.errors import ConfigError

__all__ = [
    "ATTACKS",
    "SUITES",
    "AttackKind",
    "AttackSpec",
    "applies",
    "expand_attacks",
    "parse_attack",
    "parse_attacks",
    "suite",
]

_BALLS = ("linf", "l2", "l1")
_COMMON = ("steps", "restarts", "eot")  # where an attack has them
_GRADIENT = {"choices": ("exact", "bpda")}  # the defence's mode: no option of the attack itself


@dataclasses.dataclass(frozen=True)
class AttackKind:
    """One attack.

    Args:
        home: ``module:name`` of the Attack that runs it, imported when first used; its options are declared there.
        about: one line for ``--help`` and reports.
        fixed: options that the name stands for.
        norms: threat models it can attack in.
        needs: what it asks of the defence: None, "penalty" (an objective of its own), "path" (steps of its purification),
            "surrogates", "draws" (fresh noise), "endpoints" (an attack before it).
        white_box: it uses gradients.
        even: its model calls grow in proportion to its steps or queries.
    """

    home: str
    about: str
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    norms: tuple[str, ...] = _BALLS
    needs: str | None = None
    white_box: bool = True
    even: bool = True

    @property
    def attack(self) -> Attack[..., Any]:
        """The attack, with what the name stands for set."""
        module, _, name = self.home.partition(":")
        found: Attack[..., Any] = getattr(importlib.import_module(module), name)
        return found.fixing(**self.fixed)

    @property
    def takes(self) -> dict[str, Mapping[str, Any]]:
        """Every option that a list may set -> what its field says of it: the common ones, then the attack's own."""
        common = ("steps", "restarts", "eot", "gradient") if self.white_box else ("restarts",)
        declared = {field.name: field.metadata for field in dataclasses.fields(self.attack.options)}
        own = {name: about for name, about in declared.items() if name not in (*_COMMON, *self.fixed)}
        listed = {name: about for name, about in own.items() if about.get("most") or about.get("choices")}
        return {**{name: declared.get(name, _GRADIENT) for name in common}, **listed}


_A = "rdc.attacks"
ATTACKS: dict[str, AttackKind] = {
    **{
        f"{name}-{loss}": AttackKind(f"{_A}.{name}:{name}", f"{words}, {loss} loss", {"loss": loss}, norms=norms)
        for name, words, norms in (("pgd", "projected gradient descent", ("linf", "l2")), ("apgd", "Auto-PGD", _BALLS))
        for loss in ("ce", "dlr", "margin")
    },
    "apgd-t": AttackKind(f"{_A}.apgd:apgd_targeted", "Auto-PGD, targeted DLR", {"loss": "dlr"}),
    "apgd-ce-t": AttackKind(f"{_A}.apgd:apgd_targeted", "Auto-PGD, targeted CE", {"loss": "ce"}),
    "fab": AttackKind(f"{_A}.fab:fab", "FAB, smallest perturbation", {"targets": None}),
    "fab-t": AttackKind(f"{_A}.fab:fab", "FAB, targeted"),
    "square": AttackKind(f"{_A}.square:square", "Square, black box", white_box=False),
    "hop-skip-jump": AttackKind(
        f"{_A}.hop_skip_jump:hop_skip_jump", "HopSkipJump, decisions alone", white_box=False, even=False
    ),
    "sparse-pgd": AttackKind(f"{_A}.sparse_pgd:sparse_pgd", "sparse PGD: which pixels, and their colours", norms=("l0",)),
    "sparse-rs": AttackKind(
        f"{_A}.sparse_rs:sparse_rs", "Sparse-RS, black box over pixels", norms=("l0",), white_box=False
    ),
    "stadv": AttackKind(f"{_A}.stadv:stadv", "spatial transformation", norms=("flow",)),
    "ppgd": AttackKind(f"{_A}.perceptual:ppgd", "perceptual PGD: small for a network's features", norms=("lpips",)),
    "lpa": AttackKind(f"{_A}.perceptual:lpa", "Lagrangian perceptual attack", norms=("lpips",)),
    "corruptions": AttackKind(
        f"{_A}.corruptions:corruptions", "common corruptions, every one", norms=("corruption",), white_box=False, even=False
    ),
    "low-frequency": AttackKind(f"{_A}.low_frequency:low_frequency", "Auto-PGD in low frequencies", norms=("linf", "l2")),
    "smoothed": AttackKind(f"{_A}.smoothed:smoothed", "Auto-PGD, gradients averaged over nearby points"),
    "lagrange": AttackKind(
        f"{_A}.lagrange:lagrange", "class loss minus c times the defence's objective, c searched", needs="penalty"
    ),
    "objective": AttackKind(f"{_A}.lagrange:objective_attack", "attack on the defence's own objective", needs="penalty"),
    "per-step": AttackKind(
        f"{_A}.per_step:per_step", "Auto-PGD with a loss at the purifier's steps too", needs="path"
    ),
    "transfer": AttackKind(
        f"{_A}.transfer:transfer", "gradients of a surrogate, decisions of the defence", needs="surrogates"
    ),
    "selective": AttackKind(
        f"{_A}.selective:selective", "gradients on the draws that still hold", needs="draws"
    ),
    "endpoints-ce": AttackKind(f"{_A}.apgd:apgd", "Auto-PGD from every earlier endpoint", {"loss": "ce"}, needs="endpoints"),
    "endpoints-dlr": AttackKind(f"{_A}.apgd:apgd", "the same, dlr loss", {"loss": "dlr"}, needs="endpoints"),
}  # fmt: skip

_SHORT = {"pgd": "pgd-ce", "apgd": "apgd-ce", "apgd-dlr-t": "apgd-t"}


MOST_ATTACKS = 1000  #: in one list
_LONGEST_NUMBER = 50  # digits; a text of a million of them takes int() seconds


@dataclasses.dataclass(frozen=True)
class AttackSpec:
    """One attack of a list.

    Args:
        name: key of :data:`ATTACKS`.
        options: what the text set, in the order of the text.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> AttackKind:
        """What the name stands for."""
        return ATTACKS[self.name]

    @property
    def text(self) -> str:
        """``name:option=value...``, as in a list."""
        return ":".join([self.name, *(f"{key}={value}" for key, value in self.options)])

    def get(self, option: str, default: Any) -> Any:
        """An option's value, or the default."""
        return dict(self.options).get(option, default)


def parse_attack(text: str) -> AttackSpec:
    """``"apgd-ce:gradient=bpda:steps=20"`` -> AttackSpec.

    Raises:
        ConfigError: unknown name or option, a value that does not fit.
    """
    name, *changes = (part.strip() for part in text.strip().split(":"))
    name = _SHORT.get(name.lower(), name.lower())
    if name not in ATTACKS:
        known = (*ATTACKS, *SUITES, "none", *_SHORT)
        raise ConfigError(f"attacks: expected {', '.join(known)}; got {shown(text)}{did_you_mean(name, known)}")
    takes, options = ATTACKS[name].takes, []
    for change in changes:
        option, _, value = (part.strip() for part in change.partition("="))
        if option not in takes:
            meant = did_you_mean(option, takes)
            raise ConfigError(f"attacks, {name}: expected options of {', '.join(takes)}; got {shown(change)}{meant}")
        options.append((option, _value(name, option, takes[option], value)))
    if len({option for option, _ in options}) < len(options):
        raise ConfigError(f"attacks, {shown(text)}: an option is given twice")
    return AttackSpec(name, tuple(options))


def _value(name: str, option: str, about: Mapping[str, Any], text: str) -> Any:
    choices = about.get("choices")
    if choices is not None:
        if text not in choices:
            raise ConfigError(
                f"attacks, {name}: {option} is one of {', '.join(choices)}; got {shown(text)}{did_you_mean(text, choices)}"
            )
        return text
    read = float if about["read"] is as_number else int
    try:
        value = read(text if len(text) <= _LONGEST_NUMBER else "")
    except ValueError as error:
        raise ConfigError(f"attacks, {name}: {option} is a number; got {shown(text)}") from error
    most = about["most"]
    if not 0 < value <= most:
        raise ConfigError(f"attacks, {name}: {option} is a number > 0, at most {most:,}; got {shown(text)}")
    return value


def parse_attacks(text: str) -> tuple[str, ...]:
    """``"apgd-ce,square:queries=1000,adaptive"`` -> its names, checked; suites stay names; ``"none"`` -> ().

    ``"pgd"`` and ``"apgd"`` mean their ``-ce`` version.

    Raises:
        ConfigError: an empty list, an unknown name or option, an attack twice.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    if not names:
        raise ConfigError(f"attacks: expected names separated by commas, or none; got {shown(text)}")
    if len(names) <= MOST_ATTACKS and "none" in names:
        raise ConfigError(f'attacks: "none" stands alone; got {shown(text)}')
    expand_attacks(names)
    return tuple(name if name in SUITES else parse_attack(name).text for name in names)


def expand_attacks(names: list[str] | tuple[str, ...], norm: str | None = None) -> tuple[str, ...]:
    """Write suites out and put every attack in its full form; what a suite has and the list has already counts once.

    Args:
        names: attacks and suites.
        norm: of the threat model, for suites that differ.

    Raises:
        ConfigError: an unknown name or option; an attack named twice.
    """
    if len(names) > MOST_ATTACKS:
        raise ConfigError(f"attacks: expected at most {MOST_ATTACKS:,} names; got {len(names):,}")
    found: list[str] = []
    named = [parse_attack(name).text for name in names if name.strip().lower() not in SUITES]
    for text in named:
        if named.count(text) > 1:
            raise ConfigError(
                f"attacks: expected each once; got {text} twice. For more tries use restarts, as in {text}:restarts=5"
            )
    for name in names:
        plain = name.strip().lower()
        texts = suite(plain, norm) if plain in SUITES else (parse_attack(name).text,)
        found += [text for text in texts if text not in found]
    return tuple(found)


def applies(spec: AttackSpec, defence: Defence, norm: str | None, noise: str) -> str | None:
    """None where the attack can be run, else the reason why not.

    Args:
        spec: the attack.
        defence: what is attacked.
        norm: of the threat model.
        noise: "known" or "fresh".
    """
    kind, name = spec.kind, spec.name
    if norm not in kind.norms:
        return f"{name} attacks in {', '.join(kind.norms)}, not in {norm}"
    if kind.needs == "penalty" and not defence.has_penalty:
        return f"{name} needs a defence with an objective of its own (likelihood maximisation)"
    through_steps = kind.needs == "path" or spec.get("gradients", None) == "grafted"
    if through_steps and not defence.purification_length:
        return f"{spec.text} needs a defence that purifies in steps (likelihood maximisation, DiffPure)"
    if kind.needs == "draws" and not (noise == "fresh" and defence.stochastic):
        return f"{name} needs fresh noise"
    surrogate = spec.get("surrogate", "plain" if kind.needs == "surrogates" else None)
    if surrogate is not None:
        offered = defence.surrogates()
        if surrogate not in offered:
            return f"{spec.text} needs a surrogate that this defence lacks (it has {', '.join(offered) or 'none'})"
        if surrogate == "fresh" and noise == "fresh":
            return f"{spec.text}: the defence itself draws fresh noise"
    if spec.get("gradient", None) == GradientMode.BPDA and not defence.purifies:
        return f"{spec.text}: the defence purifies nothing, its gradient is the same in both modes"
    if spec.get("eot", 1) > 1 and noise != "fresh":
        return f"{spec.text}: known noise gives the same answer in every call; averaging needs fresh noise"
    return None
