"""Evaluation: clean and robust accuracy with intervals, resumable, one folder per run. Pages: ``rdc.reports``."""

from __future__ import annotations

from rdc.evaluation.folder import RunFolder
from rdc.evaluation.run import Evaluation, evaluate
from rdc.evaluation.settings import EvaluationSettings, parse_attacks
from rdc.evaluation.summary import accuracy_per_class, accuracy_per_step, summarize
from rdc.evaluation.threat_run import ThreatEvaluation, evaluate_threats
from rdc.evaluation.threats import Threat, parse_threats, settings_of_threats

__all__ = [
    "Evaluation",
    "EvaluationSettings",
    "RunFolder",
    "Threat",
    "ThreatEvaluation",
    "accuracy_per_class",
    "accuracy_per_step",
    "evaluate",
    "evaluate_threats",
    "parse_attacks",
    "parse_threats",
    "settings_of_threats",
    "summarize",
]
