"""What ``rdc.load`` may be told beside model and device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypedDict

from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import Denoiser
from rdc.method.levels import NoiseLevels
from rdc.method.likelihood_maximization import LikelihoodMaximization

__all__ = ["Settings"]


class Settings(TypedDict, total=False):
    """The settings of :class:`rdc.method.classifier.DiffusionClassifier`, which says what they are; all may be left out.

    A model of another kind has some of them: ``gradient``, ``noise`` and ``noise_seed`` have all, and what a model lacks it refuses.
    ``precision`` may be "auto" as well (:mod:`rdc.models.precision`).
    """

    levels: NoiseLevels | str
    lm: LikelihoodMaximization | str | None
    gradient: str
    noise: str
    noise_seed: int
    logit_scale: str | float
    class_prior: Sequence[float] | None
    memory_budget_mb: float | None
    class_names: Sequence[str] | None
    precision: str
    lm_denoiser: Denoiser | DiffusionClassifier | str | os.PathLike[str] | None
