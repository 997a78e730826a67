"""Plots of the HTML page as PNG (:mod:`rdc.plots.drawing`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from rdc.evaluation.report import Rate, RobustRate
from rdc.evaluation.summary import Curve
from rdc.plots.drawing import INK, LINE, MUTED, drawing, plain_axes, shown

__all__ = ["losses_plot", "steps_plot"]

BLUE, GREEN, RED = "#2456c8", "#18794e", "#c0392b"
_NEAR = 2  # classes whose losses set the frame of a losses plot


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
    figure, all_axes = _figure(9.2, 3.0, len(panels), sharey=True)
    order = np.argsort(sigma)
    seen = [losses - losses[:, label : label + 1] for losses, _, _ in panels]
    near = np.concatenate([values[:, np.argsort(values.sum(0))[: _NEAR + 1]] for values in seen])  # true class included
    low, high = min(0.0, float(near.min())), max(0.0, float(near.max()))
    margin = 0.08 * max(high - low, 1e-12)
    for axes, (losses, decision, title) in zip(all_axes, panels, strict=True):
        relative = (losses - losses[:, label : label + 1])[order]
        totals = relative.sum(0)
        rivals = [k for k in np.argsort(totals) if k != label]
        for k in reversed(rivals):
            front = k == rivals[0]
            colour = (RED if totals[k] < 0 else "#b7791f") if front else "#c3c9d4"
            text = f"{shown(names[k], 40)}: sum {totals[k]:+.3g}" if front else None
            axes.plot(
                sigma[order],
                relative[:, k],
                color=colour,
                linewidth=1.9 if front else 0.9,
                marker="o",
                markersize=3.2 if front else 0,
                label=text,
                zorder=3 if front else 2,
            )
        axes.axhline(0, color=GREEN, linewidth=1.6, label=f"{shown(names[label], 40)} (true)", zorder=2.5)
        if len(rivals) > 1:
            axes.plot([], [], color="#c3c9d4", linewidth=0.9, label=f"{len(rivals) - 1} other classes")
        assert decision is not None  # of a panel that is drawn
        verdict = "right" if decision == label else f"taken for {shown(names[decision], 40)}"
        axes.set_title(f"{title}: {verdict}", fontsize=10, color=INK if decision == label else RED, loc="left")
        axes.set_xlabel("noise level sigma")
        if len(sigma) > 1:
            axes.set_xscale("log")
            _plain_ticks(axes, sigma)
        axes.legend(fontsize=8, loc="best", framealpha=0.85, edgecolor="none")
    all_axes[0].set_ylim(low - margin, high + margin)
    all_axes[0].set_ylabel("weighted loss − that of the true class")
    return _png(figure)


def _plain_ticks(axes: Any, sigma: np.ndarray) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter

    low, high = float(sigma.min()), float(sigma.max())
    if high / low < 100:
        ticks = [
            value
            for value in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 20, 50)
            if low * 0.999 <= value <= high * 1.001
        ]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())


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
