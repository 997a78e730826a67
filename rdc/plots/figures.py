"""Pictures of a training run: the loss curve and a grid of samples, as PNG."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from rdc.errors import DataError, InputError, one_line
from rdc.plots.drawing import drawing, shown
from rdc.storage.files import atomic_write
from rdc.storage.reading import read_content, reading
from rdc.storage.sealed import line_body

__all__ = ["plot_losses", "plot_samples", "read_log"]

DPI = 130
INK, FAINT, GRID = "#1f2933", "#8895a3", "#e4e8ec"
COLOURS = ("#2f5d9b", "#c05a2b", "#3c8262", "#7d4f9e", "#a08a1f")
_LARGEST_LOG = 256 * 2**20  # bytes
_MOST_COLUMNS = 100
_MOST_DRAWN = 4000  # rows; of longer logs, neighbouring ones are averaged
#: log columns that are not a loss
_PLACES = ("step", "images", "lr", "grad_norm", "images_per_s", "seconds")
_TITLES = {
    "loss": "what training lowers",
    "hits": "share right, at one noise level",
    "clean": "share right, clean images",
    "robust": "share right, under the training attack",
    "posterior": "cross-entropy of the posterior, nats",
    "distilled": "squared distance to the teacher, a pixel",
    "differences": "the same, of differences between classes",
    "denoising": "squared error under the true class, a pixel",
    "unlabelled": "squared error without a class, a pixel",
    "robust_first_order": "share right, first-order worst case",
    "rise": "what that worst case adds to a wrong class, nats",
}
_SHARES = ("hits", "clean", "robust", "robust_first_order")  # linear axes


def read_log(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Columns of a training log (JSONL); NaN where a row lacks a column.

    Raises:
        DataError: missing, empty, larger than 256 MiB, or not a training log. An unfinished last row is left out.
    """
    path, expected = Path(path), "a training log"
    content = read_content(path, DataError, expected, _LARGEST_LOG)
    with reading(path, DataError, expected):
        lines = content.decode("utf-8-sig").splitlines()
    columns: dict[str, list[float]] = {}
    count = 0
    for number, line in enumerate(lines, 1):
        try:
            row = _row(line)
        except (ValueError, OverflowError, RecursionError) as error:
            if number < len(lines):
                raise DataError(
                    f"{path}, line {number}: expected a row of a training log ({one_line(error)})"
                ) from error
            break
        for name in row:
            columns.setdefault(name, [np.nan] * count)
        if len(columns) > _MOST_COLUMNS:
            raise DataError(f"{path}, line {number}: more than {_MOST_COLUMNS} columns; this is no training log")
        for name, values in columns.items():
            values.append(row.get(name, np.nan))
        count += 1
    if not count:
        raise DataError(f"{path}: has no rows yet; the first comes after about 50 steps")
    return {name: np.array(values, dtype=float) for name, values in columns.items()}


def _row(line: str) -> dict[str, float]:
    body, _ = line_body(line.encode())
    row = json.loads(body)
    if not isinstance(row, dict) or "images" not in row:
        raise ValueError('no "images"')
    odd = next((name for name, value in row.items() if type(value) not in (int, float) and value is not None), None)
    if odd is not None:
        raise ValueError(f"{one_line(odd, 60)} is a {type(row[odd]).__name__}, not a number")
    found = {name: np.nan if value is None else float(value) for name, value in row.items()}
    if not np.isfinite(found["images"]):
        raise ValueError("images is not finite")
    return found


def smoothed(values: np.ndarray) -> np.ndarray:
    """Gaussian average over neighbouring rows: a sixtieth of all rows wide, narrower in the steep beginning."""
    known = np.isfinite(values)
    rows = np.arange(len(values))
    width = np.clip(rows / 8, 0.1, max(0.1, len(values) / 60))
    kernel = np.exp(-0.5 * ((rows[:, None] - rows[None, known]) / width[:, None]) ** 2)
    total = kernel.sum(1)
    return np.where(total > 0, kernel @ values[known] / np.maximum(total, 1e-300), np.nan)


def thinned(columns: dict[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """The same columns with at most ``most`` rows: means of neighbouring ones, NaN left out. Short logs stay as they are."""
    count = len(next(iter(columns.values())))
    if count <= most:
        return columns
    begins = np.arange(0, count, -(-count // most))
    found = {}
    for name, values in columns.items():
        known = np.isfinite(values)
        number = np.add.reduceat(known.astype(float), begins)
        total = np.add.reduceat(np.where(known, values, 0.0), begins)
        found[name] = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return found


@drawing()
def plot_losses(log: str | os.PathLike[str], out: str | os.PathLike[str], title: str = "") -> None:
    """Draw every loss of a training log against the images seen: raw (faint) and smoothed; last the learning rate.

    Args:
        log: ``log.jsonl`` of a run.
        out: PNG file, written atomically.
        title: heading.
    """
    columns = thinned(read_log(log), _MOST_DRAWN)
    images = columns["images"]
    names = [name for name in columns if name not in _PLACES and np.isfinite(columns[name]).any()]
    scale, unit = (1e-6, "million") if images[-1] >= 2e6 else (1e-3, "thousand")
    panels = [*names, *(["lr"] if "lr" in columns else [])]
    wide = 2 if len(panels) > 2 else 1
    rows = -(-len(panels) // wide)
    figure = _figure(5.6 * wide + 0.6, 2.5 * rows + (0.9 if title else 0.5))
    axes = list(figure.subplots(rows, wide, sharex=True, squeeze=False).flat)
    for place, (axis, name) in enumerate(zip(axes, panels, strict=False)):
        if name == "lr":
            axis.plot(images * scale, columns["lr"], color=FAINT, linewidth=1.4)
            axis.set_ylim(bottom=0)
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
            axis.set_title("learning rate", loc="left", fontsize=10, color=INK)
        else:
            _draw_loss(axis, images * scale, columns[name], name, COLOURS[place % len(COLOURS)])
        if place + wide >= len(panels):  # the lowest of its column
            axis.set_xlabel(f"images seen ({unit})")
            axis.tick_params(labelbottom=True)
        axis.set_xlim(left=0)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(shown(title), x=0.02, ha="left", fontsize=12, color=INK)
    figure.set_layout_engine("constrained")
    _write(figure, out)


def _draw_loss(axis: Any, images: np.ndarray, values: np.ndarray, name: str, colour: str) -> None:
    """One loss, raw and smoothed, with its last value; on a logarithmic axis where it falls to less than a third."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    smooth = smoothed(values)
    axis.plot(images, values, color=colour, alpha=0.28, linewidth=0.9)
    axis.plot(images, smooth, color=colour, linewidth=1.8)
    last = smooth[np.isfinite(smooth)][-1]
    axis.annotate(
        f"{last:.4g}", (images[-1], last), xytext=(5, 0), textcoords="offset points",
        va="center", fontsize=9, color=colour, annotation_clip=False,
    )  # fmt: skip
    positive = values[np.isfinite(values) & (values > 0)]
    if name not in _SHARES and len(positive) and positive.max() / positive.min() > 3:
        axis.set_yscale("log")
        narrow = positive.max() / positive.min() < 20
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8) if narrow else (1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    about = _TITLES.get(name)
    axis.set_title(f"{name}: {about}" if about and about != name else name, loc="left", fontsize=10, color=INK)


@drawing()
def plot_samples(images: Tensor, class_names: Sequence[str], out: str | os.PathLike[str], title: str = "") -> None:
    """Draw a grid of samples: a row for each class, its name on the left.

    Args:
        images: [K, n, C, H, W] pixels in [0, 1], C = 1 or 3.
        class_names: K names.
        out: PNG file, written atomically.
        title: heading.
    """
    if images.ndim != 5 or images.shape[2] not in (1, 3) or len(class_names) != len(images):
        raise InputError(
            f"sample grid: expected images [K, n, 1 or 3, H, W] and K class names; "
            f"got {list(images.shape)} and {len(class_names)} names"
        )
    classes, count, channels, height, width = images.shape
    names = [shown(name, 40) for name in class_names]
    gap = max(1, height // 14)
    canvas = np.ones((classes * (height + gap) - gap, count * (width + gap) - gap, channels))
    for row in range(classes):
        for column in range(count):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = images[row, column].permute(1, 2, 0).numpy()
    scale = max(1, round(72 / height))  # whole screen pixels for each image pixel
    high, wide = (scale * size for size in canvas.shape[:2])
    left, top = 16 + 9 * max(len(name) for name in names), 40 if title else 8
    figure = _figure((left + wide + 8) / DPI, (top + high + 8) / DPI, layout=None)
    size = figure.get_size_inches() * DPI
    axis = figure.add_axes((left / size[0], 8 / size[1], wide / size[0], high / size[1]))
    axis.imshow(canvas.squeeze(-1) if channels == 1 else canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([row * (height + gap) + height / 2 - 0.5 for row in range(classes)], names)
    axis.tick_params(length=0, labelsize=8, colors=INK)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if title:
        axis.set_title(shown(title), loc="left", fontsize=9, color=INK, pad=7)
    _write(figure, out)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    """An empty figure of this size in inches; no global state of matplotlib is touched."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Plain(Figure):
        """Draws axes without box, with faint horizontal lines."""

        def subplots(self, *args: Any, **settings: Any) -> Any:
            axes = super().subplots(*args, **settings)
            for axis in np.atleast_1d(axes).flatten():
                axis.grid(axis="y", color=GRID, linewidth=0.8)
                axis.set_axisbelow(True)
                axis.tick_params(colors=INK, labelsize=9, length=3)
                axis.spines[["top", "right"]].set_visible(False)
                axis.spines[["left", "bottom"]].set_color(FAINT)
                axis.yaxis.label.set_color(INK)
                axis.xaxis.label.set_color(INK)
            return axes

    with matplotlib.rc_context({"font.size": 10}):
        figure = Plain(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)
        FigureCanvasAgg(figure)
    return figure


def _write(figure: Any, out: str | os.PathLike[str]) -> None:
    with atomic_write(out) as file:
        figure.savefig(file, format="png")
