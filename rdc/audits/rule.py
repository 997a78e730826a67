"""What a rule of the audit is, and what a rule says of one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ERROR", "NOTE", "SEVERITIES", "WARNING", "Number", "Outcome", "Rule"]

ERROR, WARNING, NOTE = "error", "warning", "note"
#: worst first. An error: figures of this model mean nothing, or not what they say. A warning: do not quote a figure before dealing with
#: it. A note belongs beside the figure.
SEVERITIES = (ERROR, WARNING, NOTE)

#: a figure of evidence
Number = float | int | str | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a rule says of a model.

    Args:
        raised: the rule is broken.
        words: what was measured, in one line, whether it is broken or not.
        numbers: the same, by name.
    """

    raised: bool
    words: str
    numbers: Mapping[str, Number] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule.

    Args:
        name: short, stable.
        severity: one of :data:`SEVERITIES`.
        raised_if: the condition.
        explanation: why it matters.
        what_to_do: next step.
        line: Python that shows it, given ``model``, ``x`` (pixels) and ``y`` (labels) of :func:`rdc.audits.subject`, ``torch`` and ``rdc``;
            it prints True first where the rule is broken, and then what it measured.
        of: which of the measurements it judges.
        check: the measurement -> what the rule says of it.
    """

    name: str
    severity: str
    raised_if: str
    explanation: str
    what_to_do: str
    line: str
    of: str
    check: Callable[[Any], Outcome]
