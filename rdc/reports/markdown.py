"""A Markdown table row per run, to be collected into a results table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rdc.evaluation import Evaluation
from rdc.reports.words import network_words, rate, wording
from rdc.terminal.plain_text import printable

__all__ = ["COLUMNS", "code_span", "markdown_report", "markdown_row", "plain_cell", "table_lines"]

COLUMNS = ("model", "images", "levels", "LM", "threat", "attacks", "gradient", "noise", "clean", "robust", "command")


def markdown_row(evaluation: Evaluation) -> str:
    """One row under ``COLUMNS``; accuracies with 95 % Wilson intervals."""
    report, settings, said = evaluation.figures, evaluation.record.identity.settings, wording(evaluation)
    attacks = ", ".join(settings.attacks)
    if attacks:
        attacks += f", {settings.steps} steps x {settings.restarts}"
    cells = (
        plain_cell(report.model),
        plain_cell(f"{report.dataset} {settings.split} {settings.start}..{settings.start + report.n - 1}"),
        plain_cell(said.levels),
        plain_cell(said.lm),
        said.budget if attacks else "–",
        attacks or "none",
        settings.gradient or "–",
        said.noise,
        rate(report.clean),
        rate(report.robust),
        code_span(report.command),
    )
    return _row(cells)


def table_lines(columns: Mapping[str, object]) -> str:
    """A table of one row: heading -> cell."""
    return f"{_row(list(columns))}\n|{'---|' * len(columns)}\n{_row(list(columns.values()))}"


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def markdown_report(evaluation: Evaluation) -> str:
    """Table head, the row, the preset with what differs from it, and the names of raised flags."""
    head = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
    flags, preset = [flag.name for flag in evaluation.figures.flags], wording(evaluation).preset
    below = "".join(f"\nNetwork for {plain_cell(words)}\n" for words in network_words(evaluation.figures))
    if auto := evaluation.figures.precision_choice:
        below += f"\nPrecision, chosen by auto: {plain_cell(auto.words())}\n"
    below += (f"\nPreset: {plain_cell(preset)}\n" if preset else "") + (
        f"\nFlags: {', '.join(flags)}\n" if flags else ""
    )
    return f"{head}\n{markdown_row(evaluation)}\n{below}"


def plain_cell(value: object) -> str:
    """Without line breaks, tags, links, code and emphasis."""
    text = printable(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{character}" if character in "\\`*[]" else character for character in text)


def code_span(value: object) -> str:
    """A code span; its fence is longer than any run of back quotes inside."""
    text, fence = printable(value), "`"
    while fence in text:
        fence += "`"
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"
