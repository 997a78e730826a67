"""Accuracy against cost, as PNG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rdc.plots.drawing import drawing, new_figure, plain_axes, shown
from rdc.storage.files import atomic_write
from rdc.storage.json_records import JsonObject

__all__ = ["write_plot"]

COLOURS = ("#2456c8", "#c05a2b", "#18794e", "#7d4f9e", "#93640a", "#b42318", "#3b7f8c", "#667085")


@drawing()
def write_plot(report: JsonObject, out: str | os.PathLike[str]) -> Path | None:
    """Draw ``cost.png``: robust (filled) and clean (open) accuracy against milliseconds an image of the largest batch.

    Args:
        report: see ``rdc.costs.measure.measure_costs``.
        out: folder.

    Returns:
        The file; None where no model has both an accuracy and a cost.
    """
    accuracies = {one["label"]: one for one in report["accuracies"]}
    works = report["settings"]["work"]
    figure = new_figure(5.2 * len(works), 4)
    drawn = False
    for place, work in enumerate(works):
        axes = figure.add_subplot(1, len(works), place + 1)
        for number, model in enumerate(report["models"]):
            found = [cost for cost in model["costs"] if cost["work"] == work and "skipped" not in cost]
            if model["label"] in accuracies and found:
                _point(axes, found[-1], accuracies[model["label"]], COLOURS[number % len(COLOURS)])
                drawn = True
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel(f"{work}: ms an image, of the largest batch measured")
        axes.set_ylabel("accuracy, %; filled: robust, open: clean")
        axes.set_ylim(0, 100)
        plain_axes(axes)
    if not drawn:
        return None
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=min(4, len(labels)), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.04 + 0.05 * -(-len(labels) // 4), 1, 1))
    path = Path(out) / "cost.png"
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return path


def _point(axes: Any, cost: JsonObject, accuracy: JsonObject, colour: str) -> None:
    place, found = cost["ms_per_image"]["median"], 100 * accuracy["robust"]
    low, high = (100 * end for end in accuracy["robust_ci95"])
    axes.errorbar(
        [place], [found], [[found - low], [high - found]],
        fmt="o", color=colour, markersize=6, capsize=3, label=shown(accuracy["label"], 40),
    )  # fmt: skip
    axes.plot([place], [100 * accuracy["clean"]], "o", markerfacecolor="none", color=colour, markersize=6)
