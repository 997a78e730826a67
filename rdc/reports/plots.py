"""Plots of the HTML page as PNG (:mod:`rdc.plots.drawing`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from rdc.evaluation.report import Rate, RobustRate
from rdc.evaluation.summary import Curve
from rdc.plots.class_losses import draw_class_losses, losses_frame
from rdc.plots.drawing import INK, LINE, MUTED, drawing, plain_axes, shown

__all__ = ["losses_plot", "steps_plot"]

BLUE, GREEN, RED = "#2456c8", "#18794e", "#c0392b"


@drawing()
def steps_plot(curves: Sequence[Curve], clean: Rate, robust: RobustRate) -> bytes:
    """Accuracy (%) while attacks go on, attacks side by side, each as wide as any other.

    Args:
        curves: see ``rdc.evaluation.accuracy_per_step``.
        clean, robust: accuracy and ci95; drawn as a line and as an interval at the right.
    """
    figure, (axes,) = _figure(9.2, 3.4 if len(curves) > 3 else 3.1, 1)
    for place, curve in enumerate(curves):
        x = [place + at for at in curve.at]
        values = [100 * value for value in curve.accuracy]
        axes.fill_between(x, values, step="post", color=BLUE, alpha=0.10 if place % 2 == 0 else 0.18, linewidth=0)
        axes.step(x, values, where="post", color=BLUE, linewidth=1.8)
        for restart in range(1, min(curve.restarts, 20)):
            axes.axvline(place + restart / curve.restarts, color=LINE, linewidth=0.6)
        axes.axvline(place + 1, color=MUTED, linewidth=0.8)
    labels = [_attack_label(curve, len(curves)) for curve in curves]
    axes.set_xticks([place + 0.5 for place in range(len(curves))], labels, fontsize=9 if len(curves) <= 4 else 7)
    axes.tick_params(axis="x", length=0)
    if len(curves) > 4:
        axes.tick_params(axis="x", rotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
    axes.axhline(100 * clean.accuracy, color=GREEN, linewidth=1.2, linestyle=(0, (4, 3)))
    above = clean.accuracy < 0.93
    style = {"xytext": (-4, 3 if above else -3), "textcoords": "offset points", "ha": "right"}
    style["va"] = "bottom" if above else "top"
    last = len(curves)
    axes.annotate(f"clean {100 * clean.accuracy:.1f} %", (last, 100 * clean.accuracy), color=GREEN, fontsize=9, **style)
    assert robust.ci95 is not None and robust.accuracy is not None  # something attacked
    low, high = (100 * end for end in robust.ci95)
    value, end = 100 * robust.accuracy, last * 1.02
    spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar([end], [value], spread, color=INK, marker="o", markersize=4, capsize=4, linewidth=1.4)
    axes.annotate(
        f"{value:.1f} %", (end, value), (7, 0), textcoords="offset points", color=INK, fontsize=10, fontweight="bold",
        va="center",
    )  # fmt: skip
    axes.set(xlim=(0, last * 1.10), ylim=(0, 102), ylabel="images still right (%)")
    return _png(figure)


def _attack_label(curve: Any, attacks: int) -> str:
    name: str = (
        curve.name.replace(":", "\n", 1)
        if attacks <= 4
        else curve.name.replace("gradient=", "").replace("surrogate=", "")
    )
    if attacks > 4:
        return name
    restarts = f" × {curve.restarts}" if curve.restarts > 1 else ""
    return f"{name}\n{curve.steps}{restarts} step{'s' if curve.steps != 1 or restarts else ''}"


@drawing()
def losses_plot(
    sigma: np.ndarray,
    clean: np.ndarray,
    adversarial: np.ndarray | None,
    label: int,
    predicted: tuple[int, int | None],
    names: Sequence[str],
) -> bytes:
    """Weighted loss of each class minus that of the true class, over noise levels; sums decide.

    Classes far off leave the frame.

    Args:
        sigma: [T].
        clean, adversarial: [T, K] weighted class losses (adversarial None: one panel).
        label: true class.
        predicted: decision on the clean and on the adversarial image.
        names: K class names.
    """
    panels: list[tuple[np.ndarray, int | None, str]] = [(clean, predicted[0], "clean image")]
    if adversarial is not None:
        panels.append((adversarial, predicted[1], "adversarial image"))
    figure, all_axes = _figure(9.2, 3.4, len(panels), sharey=True)
    for axes, (losses, decision, title) in zip(all_axes, panels, strict=True):
        assert decision is not None  # of a panel that is drawn
        verdict = "right" if decision == label else f"taken for {shown(names[decision], 40)}"
        colour = INK if decision == label else RED
        draw_class_losses(axes, sigma, losses, label, names, f"{title}: {verdict}", colour)
    all_axes[0].set_ylim(*losses_frame([losses for losses, _, _ in panels], label))
    all_axes[0].set_ylabel("weighted loss − that of the true class")
    return _png(figure)


def _figure(width: float, height: float, panels: int, **shared: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    all_axes = figure.subplots(1, panels, squeeze=False, **shared)[0]
    for axes in all_axes:
        plain_axes(axes)
    return figure, all_axes


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()
