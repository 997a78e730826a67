"""Which noise levels the classifier looks at, and how much each counts.

The class loss is ``sum_t w_t ||F - F*||^2`` with weights that sum to one. A *scheme* places the levels, a *weighting*
gives their weights in F-space (see ``preconditioning.py``; ``||D - x0||^2 = c_out^2 ||F - F*||^2``):

    edm           w = p(s) ds, p log-normal (P_mean -1.2, P_std 1.2): the ELBO-like loss of EDM (arXiv 2206.00364)
    rdc-released  the same with the density as the authors' program has it, exp(-(ln s - mean)^2 / 2 * std^2)
    flat          w = c_out^2: every level counts the same in x0-space, ||D - x0||^2
    eps           w = c_out^2 / s^2: every level counts the same in noise space (DDPM's simple loss)

``edm`` and ``rdc-released`` are densities over s, so the spacing ds of the levels enters; ``flat`` and ``eps`` weigh the
levels as they are placed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.errors import ConfigError

__all__ = ["LEVEL_PRESETS", "SCHEMES", "WEIGHTINGS", "NoiseLevels", "levels_from_json", "noise_levels", "parse_levels"]

P_MEAN, P_STD, SIGMA_DATA = -1.2, 1.2, 0.5


@dataclasses.dataclass(frozen=True)
class NoiseLevels:
    """T noise levels and their weights.

    Args:
        sigma: T positive levels, EDM units (x_t = x0 + sigma * noise, x0 in [-1, 1]).
        weight: T non-negative weights in F-space; they are scaled to sum to one.
        scheme, weighting: names for reports.
    """

    sigma: tuple[float, ...]
    weight: tuple[float, ...]
    scheme: str = "custom"
    weighting: str = "custom"

    def __post_init__(self) -> None:
        sigma, weight = np.asarray(self.sigma, float), np.asarray(self.weight, float)
        if sigma.ndim != 1 or sigma.shape != weight.shape or sigma.size == 0:
            raise ConfigError(
                f"noise levels: expected as many weights as levels, at least one; got {sigma.shape}, {weight.shape}"
            )
        if not (np.isfinite(sigma).all() and (sigma > 0).all()):
            raise ConfigError(f"noise levels: expected finite sigma > 0; got {self.sigma}")
        if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.sum() > 0):
            raise ConfigError(f"noise levels: expected finite weights >= 0, not all zero; got {self.weight}")
        object.__setattr__(self, "sigma", tuple(sigma.tolist()))
        object.__setattr__(self, "weight", tuple((weight / weight.sum()).tolist()))

    def __len__(self) -> int:
        return len(self.sigma)

    def tensors(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(sigma [T], weight [T])."""
        return tuple(torch.tensor(v, dtype=torch.float64).to(device, dtype) for v in (self.sigma, self.weight))

    def to_json(self) -> dict[str, object]:
        """Everything, as plain values: what ``parse_levels("file.json")`` and a checkpoint's recommendation hold."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}

    def describe(self) -> dict[str, object]:
        """For reports: count, range, scheme and weighting."""
        low, high = min(self.sigma), max(self.sigma)
        return {
            "count": len(self),
            "sigma_min": low,
            "sigma_max": high,
            "scheme": self.scheme,
            "weighting": self.weighting,
        }


def _systematic(count: int, low: float, high: float, seed: int) -> np.ndarray:
    return low + (high - low) * np.arange(count) / count


def _midpoint(count: int, low: float, high: float, seed: int) -> np.ndarray:
    return low + (high - low) * (np.arange(count) + 0.5) / count


def _uniform(count: int, low: float, high: float, seed: int) -> np.ndarray:
    return np.sort(np.random.Generator(np.random.Philox(key=[seed, 0x5EED])).uniform(low, high, count))


def _log(count: int, low: float, high: float, seed: int) -> np.ndarray:
    return np.geomspace(low, high, count) if count > 1 else np.array([math.sqrt(low * high)])


def _lognormal(count: int, low: float, high: float, seed: int) -> np.ndarray:
    normal = torch.special.ndtr((torch.tensor([low, high], dtype=torch.float64).log() - P_MEAN) / P_STD)
    quantile = normal[0] + (normal[1] - normal[0]) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (P_MEAN + P_STD * torch.special.ndtri(quantile)).exp().numpy()


#: name -> placement of ``count`` levels in [low, high]
SCHEMES: dict[str, Callable[[int, float, float, int], np.ndarray]] = {
    "systematic": _systematic,  # even steps of sigma, left end points: the paper's T' out of T
    "midpoint": _midpoint,  # even steps of sigma, mid-points
    "uniform": _uniform,  # independent uniform draws (seeded): plain Monte Carlo
    "log": _log,  # even steps of ln(sigma), both ends included
    "lognormal": _lognormal,  # quantiles of EDM's training density inside [low, high]
}


def _spacing(sigma: np.ndarray) -> np.ndarray:
    """ds of each level: half the distance between its neighbours (one-sided at the ends)."""
    return np.gradient(sigma) if sigma.size > 1 else np.ones(1)


def _c_out_squared(sigma: np.ndarray) -> np.ndarray:
    return (sigma * SIGMA_DATA) ** 2 / (sigma**2 + SIGMA_DATA**2)


#: name -> weights in F-space of levels sigma [T], before scaling to sum one
WEIGHTINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "edm": lambda s: np.exp(-((np.log(s) - P_MEAN) ** 2) / (2 * P_STD**2)) / s * _spacing(s),
    "rdc-released": lambda s: np.exp(-((np.log(s) - P_MEAN) ** 2) / 2 * P_STD**2) / s * _spacing(s),
    "flat": _c_out_squared,
    "eps": lambda s: _c_out_squared(s) / s**2,
}


def noise_levels(
    scheme: str, count: int, sigma_min: float, sigma_max: float, weighting: str, *, seed: int = 0
) -> NoiseLevels:
    """Place and weigh noise levels.

    Args:
        scheme: a key of :data:`SCHEMES`.
        count: T >= 1.
        sigma_min, sigma_max: range, 0 < sigma_min < sigma_max.
        weighting: a key of :data:`WEIGHTINGS`.
        seed: for ``"uniform"`` only.

    Returns:
        The levels in ascending order.

    Raises:
        ConfigError: a name is unknown or the range is empty.

    Source: arXiv 2305.15241, sections 3.2 and 4; arXiv 2206.00364, table 1.
    """
    for what, name, table in (("scheme", scheme, SCHEMES), ("weighting", weighting, WEIGHTINGS)):
        if name not in table:
            raise ConfigError(f"noise-level {what}: expected one of {', '.join(table)}; got {name!r}")
    if count < 1 or not 0 < sigma_min < sigma_max:
        raise ConfigError(
            f"noise levels: expected count >= 1 and 0 < sigma_min < sigma_max; got {count}, {sigma_min}, {sigma_max}"
        )
    sigma = SCHEMES[scheme](count, sigma_min, sigma_max, seed)
    return NoiseLevels(tuple(sigma), tuple(WEIGHTINGS[weighting](sigma)), scheme, weighting)


#: Named settings. ``edm`` and ``rdc-released`` are the paper's 125 levels under the right and the released density.
LEVEL_PRESETS: dict[str, tuple[str, int, float, float, str]] = {
    "edm": ("systematic", 125, 1e-4, 3.0, "edm"),
    "rdc-released": ("systematic", 125, 1e-4, 3.0, "rdc-released"),
}


def parse_levels(text: str) -> NoiseLevels:
    """Levels from a preset name, ``scheme:count:sigma_min:sigma_max:weighting`` or a JSON file.

    Args:
        text: e.g. ``edm``, ``log:8:0.8:4:flat``, or ``levels.json``: an object with the lists ``sigma`` and ``weight``.

    Raises:
        ConfigError: none of these, or the file does not hold such an object.
    """
    if text in LEVEL_PRESETS:
        return noise_levels(*LEVEL_PRESETS[text])
    if text.endswith(".json"):
        return _levels_from_file(Path(text))
    parts = text.split(":")
    try:
        scheme, count, low, high, weighting = parts
        return noise_levels(scheme, int(count), float(low), float(high), weighting)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"levels: expected a preset ({', '.join(LEVEL_PRESETS)}), scheme:count:sigma_min:sigma_max:weighting "
            f"such as log:8:0.8:4:flat, or a JSON file with the lists sigma and weight; got {text!r}"
        ) from error


def _levels_from_file(path: Path) -> NoiseLevels:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"levels: expected {path} to be a JSON file with the lists sigma and weight; {error}"
        ) from error
    return levels_from_json(content, str(path))


def levels_from_json(content: Any, where: str = "levels") -> NoiseLevels:
    """The inverse of :meth:`NoiseLevels.to_json`.

    Raises:
        ConfigError: not an object with the lists of numbers ``sigma`` and ``weight``; ``where`` names it.
    """
    names = {"sigma", "weight", "scheme", "weighting"}
    if not isinstance(content, dict) or not {"sigma", "weight"} <= set(content) <= names:
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(
            f"{where}: expected an object with the lists sigma and weight (and the words scheme, weighting); got {got}"
        )
    lists = [content["sigma"], content["weight"]]
    if not all(isinstance(values, list) and all(type(v) in (int, float) for v in values) for values in lists):
        raise ConfigError(f"{where}: expected sigma and weight to be lists of numbers; got {lists}")
    words = {key: str(content[key]) for key in ("scheme", "weighting") if key in content}
    return NoiseLevels(tuple(content["sigma"]), tuple(content["weight"]), **words)
