"""Evaluation: clean and robust accuracy with intervals, resumable, one folder per run. Pages: ``rdc.reports``."""

from __future__ import annotations

from rdc.evaluation.folder import RunFolder
from rdc.evaluation.run import Evaluation, evaluate
from rdc.evaluation.settings import EvaluationSettings, parse_attacks
from rdc.evaluation.summary import accuracy_per_class, accuracy_per_step, summarize

__all__ = [
    "Evaluation",
    "EvaluationSettings",
    "RunFolder",
    "accuracy_per_class",
    "accuracy_per_step",
    "evaluate",
    "parse_attacks",
    "summarize",
]
