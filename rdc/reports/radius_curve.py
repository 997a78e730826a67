"""Plot of the HTML page: robust accuracy against the radius of the attacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdc.evaluation.report import Rate
from rdc.evaluation.threat_report import ThreatReport
from rdc.plots.drawing import drawing
from rdc.reports.plots import BLUE, GREEN
from rdc.reports.svg import NARROW, WIDE, Plot, new_panels, svg
from rdc.reports.words import NORM_WORDS

__all__ = ["curves_of", "radius_plot"]

_MOST = 18  # values that have room beside each other on a wide page


def curves_of(threats: Sequence[ThreatReport]) -> list[list[ThreatReport]]:
    """The norms with two radii or more: of each its threats, radii rising."""
    curves = []
    for norm in dict.fromkeys(threat.norm for threat in threats):
        mine = sorted((threat for threat in threats if threat.norm == norm), key=lambda threat: threat.radius)
        if len(mine) > 1:
            curves.append(mine)
    return curves


@drawing()
def radius_plot(curves: Sequence[Sequence[ThreatReport]], clean: Rate) -> Plot:
    """Robust accuracy (%) against the radius, a panel for each norm; the band is the 95 % interval of each radius by itself.

    Args:
        curves: see :func:`curves_of`; at least one.
        clean: accuracy at radius 0.
    """
    count = len(curves)
    return Plot(
        svg(_panels(curves, clean, WIDE, 3.2, 1, count)),
        svg(_panels(curves, clean, NARROW, 3.0 * count, count, 1)),
    )


def _panels(
    curves: Sequence[Sequence[ThreatReport]], clean: Rate, width: float, height: float, rows: int, columns: int
) -> Any:
    figure, panels = new_panels(width, height, rows, columns, sharey=True)
    for axes, curve in zip(panels, curves, strict=True):
        _curve(axes, curve, clean, _MOST * width / WIDE / columns)
    for axes in panels[::columns]:
        axes.set_ylabel("images still right (%)")
    return figure


def _apart(radii: Sequence[float], values: Sequence[float], part: float) -> list[tuple[float, float]]:
    """The points that have room for their value: nearer to the one before than this part of the axis, none but the last."""
    shown = [(radii[0], values[0])]
    for radius, value in zip(radii[1:], values[1:], strict=True):
        if radius - shown[-1][0] >= part * radii[-1]:
            shown.append((radius, value))
        elif radius == radii[-1]:
            shown[-1] = (radius, value)
    return shown


def _curve(axes: Any, curve: Sequence[ThreatReport], clean: Rate, most: float) -> None:
    """One norm, from the clean images on; ``most`` values have room, and names of radii that lack it are written aslant."""
    radii = [0.0, *(threat.radius for threat in curve)]
    rates = [(clean.accuracy, clean.ci95), *((threat.robust.accuracy, threat.robust.ci95) for threat in curve)]
    values = [100 * (value or 0.0) for value, _ in rates]
    low, high = ([100 * ends[side] if ends else 0.0 for _, ends in rates] for side in (0, 1))
    axes.fill_between(radii, low, high, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(radii, values, color=BLUE, marker="o", markersize=4, linewidth=1.8)
    axes.plot([0], values[:1], color=GREEN, marker="o", markersize=5)
    for radius, value in _apart(radii, values, 1 / most):
        axes.annotate(f"{value:.1f}", (radius, value), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(radii, ["clean", *(threat.eps for threat in curve)], fontsize=8)
    longest = radii[-1] or 1.0
    if min(after - before for before, after in zip(radii, radii[1:], strict=False)) < longest / most:
        axes.tick_params(axis="x", rotation=40)
    axes.set(xlim=(-0.05 * longest, 1.06 * longest), ylim=(0, 108))
    axes.set_xlabel(f"radius, {NORM_WORDS.get(curve[0].norm, curve[0].norm)}")
