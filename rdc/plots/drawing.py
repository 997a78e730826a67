"""Matplotlib for files: the same picture whatever backend, settings file or folder of settings the user has.

Everything that draws does so inside :func:`drawing`, on a ``matplotlib.figure.Figure`` with a ``FigureCanvasAgg``; pyplot and its
global state are never touched. ``MPLBACKEND`` (which Jupyter leaves to its children), a ``matplotlibrc`` with LaTeX in it, or one that
cannot be read, then decide nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rdc.terminal.plain_text import printable

__all__ = ["INK", "LINE", "MUTED", "drawing", "new_figure", "plain_axes", "shown"]

INK, MUTED, LINE = "#1b2330", "#667085", "#e4e7ec"  #: of words, of axes, of the lines behind them

_LOCK = threading.RLock()
_NAMES = ("MPLBACKEND", "MATPLOTLIBRC")


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """While this is open, matplotlib has its own defaults; also a decorator. Afterwards its settings are as before.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = _matplotlib()
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box stands for it
        warnings.filterwarnings("ignore", category=matplotlib.MatplotlibDeprecationWarning)
        defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
        matplotlib.rcParams.update(defaults)
        yield


def new_figure(width: float, height: float, **settings: Any) -> Any:
    """A ``matplotlib.figure.Figure`` of this size in inches, with an Agg canvas; call it inside :func:`drawing`.

    Args:
        width, height: inches.
        settings: further arguments of ``Figure``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **settings)
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Any) -> None:
    """Axes without box, in grey, small, with faint horizontal lines behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=8.5)
    axes.xaxis.label.set(color=MUTED, size=9)
    axes.yaxis.label.set(color=MUTED, size=9)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)


def shown(text: object, limit: int = 80) -> str:
    """A name as matplotlib shows it letter by letter: no formulas between dollar signs, nothing invisible, not too long."""
    return printable(text, limit).replace("$", r"\$")


def _matplotlib() -> Any:
    """Import matplotlib as the user has it; without the user's settings if it cannot be imported with them."""
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    with _LOCK:
        try:
            return importlib.import_module("matplotlib")
        except ImportError:
            raise
        except Exception:  # an unknown MPLBACKEND, a settings file that is no text, no home folder
            for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
                del sys.modules[name]  # parts of what was not finished
            with _without_settings():
                return importlib.import_module("matplotlib")


@contextlib.contextmanager
def _without_settings() -> Iterator[None]:
    """No environment variables of matplotlib, and a working folder whose matplotlibrc is matplotlib's own."""
    before = {name: os.environ.pop(name, None) for name in _NAMES}
    found = importlib.util.find_spec("matplotlib")
    here = None
    try:
        _provide_settings_folder()
        with contextlib.suppress(OSError):  # a working folder that is gone has no settings either
            here = os.getcwd()
            if found is not None and found.origin is not None:
                os.chdir(Path(found.origin).parent / "mpl-data")
        yield
    finally:
        if here is not None:
            with contextlib.suppress(OSError):
                os.chdir(here)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _provide_settings_folder() -> None:
    """Without a home folder matplotlib does not know where its caches belong: a temporary folder, until the process ends."""
    try:
        Path.home()
    except RuntimeError:
        if "MPLCONFIGDIR" not in os.environ:
            os.environ["MPLCONFIGDIR"] = folder = tempfile.mkdtemp(prefix="rdc-matplotlib-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
