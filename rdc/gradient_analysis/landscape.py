"""The loss around an image: slices through the margin, and what an attack meets on its way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.seeds import random
from rdc.gradient_analysis.measures import cosines
from rdc.gradient_analysis.slopes import Probe
from rdc.norm_balls import project, steepest_direction

__all__ = ["attack_path", "margin_slice", "slice_directions"]

# Word of the Philox counter that separates these draws from any other use of the same (seed, image) key.
_DIRECTION_STREAM = 0x51_1CE5


def slice_directions(gradient: Tensor, norm: str, *, seed: int, image_id: int) -> tuple[Tensor, Tensor]:
    """Two orthogonal directions of unit length in the norm: the steepest one, and a random one.

    l_inf: the gradient's sign, and random signs. These are the first direction's signs, half of them flipped at random (one
    entry is 0 where their number is odd), and free where the first direction is 0: orthogonal without any rounding.
    l_2: the unit gradient, and random signs without their part along it.

    Args:
        gradient: [C, H, W], finite.
        norm: ``"linf"`` or ``"l2"``.
        seed, image_id: fix the random direction, and nothing else does.

    Returns:
        Two [C, H, W] float64; the first is 0 where the gradient is.
    """
    first = steepest_direction(gradient[None], norm)[0].cpu()
    generator = random(seed, image_id, (0, 0, _DIRECTION_STREAM, 0))
    along = first.flatten().numpy()
    signs = generator.integers(0, 2, along.size) * 2.0 - 1.0
    if norm == "linf":
        moving = np.flatnonzero(along)
        flips = np.zeros(len(moving))
        half = len(moving) // 2
        flips[:half], flips[len(moving) - half :] = 1.0, -1.0
        signs[moving] = along[moving] * generator.permutation(flips)
    else:
        signs = signs - along * (along @ signs)
        signs /= np.linalg.norm(signs)
    return first.to(gradient.device), torch.from_numpy(signs).view_as(first).to(gradient.device)


def margin_slice(
    probe: Probe, x: Tensor, directions: tuple[Tensor, Tensor], eps: float, *, grid: int = 11, batch: int = 16
) -> dict[str, Any]:
    """Scaled margin on the plane x + a d1 + b d2, a and b from -2 eps to 2 eps; pixels are cut to [0, 1].

    Args:
        probe: the model on this one image.
        x: [1, C, H, W] float32 in [0, 1].
        directions: d1, d2 [C, H, W], see ``slice_directions``.
        eps: radius in [0, 1] pixel units.
        grid: G, odd.
        batch: images sent through the model together.

    Returns:
        ``offsets`` [G], ``margin``, G lists of G (row a, column b; > 0 is misclassified), and ``plane_fit``: the share of the
        margin's variance on the slice that a plane explains, 1 for a linear model; NaN for a constant margin.
    """
    offsets = np.linspace(-2 * eps, 2 * eps, grid)
    places = [(a, b) for a in offsets for b in offsets]
    values = []
    for begin in range(0, len(places), batch):
        part = torch.tensor(places[begin : begin + batch], dtype=torch.float64, device=x.device)
        moved = x.double() + part[:, 0].view(-1, 1, 1, 1) * directions[0] + part[:, 1].view(-1, 1, 1, 1) * directions[1]
        points = moved.clamp(0, 1).float()
        values.append(
            probe.rows(torch.zeros(len(part), dtype=torch.int64, device=x.device)).margin(points).cpu().numpy()
        )
    flat = np.concatenate(values)
    return {
        "offsets": offsets.tolist(),
        "margin": flat.reshape(grid, grid).tolist(),
        "plane_fit": _plane_fit(np.array(places) / eps, flat),
    }


def _plane_fit(places: np.ndarray, values: np.ndarray) -> float:
    """R^2 of the least-squares plane."""
    centred = values - values.mean()
    total = float(centred @ centred)
    if not np.isfinite(values).all() or total <= 1e-24 * max(1.0, float(values @ values)):
        return float("nan")
    design = np.column_stack([np.ones(len(values)), places])
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return 1.0 - float(left @ left) / total


def attack_path(
    probe: Probe, x: Tensor, norm: str, eps: float, steps: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What PGD meets from the clean image: steps of 2.5 eps / S in the steepest direction of the log-odds, projected.

    With g_k the gradient and u_k the loss at iterate x_k, over the steps at which the image moved:

        cosine              of g_k and g_(k+1), mean
        first_order_ratio   sum of u_(k+1) - u_k over sum of <g_k, x_(k+1) - x_k>: 1 where the loss is linear
        increase_fraction   share of steps with u_(k+1) > u_k
        curvature           |g_(k+1) - g_k|_2 / |x_(k+1) - x_k|_2, mean: a lower bound of the gradient's Lipschitz constant
        relative_curvature  the same over |g_k|_2, in 1 / pixel unit

    Args:
        probe: the model.
        x: [n, C, H, W] float32 in [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        eps: radius in [0, 1] pixel units.
        steps: S >= 1.

    Returns:
        (measures [n], curves): curves has ``loss`` and ``gain`` (since the image) [n, S + 1], and ``cosine``
        [n, S], NaN where the image did not move.
    """
    here, (loss, gradient, _) = x, probe.gradient(x)
    losses = [loss.cpu().numpy()]
    columns: dict[str, list[np.ndarray]] = {key: [] for key in ("cosine", "gain", "predicted", "curvature", "relative")}
    for _ in range(steps):
        direction = steepest_direction(torch.where(gradient.isfinite(), gradient, 0.0), norm)
        there = project(here.double() + 2.5 * eps / steps * direction, x, eps, norm)
        next_loss, next_gradient, _ = probe.gradient(there)
        step = _flat(there.double() - here.double())
        g, h = _flat(gradient), _flat(next_gradient)
        length = np.linalg.norm(step, axis=1)
        moved = np.where(length > 0, 1.0, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            bend = np.linalg.norm(h - g, axis=1) / length
            columns["relative"].append(moved * bend / np.linalg.norm(g, axis=1))
        columns["curvature"].append(moved * bend)
        columns["cosine"].append(moved * cosines(g, h))
        columns["gain"].append(moved * (next_loss - loss).cpu().numpy())
        columns["predicted"].append(moved * (g * step).sum(1))
        here, loss, gradient = there, next_loss, next_gradient
        losses.append(loss.cpu().numpy())
    table = {name: np.stack(column, axis=1) for name, column in columns.items()}
    gain, predicted = _sum(table["gain"]), _sum(table["predicted"])
    rises = np.where(np.isnan(table["gain"]), np.nan, table["gain"] > 0)
    measures = {
        "cosine": _mean(table["cosine"]),
        "first_order_ratio": np.where(predicted > 0, gain / np.where(predicted > 0, predicted, 1), np.nan),
        "increase_fraction": _mean(rises),
        "curvature": _mean(table["curvature"]),
        "relative_curvature": _mean(table["relative"]),
    }
    loss_curve = np.stack(losses, axis=1)
    return measures, {"loss": loss_curve, "gain": loss_curve - loss_curve[:, :1], "cosine": table["cosine"]}


def _flat(x: Tensor) -> np.ndarray:
    return x.double().flatten(1).cpu().numpy()


def _sum(columns: np.ndarray) -> np.ndarray:
    total: np.ndarray = np.where(np.isnan(columns), 0, columns).sum(1)
    return total


def _mean(columns: np.ndarray) -> np.ndarray:
    """Mean over the defined columns of each row; NaN without any."""
    known = ~np.isnan(columns)
    count = known.sum(1)
    return np.where(count > 0, np.where(known, columns, 0).sum(1) / np.maximum(count, 1), np.nan)
