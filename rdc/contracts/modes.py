"""The words for what a gradient goes through and where noise comes from, one for each thing, from the command line to the network."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import shown
from rdc.errors import ConfigError

__all__ = ["GradientMode", "NoisePolicy"]

Kind = TypeVar("Kind", bound="_Word")


class _Word(str, Enum):
    """A text with a fixed set of values: equal to the plain text, written to files and messages as that text."""

    __str__ = str.__str__
    __repr__ = str.__repr__

    def __format__(self, format_spec: str) -> str:
        return format(str(self), format_spec)

    @classmethod
    def of(cls: type[Kind], value: object, name: str) -> Kind:
        """The member with this text.

        Args:
            value: a member or its text.
            name: of the setting, for the error.

        Raises:
            ConfigError: there is no such member.
        """
        found = cls(value) if isinstance(value, str) and value in cls.words() else None
        if found is None:
            raise ConfigError(
                f"{name}: expected one of {', '.join(cls)}; got {shown(value)}{did_you_mean(value, cls.words())}"
            )
        return found

    @classmethod
    def words(cls) -> tuple[str, ...]:
        """Every text that names a member."""
        return tuple(cls)


class GradientMode(_Word):
    """What a defence's gradient in the pixels goes through."""

    EXACT = "exact"  #: everything, purification included
    BPDA = "bpda"  #: the Jacobian of whatever purifies the input is taken as the identity (arXiv 1802.00420)

    @property
    def other(self) -> GradientMode:
        """The mode that this one is compared with."""
        return GradientMode.BPDA if self is GradientMode.EXACT else GradientMode.EXACT


class NoisePolicy(_Word):
    """Where a defence's noise comes from.

    An evaluation calls FIXED "known", since the attacker has that very draw: ``NoisePolicy("known") is NoisePolicy.FIXED``.
    """

    FIXED = "fixed"  #: one draw for all calls: a deterministic function of the pixels
    FRESH = "fresh"  #: another draw in every call

    @classmethod
    def _missing_(cls, value: object) -> NoisePolicy | None:
        return cls.FIXED if value == "known" else None

    @classmethod
    def words(cls) -> tuple[str, ...]:
        """Every text that names a member, the evaluation's own among them."""
        return (*cls, "known")
