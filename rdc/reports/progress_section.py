"""Section of the HTML page: accuracy against steps and against queries, a curve and a row for each attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdc.evaluation.report import AttackProgress, AttackReport, Fall
from rdc.plots.drawing import drawing
from rdc.reports.plots import BLUE, GREEN, RED
from rdc.reports.svg import NARROW, WIDE, Plot, new_panels, svg
from rdc.reports.tables import plot_picture, table
from rdc.reports.tags import escaped, section
from rdc.storage.json_records import Absent

__all__ = ["MOST_CURVES", "progress_plot", "progress_section"]

MOST_CURVES = 12  #: that are told apart
_COLOURS = (BLUE, RED, GREEN, "#b7791f")
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def progress_plot(attacks: Sequence[AttackReport]) -> Plot | None:
    """Accuracy (%) against steps, and against queries where every attack counted them; None where no attack made a step.

    Of more than :data:`MOST_CURVES` attacks those that broke most are drawn.

    Args:
        attacks: of a report, in order.
    """
    moved = [(attack, attack.progress) for attack in attacks if not isinstance(attack.progress, Absent)]
    if not moved:
        return None
    by_broken = sorted(range(len(moved)), key=lambda place: -moved[place][0].broken)
    shown = [moved[place] for place in sorted(by_broken[:MOST_CURVES])]
    both = len({attack.noise for attack, _ in shown}) > 1
    names = [attack.name + (f", {attack.noise} noise" if both else "") for attack, _ in shown]
    kinds = [("steps", [progress.steps for _, progress in shown])]
    queries = [progress.queries for _, progress in shown if not isinstance(progress.queries, Absent)]
    if len(queries) == len(shown):
        kinds.append(("queries of the model for an image", queries))
    return _drawn(names, kinds)


@drawing()
def _drawn(names: Sequence[str], kinds: Sequence[tuple[str, Sequence[Fall]]]) -> Plot:
    count, rows = len(kinds), -(-len(names) // 2)
    return Plot(
        svg(_panels(names, kinds, WIDE, 3.0 + 0.18 * -(-len(names) // 4), 1, count, 4)),
        svg(_panels(names, kinds, NARROW, 2.8 * count + 0.18 * rows, count, 1, 2)),
    )


def _panels(
    names: Sequence[str],
    kinds: Sequence[tuple[str, Sequence[Fall]]],
    width: float,
    height: float,
    rows: int,
    columns: int,
    across: int,
) -> Any:
    figure, panels = new_panels(width, height, rows, columns, sharey=True)
    for axes, (what, falls) in zip(panels, kinds, strict=True):
        longest = max(max(fall.at[-1] for fall in falls), 1)
        for place, (name, fall) in enumerate(zip(names, falls, strict=True)):
            line = _LINES[place // len(_COLOURS) % len(_LINES)]
            values = [100 * value for value in fall.accuracy]
            colour = _COLOURS[place % len(_COLOURS)]
            axes.step(fall.at, values, where="post", color=colour, linestyle=line, linewidth=1.6, label=name)
            axes.plot(fall.at[-1:], values[-1:], color=colour, marker="o", markersize=3.5)
        axes.set_xscale("symlog", linthresh=1)
        axes.set(xlim=(0, 1.3 * longest), ylim=(0, 102), xlabel=what)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for axes in panels[::columns]:
        axes.set_ylabel("images still right (%)")
    labels = panels[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=min(across, len(names)), frameon=False, fontsize=8)
    return figure


def progress_section(attacks: Sequence[AttackReport], plot: Plot | None, resubmitted: bool) -> str:
    """The section; "" where no attack made a step.

    Args:
        attacks: of a report, in order.
        plot: see :func:`progress_plot`; None: the table alone.
        resubmitted: some attacks ran under fresh noise, where what an attack sees is not what counts.
    """
    rows = [_row(attack, attack.progress) for attack in attacks if not isinstance(attack.progress, Absent)]
    if not rows:
        return ""
    names = [("attack", ""), ("broken", "n"), ("half by step", "n"), ("all by step", "n"), ("of steps", "n")]
    names += [("half by query", "n"), ("all by query", "n"), ("of queries", "n"), ("passes a query", "n")]
    about = (
        "When each attack first misclassified the images that it broke, of those that the attacks before it left. A query is one call of "
        "the model for one image, with or without gradient; times the network passes of a query it is what the attack cost. A restart "
        "goes on counting; a targeted attack's runs at its classes count queries one after another, and steps from the same start."
    )
    if resubmitted:
        about += " Under fresh noise this is what the attacker saw, the mean of its draws in each step."
    if any(cell == "–" for row in rows for cell, kind in row if kind == "n counted"):
        about += " Queries are not known where a batch was made by an earlier version."
    if plot is not None and len(rows) > MOST_CURVES:
        about += f" The {MOST_CURVES} attacks that broke most are drawn."
    picture = "" if plot is None else plot_picture(plot, "accuracy against steps and queries")
    return section("Steps and queries until broken", about, picture + table(names, rows))


def _row(attack: AttackReport, progress: AttackProgress) -> list[tuple[object, str]]:
    steps, queries, passes = progress.steps, progress.queries, progress.passes_per_query
    known = [None, None, None] if isinstance(queries, Absent) else [queries.median, queries.last, queries.at[-1]]
    cells: list[tuple[object, str]] = [(escaped(attack.name), "name"), (attack.broken, "n")]
    cells += [(_count(value), "n") for value in (steps.median, steps.last, steps.at[-1])]
    cells += [(_count(value), "n") for value in known[:2]] + [(_count(known[2]), "n counted")]
    return [*cells, ("–" if isinstance(passes, Absent) else f"{passes:.3g}", "n")]


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
