"""Class elimination in stages, for clean inference with many classes: few levels for all classes, all levels for few.

Where every class is a network pass of its own, a full decision takes T K passes. An :class:`EliminatingClassifier` looks at some levels for
all classes, keeps the best ones, and goes on with these. It says nothing of how often the answer is another one than the full decision's:
:func:`measure_agreement` counts that on images; the sequential test of :mod:`rdc.decisions.anytime` promises a rate.

Off under attack: called like any classifier it takes the full decision, with all classes; only :meth:`EliminatingClassifier.decide` leaves
classes out.
"""

from __future__ import annotations

from rdc.decisions.elimination.agreement import Agreement, measure_agreement
from rdc.decisions.elimination.classifier import EliminatingClassifier
from rdc.decisions.elimination.stages import SCHEDULES, EliminationSchedule

__all__ = ["SCHEDULES", "Agreement", "EliminatingClassifier", "EliminationSchedule", "measure_agreement"]
