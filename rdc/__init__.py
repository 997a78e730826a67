"""rdc: adversarially robust classification with diffusion models (arXiv 2305.15241).

>>> import rdc
>>> classifier = rdc.load("fashion-mnist")  # nn.Module: pixels [N, C, H, W] in [0, 1] -> log-probabilities [N, K]

Names are imported when first used, so that ``rdc --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdc.classifier import DiffusionClassifier
    from rdc.data import load_dataset
    from rdc.errors import RdcError
    from rdc.likelihood_maximization import LikelihoodMaximization
    from rdc.noise import NoisePlan
    from rdc.presets import MODELS, load
    from rdc.timesteps import NoiseLevels, noise_levels, parse_levels

__version__ = "0.1.0"

_HOME = {
    "DiffusionClassifier": "rdc.classifier",
    "LikelihoodMaximization": "rdc.likelihood_maximization",
    "MODELS": "rdc.presets",
    "NoiseLevels": "rdc.timesteps",
    "NoisePlan": "rdc.noise",
    "RdcError": "rdc.errors",
    "load": "rdc.presets",
    "load_dataset": "rdc.data",
    "noise_levels": "rdc.timesteps",
    "parse_levels": "rdc.timesteps",
}

__all__ = [
    "MODELS",
    "DiffusionClassifier",
    "LikelihoodMaximization",
    "NoiseLevels",
    "NoisePlan",
    "RdcError",
    "__version__",
    "load",
    "load_dataset",
    "noise_levels",
    "parse_levels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rdc' has no attribute {name!r}; it has {', '.join(_HOME)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
