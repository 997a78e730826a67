"""What a report says of the defences that another one is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rdc.contracts import Component
from rdc.defences.purifiers import Purifier

__all__ = ["described_parts"]


def described_parts(parts: Iterable[Component], *, lifted: tuple[str, ...] = ("lm",)) -> dict[str, Any]:
    """Entries for the description of a defence that is made of ``parts``; {} where none of them draws or purifies.

    Args:
        parts: what it is made of.
        lifted: settings that are the whole defence's too: those of the first part that has them.

    Returns:
        ``parts``, a list of descriptions, and the settings in ``lifted`` where a part has them.
    """
    about = [{"head": part.head, **_of(part)} for part in parts if part.stochastic or part.purifies]
    if not about:
        return {}
    shared = {name: next((part[name] for part in about if part.get(name)), None) for name in lifted}
    return {**{name: value for name, value in shared.items() if value}, "parts": about}


def _of(part: Component) -> dict[str, Any]:
    """Its settings but for the gradient mode, which is the whole's."""
    if isinstance(part, Purifier):
        return {"lm": part.describe()}
    return {name: value for name, value in part.describe().items() if name != "gradient"}
