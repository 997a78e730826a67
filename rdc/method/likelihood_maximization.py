"""Likelihood maximisation (LM): move an input uphill in likelihood before it is classified.

    x^ = argmin_{||x^ - x||_inf <= eta}  E_{s, e} [ w(s) ||F(x^ + s e; s) - F*||^2 ]        (the network without label)

Source: arXiv 2305.15241, section 3.3 and algorithm 1 (v1 and v2 differ), and the authors' released settings. Each
version is a preset, each ingredient a field of :class:`LikelihoodMaximization`. Every step is a differentiable function
of its input, so gradients can pass through all of LM (``gradient="exact"`` of the classifier); memory is that of one
step, because a step's graph is rebuilt when its gradient is asked for.

Note what exactness can mean: the derivative of ``sign`` is zero almost everywhere, so through ``sign=True`` steps the
exact gradient is the straight-through one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import as_flag, as_integer, as_number, shown
from rdc.contracts import NoisePolicy
from rdc.errors import ConfigError
from rdc.execution.opaque import checkpointed, kept_for_later, opaque, opaque_with, transformed, wanted
from rdc.method.denoiser import Denoiser
from rdc.method.draw import Draw
from rdc.method.levels import MOST_LEVELS, NoiseLevels, noise_levels, parse_levels
from rdc.method.lm_move import lm_move
from rdc.method.noise import NoisePlan
from rdc.method.optimizers import OPTIMIZERS, adam_bias, lm_direction

__all__ = ["LM_PRESETS", "LikelihoodMaximization", "lm_penalty", "maximize_likelihood", "resolve_lm"]

MOST_STEPS = 4096  #: largest N; so many steps of one draw have noise of their own


def _integer(value: Any, least: int, most: int) -> int | None:
    number = as_integer(value)
    return number if number is not None and least <= number <= most else None


def _finite(value: Any) -> float | None:
    number = as_number(value)
    return number if number is not None and math.isfinite(number) else None


def _positive(value: Any) -> float | None:
    number = _finite(value)
    return number if number is not None and number > 0 else None


def _softness(value: Any) -> float | None:
    number = as_number(value)
    return number if number is not None and number >= 0 else None


def _word(value: Any, allowed: tuple[str, ...]) -> str | None:
    return value if isinstance(value, str) and value in allowed else None


def _sigma_range(value: Any) -> tuple[float, float] | None:
    try:
        low, high = (_positive(end) for end in value)
    except (TypeError, ValueError):
        return None
    return (low, high) if low is not None and high is not None and low <= high else None


@dataclasses.dataclass(frozen=True)
class LikelihoodMaximization:
    """Settings of LM. Lengths are in [0, 1] pixel units, noise levels in EDM units.

    Args:
        steps: N, 0 to :data:`MOST_STEPS`.
        optimizer: one of ``rdc.method.optimizers.OPTIMIZERS``: "momentum", "adam", "rmsprop", "sgd" or "lion".
        step_size: length of a step along the (normalised) direction.
        momentum: mu of "momentum".
        sign: move by the sign of the momentum.
        normalize: scale each image's gradient by "l1" (its sum of absolute values), "mean_abs" (their mean) or "none".
        eta: l_inf radius around the input; None: no projection.
        clamp: keep pixels in [0, 1].
        sigma_range: with ``levels`` None, each step draws ``levels_per_step`` levels uniformly from this range.
        levels: fixed levels with weights, all used in every step.
        levels_per_step: how many levels a step draws from ``sigma_range``.
        loss: "F" (weighted as the classifier's loss) or "x0" (plain ||D - x0||^2).
        noise: "fresh" (another draw in every step) or "same" (one draw for all steps).
        seed: any integer; of the noise and of the drawn levels.
        softness: for attackers: of the projections' derivatives (:mod:`rdc.method.lm_move`), 0 (exact) to infinity; no image changes.
    """

    steps: int = 5
    optimizer: str = "momentum"
    step_size: float = 8 / 255 / 5
    momentum: float = 1.0
    sign: bool = True
    normalize: str = "l1"
    eta: float | None = 8 / 255
    clamp: bool = True
    sigma_range: tuple[float, float] = (0.4, 0.6)
    levels: NoiseLevels | None = None
    levels_per_step: int = 1
    loss: str = "F"
    noise: str = "fresh"
    seed: int = 1
    name: str = "custom"
    softness: float = 0.0

    def __post_init__(self) -> None:
        kept: dict[str, tuple[Any, str]] = {
            "steps": (_integer(self.steps, 0, MOST_STEPS), f"an integer >= 0, at most {MOST_STEPS:,}"),
            "optimizer": (_word(self.optimizer, OPTIMIZERS), f"one of {', '.join(OPTIMIZERS)}"),
            "step_size": (_positive(self.step_size), "a number > 0"),
            "momentum": (_finite(self.momentum), "a number"),
            "sign": (as_flag(self.sign), "True or False"),
            "normalize": (_word(self.normalize, ("l1", "mean_abs", "none")), "l1, mean_abs or none"),
            "clamp": (as_flag(self.clamp), "True or False"),
            "sigma_range": (_sigma_range(self.sigma_range), "two numbers with 0 < low <= high"),
            "levels_per_step": (
                _integer(self.levels_per_step, 1, MOST_LEVELS),
                f"an integer >= 1, at most {MOST_LEVELS:,}",
            ),
            "loss": (_word(self.loss, ("F", "x0")), "F or x0"),
            "noise": (_word(self.noise, ("fresh", "same")), "fresh or same"),
            "seed": (as_integer(self.seed), "an integer, of any size and sign"),
            "softness": (_softness(self.softness), "a number >= 0, or infinity"),
            "name": (self.name if isinstance(self.name, str) else None, "text"),
        }
        if self.eta is not None:
            kept["eta"] = _positive(self.eta), "None or a number > 0"
        if self.levels is not None:
            kept["levels"] = self.levels if isinstance(self.levels, NoiseLevels) else None, "NoiseLevels or None"
        for name, (value, expected) in kept.items():
            if value is None:
                got = shown(getattr(self, name))
                raise ConfigError(f"likelihood maximisation, {name}: expected {expected}; got {got}")
            object.__setattr__(self, name, value)

    def describe(self) -> dict[str, Any]:
        """For reports: every setting, levels in short form."""
        settings = {**dataclasses.asdict(self), "levels": None if self.levels is None else self.levels.describe()}
        if not self.softness:
            del settings["softness"]  # since 0.1: earlier runs go on
        return settings | ({"softness": "infinity"} if math.isinf(self.softness) else {})  # JSON has no such number


#: The three versions in print. ``paper-v2`` states ``x + gamma m`` with g / ||g||_1; taken literally the pixels do not
#: move (steps of 1e-4 / 255), so the norm is read as a mean, as implementations of MI-FGSM do.
LM_PRESETS: dict[str, LikelihoodMaximization] = {
    "paper-v1": LikelihoodMaximization(levels=noise_levels("systematic", 125, 1e-4, 3.0, "edm"), name="paper-v1"),
    "paper-v2": LikelihoodMaximization(step_size=0.05, sign=False, normalize="mean_abs", name="paper-v2"),
    "released": LikelihoodMaximization(
        optimizer="adam", step_size=0.05, normalize="none", eta=None, clamp=True, loss="x0", name="released"
    ),
}


def resolve_lm(setting: str | LikelihoodMaximization | None) -> LikelihoodMaximization | None:
    """Settings from text, from settings, or None (also ``"none"``): no LM.

    Args:
        setting: a preset name, also with fields changed: ``paper-v2,steps=10,eta=16/255,sigma_range=0.5:1,levels=none``.

    Raises:
        ConfigError: unknown preset or field, or a value that does not fit.
    """
    if isinstance(setting, LikelihoodMaximization):
        return setting if setting.steps else None
    if setting is None or (isinstance(setting, str) and setting == "none"):
        return None
    name, *changes = setting.split(",") if isinstance(setting, str) else [""]
    if name not in LM_PRESETS:
        raise ConfigError(
            f"lm: expected none, {', '.join(LM_PRESETS)} (also with changes: paper-v2,steps=10,eta=16/255) or "
            f"LikelihoodMaximization(...); got {shown(setting)}{did_you_mean(name, ('none', *LM_PRESETS))}"
        )
    if not changes:
        return LM_PRESETS[name]
    values = dict(_parse_field(change) for change in changes)
    settings = dataclasses.replace(LM_PRESETS[name], name=str(setting), **values)
    return settings if settings.steps else None


def _parse_field(change: str) -> tuple[str, Any]:
    """``"eta=16/255"`` -> ("eta", 0.0627...)."""
    field, _, text = (part.strip() for part in change.partition("="))
    if field not in _FIELDS:
        meant = did_you_mean(field, _FIELDS)
        raise ConfigError(f"lm: expected field=value with a field of {', '.join(_FIELDS)}; got {shown(change)}{meant}")
    try:
        return field, _FIELDS[field](text)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"lm, {field}: {shown(text)} does not fit; write for example {_EXAMPLES[field]}") from error


def _number(text: str) -> float:
    """``"16/255"`` or ``"0.06"``."""
    above, bar, below = text.partition("/")
    return float(above) / float(below) if bar else float(above)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _range(text: str) -> tuple[float, float]:
    low, high = text.split(":")
    return float(low), float(high)


#: field of LikelihoodMaximization -> how its text is read
_FIELDS: dict[str, Any] = {
    "steps": int,
    "optimizer": str,
    "step_size": _number,
    "momentum": _number,
    "sign": _flag,
    "normalize": str,
    "eta": lambda text: None if text == "none" else _number(text),
    "clamp": _flag,
    "sigma_range": _range,
    "levels": lambda text: None if text == "none" else parse_levels(text),
    "levels_per_step": int,
    "loss": str,
    "noise": str,
    "seed": int,
}
_EXAMPLES = {
    "steps": "steps=5",
    "step_size": "step_size=2/255",
    "momentum": "momentum=0.9",
    "sign": "sign=true or sign=false",
    "eta": "eta=8/255 or eta=none",
    "clamp": "clamp=true or clamp=false",
    "sigma_range": "sigma_range=0.4:0.6",
    "levels": "levels=log:4:0.5:2:flat or levels=none",
    "levels_per_step": "levels_per_step=2",
    "seed": "seed=1",
}


def lm_loss(denoiser: Denoiser, x: Tensor, settings: LikelihoodMaximization, step: int, draw: int) -> Tensor:
    """LM objective [N] of x0 = x [N, C, H, W] in [-1, 1]: weighted error of the label-free network, mean over pixels."""
    return lm_objective(denoiser, x, settings, lm_draw(settings, step, draw, denoiser.latent_shape).to(x))


def lm_draw(settings: LikelihoodMaximization, step: int, number: int, noise_shape: tuple[int, ...]) -> Draw:
    """What step ``step`` of draw ``number`` looks at: L levels and weights float64, noise float32, on the CPU."""
    plan = NoisePlan(settings.seed, NoisePolicy.FRESH, stream=1)
    call = 0 if settings.noise == "same" else step
    position = number * 4096 + call
    if settings.levels is not None:
        sigma, weight = settings.levels.tensors(dtype=torch.float64)
        return plan.draw(position, sigma, weight, noise_shape, settings.levels.noise)
    else:
        low, high = settings.sigma_range
        place = plan.uniform(position, 0, settings.levels_per_step)
        sigma = low + (high - low) * place
        weight = torch.full_like(sigma, 1 / len(sigma))
    return plan.draw(position, sigma, weight, noise_shape)


def lm_objective(denoiser: Denoiser, x: Tensor, settings: LikelihoodMaximization, draw: Draw) -> Tensor:
    """:func:`lm_loss` for a given draw of L levels, in the type of x."""
    x_t, target = denoiser.noisy(denoiser.encode(x), draw)
    rows = draw.rows(len(x))
    error = (denoiser.f_null(x_t, rows) - target).square().mean((1, 2, 3))
    if settings.loss == "x0":
        error = error * denoiser.precondition.c_out(rows) ** 2
    return error.reshape(len(x), len(draw)) @ draw.weight


def lm_penalty(denoiser: Denoiser, x0: Tensor, settings: LikelihoodMaximization, draw: int, rows: int) -> Tensor:
    """LM's objective at x0, mean over the levels and noise that its steps would draw: [N], differentiable.

    Args:
        denoiser, settings, draw: as of :func:`maximize_likelihood`.
        x0: [N, C, H, W] in [-1, 1].
        rows: network rows whose graph fits the memory; more are cut into pieces that the backward pass rebuilds.
    """
    if transformed():
        return opaque_with(denoiser, lambda plain: lm_penalty(denoiser, plain, settings, draw, rows), x0)
    levels = len(settings.levels) if settings.levels is not None else settings.levels_per_step
    rebuild, objective = wanted(x0, module=denoiser), functools.partial(lm_objective, denoiser)
    later = kept_for_later(denoiser, objective)
    parts = []
    for part in x0.split(max(1, rows // levels)):
        total = part.new_zeros(len(part))
        for step in range(settings.steps):
            drawn = lm_draw(settings, step, draw, denoiser.latent_shape).to(part)
            for piece in drawn.pieces(rows):
                loss = checkpointed(later, part, settings, piece) if rebuild else objective(part, settings, piece)
                total = total + loss
        parts.append(total / settings.steps)
    return torch.cat(parts)


def _gradient(
    denoiser: Denoiser, x: Tensor, settings: LikelihoodMaximization, draw: Draw, rows: int | None, differentiable: bool
) -> Tensor:
    """Gradient of the objective, summed over the images x; levels in pieces are built again one by one when it is differentiated."""

    def of_levels(part: Draw, x: Tensor) -> Tensor:
        again = differentiable and torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = x if again and x.requires_grad else x.detach().requires_grad_()
            loss = lm_objective(denoiser, leaf, settings, part).sum()
            return torch.autograd.grad(loss, leaf, create_graph=again)[0]

    if len(pieces := draw.pieces(rows)) == 1:
        return of_levels(draw, x)
    later, total = kept_for_later(denoiser, of_levels), torch.zeros_like(x)
    for piece in pieces:
        total = total + (opaque(functools.partial(later, piece), x) if differentiable else of_levels(piece, x))
    return total


def _step(
    denoiser: Denoiser,
    settings: LikelihoodMaximization,
    step: int,
    draw: int,
    anchor: Tensor,
    x: Tensor,
    state: tuple[Tensor, ...],
    differentiable: bool,
    rows: int | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One LM step in [-1, 1] units; ``anchor`` is the input of LM. Differentiable in anchor, x and state on request."""
    drawn = lm_draw(settings, step, draw, denoiser.latent_shape).to(x)
    grad = _gradient(denoiser, x, settings, drawn, rows, differentiable)
    with torch.set_grad_enabled(differentiable):
        direction, state = lm_direction(grad, state, settings, adam_bias(step))
        return lm_move(anchor, x, direction, settings), state


def maximize_likelihood(
    denoiser: Denoiser,
    x0: Tensor,
    settings: LikelihoodMaximization,
    draw: int = 0,
    *,
    return_path: bool = False,
    rows: int | None = None,
) -> Tensor:
    """Run LM.

    Args:
        denoiser: its label-free prediction defines the likelihood.
        x0: [N, C, H, W] in [-1, 1].
        settings: see :class:`LikelihoodMaximization`.
        draw: which family of noise draws (0 for a fixed classifier, the call number for a fresh one).
        return_path: every step in place of the last.
        rows: levels of a step that are looked at together, where the memory does not hold one image at all of them; None: all.

    Returns:
        [N, C, H, W] in [-1, 1], with ``return_path`` [N, steps + 1, C, H, W], from x0 to the same last image; differentiable in
        ``x0`` and the network's weights. Images do not influence each other. The graph of a step is built when its gradient is
        asked for (:mod:`rdc.execution.opaque`): memory does not grow with the steps, unless it is to be differentiated in turn.
    """
    if transformed():
        run = functools.partial(maximize_likelihood, settings=settings, draw=draw, return_path=return_path, rows=rows)
        return opaque_with(denoiser, lambda plain: run(denoiser, plain), x0)
    x, state, path = x0, [torch.zeros_like(x0), torch.zeros_like(x0)], [x0]
    asked, of_weights = wanted(x0, module=denoiser), wanted(module=denoiser)
    rows = None if of_weights else rows  # pieces would not pass the weights' gradient on

    def move(step: int, anchor: Tensor, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        again = asked and torch.is_grad_enabled()
        moved, state = _step(denoiser, settings, step, draw, anchor, x, state, again, rows)
        return moved, *state

    later = kept_for_later(denoiser, move) if asked and not of_weights else move
    for step in range(settings.steps):
        if of_weights:
            x, *state = opaque_with(denoiser, functools.partial(move, step), x0, x, *state)
        elif asked:
            x, *state = opaque(functools.partial(later, step), x0, x, *state)
        else:
            x, *state = move(step, x0, x, *state)
        if return_path:
            path.append(x)
    return torch.stack(path, 1) if return_path else x


def lm_evaluations(settings: LikelihoodMaximization | None) -> int:
    """Network passes of LM for one image."""
    if settings is None:
        return 0
    return settings.steps * (len(settings.levels) if settings.levels is not None else settings.levels_per_step)


def largest_move(settings: LikelihoodMaximization) -> float:
    """Upper bound of LM's l_inf move in [0, 1] units, for reports (infinity without projection)."""
    return math.inf if settings.eta is None else settings.eta
