"""The reliability diagram: how often answers of a given confidence are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rdc.arguments.scalars import as_integer
from rdc.arguments.scalars import shown as worded
from rdc.errors import InputError
from rdc.plots.canvas import own_or_new
from rdc.plots.drawing import INK, LINE, MUTED, drawing, shown
from rdc.statistics.reliability import ReliabilityRows, reliability_intervals, reliability_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_reliability", "plot_reliability"]

_COLOURS = ("#2456c8", "#c05a2b", "#18794e", "#7d4f9e")
_MOST = len(_COLOURS)


@drawing()
def plot_reliability(
    probabilities: Any, labels: Any, *, bins: int = 10, title: str = "", axes: Axes | None = None
) -> Figure:
    """Share of right answers against confidence in bins, with 95 % Wilson intervals; below it, how many images each bin has.

    >>> rdc.plots.plot_reliability(model(x).exp(), y)

    Args:
        probabilities: [N, K], rows sum to one; or several, by name: ``{"before": ..., "fitted": ...}``, at most four.
        labels: [N] true classes.
        bins: of [0, 1].
        title: heading; with one curve, its expected calibration error stands in its place.
        axes: a matplotlib Axes to draw into; None: a new figure.

    Returns:
        The figure.

    Raises:
        InputError: shapes that do not fit, or rows that are no probabilities.
    """
    curves = probabilities if isinstance(probabilities, Mapping) else {"accuracy": probabilities}
    count = as_integer(bins)
    if count is None or count < 1:
        raise InputError(f"bins: expected an integer >= 1; got {worded(bins)}")
    if not 1 <= len(curves) <= _MOST:
        raise InputError(f"probabilities: expected one to {_MOST} arrays; got {len(curves)}")
    truth = np.asarray(_array(labels), np.int64)
    rows = {str(name): reliability_rows(*_answers(values, truth), count) for name, values in curves.items()}
    figure, drawn = own_or_new(axes, 4.6, 4.6)
    draw_reliability(drawn, rows, title)
    return figure


def draw_reliability(axes: Axes, curves: Mapping[str, ReliabilityRows], title: str = "") -> None:
    """Draw reliability rows by name into axes; the legend stands above them, over nothing.

    Args:
        axes: where.
        curves: name -> see ``rdc.statistics.reliability.reliability_rows``.
        title: heading; "": the expected calibration error of a single curve.
    """
    last = list(curves.values())[-1]
    width, share = np.array(last["high"]) - np.array(last["low"]), np.array(last["count"]) / sum(last["count"])
    of = f" ({shown(list(curves)[-1], 30)})" if len(curves) > 1 else ""
    axes.bar(last["low"], share, width, align="edge", color=LINE, label=f"share of images{of}")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for place, (name, rows) in enumerate(curves.items()):
        low, high = reliability_intervals(rows)
        centre = np.array(rows["accuracy"])
        spread = [np.maximum(0, centre - low), np.maximum(0, high - centre)]
        error = f", ECE {100 * _error(rows):.1f} %" if len(curves) > 1 else ""
        axes.errorbar(
            rows["confidence"], centre, spread, color=_COLOURS[place], marker="o", markersize=4, linewidth=1.6, elinewidth=1,
            capsize=2, label=f"{shown(name, 30)}{error}",
        )  # fmt: skip
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="confidence", ylabel="share that is right")
    axes.set_aspect("equal", adjustable="box")
    heading = title or ("" if len(curves) > 1 else f"expected calibration error {100 * _error(last):.1f} %")
    legend = axes.legend(
        frameon=False,
        fontsize=8,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        borderaxespad=0.1,
        title=shown(heading),
    )
    legend._legend_box.align = "left"  # type: ignore[attr-defined]  # its heading, too
    legend.get_title().set(fontsize=10, color=INK)


def _error(rows: ReliabilityRows) -> float:
    """Expected calibration error."""
    counts = np.array(rows["count"])
    return float((counts * np.abs(np.array(rows["accuracy"]) - np.array(rows["confidence"]))).sum() / counts.sum())


def _answers(probabilities: Any, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence [N], and whether the answer is right [N]."""
    p = np.asarray(_array(probabilities), np.float64)
    if p.ndim != 2 or labels.shape != p.shape[:1] or not p.size:
        raise InputError(f"probabilities: expected [N, K] and labels [N]; got {list(p.shape)} and {list(labels.shape)}")
    if not (p.min() >= 0 and np.abs(p.sum(1) - 1).max() < 1e-3):  # also true for NaN
        raise InputError(
            "probabilities: expected rows >= 0 that sum to one; of log-probabilities take .exp(), of logits .softmax(1)"
        )
    return np.minimum(p.max(1), 1.0), p.argmax(1) == labels


def _array(values: Any) -> Any:
    return values.detach().cpu() if hasattr(values, "detach") else values
