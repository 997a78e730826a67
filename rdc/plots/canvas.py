"""Where a plot is drawn: an Axes of the caller's, or a figure of its own; and pictures side by side on one canvas."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rdc.errors import InputError
from rdc.plots.drawing import INK, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["as_pictures", "grid", "own_or_new", "show_grid"]


def own_or_new(axes: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """The caller's Axes and its figure, or one Axes in a new figure; call it inside :func:`rdc.plots.drawing.drawing`.

    Args:
        axes: the caller's; None: a new figure of ``width`` x ``height`` inches, which notebooks show.
    """
    if axes is not None:
        plain_axes(axes)
        figure: Figure = axes.figure  # type: ignore[assignment]  # or a SubFigure of it
        return figure, axes
    figure = new_figure(width, height, dpi=130, layout="constrained", facecolor="white")
    vars(figure)["_repr_png_"] = functools.partial(_png, figure)
    made: Axes = figure.subplots()
    plain_axes(made)
    return figure, made


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def as_pictures(images: Any, what: str) -> np.ndarray:
    """[N, H, W, C] float64 for ``imshow``, of pixels [N, C, H, W] with 1 or 3 channels.

    Args:
        images: an array or a tensor on any device.
        what: its name, for errors.

    Raises:
        InputError: another shape.
    """
    array = np.asarray(images.detach().float().cpu() if hasattr(images, "detach") else images, np.float64)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
        raise InputError(f"{what}: expected images [N, 1 or 3, H, W]; got {list(array.shape)}")
    return array.transpose(0, 2, 3, 1)


def grid(rows: Sequence[np.ndarray], paper: float = 1.0) -> np.ndarray:
    """Pictures in rows on one canvas [height, width, 3], a gap between them.

    Args:
        rows: R arrays [n, H, W, 1 or 3] of one n, H and W.
        paper: grey level of the gaps.
    """
    count, height, width = rows[0].shape[:3]
    gap = max(1, height // 14)
    canvas = np.full((len(rows) * (height + gap) - gap, count * (width + gap) - gap, 3), paper)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = np.clip(picture, 0, 1)
    return canvas


def show_grid(
    axes: Axes, rows: Sequence[np.ndarray], names: Sequence[str], captions: Sequence[str], title: str = ""
) -> None:
    """Draw a :func:`grid`: a name left of each row, a caption above each column."""
    count, height, width = rows[0].shape[:3]
    gap = max(1, height // 14)
    axes.imshow(grid(rows), interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([row * (height + gap) + height / 2 - 0.5 for row in range(len(rows))], list(names))
    axes.set_xticks([column * (width + gap) + width / 2 - 0.5 for column in range(count)], list(captions))
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8, colors=INK)
    if title:
        axes.set_title(title, loc="left", fontsize=10, color=INK)
