"""Whether a picture looks like those a model was made for, before its pixels are looked at: its size and its colour."""

from __future__ import annotations

__all__ = ["unlike"]

_LARGER = 4.0  # times the model's side: four pixels of five are thrown away along it
_SMALLER = 0.5
_LONGER = 1.5  # times the model's proportions


def unlike(size: tuple[int, int], coloured: bool, shape: tuple[int, int, int]) -> tuple[str, ...]:
    """What speaks against it, as parts of a line.

    Args:
        size: (width, height) of the picture before it was resized.
        coloured: it has colours, not grey saved as colour.
        shape: (C, H, W) that the model takes.
    """
    (width, height), (channels, tall, wide) = size, shape
    across, down = width / wide, height / tall
    found = []
    if max(across, down) > _LARGER:
        found.append(f"size: {width} x {height} pixels, {max(across, down):.0f} times the model's {wide} x {tall}")
    elif min(across, down) < _SMALLER:
        found.append(
            f"size: {width} x {height} pixels, {1 / min(across, down):.0f} times smaller than the model's {wide} x {tall}"
        )
    if max(across / down, down / across) > _LONGER:
        found.append(f"proportions: {width} x {height} pixels squeezed into {wide} x {tall}")
    if coloured and channels == 1:
        found.append("colour: the model knows grey pictures")
    return tuple(found)
