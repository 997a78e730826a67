"""Sequential tests: when a margin that grows level by level may be trusted to keep its sign."""

from __future__ import annotations

import numpy as np

from rdc.arguments.seeds import checked_seed, random
from rdc.errors import InputError
from rdc.statistics.kernels import stops

__all__ = ["sequential_stops", "simulate_boundary"]


def sequential_stops(margin: np.ndarray, boundary: np.ndarray, *, backend: str = "auto") -> np.ndarray:
    """First step at which each image's margin reaches each boundary.

    Args:
        margin: [n images, T steps] >= 0, e.g. the leading class's lead after each noise level.
        boundary: [T] or [G boundaries, T]; infinity never stops, NaN margins never stop.
        backend: "auto", "numpy" or "numba".

    Returns:
        Steps 0 .. T - 1, int32, [n] or [G, n]; T - 1 where the boundary is never reached.

    Raises:
        InputError: shapes do not fit.
    """
    margin, boundary = np.asarray(margin, dtype=np.float64), np.asarray(boundary, dtype=np.float64)
    lines = boundary[None] if boundary.ndim == 1 else boundary
    if margin.ndim != 2 or lines.ndim != 2 or margin.shape[1] != lines.shape[1] or 0 in (*margin.shape, *lines.shape):
        raise InputError(
            f"sequential test: expected margins [n, T] and boundaries [T] or [G, T]; got {list(margin.shape)} and "
            f"{list(boundary.shape)}"
        )
    found = stops(margin, lines, backend)
    return found[0] if boundary.ndim == 1 else found


def simulate_boundary(
    step_std: np.ndarray,
    drift_std: float,
    error_rate: float,
    *,
    draws: int = 20_000,
    seed: int = 0,
    backend: str = "auto",
) -> tuple[float, float]:
    """By simulation: how far ahead, in standard deviations of what is to come, a Gaussian margin must be to be trusted.

    An image is a drift, normal with ``drift_std``; its margin after step t is the drift's share of the steps done plus normal steps
    of ``step_std``. The test stops when |margin| >= z * (standard deviation of the steps to come). The smallest z of a grid whose
    rate of stopping with another sign than the margin's last one is at most ``error_rate`` is returned.

    Args:
        step_std: [T] >= 0, standard deviation of each step's noise.
        drift_std: >= 0, spread of the final margin's mean over images.
        error_rate: in (0, 1).
        draws: simulated images, >= 1000; an error rate far below 10 / draws cannot be resolved.
        seed: any integer; of the normal numbers (NumPy's Philox).
        backend: "auto", "numpy" or "numba".

    Returns:
        (z, mean share of steps taken).

    Raises:
        InputError: out of range.
    """
    step_std = np.asarray(step_std, dtype=np.float64)
    good = step_std.ndim == 1 and step_std.size >= 2 and np.isfinite(step_std).all() and (step_std >= 0).all()
    if not good or drift_std < 0 or not 0 < error_rate < 1 or draws < 1000:
        raise InputError(
            f"simulate_boundary: expected step_std [T >= 2] >= 0, drift_std >= 0, 0 < error_rate < 1, draws >= 1000; got shape "
            f"{list(step_std.shape)}, {drift_std}, {error_rate}, {draws}"
        )
    normals = random(checked_seed(seed, error=InputError), 0x5E9)
    count = len(step_std)
    steps = normals.standard_normal((draws, count)) * step_std + (
        normals.standard_normal((draws, 1)) * drift_std / count
    )
    walk = np.cumsum(steps, axis=1)
    to_come = np.sqrt(np.cumsum((step_std**2)[::-1])[::-1] - step_std**2)
    grid = np.linspace(0, 6, 121)
    found = sequential_stops(np.abs(walk), grid[:, None] * to_come[None], backend=backend)
    rows = np.arange(draws)
    wrong = np.array([(np.sign(walk[rows, at]) != np.sign(walk[:, -1])).mean() for at in found])
    enough = np.nonzero(wrong <= error_rate)[0]
    chosen = int(enough[0]) if len(enough) else len(grid) - 1
    return float(grid[chosen]), float((found[chosen] + 1).mean() / count)
