"""Milliseconds an image, of calls that took turns (:mod:`rdc.execution.timing`)."""

from __future__ import annotations

import statistics

__all__ = ["spread"]


def spread(seconds: list[float], images: int) -> dict[str, float]:
    """Milliseconds an image of calls of ``images`` images: median, least and most of the rounds."""
    each = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    return {name: float(f"{1000 * value / images:.4g}") for name, value in each.items()}
