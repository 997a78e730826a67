"""Plots of the HTML page (:mod:`rdc.reports.svg`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rdc.evaluation.report import Rate, RobustRate
from rdc.evaluation.summary import Curve
from rdc.plots.class_losses import draw_class_losses, losses_frame
from rdc.plots.drawing import INK, LINE, MUTED, drawing, shown
from rdc.reports.svg import NARROW, WIDE, Plot, new_panels, svg

__all__ = ["losses_plot", "steps_plot"]

BLUE, GREEN, RED = "#2456c8", "#18794e", "#c0392b"


@drawing()
def steps_plot(curves: Sequence[Curve], clean: Rate, robust: RobustRate) -> Plot:
    """Accuracy (%) while attacks go on, attacks side by side, each as wide as any other.

    Args:
        curves: see ``rdc.evaluation.accuracy_per_step``.
        clean, robust: accuracy and ci95; drawn as a line and as an interval at the right.
    """
    high = 0.3 * (len(curves) > 3)
    return Plot(
        svg(_steps(WIDE, 3.1 + high, 4, curves, clean, robust)),
        svg(_steps(NARROW, 3.2 + high, 2, curves, clean, robust)),
    )


def _steps(width: float, height: float, level: int, curves: Sequence[Curve], clean: Rate, robust: RobustRate) -> Any:
    """The figure; names of more than ``level`` attacks are written aslant."""
    figure, (axes,) = new_panels(width, height, 1, 1)
    for place, curve in enumerate(curves):
        x = [place + at for at in curve.at]
        values = [100 * value for value in curve.accuracy]
        axes.fill_between(x, values, step="post", color=BLUE, alpha=0.10 if place % 2 == 0 else 0.18, linewidth=0)
        axes.step(x, values, where="post", color=BLUE, linewidth=1.8)
        for restart in range(1, min(curve.restarts, 20)):
            axes.axvline(place + restart / curve.restarts, color=LINE, linewidth=0.6)
        axes.axvline(place + 1, color=MUTED, linewidth=0.8)
    aslant = len(curves) > level
    labels = [_attack_label(curve, aslant) for curve in curves]
    axes.set_xticks([place + 0.5 for place in range(len(curves))], labels, fontsize=8 if aslant else 9)
    axes.tick_params(axis="x", length=0)
    if aslant:
        axes.tick_params(axis="x", rotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
    _clean_and_robust(axes, len(curves), clean, robust)
    axes.set(xlim=(0, len(curves) * (1 + 0.92 / width)), ylim=(0, 102), ylabel="images still right (%)")
    return figure


def _clean_and_robust(axes: Any, last: int, clean: Rate, robust: RobustRate) -> None:
    """The line of clean accuracy, its words above everything, and robust accuracy with its interval at the right."""
    axes.axhline(100 * clean.accuracy, color=GREEN, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_title(f"clean {100 * clean.accuracy:.1f} %", loc="left", color=GREEN, fontsize=9, pad=4)
    assert robust.ci95 is not None and robust.accuracy is not None  # something attacked
    low, high = (100 * end for end in robust.ci95)
    value, end = 100 * robust.accuracy, last * 1.02
    spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar([end], [value], spread, color=INK, marker="o", markersize=4, capsize=4, linewidth=1.4)
    axes.annotate(
        f"{value:.1f} %", (end, value), (7, 0), textcoords="offset points", color=INK, fontsize=10, fontweight="bold",
        va="center",
    )  # fmt: skip


def _attack_label(curve: Any, short: bool) -> str:
    if short:
        words: str = curve.name.replace("gradient=", "").replace("surrogate=", "")
        return words
    restarts = f" × {curve.restarts}" if curve.restarts > 1 else ""
    name = curve.name.replace(":", "\n", 1)
    return f"{name}\n{curve.steps}{restarts} step{'s' if curve.steps != 1 or restarts else ''}"


@drawing()
def losses_plot(
    sigma: np.ndarray,
    clean: np.ndarray,
    adversarial: np.ndarray | None,
    label: int,
    predicted: tuple[int, int | None],
    names: Sequence[str],
) -> Plot:
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
    count = len(panels)

    def drawn(width: float, height: float, rows: int, columns: int) -> bytes:
        figure, all_axes = new_panels(width, height, rows, columns, sharey=True)
        for axes, (losses, decision, title) in zip(all_axes, panels, strict=True):
            assert decision is not None  # of a panel that is drawn
            verdict = "right" if decision == label else f"taken for {shown(names[decision], 40)}"
            colour = INK if decision == label else RED
            draw_class_losses(axes, sigma, losses, label, names, f"{title}: {verdict}", colour)
        all_axes[0].set_ylim(*losses_frame([losses for losses, _, _ in panels], label))
        for axes in all_axes[:: max(1, columns)]:
            axes.set_ylabel("weighted loss − that of the true class")
        return svg(figure)

    return Plot(drawn(WIDE, 3.6, 1, count), drawn(NARROW, 3.4 * count, count, 1))
