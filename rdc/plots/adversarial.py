"""Images, what an attack made of them, and what it changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rdc.arguments.scalars import as_integer
from rdc.arguments.scalars import shown as worded
from rdc.errors import InputError
from rdc.plots.canvas import as_pictures, own_or_new, show_grid
from rdc.plots.drawing import drawing, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["coloured_difference", "plot_adversarial"]

_RED, _BLUE = np.array([0.80, 0.20, 0.13]), np.array([0.13, 0.35, 0.72])


@drawing()
def plot_adversarial(
    clean: Any,
    adversarial: Any,
    *,
    captions: Sequence[str] | None = None,
    n: int = 8,
    gain: float | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> Figure:
    """A grid of three rows: images, adversarial images, their difference amplified.

    >>> rdc.plots.plot_adversarial(result.clean, result.adversarial)

    Args:
        clean, adversarial: [N, 1 or 3, H, W] pixels in [0, 1].
        captions: N texts, above the columns: true classes, say.
        n: the first n images.
        gain: factor of the difference; None: the largest change becomes full colour. Of grey images white is no change, red brighter,
            blue darker; of colour images mid-grey is no change.
        title: heading.
        axes: a matplotlib Axes to draw into; None: a new figure.

    Returns:
        The figure.

    Raises:
        InputError: shapes that do not fit.
    """
    count = as_integer(n)
    if count is None or count < 1:
        raise InputError(f"n: expected an integer >= 1; got {worded(n)}")
    before, after = as_pictures(clean, "clean"), as_pictures(adversarial, "adversarial")
    if before.shape != after.shape:
        raise InputError(f"adversarial: expected the shape of clean, {list(before.shape)}; got {list(after.shape)}")
    before, after = before[:count], after[:count]
    names = [""] * len(before) if captions is None else [shown(text, 20) for text in captions][:count]
    if len(names) != len(before):
        raise InputError(f"captions: expected one text for each of {len(before)} images; got {len(names)}")
    largest = float(np.abs(after - before).max())
    factor = gain if gain is not None else (1 / largest if largest else 1.0)
    changes = np.stack([coloured_difference(change, factor) for change in (after - before).transpose(0, 3, 1, 2)])
    figure, drawn = own_or_new(axes, 0.9 + 0.95 * len(before), 3.2)
    show_grid(
        drawn, [before, after, changes], ["clean", "adversarial", f"difference × {factor:.3g}"], names, shown(title)
    )
    return figure


def coloured_difference(difference: np.ndarray, gain: float) -> np.ndarray:
    """A change [C, H, W] as a picture [H, W, 3] in [0, 1]: of grey images white is none, red brighter, blue darker; of others grey is none.

    Args:
        difference: pixels after less before, C 1 or 3.
        gain: what is multiplied; a change of 1 / gain has full colour.
    """
    scaled = np.clip(difference * gain, -1, 1)
    if scaled.shape[0] != 1:
        return np.asarray(0.5 + scaled / 2).transpose(1, 2, 0)
    amount = np.abs(scaled[0])[..., None]
    return np.asarray(1 - amount * (1 - np.where(scaled[0][..., None] > 0, _RED, _BLUE)))
