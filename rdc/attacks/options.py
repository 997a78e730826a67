"""What attacks have in common to set: AttackOptions and the two families below it. Every default of an attack stands once, here or
in the options of the attack's own module.

A field says itself how its value is read (numbers of any kind become Python's), what the least one is, and whether a list of
attacks such as ``apgd-ce:steps=20`` may set it (``most``, ``choices``): ``rdc.attacks.registry`` and the command line ask here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from rdc.arguments.scalars import as_integer, as_number
from rdc.errors import InputError

__all__ = ["SURROGATES", "AscentOptions", "AttackOptions", "Progress", "SteppedOptions", "integer", "number", "word"]

Progress = Callable[[dict[str, object]], None]

#: what a list of attacks may name in place of a model
SURROGATES = (
    "plain", "one-step", "fresh", "softened", "softened-sharp", "softened-wide", "straight-through", "unclipped",
)  # fmt: skip


def integer(default: int | None, *, least: int | None = 1, most: int | None = None) -> Any:
    """A field that holds an integer.

    Args:
        default: its default.
        least: smallest value; None: the attack checks it.
        most: largest value in a list of attacks; None: a list cannot set it.
    """
    return dataclasses.field(default=default, metadata={"read": as_integer, "least": least, "most": most})


def number(default: Any, *, most: float | None = None) -> Any:
    """A field that holds a real number; ``most`` as of :func:`integer`."""
    return dataclasses.field(default=default, metadata={"read": as_number, "most": most})


def word(default: Any, choices: tuple[str, ...]) -> Any:
    """A field that a list of attacks sets by one of these words."""
    return dataclasses.field(default=default, metadata={"choices": choices})


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AttackOptions:
    """What every attack is told beside model, images and threat.

    Args:
        seed: 0 <= seed < 2^64; with image id and restart it fixes the random starts, and nothing else does.
        image_ids: N integers >= 0, e.g. positions in the data set; None: 0 to N - 1. They keep an image's random starts the same
            whatever stands beside it.
        restarts: >= 1; later ones attack only what is still robust.
        eot: model calls averaged for each evaluation; above 1, or with ``redraw``, the model counts as random.
        redraw: called before each model call, makes a random model draw fresh noise.
        verify: evaluate x_adv once more at the end (not for random models).
        gradient_model: pixels -> logits, what gradients are taken of in place of the model, say the same network in bfloat16. It decides
            nothing: what it misclassifies is asked of the model again, and every call without a gradient is the model's.
        progress: called after each step with attack, step, steps, restart, restarts, active, robust, total.

    Raises:
        InputError: seed or a count is not an integer in range.
    """

    seed: int = dataclasses.field(default=0, metadata={"read": as_integer, "least": 0})
    image_ids: Sequence[int] | Tensor | None = None
    restarts: int = integer(1, most=10_000)
    eot: int = integer(1, most=100_000)
    redraw: Callable[[], object] | None = None
    verify: bool = True
    gradient_model: Callable[[Tensor], Tensor] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, read, least = getattr(self, field.name), field.metadata.get("read"), field.metadata.get("least")
            taken = None if read is None else read(value)
            if taken is not None:
                object.__setattr__(self, field.name, taken)
            if least is not None and (taken is None or not least <= taken < 2**64):
                raise InputError(f"{field.name} must be an integer >= {least}, got {value!r}")

    @property
    def scoring(self) -> dict[str, Any]:
        """What an Objective (``rdc.attacks.losses``) is told beside model and loss."""
        return {"eot": self.eot, "redraw": self.redraw, "gradient_model": self.gradient_model}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SteppedOptions(AttackOptions):
    """Of attacks that go in steps.

    Args:
        steps: of each restart, >= 1.
    """

    steps: int = integer(100, most=1_000_000)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AscentOptions(SteppedOptions):
    """Of attacks that climb the gradient of a loss.

    Args:
        loss: ``"ce"``, ``"dlr"`` (with two classes: ``"margin"``) or ``"margin"`` (``rdc.attacks.losses``).
        logit_scale: ``"auto"`` or a number > 0, for ``ce``.
        start: [N, C, H, W], where restart 0 begins (projected into the budget) in place of its own start, or a list: one for each
            of the first restarts.
    """

    loss: str = "ce"
    logit_scale: float | str = number("auto")
    start: Tensor | Sequence[Tensor] | None = None

    @property
    def starts(self) -> list[Tensor]:
        """Where the first runs begin, [N, C, H, W] each."""
        return [self.start] if isinstance(self.start, Tensor) else list(self.start or ())

    @property
    def scoring(self) -> dict[str, Any]:
        """What an Objective is told beside model and loss."""
        return {**super().scoring, "logit_scale": self.logit_scale}
