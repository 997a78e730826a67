"""What a prediction and an attack step cost: several models on the same images, machine and threads, in the same run.

settings.py  what is measured, of which models
timing.py    candidates take turns, so that whatever else the machine does hits all alike
memory.py    the most memory that a process holds, each in a process of its own
measure.py   all of it                              table.py, plots.py  what is printed and drawn
accuracy.py  accuracies of finished evaluations, to stand beside the costs
"""

from __future__ import annotations

from rdc.costs.accuracy import Accuracy, read_accuracy
from rdc.costs.measure import measure_costs
from rdc.costs.plots import write_plot
from rdc.costs.settings import CostSettings, MeasuredModel
from rdc.costs.table import cost_table

__all__ = [
    "Accuracy",
    "CostSettings",
    "MeasuredModel",
    "cost_table",
    "measure_costs",
    "read_accuracy",
    "write_plot",
]
