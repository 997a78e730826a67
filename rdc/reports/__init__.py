"""Reports of an evaluation: report.json, report.html, report.md and RobustBench's model_info.json; and the text to print."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rdc.contracts import Defence
from rdc.errors import ConfigError, one_line
from rdc.evaluation import Evaluation, ThreatEvaluation
from rdc.reports.drawings import Drawings, draw
from rdc.reports.html import html_report
from rdc.reports.markdown import markdown_report
from rdc.reports.pictures import Gallery, gallery
from rdc.reports.robustbench import model_info
from rdc.reports.text import text_report
from rdc.reports.threats import threats_markdown, threats_page, threats_text
from rdc.reports.words import wording
from rdc.storage.files import atomic_write
from rdc.storage.json_files import json_text

__all__ = [
    "FORMS",
    "Drawings",
    "Gallery",
    "Presented",
    "draw",
    "gallery",
    "html_report",
    "markdown_report",
    "model_info",
    "present",
    "present_threats",
    "text_report",
    "threats_markdown",
    "threats_page",
    "threats_text",
    "write_reports",
]

FORMS = ("text", "json", "markdown")  #: what :func:`present` can word for printing


@dataclasses.dataclass(frozen=True)
class Presented:
    """A run's reports, written, and what is to be printed.

    Args:
        text: in the form that was asked for, its last line break included.
        page: path of report.html.
    """

    text: str
    page: Path


def present(evaluation: Evaluation, classifier: Defence, form: str = "text") -> Presented:
    """Write the four files, as :func:`write_reports` does, and word what is to be printed.

    Args:
        evaluation, classifier: see :func:`write_reports`.
        form: "text", a table; "json", report.json's content; "markdown", report.md's.

    Raises:
        ConfigError: there is no such form.
    """
    _check_form(form)
    return _presented(evaluation.out, _contents(evaluation, classifier), form, text_report(evaluation) + "\n")


def present_threats(evaluation: ThreatEvaluation, classifier: Defence, form: str = "text") -> Presented:
    """Write the reports of every threat, and those of all together, and word what is to be printed.

    Args:
        evaluation: what ``rdc.evaluation.evaluate_threats`` returned.
        classifier: it was run with.
        form: as of :func:`present`.

    Raises:
        ConfigError: there is no such form.
    """
    _check_form(form)
    for run in evaluation.runs:
        write_reports(run, classifier)
    contents = {
        "report.html": threats_page(evaluation),
        "report.md": threats_markdown(evaluation),
        "report.json": json_text(evaluation.report),
    }
    return _presented(evaluation.out, contents, form, threats_text(evaluation) + "\n")


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ConfigError(f"format: expected one of {', '.join(FORMS)}; got {one_line(repr(form))}")


def _presented(folder: Path, contents: dict[str, str], form: str, text: str) -> Presented:
    """Write the files; what is printed is one of them, or ``text``."""
    files = _write(folder, contents)
    printed = {"json": contents["report.json"], "markdown": contents["report.md"]}
    return Presented(printed.get(form, text), files["report.html"])


def write_reports(evaluation: Evaluation, classifier: Defence) -> dict[str, Path]:
    """Write the four files into the run's folder, each atomically.

    Args:
        evaluation: what ``rdc.evaluation.evaluate`` returned.
        classifier: the classifier it was run with; the pages show its likelihood maximisation and losses per level.

    Returns:
        File name -> path.
    """
    return _write(evaluation.out, _contents(evaluation, classifier))


def _contents(evaluation: Evaluation, classifier: Defence) -> dict[str, str]:
    """File name -> its content."""
    chosen = gallery(evaluation, classifier)
    drawings = draw(evaluation, chosen)
    return {
        "report.html": html_report(evaluation, drawings, wording(evaluation)),
        "report.md": markdown_report(evaluation),
        "model_info.json": json_text(model_info(evaluation, classifier.evaluations_per_image)),
        "report.json": json_text(evaluation.report),
    }


def _write(folder: Path, contents: dict[str, str]) -> dict[str, Path]:
    for name, content in contents.items():
        with atomic_write(folder / name, "w") as file:
            file.write(content)
    return {name: folder / name for name in contents}
