"""What a reliability diagram shows: images by confidence, and the share of each bin that is right."""

from __future__ import annotations

import numpy as np

from rdc.errors import InputError
from rdc.statistics.proportions import wilson_interval

__all__ = ["ReliabilityRows", "reliability_intervals", "reliability_rows"]

ReliabilityRows = dict[str, list[float]]


def reliability_rows(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> ReliabilityRows:
    """Images by confidence, in bins of equal width.

    Args:
        confidence: [N] in [0, 1].
        right: [N] bool.
        bins: of [0, 1].

    Returns:
        ``low``, ``high`` (edges), ``count``, ``confidence``, ``accuracy`` (means) of the bins that are not empty.

    Raises:
        InputError: bins < 1.
    """
    if bins < 1:
        raise InputError(f"bins: expected an integer >= 1; got {bins}")
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    rows: ReliabilityRows = {name: [] for name in ("low", "high", "count", "confidence", "accuracy")}
    for b in np.unique(which):
        inside = which == b
        values = (b / bins, (b + 1) / bins, inside.sum(), confidence[inside].mean(), right[inside].mean())
        for name, value in zip(rows, values, strict=True):
            rows[name].append(float(value))
    return rows


def reliability_intervals(rows: ReliabilityRows) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % Wilson interval of each bin's accuracy: (low [B], high [B])."""
    pairs = zip(rows["accuracy"], rows["count"], strict=True)
    ends = np.array([wilson_interval(min(share * count, count), round(count)) for share, count in pairs]).reshape(-1, 2)
    return ends[:, 0], ends[:, 1]
