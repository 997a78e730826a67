"""rdc: adversarially robust classification with diffusion models (arXiv 2305.15241).

>>> import rdc
>>> model = rdc.load("fashion-mnist")  # nn.Module: pixels [N, C, H, W] in [0, 1] -> log-probabilities [N, K]
>>> result = rdc.attack(model, x, y, eps="8/255")  # result.accuracy, result.adversarial, result.summary()

Names and rooms (``rdc.attacks``, ``rdc.evaluation``, ...) are imported when first used, so that ``rdc --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdc import arguments as arguments
    from rdc import attacks as attacks
    from rdc import audits as audits
    from rdc import certification as certification
    from rdc import contracts as contracts
    from rdc import costs as costs
    from rdc import data as data
    from rdc import decisions as decisions
    from rdc import defences as defences
    from rdc import evaluation as evaluation
    from rdc import execution as execution
    from rdc import export as export
    from rdc import front as front
    from rdc import gradient_analysis as gradient_analysis
    from rdc import images as images
    from rdc import method as method
    from rdc import models as models
    from rdc import networks as networks
    from rdc import ops as ops
    from rdc import plots as plots
    from rdc import provenance as provenance
    from rdc import reports as reports
    from rdc import runtime as runtime
    from rdc import statistics as statistics
    from rdc import storage as storage
    from rdc import terminal as terminal
    from rdc import training as training
    from rdc.audits import audit
    from rdc.data import load_dataset
    from rdc.errors import RdcError
    from rdc.front import EvaluationResult, attack, evaluate
    from rdc.method.classifier import DiffusionClassifier
    from rdc.method.levels import NoiseLevels, noise_levels, parse_levels
    from rdc.method.likelihood_maximization import LikelihoodMaximization
    from rdc.method.noise import NoisePlan
    from rdc.models.custom import from_azula, from_denoiser
    from rdc.models.pretrained import from_pretrained, push_to_hub, save_pretrained
    from rdc.models.zoo import MODELS, list_models, load
    from rdc.training import run as train

__version__ = "0.1.0"

#: name -> the module that has it, and what it is called there
_HOME = {
    "DiffusionClassifier": ("rdc.method.classifier", "DiffusionClassifier"),
    "EvaluationResult": ("rdc.front", "EvaluationResult"),
    "LikelihoodMaximization": ("rdc.method.likelihood_maximization", "LikelihoodMaximization"),
    "MODELS": ("rdc.models.zoo", "MODELS"),
    "NoiseLevels": ("rdc.method.levels", "NoiseLevels"),
    "NoisePlan": ("rdc.method.noise", "NoisePlan"),
    "RdcError": ("rdc.errors", "RdcError"),
    "attack": ("rdc.front", "attack"),
    "audit": ("rdc.audits", "audit"),
    "evaluate": ("rdc.front", "evaluate"),
    "from_azula": ("rdc.models.custom", "from_azula"),
    "from_denoiser": ("rdc.models.custom", "from_denoiser"),
    "from_pretrained": ("rdc.models.pretrained", "from_pretrained"),
    "list_models": ("rdc.models.zoo", "list_models"),
    "load": ("rdc.models.zoo", "load"),
    "load_dataset": ("rdc.data", "load_dataset"),
    "noise_levels": ("rdc.method.levels", "noise_levels"),
    "parse_levels": ("rdc.method.levels", "parse_levels"),
    "push_to_hub": ("rdc.models.pretrained", "push_to_hub"),
    "save_pretrained": ("rdc.models.pretrained", "save_pretrained"),
    "train": ("rdc.training", "run"),
}
_ROOMS = (
    "arguments", "attacks", "audits", "certification", "cli", "contracts", "costs", "data", "decisions", "defences",
    "evaluation", "execution", "export", "front", "gradient_analysis", "images", "method", "models", "networks",
    "ops", "plots", "provenance", "reports", "runtime", "statistics", "storage", "terminal", "training",
)  # fmt: skip

__all__ = [
    "MODELS",
    "DiffusionClassifier",
    "EvaluationResult",
    "LikelihoodMaximization",
    "NoiseLevels",
    "NoisePlan",
    "RdcError",
    "__version__",
    "attack",
    "audit",
    "evaluate",
    "from_azula",
    "from_denoiser",
    "from_pretrained",
    "list_models",
    "load",
    "load_dataset",
    "noise_levels",
    "parse_levels",
    "push_to_hub",
    "save_pretrained",
    "train",
]


if not TYPE_CHECKING:  # to a type checker it would give whatever name is asked for

    def __getattr__(name: str) -> Any:
        if name in _ROOMS or name in ("errors", "norm_balls"):
            return importlib.import_module(f"rdc.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'rdc' has no attribute {name!r}; it has {', '.join((*_HOME, *_ROOMS))}")
        module, there = _HOME[name]
        value = getattr(importlib.import_module(module), there)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_ROOMS])
