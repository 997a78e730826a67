"""What an audit found: as frozen dataclasses, as JSON, as text."""

from __future__ import annotations

import dataclasses
import os
import shlex
import textwrap
from collections.abc import Mapping
from typing import Any

from rdc.audits.rule import ERROR, SEVERITIES, WARNING, Number
from rdc.errors import one_line
from rdc.storage.json_files import write_json

__all__ = ["SCHEMA", "AuditReport", "Finding"]

SCHEMA = "rdc-audit-1"
_WIDE = 118
_WORDS = {"error": "errors", "warning": "warnings", "note": "notes"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A rule that is broken.

    Args:
        name, severity: of the rule, see :class:`rdc.audits.rule.Rule`.
        found: what was measured, in one line.
        evidence: the same as figures.
        why: it matters.
        what_to_do: next step.
        command: that shows it: prints True first, and then what it measured.
    """

    name: str
    severity: str
    found: str
    evidence: Mapping[str, Number]
    why: str
    what_to_do: str
    command: str

    @property
    def warns(self) -> bool:
        """A warning or worse."""
        return self.severity in (ERROR, WARNING)


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """All of an audit.

    Args:
        model, dataset: what was asked about what.
        about: which images, which threat, in one line.
        settings: of the audit, as JSON values.
        findings: rules that are broken, the worst first.
        fine: rule -> what was measured where it is not broken.
        unchecked: rule -> why it could not be checked.
        calls, images: of the model: calls, and images in them (network passes, in short attacks).
        versions: of rdc, Python, PyTorch and NumPy, and the device.
        run: folder that was audited with it; None: none.
    """

    model: str
    dataset: str
    about: str
    settings: Mapping[str, Any]
    findings: tuple[Finding, ...]
    fine: Mapping[str, str]
    unchecked: Mapping[str, str]
    calls: int
    images: int
    versions: Mapping[str, str]
    run: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the findings."""
        return tuple(finding.name for finding in self.findings)

    @property
    def warns(self) -> bool:
        """There is a finding of severity warning or worse."""
        return any(finding.warns for finding in self.findings)

    def count(self, severity: str) -> int:
        """How many findings have it."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = dataclasses.asdict(self)
        return {"schema": SCHEMA, **found, "findings": [dataclasses.asdict(one) for one in self.findings]}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, whole or not at all.

        Args:
            path: of the file.
        """
        write_json(path, self.to_json())

    def text(self) -> str:
        """All of it as lines to be read."""
        counts = [f"{self.count(one)} {one if self.count(one) == 1 else _WORDS[one]}" for one in SEVERITIES]
        lines = [
            f"audit of {one_line(self.model, 200)} on {one_line(self.dataset, 200)}, {self.about}",
            f"{', '.join(counts)}; {len(self.fine)} rules hold, {len(self.unchecked)} were not checked; {self.calls:,} calls, "
            f"{self.images:,} images",
        ]
        for finding in self.findings:
            lines += ["", f"{finding.severity.upper()}  {finding.name}"]
            shown = (
                ("found", finding.found),
                ("why", finding.why),
                ("to do", finding.what_to_do),
                ("shown by", finding.command),
            )
            for word, text in shown:
                lines += _paragraph(word, text) if word != "shown by" else [f"  {word:<9} {one_line(text, 4000)}"]
        for head, table in (("checked and fine", self.fine), ("not checked", self.unchecked)):
            if table:
                wide = max(len(name) for name in table)
                lines += ["", head, *(f"  {name:<{wide}}  {one_line(words, 400)}" for name, words in table.items())]
        return "\n".join(lines) + "\n"


def _paragraph(word: str, text: str) -> list[str]:
    lines = textwrap.wrap(one_line(text, 4000), _WIDE - 12, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"  {word:<9} {lines[0]}", *(f"  {'':<9} {line}" for line in lines[1:])]


def in_shell(code: str) -> str:
    """Python as a command of a shell: between double quotes where a shell leaves everything in it alone, which is read more easily."""
    plain = code.isprintable() and not any(sign in code.replace("!=", "") for sign in '"$`\\!')
    return f'python -c "{code}"' if plain else f"python -c {shlex.quote(code)}"
