"""Reports of an evaluation: report.json, report.html, report.md and RobustBench's model_info.json."""

from __future__ import annotations

from pathlib import Path

from rdc.contracts import Defence
from rdc.evaluation import Evaluation
from rdc.reports.html import html_report
from rdc.reports.markdown import markdown_report
from rdc.reports.pictures import Gallery, gallery
from rdc.reports.robustbench import model_info
from rdc.storage.files import atomic_write
from rdc.storage.json_files import write_json

__all__ = ["Gallery", "gallery", "html_report", "markdown_report", "model_info", "write_reports"]


def write_reports(evaluation: Evaluation, classifier: Defence) -> dict[str, Path]:
    """Write the four files into the run's folder, each atomically.

    Args:
        evaluation: what ``rdc.evaluation.evaluate`` returned.
        classifier: the classifier it was run with; the pages show its likelihood maximisation and losses per level.

    Returns:
        File name -> path.
    """
    texts = {
        "report.html": html_report(evaluation, gallery(evaluation, classifier)),
        "report.md": markdown_report(evaluation),
    }
    values = {
        "model_info.json": model_info(evaluation, classifier.evaluations_per_image),
        "report.json": evaluation.report,
    }
    for name, text in texts.items():
        with atomic_write(evaluation.out / name, "w") as file:
            file.write(text)
    for name, value in values.items():
        write_json(evaluation.out / name, value)
    return {name: evaluation.out / name for name in (*texts, *values)}
