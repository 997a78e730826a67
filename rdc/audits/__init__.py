"""The audit of a model, and of what a run claims about it: rules, each with evidence and a command that shows it (docs/audit.md).

    run.py       audit(): measure, judge, report             report.py, settings.py, rule.py, subject.py
    answers.py, inside.py, repeats.py, nearby.py, slopes.py, contents.py, short_attacks.py, claims.py     measurements
    answer_rules.py, input_rules.py, gradient_rules.py, claim_rules.py                                    rules

What ``rdc evaluate`` checks of its own runs is decided in :mod:`rdc.evaluation.flags`, and asked for there.
"""

from __future__ import annotations

from rdc.audits.contents import answers_inside
from rdc.audits.inside import modules_called, modules_in_training, runs_of_modules
from rdc.audits.report import AuditReport, Finding
from rdc.audits.rule import Rule
from rdc.audits.run import RULES, audit
from rdc.audits.settings import AuditSettings
from rdc.audits.slopes import margin_gradient, measured_slope
from rdc.audits.subject import subject

__all__ = [
    "RULES",
    "AuditReport",
    "AuditSettings",
    "Finding",
    "Rule",
    "answers_inside",
    "audit",
    "margin_gradient",
    "measured_slope",
    "modules_called",
    "modules_in_training",
    "runs_of_modules",
    "subject",
]
