"""What an evaluation will take: which calls of the model it makes (``calls``), what each takes here (``timing``), and their product."""

from __future__ import annotations

from rdc.evaluation.cost.calls import Call, CallPlan, plan_calls
from rdc.evaluation.cost.prediction import Prediction, predict
from rdc.evaluation.cost.seconds import Seconds
from rdc.evaluation.cost.timing import CallTimes

__all__ = ["Call", "CallPlan", "CallTimes", "Prediction", "Seconds", "plan_calls", "predict"]
