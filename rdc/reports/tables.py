"""Tables, bars and plots as HTML, for every page of a report."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from rdc.evaluation.report import AttackReport, Rate, RobustRate
from rdc.reports.svg import Plot
from rdc.reports.tags import escaped, tag

__all__ = ["Figure", "plot_picture", "scale", "table", "table_row"]

#: what a bar shows
Figure = Rate | RobustRate | AttackReport


def table_row(*cells: tuple[object, str], kind: str = "", name: str = "td") -> str:
    """A table row of (content, class) pairs."""
    return tag("tr", "".join(tag(name, *cell) for cell in cells), kind)


def table(names: Sequence[tuple[str, str]], rows: Sequence[Sequence[tuple[object, str]]], last: str = "") -> str:
    """A table of (content, class) pairs under these headings; on a phone each cell says its heading itself.

    Args:
        names: heading and class of each column.
        rows: of as many pairs.
        last: class of the last row.
    """
    lines = [table_row(*names, kind="head", name="th")]
    for number, row in enumerate(rows):
        cells = "".join(
            f'<td class="{kind}" data-label="{escaped(heading)}">{content}</td>'
            for (content, kind), (heading, _) in zip(row, names, strict=True)
        )
        lines.append(tag("tr", cells, last if number == len(rows) - 1 else ""))
    return tag("table", "\n".join(lines), "figures")


def plot_picture(plot: Plot, alt: str) -> str:
    """Either layout of a plot, as the page is wide."""
    wide, narrow = (
        f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}" for content in (plot.wide, plot.narrow)
    )
    return (
        f'<picture><source media="(max-width: 620px)" srcset="{narrow}">'
        f'<img class="plot" src="{wide}" alt="{escaped(alt)}"></picture>'
    )


def scale(rate: Figure, kind: str) -> str:
    """A bar from 0 to 100 %: value, interval, a mark at the value."""
    if rate.accuracy is None or rate.ci95 is None:
        return '<div class="scale"></div>'
    low, high = (100 * end for end in rate.ci95)
    value = 100 * rate.accuracy
    return (
        f'<div class="scale {kind}"><div class="fill" style="width:{value:.2f}%"></div>'
        f'<div class="band" style="left:{low:.2f}%;width:{high - low:.2f}%"></div>'
        f'<div class="dot" style="left:{value:.2f}%"></div></div>'
    )
