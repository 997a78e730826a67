"""Any callable pixels -> logits as a defence, and how somebody's function is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from rdc.contracts import BaseDefence, NetworkUse
from rdc.defences.described import described_parts
from rdc.errors import ConfigError, InputError
from rdc.execution.frozen import at_rest
from rdc.execution.precision import in_own_type

__all__ = ["PlainClassifier", "call_model", "checked_logits"]


class PlainClassifier(BaseDefence):
    """Any callable pixels [N, C, H, W] float32 in [0, 1] -> logits [N, K].

    Args:
        model: an ``nn.Module`` or a function. What it returns is checked in every call. Weights of float16, bfloat16 or float64 get pixels
            of their own type (:mod:`rdc.execution.precision`). A module is lent: during a call it is in
            evaluation mode and its weights ask for no gradient, afterwards it is as the caller left it; and it gets a copy of the
            pixels, so that it may change them. The caller's autocast and inference mode reach it.
        image_shape, num_classes, class_names, settings: as of :class:`rdc.contracts.BaseDefence`.
        name: for reports, e.g. ``"resnet"``.

    A model that is made of defences or purifiers of rdc (an ensemble, a purifier before a classifier) is copied as far as it leads to
    them: their noise, draws and gradients are set as this defence's are, and their network evaluations counted.

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
        self._rule_parts()

    def forward(self, pixels: Tensor) -> Tensor:
        self._next_draw()
        with self.counting(otherwise=len(pixels)), at_rest(self.model):
            logits = call_model(self.model, pixels, self.head)
        return checked_logits(logits, pixels, self.num_classes, self.head)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **described_parts(self.parts())}

    def networks(self) -> tuple[NetworkUse, ...]:
        """Those of its parts; of a module without parts the module itself."""
        own = (NetworkUse("classification", self.model),) if isinstance(self.model, nn.Module) else ()
        return super().networks() or own


def call_model(function: Callable[..., Any], pixels: Tensor, name: str) -> Any:
    """Call somebody's function on a copy of the pixels, in the type of its weights; what it raises becomes an InputError that names it."""
    try:
        return in_own_type(function)(pixels.clone())
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
