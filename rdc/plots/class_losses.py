"""Losses of each class over noise levels: which levels decide, and how closely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rdc.arguments.scalars import as_integer
from rdc.arguments.scalars import shown as worded
from rdc.errors import InputError
from rdc.plots.canvas import own_or_new
from rdc.plots.drawing import INK, drawing, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_class_losses", "losses_frame", "plot_class_losses"]

GREEN, RED, AMBER, PALE = "#18794e", "#c0392b", "#b7791f", "#c3c9d4"
_NEAR = 2  # classes whose losses set the frame
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 20, 50)


@drawing()
def plot_class_losses(
    sigma: Any,
    losses: Any,
    label: int,
    *,
    weight: Any = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> Figure:
    """Weighted loss of each class minus that of the true class, over noise levels. Above zero the true class fits better; sums decide.

    >>> rdc.plots.plot_class_losses(model.levels.sigma, model.losses_per_level(x)[0], int(y[0]), weight=model.levels.weight)

    Args:
        sigma: [T] noise levels.
        losses: [T, K] class losses of one image.
        label: its true class.
        weight: [T], what losses are multiplied by; None: they are weighted already.
        class_names: K names; None: numbers.
        title: heading; "": the decision.
        axes: a matplotlib Axes to draw into; None: a new figure.

    Returns:
        The figure. Classes far off leave the frame.

    Raises:
        InputError: shapes that do not fit, or a label out of range.
    """
    levels, values = _numbers(sigma), _numbers(losses)
    if values.ndim != 2 or levels.shape != values.shape[:1] or not values.size:
        raise InputError(f"losses: expected [T, K] for sigma [T]; got {list(values.shape)} and {list(levels.shape)}")
    if weight is not None:
        factor = _numbers(weight)
        if factor.shape != levels.shape:
            raise InputError(f"weight: expected [{len(levels)}], one for each level; got {list(factor.shape)}")
        values = values * factor[:, None]
    true, count = as_integer(label), values.shape[1]
    if true is None or not 0 <= true < count:
        raise InputError(f"label: expected a class, 0 to {count - 1}; got {worded(label)}")
    names = [str(k) for k in range(count)] if class_names is None else [str(name) for name in class_names]
    if len(names) != count:
        raise InputError(f"class_names: expected {count} names; got {len(names)}")
    figure, drawn = own_or_new(axes, 5.6, 4.0)
    decision = int(values.sum(0).argmin())
    verdict = "right" if decision == true else f"taken for {shown(names[decision], 40)}"
    draw_class_losses(drawn, levels, values, true, names, shown(title) or verdict, INK if decision == true else RED)
    drawn.set_ylim(*losses_frame([values], true))
    drawn.set_ylabel("weighted loss − that of the true class")
    return figure


def draw_class_losses(
    axes: Any, sigma: np.ndarray, losses: np.ndarray, label: int, names: Sequence[str], title: str, colour: str
) -> None:
    """Draw [T, K] weighted losses into axes; the legend stands above them, over nothing.

    Args: as of :func:`plot_class_losses`; ``colour`` is the heading's.
    """
    order = np.argsort(sigma)
    relative = (losses - losses[:, label : label + 1])[order]
    totals = relative.sum(0)
    rivals = [k for k in np.argsort(totals) if k != label]
    for k in reversed(rivals):
        front = k == rivals[0]
        axes.plot(
            sigma[order],
            relative[:, k],
            color=(RED if totals[k] < 0 else AMBER) if front else PALE,
            linewidth=1.9 if front else 0.9,
            marker="o",
            markersize=3.2 if front else 0,
            label=f"{shown(names[k], 40)}: sum {totals[k]:+.3g}" if front else None,
            zorder=3 if front else 2,
        )
    axes.axhline(0, color=GREEN, linewidth=1.6, label=f"{shown(names[label], 40)} (true)", zorder=2.5)
    if len(rivals) > 1:
        axes.plot([], [], color=PALE, linewidth=0.9, label=f"{len(rivals) - 1} other classes")
    axes.set_xlabel("noise level sigma")
    if len(sigma) > 1:
        axes.set_xscale("log")
        _plain_ticks(axes, sigma)
    legend = axes.legend(
        frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.1, title=title
    )
    legend._legend_box.align = "left"  # its heading, too
    legend.get_title().set(fontsize=10, color=colour)


def losses_frame(panels: Sequence[np.ndarray], label: int) -> tuple[float, float]:
    """Limits of the y axis: the true class and its nearest rivals of all panels [T, K]."""
    seen = [losses - losses[:, label : label + 1] for losses in panels]
    near = np.concatenate([values[:, np.argsort(values.sum(0))[: _NEAR + 1]] for values in seen])  # true class included
    low, high = min(0.0, float(near.min())), max(0.0, float(near.max()))
    margin = 0.08 * max(high - low, 1e-12)
    return low - margin, high + margin


def _numbers(values: Any) -> np.ndarray:
    return np.asarray(values.detach().double().cpu() if hasattr(values, "detach") else values, np.float64)


def _plain_ticks(axes: Any, sigma: np.ndarray) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter

    low, high = float(sigma.min()), float(sigma.max())
    if high / low < 100:
        ticks = [value for value in _TICKS if low * 0.999 <= value <= high * 1.001]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
