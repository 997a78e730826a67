"""Which noise levels the classifier looks at, and how much each counts.

The class loss is ``sum_t w_t ||F - F*||^2`` with weights that sum to one. A *scheme* places the levels, a *weighting*
gives their weights in F-space (see ``preconditioning.py``; ``||D - x0||^2 = c_out^2 ||F - F*||^2``):

    edm           w = p(s) ds, p log-normal (P_mean -1.2, P_std 1.2): the ELBO-like loss of EDM (arXiv 2206.00364)
    rdc-released  the same with the density as the authors' program has it, exp(-(ln s - mean)^2 / 2 * std^2)
    flat          w = c_out^2: every level counts the same in x0-space, ||D - x0||^2
    eps           w = c_out^2 / s^2: every level counts the same in noise space (DDPM's simple loss)

``edm`` and ``rdc-released`` are densities over s, so the spacing ds of the levels enters; ``flat`` and ``eps`` weigh the
levels as they are placed.

How the noise of the levels hangs together is said beside them (``noise``): a draw of its own for each, one for all, or pairs
of opposite sign. A level may be looked at with several draws (``draws``).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import as_integer, as_number, shown
from rdc.arguments.seeds import checked_seed, random
from rdc.errors import ConfigError, one_line
from rdc.storage.json_files import read_json

__all__ = [
    "LEVEL_PRESETS",
    "MOST_LEVELS",
    "NOISES",
    "SCHEMES",
    "SIGMA_RANGE",
    "WEIGHTINGS",
    "NoiseLevels",
    "levels_from_json",
    "noise_levels",
    "parse_levels",
]

P_MEAN, P_STD, SIGMA_DATA = -1.2, 1.2, 0.5
MOST_LEVELS = 10_000  #: largest T; the paper has 125
SIGMA_RANGE = (
    1e-6,
    1e6,
)  #: levels outside are refused: in float32 either the image or the noise would be lost in rounding
_LONGEST_WORD = 100  # characters of a scheme's or weighting's name

#: how the noise of T rows (levels, or draws of a level) hangs together -> what is meant
NOISES = {
    "independent": "every row has a draw of its own",
    "shared": "one draw for all rows",
    "antithetic": "every second row has minus the draw of the row before it",
}


@dataclasses.dataclass(frozen=True)
class NoiseLevels:
    """T noise levels and their weights.

    Args:
        sigma: T <= :data:`MOST_LEVELS` levels in :data:`SIGMA_RANGE`, EDM units (x_t = x0 + sigma * noise, x0 in [-1, 1]).
        weight: T non-negative weights in F-space; they are scaled to sum to one.
        scheme, weighting: names for reports.
        noise: a key of :data:`NOISES`.

    Raises:
        ConfigError: not as stated.
    """

    sigma: tuple[float, ...]
    weight: tuple[float, ...]
    scheme: str = "custom"
    weighting: str = "custom"
    noise: str = "independent"

    def __post_init__(self) -> None:
        if not isinstance(self.noise, str) or self.noise not in NOISES:
            raise ConfigError(f"noise levels, noise: expected one of {', '.join(NOISES)}; got {shown(self.noise)}")
        sigma, weight = _numbers("sigma", self.sigma), _numbers("weights", self.weight)
        if sigma.shape != weight.shape or not 1 <= sigma.size <= MOST_LEVELS:
            raise ConfigError(
                f"noise levels: expected as many weights as levels, 1 to {MOST_LEVELS:,}; got {sigma.size:,} levels and "
                f"{weight.size:,} weights"
            )
        low, high = SIGMA_RANGE
        _refuse(sigma, (sigma >= low) & (sigma <= high), f"finite sigma between {low:g} and {high:g}")
        _refuse(weight, np.isfinite(weight) & (weight >= 0), "finite weights >= 0")
        with np.errstate(over="ignore"):
            total = weight.sum()
        if not 0 < total < np.inf:
            raise ConfigError(
                f"noise levels: expected weights of finite sum, not all zero; the {weight.size:,} sum to {total:g}"
            )
        object.__setattr__(self, "sigma", tuple(sigma.tolist()))
        object.__setattr__(self, "weight", tuple((weight / weight.sum()).tolist()))

    def __len__(self) -> int:
        return len(self.sigma)

    def tensors(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(sigma [T], weight [T])."""
        sigma, weight = (torch.tensor(v, dtype=torch.float64).to(device, dtype) for v in (self.sigma, self.weight))
        return sigma, weight

    def to_json(self) -> dict[str, object]:
        """Everything, as plain values: what ``parse_levels("file.json")`` and a checkpoint's recommendation hold."""
        own = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}
        return own if self.noise != "independent" else {key: v for key, v in own.items() if key != "noise"}

    def describe(self) -> dict[str, object]:
        """For reports: count, range, scheme and weighting; ``noise`` where it is not independent."""
        low, high = min(self.sigma), max(self.sigma)
        return {
            "count": len(self),
            "sigma_min": low,
            "sigma_max": high,
            "scheme": self.scheme,
            "weighting": self.weighting,
            **({} if self.noise == "independent" else {"noise": self.noise}),
        }


def _numbers(what: str, values: Any) -> np.ndarray:
    """[T] float64."""
    got = type(values).__name__
    try:
        array = np.asarray(values)
        if array.dtype == object:  # integers beyond 64 bits, scalars of other libraries
            odd = [v for v in values if isinstance(v, (str, bytes, bool)) or not hasattr(type(v), "__float__")]
            got += f" with a {type(odd[0]).__name__} in it" if odd else ""
            array = array if odd else np.array([float(value) for value in values])
        if array.ndim == 1 and (array.dtype.kind in "iuf" or not array.size):
            return array.astype(float)
        got = f"{array.dtype} {list(array.shape)}" if array.dtype != object else got
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        got += f" ({one_line(error, 80)})"
    raise ConfigError(f"noise levels: expected a list of numbers as {what}; got {got}")


def _refuse(values: np.ndarray, good: np.ndarray, expected: str) -> None:
    if not good.all():
        at = int(np.argmin(good))
        raise ConfigError(f"noise levels: expected {expected}; got {values[at]:g} at position {at}")


def _systematic(count: int, low: float, high: float, seed: int) -> np.ndarray:
    return low + (high - low) * np.arange(count) / count


def _midpoint(count: int, low: float, high: float, seed: int) -> np.ndarray:
    return low + (high - low) * (np.arange(count) + 0.5) / count


def _uniform(count: int, low: float, high: float, seed: int) -> np.ndarray:
    return np.sort(random(checked_seed(seed), 0x5EED).uniform(low, high, count))


def _log(count: int, low: float, high: float, seed: int) -> np.ndarray:
    return np.geomspace(low, high, count) if count > 1 else np.array([math.sqrt(low * high)])


def _lognormal(count: int, low: float, high: float, seed: int) -> np.ndarray:
    normal = torch.special.ndtr((torch.tensor([low, high], dtype=torch.float64).log() - P_MEAN) / P_STD)
    quantile = normal[0] + (normal[1] - normal[0]) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    sigma: np.ndarray = (P_MEAN + P_STD * torch.special.ndtri(quantile)).exp().numpy()
    return sigma


def _vp(count: int, low: float, high: float, seed: int) -> np.ndarray:
    begin, end = (_vp_time(sigma) for sigma in (low, high))
    time = begin + (end - begin) * (np.arange(count) + 0.5) / count
    sigma: np.ndarray = np.sqrt(np.expm1(_BETA_SLOPE * time**2 / 2 + _BETA_MIN * time))
    return sigma


_BETA_MIN, _BETA_SLOPE = 0.1, 19.9  # of the linear schedule: beta(t) = 0.1 + 19.9 t (arXiv 2206.00364, table 1)


def _vp_time(sigma: float) -> float:
    """The time at which a variance-preserving process has this noise level; 1 at sigma 152."""
    return (math.sqrt(_BETA_MIN**2 + 2 * _BETA_SLOPE * math.log1p(sigma**2)) - _BETA_MIN) / _BETA_SLOPE


#: name -> placement of ``count`` levels in [low, high]
SCHEMES: dict[str, Callable[[int, float, float, int], np.ndarray]] = {
    "systematic": _systematic,  # even steps of sigma, left end points: the paper's T' out of T
    "midpoint": _midpoint,  # even steps of sigma, mid-points
    "uniform": _uniform,  # independent uniform draws (seeded): plain Monte Carlo
    "log": _log,  # even steps of ln(sigma), both ends included
    "lognormal": _lognormal,  # quantiles of EDM's training density inside [low, high]
    "vp": _vp,  # even steps of the time of a variance-preserving (DDPM) process, mid-points
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
_GRID = 2**14  # points on which a density is summed up


def _importance(count: int, low: float, high: float, seed: int, weighting: str) -> np.ndarray:
    """Independent draws from the density over sigma that the weighting is; each then counts the same.

    The same expectation as ``uniform`` with these weights, with less variance where they differ much.
    """
    edges = np.geomspace(low, high, _GRID + 1)
    middle = np.sqrt(edges[1:] * edges[:-1])
    density = WEIGHTINGS[weighting](middle) / (_spacing(middle) if weighting in _DENSITIES else 1)
    mass = np.concatenate([[0.0], np.cumsum(density * np.diff(edges))])
    place = np.sort(random(checked_seed(seed), 0x1A9).random(count))
    return np.clip(np.interp(place, mass / mass[-1], edges), low, high)


#: schemes that take the weighting as a density and draw from it
_DRAWN = {"importance": _importance}
_DENSITIES = ("edm", "rdc-released")  # weightings in which ds is a factor already


def noise_levels(
    scheme: str,
    count: int,
    sigma_min: float,
    sigma_max: float,
    weighting: str,
    *,
    seed: int = 0,
    draws: int = 1,
    noise: str = "independent",
) -> NoiseLevels:
    """Place and weigh noise levels.

    Args:
        scheme: a key of :data:`SCHEMES`, or "importance".
        count: T, 1 to :data:`MOST_LEVELS`.
        sigma_min, sigma_max: range, sigma_min < sigma_max, both within :data:`SIGMA_RANGE`.
        weighting: a key of :data:`WEIGHTINGS`.
        seed: any integer; for ``"uniform"`` and ``"importance"`` only.
        draws: how many draws of noise each level is looked at with; count * draws rows of the network.
        noise: a key of :data:`NOISES`.

    Returns:
        The levels in ascending order, each ``draws`` times in a row.

    Raises:
        ConfigError: a name is unknown or the range is empty.

    Source: arXiv 2305.15241, sections 3.2 and 4; arXiv 2206.00364, table 1.
    """
    for what, name, table in (("scheme", scheme, {**SCHEMES, **_DRAWN}), ("weighting", weighting, WEIGHTINGS)):
        _expect_name(what, name, table)
    low, high = SIGMA_RANGE
    number, begin, end = as_integer(count), as_number(sigma_min), as_number(sigma_max)
    if (
        number is None
        or begin is None
        or end is None
        or not (1 <= number <= MOST_LEVELS and low <= begin < end <= high)
    ):
        got = ", ".join(shown(value, 40) for value in (count, sigma_min, sigma_max))
        raise ConfigError(
            f"noise levels: expected a count of 1 to {MOST_LEVELS:,} and {low:g} <= sigma_min < sigma_max <= {high:g}; got {got}"
        )
    times = as_integer(draws)
    if times is None or not 1 <= times <= MOST_LEVELS // number:
        raise ConfigError(
            f"noise levels, draws: expected 1 to {MOST_LEVELS // number:,} of each of {number:,} levels; got {shown(draws, 40)}"
        )
    with np.errstate(all="ignore"):  # NoiseLevels refuses what is not finite
        if scheme in _DRAWN:
            sigma = _DRAWN[scheme](number, begin, end, seed, weighting)
            weight = np.ones(number)
        else:
            sigma = SCHEMES[scheme](number, begin, end, seed)
            weight = WEIGHTINGS[weighting](sigma)
    if times > 1:
        sigma, weight, scheme = sigma.repeat(times), weight.repeat(times), f"{scheme}, {times} draws each"
    return NoiseLevels(tuple(sigma), tuple(weight), scheme, weighting, noise)


def _expect_name(what: str, name: object, table: Mapping[str, Any]) -> None:
    if not isinstance(name, str) or name not in table:
        meant = did_you_mean(name, table)
        raise ConfigError(f"noise-level {what}: expected one of {', '.join(table)}; got {shown(name)}{meant}")


#: Named settings. ``edm`` and ``rdc-released`` are the paper's 125 levels under the right and the released density.
LEVEL_PRESETS: dict[str, tuple[str, int, float, float, str]] = {
    "edm": ("systematic", 125, 1e-4, 3.0, "edm"),
    "rdc-released": ("systematic", 125, 1e-4, 3.0, "rdc-released"),
}


def parse_levels(text: str) -> NoiseLevels:
    """Levels from a preset name, ``scheme:count:sigma_min:sigma_max:weighting`` or a JSON file.

    Args:
        text: e.g. ``edm``, ``log:8:0.8:4:flat``, or ``levels.json``: an object with the lists ``sigma`` and ``weight``. Behind a
            weighting ``:draws=2``, ``:noise=antithetic`` and ``:seed=3`` may follow (see :func:`noise_levels`).

    Raises:
        ConfigError: none of these, or the file does not hold such an object.
    """
    if not isinstance(text, (str, os.PathLike)):
        raise ConfigError(f"levels: expected text, such as edm or log:8:0.8:4:flat; got a {type(text).__name__}")
    text = os.fspath(text)
    if text in LEVEL_PRESETS:
        return noise_levels(*LEVEL_PRESETS[text])
    if text.endswith(".json"):
        return _levels_from_file(text)
    try:
        scheme, count, low, high, weighting, *changes = text.split(":", 5 + len(_CHANGES))
        given = dict(_change(change) for change in changes)
        if len(given) < len(changes):
            raise ConfigError(f"levels: expected what follows a weighting once each; got {shown(':'.join(changes))}")
        return noise_levels(scheme, int(count), float(low), float(high), weighting, **given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"levels: expected a preset ({', '.join(LEVEL_PRESETS)}), scheme:count:sigma_min:sigma_max:weighting "
            f"such as log:8:0.8:4:flat, or a JSON file with the lists sigma and weight; got {one_line(repr(text))}"
            f"{did_you_mean(text, (*LEVEL_PRESETS, 'fast', 'accurate'))}"
        ) from error


#: what may follow a weighting -> how its text is read
_CHANGES: dict[str, Callable[[str], Any]] = {"draws": int, "noise": str, "seed": int}


def _change(text: str) -> tuple[str, Any]:
    """``"draws=2"`` -> ("draws", 2)."""
    field, equals, value = text.partition("=")
    if not equals or field not in _CHANGES:
        expected = ", ".join(f"{name}=..." for name in _CHANGES)
        raise ConfigError(f"levels: expected {expected} behind a weighting; got {shown(text)}")
    return field, _CHANGES[field](value)


def _levels_from_file(path: str) -> NoiseLevels:
    try:
        content = read_json(path, ConfigError)
    except ConfigError as error:
        raise ConfigError(f"levels: expected a JSON file with the lists sigma and weight; {error}") from error
    return levels_from_json(content, path)


def levels_from_json(content: Any, where: str = "levels") -> NoiseLevels:
    """The inverse of :meth:`NoiseLevels.to_json`.

    Raises:
        ConfigError: not an object with the lists of numbers ``sigma`` and ``weight``; ``where`` names it.
    """
    names = {"sigma", "weight", "scheme", "weighting", "noise"}
    if not isinstance(content, dict) or not {"sigma", "weight"} <= set(content) <= names:
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(
            f"{where}: expected an object with the lists sigma and weight (and the words scheme, weighting, noise); got {one_line(got)}"
        )
    for key in ("sigma", "weight"):
        values = content[key]
        odd = [values] if not isinstance(values, list) else [v for v in values if type(v) not in (int, float)]
        if odd:
            raise ConfigError(
                f"{where}: expected sigma and weight to be lists of numbers; {key} has a {type(odd[0]).__name__}"
            )
    words = {key: content[key] for key in ("scheme", "weighting", "noise") if key in content}
    for key, word in words.items():
        if not isinstance(word, str) or len(word) > _LONGEST_WORD:
            got = f"{len(word):,} characters" if isinstance(word, str) else f"a {type(word).__name__}"
            raise ConfigError(f"{where}: expected {key} to be a word of at most {_LONGEST_WORD} characters; got {got}")
    try:
        return NoiseLevels(tuple(content["sigma"]), tuple(content["weight"]), **words)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
