"""How many classes go on after how many levels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import shown
from rdc.errors import ConfigError

__all__ = ["SCHEDULES", "EliminationSchedule", "spread_order"]

#: Name -> stages. "li-2023": Li et al. 2023, arXiv 2303.16203, as their published command for ImageNet has it: after 50, 100, 500 and
#: all of 1,000 draws 500, 50, 10 and 1 of 1,000 classes go on (10 % of the passes). "quick": ours, 4.5 % (docs/many_classes.md).
SCHEDULES = {
    "li-2023": "5%:50%,10%:5%,50%:1%,100%:1",
    "quick": "2%:30%,5%:5%,20%:1%,100%:1",
}
_MOST_STAGES = 100
_Amount = float | int  # a share in (0, 1], or, as an int, a number


@dataclasses.dataclass(frozen=True)
class EliminationSchedule:
    """Stages (levels looked at so far, classes that go on).

    Args:
        stages: pairs; a float is a share in (0, 1], an int a number. The last stage looks at all levels and leaves one class.
        name: for reports.

    Raises:
        ConfigError: no stages, amounts out of range, or a last stage that leaves more than one class.
    """

    stages: tuple[tuple[_Amount, _Amount], ...]
    name: str = "own"

    def __post_init__(self) -> None:
        if not 1 <= len(self.stages) <= _MOST_STAGES:
            raise ConfigError(f"elimination: expected 1 to {_MOST_STAGES} stages; got {len(self.stages)}")
        for amount in (amount for stage in self.stages for amount in stage):
            if not (amount >= 1 if type(amount) is int else 0 < amount <= 1):
                raise ConfigError(f"elimination: expected shares in (0, 1] or numbers >= 1; got {shown(amount)}")
        if self.stages[-1][1] != 1 or type(self.stages[-1][1]) is not int:
            raise ConfigError(
                f"elimination: expected one class after the last stage, e.g. 100%:1; got {shown(self.stages[-1][1])}"
            )

    @classmethod
    def of(cls, value: EliminationSchedule | str) -> EliminationSchedule:
        """A schedule by name, as text ``LEVELS:CLASSES,...`` such as ``5%:50%,10%:5%,50%:1%,100%:1``, or as it is.

        Raises:
            ConfigError: none of these.
        """
        if isinstance(value, EliminationSchedule):
            return value
        if not isinstance(value, str):
            raise ConfigError(f"elimination: expected {_expected()}; got {shown(value)}")
        name = value.strip()
        if name not in SCHEDULES and ":" not in name:
            raise ConfigError(f"elimination: expected {_expected()}; got {shown(value)}{did_you_mean(name, SCHEDULES)}")
        stages = []
        for part in SCHEDULES.get(name, name).split(",")[: _MOST_STAGES + 1]:
            amounts = part.split(":")
            if len(amounts) != 2:
                raise ConfigError(f"elimination: expected LEVELS:CLASSES for a stage; got {shown(part)}")
            stages.append((_amount(amounts[0]), _amount(amounts[1])))
        return cls(tuple(stages), name if name in SCHEDULES else "own")

    def sizes(self, levels: int, classes: int) -> tuple[tuple[int, int], ...]:
        """(levels looked at, classes kept) of every stage that changes something; shares are rounded up.

        Args:
            levels: T.
            classes: K.

        Raises:
            ConfigError: levels that do not grow, classes that do, or a last stage that does not look at all levels.
        """
        sizes: list[tuple[int, int]] = []
        for stage in self.stages:
            looked, kept = _number(stage[0], levels), _number(stage[1], classes)
            if sizes and (looked < sizes[-1][0] or kept > sizes[-1][1]):
                raise ConfigError(
                    f"elimination: expected levels that grow and classes that become fewer; got {looked} levels, {kept} classes after "
                    f"{sizes[-1][0]} levels, {sizes[-1][1]} classes"
                )
            if sizes and looked == sizes[-1][0]:
                sizes[-1] = looked, kept
            else:
                sizes.append((looked, kept))
        if sizes[-1][0] != levels:
            raise ConfigError(
                f"elimination: expected a last stage of all {levels} levels, e.g. 100%:1; got {sizes[-1][0]} levels"
            )
        return tuple(sizes)

    def passes(self, levels: int, classes: int) -> int:
        """Network passes for one image."""
        total, before, alive = 0, 0, classes
        for looked, kept in self.sizes(levels, classes):
            if alive == 1:
                break
            total += (looked - before) * alive
            before, alive = looked, kept
        return total


def spread_order(levels: int, looked: Sequence[int]) -> tuple[int, ...]:
    """Positions of T levels in an order of which the first ``looked[0]``, the first ``looked[1]``, ... lie evenly among the others."""
    left, order = list(range(levels)), list[int]()
    for until in looked:
        count = until - len(order)
        picks = [left[int((place + 0.5) * len(left) / count)] for place in range(count)]
        order += picks
        left = [position for position in left if position not in set(picks)]
    return tuple(order)


def _amount(text: str) -> _Amount:
    text = text.strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            if math.isfinite(share):
                return share
        return int(text)
    except ValueError:
        raise ConfigError(f"elimination: expected a share such as 5% or a number; got {shown(text)}") from None


def _number(amount: _Amount, of: int) -> int:
    """Of a share or a number, how many of ``of``: at least 1, at most all."""
    exact = amount if type(amount) is int else amount * of
    return max(1, min(of, math.ceil(round(exact, 9))))


def _expected() -> str:
    return f"{', '.join(SCHEDULES)} or LEVELS:CLASSES,... such as {SCHEDULES['li-2023']}"
