"""A purifier in front of a classifier, ours or anybody's: exact gradients through both, rebuilt step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rdc.defences.base import Defence, call_model, checked_logits
from rdc.defences.purifiers import LikelihoodPurifier, Purifier
from rdc.errors import InputError
from rdc.likelihood_maximization import LikelihoodMaximization

__all__ = ["ForeignDefence", "PurifiedClassifier"]


class PurifiedClassifier(Defence):
    """classifier(purifier(x)): LM in front of a ResNet, DiffPure, ...

    Args:
        purifier: of this package.
        classifier: pixels -> logits [N, K]; frozen.
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
        super().__init__(purifier.denoiser.image_shape, num_classes, class_names, **settings)
        self.purifier, self.classifier, self.head = purifier, classifier.eval().requires_grad_(False), name

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "lm": self.purifier.describe()}

    @property
    def evaluations_per_image(self) -> int:
        """Network passes for one decision: the purifier's and one of the classifier."""
        return self.purifier.evaluations + 1

    def purify(self, pixels: Tensor) -> Tensor:
        """The purified image as the classifier gets it, [N, C, H, W]."""
        return self._purified(pixels, self._draw_number(self._draw))

    def forward(self, pixels: Tensor) -> Tensor:
        draw = self._draw_number(self._next_draw())
        self.network_evaluations += len(pixels) * (self.purifier.evaluations + 1)
        moved = self._purified(pixels, draw)
        return checked_logits(self.classifier(moved), pixels, self.num_classes, self.head)

    def _purified(self, pixels: Tensor, draw: int) -> Tensor:
        if self.gradient == "exact":
            return self.purifier(pixels, draw)
        with torch.no_grad():
            moved = self.purifier(pixels, draw)
        return moved + (pixels - pixels.detach())  # the same value, an identity Jacobian

    def _draw_number(self, call: int) -> int:
        """Which draw of the purifier: far apart for different seeds, so that redraws of two seeds do not meet."""
        return call + (self.noise_seed % 2**31) * 2**20

    @property
    def has_penalty(self) -> bool:
        return isinstance(self.purifier, LikelihoodPurifier)

    def penalty(self, pixels: Tensor) -> Tensor:
        value = self.purifier.penalty(pixels, self._draw_number(self._draw))
        return super().penalty(pixels) if value is None else value

    def surrogates(self) -> dict[str, Callable[[Tensor], Tensor]]:
        found: dict[str, Callable[[Tensor], Tensor]] = {
            "plain": self.classifier,
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
        defence: the object; if an ``nn.Module``, put in evaluation mode.
        image_shape, num_classes, class_names, settings: as of :class:`Defence`.
        name: for reports.

    Raises:
        InputError: in a call, if ``purify`` changes the shape, breaks the gradient or raises.
    """

    purifies = True

    def __init__(self, defence: Any, *, image_shape: Any, num_classes: int, name: str = "defence", **settings: Any):
        super().__init__(image_shape, num_classes, **settings)
        self.defence, self.head = defence, name
        if isinstance(defence, nn.Module):
            defence.eval().requires_grad_(False)

    @property
    def evaluations_per_image(self) -> int:
        """Counted as one: what happens inside is not known."""
        return 1

    def purify(self, pixels: Tensor) -> Tensor:
        """The purified image, [N, C, H, W]."""
        if self.gradient == "exact" and pixels.requires_grad and torch.is_grad_enabled():
            # checkpoint ends a rebuild by an exception of its own, so what catches exceptions stays outside of it
            moved = self._call_purify(pixels, lambda x: checkpoint(self.defence.purify, x, use_reentrant=False))
        elif self.gradient == "exact":
            moved = self._call_purify(pixels)
        else:
            moved = self._call_purify(pixels.detach()).detach() + (pixels - pixels.detach())
        return moved

    def forward(self, pixels: Tensor) -> Tensor:
        self.network_evaluations += len(pixels)
        logits = call_model(self.defence.classify, self.purify(pixels), f"{self.head}.classify")
        return checked_logits(logits, pixels, self.num_classes, f"{self.head}.classify")

    def _call_purify(self, pixels: Tensor, purify: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        moved = call_model(purify or self.defence.purify, pixels, f"{self.head}.purify")
        if not isinstance(moved, Tensor) or moved.shape != pixels.shape:
            got = list(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__
            raise InputError(f"{self.head}.purify: expected pixels {list(pixels.shape)}, got {got}")
        return moved


def _fields(lm: LikelihoodMaximization) -> dict[str, Any]:
    return {name: getattr(lm, name) for name in lm.__dataclass_fields__}
