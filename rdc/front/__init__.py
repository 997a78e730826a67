"""What ``import rdc`` offers in one line each: ``rdc.attack`` and ``rdc.evaluate``, whatever the model and the images are."""

from __future__ import annotations

from rdc.front.evaluation import Options, attack, evaluate
from rdc.front.result import EvaluationResult

__all__ = ["EvaluationResult", "Options", "attack", "evaluate"]
