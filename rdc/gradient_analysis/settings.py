"""What one gradient analysis measures, checked when made; and the text that names a model with settings."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.defaults import GradientDefaults
from rdc.attacks import parse_eps
from rdc.errors import ConfigError

__all__ = ["MODEL_SETTINGS", "GradientSettings", "ModelText", "parse_model"]

#: settings that may follow a model's name, each after an ``@``
MODEL_SETTINGS = ("levels", "lm", "lm-model", "gradient", "label")
#: what takes a machine's memory or a year beyond these is a slip of the keyboard
_MOST = {
    "n": 10**8,
    "draws": 10**5,
    "samples": 10**6,
    "ascent_steps": 10**6,
    "steps": 10**5,
    "grid": 2001,
    "batch": 10**8,
}
_MOST_POINTS = 10**7  # of all slices together
_SETTING = re.compile(r"@([A-Za-z_-]+)=")


_DEFAULT = GradientDefaults()


@dataclasses.dataclass(frozen=True)
class GradientSettings:
    """Settings of an analysis. Equal settings, weights and images give equal figures.

    Args:
        dataset: data-set name or path, as given.
        n: images, >= 1.
        split: "train" or "test".
        start: position of the first image.
        draws: redraws of a stochastic model, >= 2; 0: none.
        norm: "linf" or "l2", of slices and attack paths.
        eps: l_inf radius in [0, 1] pixel units: a number or text such as "8/255".
        eps_l2: l_2 radius in [0, 1] pixel units.
        samples: random points of each ball for the sampled Lipschitz constants; 0: none.
        ascent_steps: steps of the refined ones; 0: none.
        steps: of the attack path (PGD from the clean image); 0: no path.
        slices: images whose loss landscape is drawn, the first ones; 0: none.
        grid: G, odd: points of a slice along each direction, from -2 eps to 2 eps.
        logit_scale: "auto" (rdc.attacks.losses: logits are scaled for each image to an ordinary spread, so that models
            with other units are comparable) or a number > 0 that multiplies all logits.
        seed: of draws, random points, directions and bootstrap.
        batch: images worked on together.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    dataset: str
    n: int = _DEFAULT.n
    split: str = _DEFAULT.split
    start: int = _DEFAULT.start
    draws: int = _DEFAULT.draws
    norm: str = _DEFAULT.norm
    eps: str | float = _DEFAULT.eps
    eps_l2: str | float = _DEFAULT.eps_l2
    samples: int = _DEFAULT.samples
    ascent_steps: int = _DEFAULT.ascent_steps
    steps: int = _DEFAULT.steps
    slices: int = _DEFAULT.slices
    grid: int = _DEFAULT.grid
    logit_scale: str | float = _DEFAULT.logit_scale
    seed: int = _DEFAULT.seed
    batch: int = _DEFAULT.batch

    def __post_init__(self) -> None:
        _choice("split", self.split, ("test", "train"))
        _choice("norm", self.norm, ("linf", "l2"))
        counts = {"n": 1, "start": 0, "draws": 0, "samples": 0, "ascent_steps": 0, "steps": 0, "slices": 0, "grid": 3}
        for name, least in {**counts, "seed": 0, "batch": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}: expected an integer >= {least}; got {value!r}")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise ConfigError(f"{name}: expected at most {most:,}; got {getattr(self, name):,}")
        drawn = min(self.slices, self.n) * self.grid**2
        if drawn > _MOST_POINTS:
            raise ConfigError(
                f"grid: {self.grid} x {self.grid} points for each of {min(self.slices, self.n)} slices are {drawn:,}; expected at most "
                f"{_MOST_POINTS:,}. Lower grid or slices"
            )
        if self.draws == 1:
            raise ConfigError("draws: expected 0 (no redraws) or at least 2, whose gradients can be compared; got 1")
        if self.grid % 2 == 0:
            raise ConfigError(f"grid: expected an odd number, so that the image itself is on it; got {self.grid}")
        if self.seed >= 2**64:
            raise ConfigError(f"seed: expected less than 2^64; got {self.seed}")
        for name in ("eps", "eps_l2"):
            if isinstance(getattr(self, name), (int, float)):
                object.__setattr__(self, name, repr(float(getattr(self, name))))
            if not 0 < parse_eps(getattr(self, name), name=name) < math.inf:
                raise ConfigError(f"{name}: expected a radius > 0 in [0, 1] pixel units; got {getattr(self, name)}")
        if self.radius("linf") > 1:
            raise ConfigError(
                f"eps: an l_inf radius is at most 1; got {self.eps}. Write {self.eps}/255 for grey levels"
            )
        _check_scale(self)

    def radius(self, norm: str) -> float:
        """Radius of the ball of this norm, in [0, 1] pixel units."""
        return parse_eps(self.eps if norm == "linf" else self.eps_l2)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ModelText:
    """A model as named on the command line.

    Args:
        text: all of it, as given.
        name: preset, checkpoint path or ``package.module:factory``.
        levels, lm, lm_model, gradient: its own settings; None: the command's, else the model's.
        label: what tables and plots call it.
    """

    text: str
    name: str
    levels: str | None = None
    lm: str | None = None
    lm_model: str | None = None
    gradient: str | None = None
    label: str = ""


def parse_model(text: str) -> ModelText:
    """``NAME[@setting=value]...`` -> its parts; colons, commas and further ``=`` belong to the values.

    Args:
        text: e.g. ``fashion-mnist``, ``runs/a@b``, ``fashion-mnist@lm=paper-v2,steps=10@gradient=bpda``,
            ``my.models:make@label=PGD-AT``. Settings: levels, lm, lm-model, gradient (exact or bpda), label.

    Raises:
        ConfigError: no name, an unknown setting, one without value or given twice.
    """
    name, *rest = _SETTING.split(text)
    if not name.strip():
        raise ConfigError(f"model: expected NAME[@setting=value]..., for example {_EXAMPLE}; got {text!r}")
    found: dict[str, str] = {}
    for setting, value in zip(rest[::2], rest[1::2], strict=True):
        if setting not in MODEL_SETTINGS:
            raise ConfigError(
                f"model {text!r}: unknown setting {setting!r}{did_you_mean(setting, MODEL_SETTINGS)}; expected "
                f"{', '.join(MODEL_SETTINGS)}, for example {_EXAMPLE}"
            )
        if setting in found:
            raise ConfigError(f"model {text!r}: {setting} is given twice; give it once")
        if not value.strip():
            raise ConfigError(f"model {text!r}: {setting} has no value; write for example {_EXAMPLE}")
        found[setting] = value.strip()
    if found.get("gradient", "exact") not in ("exact", "bpda"):
        raise ConfigError(f"model {text!r}, gradient: expected exact or bpda; got {found['gradient']!r}")
    label = found.pop("label", None) or _label(name.strip(), found)
    fields = {setting.replace("-", "_"): value for setting, value in found.items()}
    return ModelText(text=text, name=name.strip(), label=label, **fields)


_EXAMPLE = "fashion-mnist@lm=paper-v2@gradient=bpda"


def _label(name: str, found: dict[str, str]) -> str:
    """ "fashion-mnist, lm paper-v2, bpda"."""
    short = name.rstrip("/").rsplit("/", 1)[-1]
    words = {"levels": "levels {}", "lm": "lm {}", "lm-model": "moved by {}", "gradient": "{}"}
    return ", ".join([short, *(words[key].format(found[key]) for key in words if key in found)])


def _choice(what: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        meant = did_you_mean(value, allowed)
        raise ConfigError(f"{what}: expected one of {', '.join(allowed)}; got {value!r}{meant}")


def _check_scale(settings: GradientSettings) -> None:
    """A number may come as text."""
    if settings.logit_scale == "auto":
        return
    try:
        scale = float(settings.logit_scale)
    except (TypeError, ValueError):
        scale = math.nan
    if not (math.isfinite(scale) and scale > 0) or isinstance(settings.logit_scale, bool):
        raise ConfigError(f'logit_scale: expected "auto" or a number > 0; got {settings.logit_scale!r}')
    object.__setattr__(settings, "logit_scale", scale)
