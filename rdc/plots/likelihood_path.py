"""The images that likelihood maximisation goes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rdc.errors import InputError
from rdc.plots.canvas import as_pictures, own_or_new, show_grid
from rdc.plots.drawing import drawing, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_likelihood_path"]

_MOST_COLUMNS, _MOST_ROWS = 11, 8


@drawing()
def plot_likelihood_path(
    path: Any, *, names: Sequence[str] | None = None, title: str = "", axes: Axes | None = None
) -> Figure:
    """Images after each step of likelihood maximisation; above a column, the step and how far pixels have moved by then.

    >>> rdc.plots.plot_likelihood_path(model.maximize_likelihood(x, return_path=True))

    Args:
        path: [N, steps + 1, 1 or 3, H, W] pixels in [0, 1]; of more than eleven images of a path some are shown, the first and the last
            among them; of more than eight paths the first eight.
        names: N texts, left of the rows.
        title: heading.
        axes: a matplotlib Axes to draw into; None: a new figure.

    Returns:
        The figure. The second line of a caption is the mean distance of a pixel from the input, in 1/255.

    Raises:
        InputError: a path of another shape, or names of another number.
    """
    values = np.asarray(path.detach().float().cpu() if hasattr(path, "detach") else path, np.float64)
    if values.ndim != 5:
        raise InputError(
            f"path: expected [N, steps + 1, 1 or 3, H, W], as maximize_likelihood(x, return_path=True) gives; got {list(values.shape)}"
        )
    if names is not None and len(names) != len(values):
        raise InputError(f"names: expected {len(values)} texts, one for each image; got {len(names)}")
    values = values[:_MOST_ROWS]
    count = values.shape[1]
    steps = np.unique(np.linspace(0, count - 1, min(count, _MOST_COLUMNS)).round().astype(int))
    rows = [as_pictures(images[steps], "path") for images in values]
    far = [255 * float(np.abs(values[:, step] - values[:, 0]).mean()) for step in steps]
    captions = [
        f"step {step}\nmean {distance:.1f}/255" if step else "input" for step, distance in zip(steps, far, strict=True)
    ]
    figure, drawn = own_or_new(axes, 0.6 + 0.95 * len(steps), 0.7 + 0.95 * len(rows))
    show_grid(
        drawn, rows, [shown(name, 20) for name in (names or [""] * len(rows))][: len(rows)], captions, shown(title)
    )
    return figure
