"""Gradient analysis of any model pixels [N, C, H, W] in [0, 1] -> logits [N, K]: are its gradients usable, and how rough
is what an attack climbs? Over redraws, over images, local Lipschitz constants, slices, attack paths, exact against BPDA.

    settings.py  what is measured, and how a model is named on the command line
    measures.py  numbers from stacks of gradients; intervals
    slopes.py    Jacobian norms and Lipschitz constants        landscape.py  slices and attack paths
    analysis.py  all measures of one model                     comparison.py several models, one folder, resumable
    table.py, plots.py                                         what is printed and drawn

Source: the measures that arXiv 1802.00420 (masked gradients) and arXiv 1902.06705 (evaluating robustness) ask for.
"""

from __future__ import annotations

from rdc.gradient_analysis.analysis import analyze_model
from rdc.gradient_analysis.comparison import NamedModel, compare_models
from rdc.gradient_analysis.measures import gradient_agreement, image_cosines, redraw_measures, summarize_images
from rdc.gradient_analysis.settings import GradientSettings, ModelText, parse_model
from rdc.gradient_analysis.table import comparison_table

__all__ = [
    "GradientSettings",
    "ModelText",
    "NamedModel",
    "analyze_model",
    "compare_models",
    "comparison_table",
    "gradient_agreement",
    "image_cosines",
    "parse_model",
    "redraw_measures",
    "summarize_images",
]
