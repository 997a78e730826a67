"""Reliability diagram, risk-coverage curve and score histograms as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from rdc.plots.drawing import drawing, new_figure, plain_axes, shown
from rdc.plots.reliability import draw_reliability
from rdc.reports.plots import GREEN, RED
from rdc.statistics.reliability import ReliabilityRows

__all__ = ["reliability_plot", "risk_coverage_plot", "score_plot"]


@drawing()
def reliability_plot(curves: Mapping[str, ReliabilityRows]) -> bytes:
    """Accuracy against confidence in bins with 95 % intervals, a curve for each name; below, how many images each bin of the last has.

    Args:
        curves: name -> see ``rdc.decisions.calibration.reliability``.
    """
    figure, (axes,) = _figure(4.6, 4.9, 1)
    draw_reliability(axes, curves)
    return _png(figure)


@drawing()
def risk_coverage_plot(coverage: np.ndarray, risk: np.ndarray) -> bytes:
    """Error rate (%) of the most confident share (%) of the images."""
    figure, (axes,) = _figure(4.6, 3.6, 1)
    axes.step(100 * coverage, 100 * risk, where="post", color=RED, linewidth=1.6)
    axes.set(xlim=(0, 100), ylim=(0, None), xlabel="images decided (%)", ylabel="of these wrong (%)")
    return _png(figure)


@drawing()
def score_plot(like: np.ndarray, unlike: Mapping[str, np.ndarray]) -> bytes:
    """Histograms of scores: images like the training data against others, by name."""
    figure, axes = _figure(max(4.6, 2.8 * len(unlike)), 2.6, len(unlike))
    everything = np.log10(np.concatenate([like, *unlike.values()]) + 1e-9)
    low, high = np.quantile(everything, [0.001, 0.999])
    edges = np.linspace(low, high, 50)
    for axis, (name, scores) in zip(axes, unlike.items(), strict=True):
        for values, colour, label in ((like, GREEN, "test images"), (scores, RED, shown(name))):
            axis.hist(np.log10(values + 1e-9), edges, density=True, color=colour, alpha=0.45, label=label)
        axis.legend(frameon=False, fontsize=8)
        axis.set_yticks([])
        axis.set_xlabel("log10 of the score")
    return _png(figure)


def _figure(width: float, height: float, panels: int) -> tuple[Any, Any]:
    figure = new_figure(width, height, dpi=144, layout="constrained")
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    for axes in all_axes:
        plain_axes(axes)
    return figure, all_axes


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.canvas.print_png(file, metadata={"Software": None})
    return file.getvalue()
