"""A Markdown table row per run, to be collected into a results table."""

from __future__ import annotations

from rdc.evaluation import Evaluation
from rdc.reports.words import network_words, rate, wording
from rdc.terminal.plain_text import printable

__all__ = ["COLUMNS", "markdown_report", "markdown_row"]

COLUMNS = ("model", "images", "levels", "LM", "threat", "attacks", "gradient", "noise", "clean", "robust", "command")


def markdown_row(evaluation: Evaluation) -> str:
    """One row under ``COLUMNS``; accuracies with 95 % Wilson intervals."""
    report, settings, said = evaluation.figures, evaluation.record.identity.settings, wording(evaluation)
    attacks = ", ".join(settings.attacks)
    if attacks:
        attacks += f", {settings.steps} steps x {settings.restarts}"
    cells = (
        _text(report.model),
        _text(f"{report.dataset} {settings.split} {settings.start}..{settings.start + report.n - 1}"),
        _text(said.levels),
        _text(said.lm),
        said.budget if attacks else "–",
        attacks or "none",
        settings.gradient or "–",
        said.noise,
        rate(report.clean),
        rate(report.robust),
        _code(report.command),
    )
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def markdown_report(evaluation: Evaluation) -> str:
    """Table head, the row, the preset with what differs from it, and the names of raised flags."""
    head = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
    flags, preset = [flag.name for flag in evaluation.figures.flags], wording(evaluation).preset
    below = "".join(f"\nNetwork for {_text(words)}\n" for words in network_words(evaluation.figures))
    if auto := evaluation.figures.precision_choice:
        below += f"\nPrecision, chosen by auto: {_text(auto.words())}\n"
    below += (f"\nPreset: {_text(preset)}\n" if preset else "") + (f"\nFlags: {', '.join(flags)}\n" if flags else "")
    return f"{head}\n{markdown_row(evaluation)}\n{below}"


def _text(value: object) -> str:
    """Without line breaks, tags, links, code and emphasis."""
    text = printable(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{character}" if character in "\\`*[]" else character for character in text)


def _code(value: object) -> str:
    """A code span; its fence is longer than any run of back quotes inside."""
    text, fence = printable(value), "`"
    while fence in text:
        fence += "`"
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"
