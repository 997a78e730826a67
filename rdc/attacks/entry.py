"""The front door of every attack: what callers hand in, made what the attack counts on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from rdc.arguments.scalars import as_integer, as_number, shown
from rdc.attacks.threat_model import AttackResult
from rdc.errors import InputError
from rdc.execution.surroundings import ordinary_tensor, outside_inference_mode
from rdc.images.pixels import SLACK, into_box

__all__ = ["attack"]

_INTEGERS = (
    "check_every", "draws", "eot", "queries", "restarts", "samples", "searches", "seed", "steps", "surrogate_eot", "targets",
)  # fmt: skip
_NUMBERS = ("bound", "cutoff", "logit_scale", "p_init", "reach", "step_size", "tau", "temperature")

Result = TypeVar("Result", bound=AttackResult)


def attack(function: Callable[..., Result]) -> Callable[..., Result]:
    """An attack ``(model, x, y, threat, **settings)`` that takes numbers of any kind and works in inference mode.

    NumPy's scalars and 0-d tensors become Python's numbers; pixels outside [0, 1] by rounding (``rdc.images.pixels.SLACK``) become 0 or 1;
    inside inference mode everything is computed outside of it, on copies. What does not fit is left for the attack to refuse.
    """

    @functools.wraps(function)
    def run(model: Any, x: Any, y: Any, threat: Any = None, **settings: Any) -> Result:
        if not callable(model):
            raise InputError(f"model: expected a callable pixels [n, C, H, W] -> logits [n, K]; got {shown(model)}")
        if threat is not None and not (hasattr(threat, "norm") and hasattr(threat, "eps")):
            raise InputError(
                f'threat: expected a threat model such as ThreatModel("linf", 8 / 255); got {shown(threat)}'
            )
        for names, read in ((_INTEGERS, as_integer), (_NUMBERS, as_number)):
            for name in names:
                number = read(settings[name]) if name in settings else None
                if number is not None:
                    settings[name] = number
        if not isinstance(settings.get("draws", 1), int):
            settings["draws"] = [
                draw if as_integer(draw) is None else as_integer(draw) for draw in _listed(settings["draws"])
            ]
        with outside_inference_mode():
            if "start" in settings:
                settings["start"] = _starts(settings["start"])
            given = (threat,) if threat is not None else ()
            return function(model, _boxed(ordinary_tensor(x)), ordinary_tensor(y), *given, **settings)

    return run


def _boxed(x: Any) -> Any:
    """Pixels with what rounding left outside [0, 1] put on its border."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
        return x
    low, high = torch.stack(torch.aminmax(x.detach())).tolist()
    outside = low < 0 or high > 1
    return into_box(x.detach()) if outside and -SLACK <= low and high <= 1 + SLACK else x


def _starts(start: Any) -> Any:
    if start is None or isinstance(start, Tensor):
        return ordinary_tensor(start)
    starts = _listed(start)
    if not all(isinstance(one, Tensor) for one in starts):
        raise InputError(
            f"start: expected images as a tensor [N, C, H, W], or a list of such tensors; got {shown(start)}"
        )
    return [ordinary_tensor(one) for one in starts]


def _listed(values: Any) -> list[Any]:
    if isinstance(values, (str, bytes)):
        return [values]
    try:
        return list(values)
    except TypeError:
        return [values]
