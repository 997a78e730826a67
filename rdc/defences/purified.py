"""A purifier in front of a classifier, ours or anybody's: exact gradients through both, rebuilt step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rdc.arguments.scalars import shown
from rdc.defences.base import Defence, call_model, checked_logits
from rdc.defences.purifiers import LikelihoodPurifier, Purifier
from rdc.errors import ConfigError, InputError
from rdc.execution.frozen import at_rest
from rdc.images.pixels import checked_pixels
from rdc.method.likelihood_maximization import LikelihoodMaximization

__all__ = ["ForeignDefence", "PurifiedClassifier"]


class PurifiedClassifier(Defence):
    """classifier(purifier(x)): LM in front of a ResNet, DiffPure, ...

    Args:
        purifier: of this package.
        classifier: pixels -> logits [N, K]; lent, as the model of ``PlainClassifier`` is.
        num_classes, class_names, settings: as of :class:`Defence`.
        name: for reports.
    """

    stochastic = purifies = True

    def __init__(
        self,
        purifier: Purifier,
        classifier: nn.Module,
        *,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        name: str = "purified",
        **settings: Any,
    ) -> None:
        if not isinstance(purifier, Purifier):
            raise ConfigError(
                f"purifier: expected one of rdc.defences (LikelihoodPurifier, DiffusionPurifier); got {shown(purifier)}"
            )
        if not callable(classifier):
            raise ConfigError(
                f"classifier: expected a callable pixels [N, C, H, W] -> logits [N, K]; got {shown(classifier)}"
            )
        super().__init__(purifier.denoiser.image_shape, num_classes, class_names, **settings)
        self.purifier, self.classifier, self.head = purifier, classifier, name

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "lm": self.purifier.describe()}

    @property
    def evaluations_per_image(self) -> int:
        """Network passes for one decision: the purifier's and one of the classifier."""
        return self.purifier.evaluations + 1

    def purify(self, pixels: Tensor) -> Tensor:
        """The purified image as the classifier gets it, [N, C, H, W]."""
        return self._purified(checked_pixels(pixels, self.image_shape), self._draw_number(self._draw))

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = checked_pixels(pixels, self.image_shape)
        draw = self._draw_number(self._next_draw())
        self.network_evaluations += len(pixels) * (self.purifier.evaluations + 1)
        moved = self._purified(pixels, draw)
        return checked_logits(self._classified(moved), pixels, self.num_classes, self.head)

    def _classified(self, pixels: Tensor) -> Tensor:
        with at_rest(self.classifier):
            return self.classifier(pixels)

    def _purified(self, pixels: Tensor, draw: int) -> Tensor:
        if self.gradient == "exact":
            return self.purifier(pixels, draw)
        with torch.no_grad():
            moved = self.purifier(pixels, draw)
        return moved + (pixels - pixels.detach())  # the same value, an identity Jacobian

    def _draw_number(self, call: int) -> int:
        """Which draw of the purifier: far apart for different seeds, so that redraws of two seeds do not meet."""
        return call + self.noise_seed * 2**20

    @property
    def has_penalty(self) -> bool:
        return isinstance(self.purifier, LikelihoodPurifier)

    def penalty(self, pixels: Tensor) -> Tensor:
        value = self.purifier.penalty(checked_pixels(pixels, self.image_shape), self._draw_number(self._draw))
        return super().penalty(pixels) if value is None else value

    def surrogates(self) -> dict[str, Callable[[Tensor], Tensor]]:
        found: dict[str, Callable[[Tensor], Tensor]] = {
            "plain": self.classifier.with_() if isinstance(self.classifier, Defence) else self._classified,
            "fresh": self.with_(noise="fresh", noise_seed=self.noise_seed + 1),
        }
        if isinstance(self.purifier, LikelihoodPurifier):
            one = LikelihoodMaximization(**{**_fields(self.purifier.lm), "steps": 1, "name": "one step"})
            made = self.with_()
            made.purifier = LikelihoodPurifier(self.purifier.denoiser, one, self.purifier.memory_budget_mb)
            found["one-step"] = made
        return found


class ForeignDefence(Defence):
    """Anybody's defence with ``purify(pixels) -> pixels`` and ``classify(pixels) -> logits``.

    The exact gradient goes through both, ``purify`` rebuilt in the backward pass (with the same random numbers); "bpda"
    takes the Jacobian of ``purify`` as the identity. Its own randomness is its own affair: evaluate it with fresh noise.

    Args:
        defence: the object; an ``nn.Module`` is lent, as the model of ``PlainClassifier`` is.
        image_shape, num_classes, class_names, settings: as of :class:`Defence`.
        name: for reports.

    Raises:
        InputError: in a call, if ``purify`` changes the shape, breaks the gradient or raises.
    """

    purifies = True

    def __init__(self, defence: Any, *, image_shape: Any, num_classes: int, name: str = "defence", **settings: Any):
        super().__init__(image_shape, num_classes, **settings)
        self.defence, self.head = defence, name

    @property
    def evaluations_per_image(self) -> int:
        """Counted as one: what happens inside is not known."""
        return 1

    def purify(self, pixels: Tensor) -> Tensor:
        """The purified image, [N, C, H, W]."""
        pixels = checked_pixels(pixels, self.image_shape)
        if self.gradient == "exact" and pixels.requires_grad and torch.is_grad_enabled():
            # checkpoint ends a rebuild by an exception of its own, so what catches exceptions stays outside of it
            moved = self._call_purify(pixels, lambda x: checkpoint(self._purify_at_rest, x, use_reentrant=False))
        elif self.gradient == "exact":
            moved = self._call_purify(pixels)
        else:
            moved = self._call_purify(pixels.detach()).detach() + (pixels - pixels.detach())
        return moved

    def forward(self, pixels: Tensor) -> Tensor:
        self.network_evaluations += len(pixels)
        moved = self.purify(pixels)
        with at_rest(self.defence):
            logits = call_model(self.defence.classify, moved, f"{self.head}.classify")
        return checked_logits(logits, pixels, self.num_classes, f"{self.head}.classify")

    def _call_purify(self, pixels: Tensor, purify: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        moved = call_model(purify or self._purify_at_rest, pixels, f"{self.head}.purify")
        if not isinstance(moved, Tensor) or moved.shape != pixels.shape:
            got = list(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__
            raise InputError(f"{self.head}.purify: expected pixels {list(pixels.shape)}, got {got}")
        return moved

    def _purify_at_rest(self, pixels: Tensor) -> Tensor:
        with at_rest(self.defence):  # here, since the backward pass comes back to this function alone
            return self.defence.purify(pixels)


def _fields(lm: LikelihoodMaximization) -> dict[str, Any]:
    return {name: getattr(lm, name) for name in lm.__dataclass_fields__}
