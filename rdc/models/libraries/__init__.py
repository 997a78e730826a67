"""Classifiers of other libraries by name: timm, torchvision, RobustBench. Size and normalisation are what the library says of them."""

from __future__ import annotations

from rdc.models.libraries.robustbench_models import load_robustbench
from rdc.models.libraries.timm_models import load_timm
from rdc.models.libraries.torchvision_models import load_torchvision

__all__ = ["load_robustbench", "load_timm", "load_torchvision"]
