"""rdc: adversarially robust classification with diffusion models (arXiv 2305.15241).

>>> import rdc
>>> classifier = rdc.load("fashion-mnist")  # nn.Module: pixels [N, C, H, W] in [0, 1] -> log-probabilities [N, K]

Names are imported when first used, so that ``rdc --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdc.data import load_dataset
    from rdc.errors import RdcError
    from rdc.method.classifier import DiffusionClassifier
    from rdc.method.levels import NoiseLevels, noise_levels, parse_levels
    from rdc.method.likelihood_maximization import LikelihoodMaximization
    from rdc.method.noise import NoisePlan
    from rdc.models.custom import from_denoiser
    from rdc.models.zoo import MODELS, load

__version__ = "0.1.0"

_HOME = {
    "DiffusionClassifier": "rdc.method.classifier",
    "LikelihoodMaximization": "rdc.method.likelihood_maximization",
    "MODELS": "rdc.models.zoo",
    "NoiseLevels": "rdc.method.levels",
    "NoisePlan": "rdc.method.noise",
    "RdcError": "rdc.errors",
    "from_denoiser": "rdc.models.custom",
    "load": "rdc.models.zoo",
    "load_dataset": "rdc.data",
    "noise_levels": "rdc.method.levels",
    "parse_levels": "rdc.method.levels",
}

__all__ = [
    "MODELS",
    "DiffusionClassifier",
    "LikelihoodMaximization",
    "NoiseLevels",
    "NoisePlan",
    "RdcError",
    "__version__",
    "from_denoiser",
    "load",
    "load_dataset",
    "noise_levels",
    "parse_levels",
]


if not TYPE_CHECKING:  # to a type checker it would give whatever name is asked for

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'rdc' has no attribute {name!r}; it has {', '.join(_HOME)}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
