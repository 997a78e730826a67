"""Plots of a comparison as PNG: all images of all measures, attack paths, slices. See :mod:`rdc.plots.drawing`."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from rdc.gradient_analysis.records import ComparedModel, ComparisonReport, MarginSlice, MeasureSummary
from rdc.plots.drawing import INK, LINE, MUTED, drawing, plain_axes, shown
from rdc.storage.files import atomic_write
from rdc.storage.json_records import JsonObject

__all__ = ["write_plots"]

COLOURS = ("#2456c8", "#c05a2b", "#18794e", "#7d4f9e", "#93640a", "#b42318", "#3b7f8c", "#667085")
DPI = 130

#: panels of the overview: measure, title, unit or reading, logarithmic axis
_PANELS = (
    ("redraws.cosine", "Cosine between draws of the noise", "1: the draws agree", False),
    ("redraws.relative_variance", "Variance over draws / |mean gradient|²", "noise-to-signal of one draw", True),
    ("bpda.cosine", "Cosine of exact and BPDA gradient", "1: BPDA finds the same direction", False),
    ("images.cosine_abs", "|Cosine| between images", "1: one direction for all images", False),
    ("gradient.zero_fraction", "Gradient entries exactly 0", "share of pixels", False),
    ("gradient.norm_l1", "Gradient norm, l1", "scaled log-odds per pixel unit", True),
    ("jacobian.l2", "Jacobian of the logits, l2", "scaled logits per pixel unit, l2", True),
    ("lipschitz_linf.reach", "l∞ Lipschitz bound × eps / |margin|", "> 1: eps may suffice to cross", True),
    ("slice.plane_fit", "Slice: variance explained by a plane", "1: linear", False),
    ("path.cosine", "Path: cosine of successive gradients", "1: straight", False),
    ("path.first_order_ratio", "Path: loss gained / first-order", "1: linear", False),
    ("path.relative_curvature", "Path: |Δg| / (|g| |Δx|)", "per pixel unit, l2", True),
)
_WHOLE = {"gradient.zero_fraction"}  # shown from 0 to 1
_AT_MOST_ONE = {"redraws.cosine", "bpda.cosine", "images.cosine_abs", "path.cosine", "slice.plane_fit", *_WHOLE}
_STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)))


@drawing()
def write_plots(report: JsonObject, out: str | os.PathLike[str]) -> dict[str, Path]:
    """Draw ``gradients.png``, and where measured ``gradients-paths.png`` and ``gradients-slices.png``.

    Args:
        report: see ``compare_models``.
        out: folder.

    Returns:
        File name -> path of what was drawn.
    """
    found = ComparisonReport.from_json(report, "report")
    drawn = {"gradients.png": _overview(found)}
    if any(model.measures.path for model in found.models):
        drawn["gradients-paths.png"] = _paths(found)
    if any(model.measures.slices for model in found.models):
        drawn["gradients-slices.png"] = _slices(found)
    files = {}
    for name, figure in drawn.items():
        files[name] = Path(out) / name
        with atomic_write(files[name]) as file:
            figure.savefig(file, format="png", metadata={"Software": None})
    return files


def _overview(report: ComparisonReport) -> Any:
    """A panel for each measure, a row for each model: images as dots, the median with its interval on top."""
    models = report.models
    panels = [panel for panel in _PANELS if any(panel[0] in model.measures.summary for model in models)]
    columns = 3
    rows = -(-len(panels) // columns)
    figure = _figure(12.6, rows * (1.15 + 0.34 * len(models)) + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _strip(axes, report, *panel)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(models)), [_wrapped(model.label) for model in models])
        axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    grid[0, 0].set_ylim(len(models) - 0.45, -0.6)
    settings = report.settings
    figure.suptitle(
        f"Input gradients on {shown(report.dataset)}, {settings['n']} images: each dot an image, "
        "bar: median with 95 % interval",
        x=0.01, ha="left", fontsize=11, color=INK,
    )  # fmt: skip
    return figure


def _strip(axes: Any, report: ComparisonReport, name: str, title: str, unit: str, logarithmic: bool) -> None:
    jitter = np.random.Generator(np.random.Philox(key=0)).uniform(-0.2, 0.2, (report.settings["n"],))
    seen: list[float] = []
    for row, model in enumerate(report.models):
        colour, summary = COLOURS[row % len(COLOURS)], model.measures.summary.get(name)
        values = np.array([np.nan if v is None else v for v in model.measures.per_image.get(name, [])], dtype=float)
        known = np.isfinite(values) & ((values > 0) | (not logarithmic))
        if summary is None or not known.any():
            axes.annotate(
                _absent(model, name, summary), (0.5, row), xycoords=("axes fraction", "data"),
                ha="center", va="center", fontsize=8.5, color=MUTED, style="italic",
            )  # fmt: skip
            continue
        seen.extend(values[known])
        axes.plot(
            values[known],
            row + jitter[: len(values)][known],
            "o",
            color=colour,
            alpha=0.38,
            markersize=4,
            markeredgewidth=0,
        )
        axes.plot([summary.median] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.2, solid_capstyle="butt")
        if summary.median_ci95:
            axes.plot(summary.median_ci95, [row, row], color=colour, linewidth=1.6)
    axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    axes.set_xlabel(unit, fontsize=8.5, color=MUTED)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    _frame(axes, [0.0, 1.0, *seen] if name in _WHOLE else seen, logarithmic, name in _AT_MOST_ONE)


def _frame(axes: Any, values: list[float], logarithmic: bool, at_most_one: bool) -> None:
    """Limits with room for a margin, and few plain ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    if not values:
        axes.xaxis.set_major_locator(NullLocator())
        return
    low, high = min(values), max(values)
    if logarithmic:
        axes.set_xscale("log")
        wide = min(high / low, 1e100) if low > 0 else 1.0
        stretch = max(1.25, wide**0.08)
        axes.set_xlim(low / stretch, high * stretch)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide < 60 else (1,), numticks=7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        return
    room = 0.06 * (high - low) or 0.05
    axes.set_xlim(low - room, min(high + room, 1 + 0.3 * room) if at_most_one else high + room)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _absent(model: ComparedModel, name: str, summary: MeasureSummary | None) -> str:
    """Why a row is empty."""
    if summary is not None:
        return "zero on every image" if summary.n else "undefined: no usable gradient"
    if name.startswith("redraws") and not model.measures.stochastic:
        return "deterministic"
    if name.startswith("bpda"):
        return "nothing is purified"
    return "not measured"


def _paths(report: ComparisonReport) -> Any:
    """Gain of the loss and cosine along the attack path, mean over images."""
    settings, figure = report.settings, _figure(11.5, 3.9)
    left, right = figure.subplots(1, 2)
    for row, model in enumerate(report.models):
        look = {"color": COLOURS[row % len(COLOURS)], "linestyle": _STYLES[row % len(_STYLES)]}
        for axes, name, at in ((left, "gain", 0), (right, "cosine", 1)):
            if name not in model.measures.path:
                continue
            curve = {
                key: np.array(values, dtype=float) for key, values in model.measures.path[name].to_json().items()
            }  # None -> nan
            steps = np.arange(at, at + len(curve["mean"]))
            axes.fill_between(steps, curve["q25"], curve["q75"], color=look["color"], alpha=0.12, linewidth=0)
            axes.plot(steps, curve["mean"], linewidth=1.8, marker="o", markersize=3, label=shown(model.label), **look)
    left.set_ylabel("scaled log-odds, gain since the image")
    left.set_title("Gain of the loss", fontsize=10, loc="left", color=INK)
    right.set_ylabel("cosine")
    right.set_ylim(top=1.03)
    right.set_title("Cosine of the gradients before and after each step", fontsize=10, loc="left", color=INK)
    for axes in (left, right):
        axes.set_xlabel(f"step of PGD, {_ball(settings)}")
        axes.set_xticks(_ticks(settings["steps"]))
        axes.set_xlim(-0.02 * settings["steps"], 1.02 * settings["steps"])
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(report.models)), fontsize=9,
        frameon=False, handlelength=3,
    )  # fmt: skip
    figure.suptitle("Along the attack: mean over images, band: middle half", x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def _ticks(steps: int) -> list[int]:
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 10**9) if steps / step <= 10)
    return list(range(0, steps + 1, every))


def _slices(report: ComparisonReport) -> Any:
    """Rows: models; columns: images. Colour: margin; black line: the decision border; box: the budget."""
    models, settings = [model for model in report.models if model.measures.slices], report.settings
    names = report.class_names
    columns = max(len(model.measures.slices) for model in models)
    figure = _figure(2.2 + 2.3 * columns, 1.0 + 2.35 * len(models))
    grid = figure.subplots(len(models), columns, squeeze=False, sharex=True, sharey=True)
    values = np.concatenate([_margins(one).ravel() for model in models for one in model.measures.slices])
    values = np.abs(values[np.isfinite(values)])
    top = float(np.percentile(values, 98)) if len(values) else 1.0
    image = None
    for row, model in enumerate(models):
        for column in range(columns):
            axes = grid[row, column]
            if column >= len(model.measures.slices):
                axes.set_visible(False)
                continue
            image = _one_slice(axes, model.measures.slices[column], top or 1.0, settings)
            if row == 0:
                record = model.measures.images[column]
                name = shown(names[record.label], 24) if record.label < len(names) else record.label
                axes.set_title(f"image {record.image}: {name}", fontsize=9.5, color=INK)
        grid[row, 0].set_ylabel(f"{_short(model.label)}\nrandom / eps", fontsize=9, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("steepest / eps", fontsize=9, color=INK)
    bar = figure.colorbar(image, ax=grid, shrink=min(0.9, 1.6 / len(models)), aspect=25, extend="both")
    bar.set_label("scaled margin (> 0: misclassified)", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8.5, colors=MUTED)
    figure.suptitle(
        f"Margin around the image; box: {_ball(settings)}; line: decision border" if settings["norm"] == "linf"
        else f"Margin around the image; circle: {_ball(settings)}; line: decision border",
        x=0.01, ha="left", fontsize=11, color=INK,
    )  # fmt: skip
    return figure


def _margins(found: MarginSlice) -> np.ndarray:
    return np.array([[np.nan if v is None else v for v in line] for line in found.margin], dtype=float)


def _one_slice(axes: Any, found: MarginSlice, top: float, settings: JsonObject) -> Any:
    from matplotlib.patches import Circle, Rectangle

    margin = _margins(found).T  # columns of the picture: the steepest direction
    places = np.linspace(-2, 2, len(margin))
    half = (places[1] - places[0]) / 2
    extent = (-2 - half, 2 + half, -2 - half, 2 + half)
    image = axes.imshow(margin, origin="lower", extent=extent, cmap="RdBu_r", vmin=-top, vmax=top, aspect="equal")
    finite = margin[np.isfinite(margin)]
    if len(finite) == margin.size and finite.min() < 0 < finite.max():
        axes.contour(places, places, margin, levels=[0.0], colors=INK, linewidths=1.3)
    shape = Rectangle((-1, -1), 2, 2) if settings["norm"] == "linf" else Circle((0, 0), 1)
    shape.set(fill=False, edgecolor=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.add_patch(shape)
    axes.plot([0], [0], "o", color=INK, markersize=3)
    axes.grid(False)
    axes.set_xticks((-2, -1, 0, 1, 2))
    axes.set_yticks((-2, -1, 0, 1, 2))
    return image


def _ball(settings: JsonObject) -> str:
    return f"l∞ {settings['eps']}" if settings["norm"] == "linf" else f"l2 {settings['eps_l2']}"


def _short(label: str) -> str:
    return shown(label, 30)


def _wrapped(label: str) -> str:
    lines = textwrap.wrap(shown(label), 22) or [shown(label)]
    return "\n".join(lines[:2] if len(lines) <= 2 else [lines[0], lines[1][:21] + "…"])


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Plain(Figure):
        """Draws axes without box, with faint horizontal lines."""

        def subplots(self, *args: Any, **settings: Any) -> Any:
            found = super().subplots(*args, **settings)
            for axes in np.atleast_1d(found).flatten():
                plain_axes(axes)
            return found

    figure = Plain(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure
