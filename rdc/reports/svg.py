"""Plots of the HTML page as SVG: sharp at any size, a wide one and a narrow one, light and dark."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

from rdc.plots.drawing import INK, LINE, MUTED

__all__ = ["NARROW", "WIDE", "Plot", "new_panels", "svg"]

WIDE, NARROW = 9.2, 3.9  #: inches; a phone shows 3.9 inches at about 1.2 times their size

#: colour of matplotlib's -> name in the style sheet, what it is in the dark
_COLOURS = {
    INK: ("ink", "#e6e9ef"),
    MUTED: ("muted", "#98a2b3"),
    LINE: ("line", "#333b4a"),
    "#2456c8": ("blue", "#7fa2f5"),
    "#18794e": ("green", "#4cc38a"),
    "#c0392b": ("red", "#f2736a"),
    "#b7791f": ("amber", "#e0ac5a"),
    "#c3c9d4": ("pale", "#59637a"),
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """One plot in two layouts.

    Args:
        wide, narrow: SVG for a page and for a phone.
    """

    wide: bytes
    narrow: bytes


def new_panels(width: float, height: float, rows: int, columns: int, **shared: Any) -> tuple[Any, Any]:
    """A figure of this size in inches and its rows * columns axes, in plain style; call it inside ``drawing()``."""
    from rdc.plots.drawing import new_figure, plain_axes

    figure = new_figure(width, height, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).flatten()
    for panel in axes:
        plain_axes(panel)
    return figure, axes


def svg(figure: Any) -> bytes:
    """The figure as SVG without background; words stay words, colours follow the reader's light or dark mode.

    The same figure gives the same bytes.
    """
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rdc"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue().decode("utf-8")
    for colour, (name, _) in _COLOURS.items():
        text = re.sub(re.escape(colour), f"var(--{name})", text, flags=re.IGNORECASE)
    light = "".join(f"--{name}:{colour};" for colour, (name, _) in _COLOURS.items())
    dark = "".join(f"--{name}:{colour};" for name, colour in _COLOURS.values())
    style = f"<style>svg{{{light}}}text{{fill:var(--ink)}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    head, _, body = text[text.index("<svg") :].partition(">")
    return f"{head}>{style}{body}".encode()
