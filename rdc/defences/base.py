"""What an evaluation works on: pixels -> logits, with a few settings every defence understands.

``DiffusionClassifier`` has this interface of itself; :class:`PlainClassifier` gives it to any callable, and
``rdc.defences.purified`` to a purifier in front of a classifier.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rdc.arguments.class_names import checked_names
from rdc.arguments.scalars import as_integer, shown
from rdc.arguments.seeds import checked_seed
from rdc.errors import ConfigError, InputError
from rdc.execution.frozen import Frozen, at_rest

__all__ = ["Defence", "PlainClassifier"]

GRADIENTS = ("exact", "bpda")
POLICIES = ("fixed", "fresh")
MOST_CLASSES = 10**6


class Defence(Frozen):
    """Base of defences that are no DiffusionClassifier: pixels [N, C, H, W] in [0, 1] -> logits [N, K].

    Args:
        image_shape: (C, H, W).
        num_classes: K.
        class_names: K different names; None: "0", "1", ...
        gradient: "exact", or "bpda": the Jacobian of whatever purifies the input is taken as the identity.
        noise: "fixed": one draw of noise for all calls; "fresh": another draw in every call. Without effect on a
            defence that draws none.
        noise_seed: of the draws, any integer.

    It stays in evaluation mode, as every defence does: ``train()`` is without effect.

    Attributes:
        stochastic: the noise policy changes what it computes.
        purifies: it changes its input first (``purify``), so that "exact" and "bpda" differ.
        network_evaluations: counts images times network passes; set it to 0 to start anew.

    Raises:
        ConfigError: an unknown setting.
    """

    stochastic = False
    purifies = False
    head = "discriminative"

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        class_names: Sequence[str] | None = None,
        *,
        gradient: str = "exact",
        noise: str = "fixed",
        noise_seed: int = 0,
    ) -> None:
        super().__init__()
        self.image_shape, self.num_classes = _checked_shape(image_shape), _checked_count(num_classes)
        self.class_names = checked_names(class_names, self.num_classes)
        self.gradient, self.noise_policy, self.noise_seed = gradient, noise, noise_seed
        self.network_evaluations, self._draw = 0, 0
        self._check()

    def _check(self) -> None:
        for name, value, allowed in (("gradient", self.gradient, GRADIENTS), ("noise", self.noise_policy, POLICIES)):
            if not isinstance(value, str) or value not in allowed:
                raise ConfigError(f"{name}: expected one of {', '.join(allowed)}; got {shown(value)}")
        self.noise_seed = checked_seed(self.noise_seed, "noise_seed")

    def with_(self, **changes: Any) -> Any:
        """The same defence (weights shared) with ``gradient``, ``noise`` or ``noise_seed`` changed, its counters at 0."""
        unknown = set(changes) - {"gradient", "noise", "noise_seed"}
        if unknown:
            raise ConfigError(
                f"settings: expected gradient, noise, noise_seed; got {', '.join(sorted(unknown))}. This model "
                f"({self.head}) has no such setting"
            )
        made = copy.copy(self)  # modules hold their children in dictionaries, which the copy shares
        made.gradient = changes.get("gradient", self.gradient)
        made.noise_policy = changes.get("noise", self.noise_policy)
        made.noise_seed = changes.get("noise_seed", self.noise_seed)
        made.network_evaluations, made._draw = 0, 0
        made._check()
        return made

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values, for reports."""
        noise = {"policy": self.noise_policy, "seed": self.noise_seed} if self.stochastic else "none"
        return {
            "levels": None, "weighting": None, "lm": None, "noise": noise, "head": self.head, "gradient": self.gradient,
        }  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the first parameter or buffer is; the CPU if there is none."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def redraw(self) -> None:
        """Go to the next draw, under policy "fresh"."""
        if self.noise_policy == "fresh":
            self._draw += 1

    def set_draw(self, draw: int) -> None:
        """Use this draw in the next call (under policy "fresh" the calls after it go on from there)."""
        number = as_integer(draw)
        if number is None:
            raise ConfigError(f"draw: expected an integer; got {shown(draw)}")
        self._draw = number

    def _next_draw(self) -> int:
        draw = self._draw
        self.redraw()
        return draw

    def surrogates(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Callables pixels -> logits that stand in for this defence in a transfer attack, by name."""
        return {}

    def penalty(self, pixels: Tensor) -> Tensor:
        """The purifier's own objective [N] at pixels [N, C, H, W], differentiable: what it makes small.

        Raises:
            ConfigError: this defence optimises nothing.
        """
        raise ConfigError(
            f"this model ({self.head}) optimises nothing at test time, so there is no objective to attack"
        )

    @property
    def has_penalty(self) -> bool:
        """Whether ``penalty`` can be asked for."""
        return False


class PlainClassifier(Defence):
    """Any callable pixels [N, C, H, W] float32 in [0, 1] -> logits [N, K].

    Args:
        model: an ``nn.Module`` or a function. What it returns is checked in every call. A module is lent: during a call it is in
            evaluation mode and its weights ask for no gradient, afterwards it is as the caller left it; and it gets a copy of the
            pixels, so that it may change them. The caller's autocast and inference mode reach it.
        image_shape, num_classes, class_names: as of :class:`Defence`.
        name: for reports, e.g. ``"resnet"``.

    Raises:
        InputError: in a call, if the answer is not a floating tensor [N, K], or the model raised.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        image_shape: Sequence[int],
        num_classes: int,
        class_names: Sequence[str] | None = None,
        name: str = "discriminative",
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, num_classes, class_names, **settings)
        self.model, self.head = model, name

    @property
    def evaluations_per_image(self) -> int:
        """Network passes for one decision."""
        return 1

    def forward(self, pixels: Tensor) -> Tensor:
        self.network_evaluations += len(pixels)
        with at_rest(self.model):
            logits = call_model(self.model, pixels, self.head)
        return checked_logits(logits, pixels, self.num_classes, self.head)


def _checked_shape(image_shape: Any) -> tuple[int, int, int]:
    try:
        sizes = [as_integer(size) for size in image_shape]
    except TypeError:
        sizes = []
    if len(sizes) != 3 or any(size is None or size < 1 for size in sizes):
        raise ConfigError(f"image_shape: expected three sizes (C, H, W), each >= 1; got {shown(image_shape)}")
    return tuple(sizes)


def _checked_count(num_classes: Any) -> int:
    count = as_integer(num_classes)
    if count is None or not 1 <= count <= MOST_CLASSES:
        raise ConfigError(f"num_classes: expected an integer of 1 to {MOST_CLASSES:,}; got {shown(num_classes)}")
    return count


def call_model(function: Callable[..., Any], pixels: Tensor, name: str) -> Any:
    """Call somebody's function on a copy of the pixels; what it raises becomes an InputError that names it."""
    try:
        return function(pixels.clone())
    except (InputError, ConfigError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise InputError(
            f"model {name} raised {type(error).__name__} on pixels {list(pixels.shape)} {pixels.dtype}: {error}. "
            "RDC_DEBUG=1 shows where"
        ) from error


def checked_logits(logits: Any, pixels: Tensor, num_classes: int | None, name: str) -> Tensor:
    """Refuse an answer that is no floating tensor [N, K].

    Raises:
        InputError: says what came and what to do.
    """
    if not isinstance(logits, Tensor):
        hint = ": attacks need gradients through it, so let it compute with torch to the end"
        kind = f"{type(logits).__module__}.{type(logits).__name__}"
        raise InputError(f"model {name}: expected logits as a torch tensor [N, K]; got {kind}{hint}")
    expected = f"[{len(pixels)}, {'K' if num_classes is None else num_classes}]"
    right = logits.ndim == 2 and len(logits) == len(pixels) and logits.shape[1] >= 2
    if not right or (num_classes is not None and logits.shape[1] != num_classes):
        raise InputError(
            f"model {name}: expected logits {expected} for pixels {list(pixels.shape)}; got shape {list(logits.shape)}"
        )
    if not logits.is_floating_point():
        raise InputError(f"model {name}: expected floating logits; got {logits.dtype}. Return scores, not decisions")
    return logits
