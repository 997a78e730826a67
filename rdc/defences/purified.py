"""A purifier of ours in front of any classifier: exact gradients through both, rebuilt step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rdc.arguments.scalars import shown
from rdc.contracts import BaseDefence, Defence, NoisePolicy
from rdc.defences.plain import PlainClassifier, checked_logits
from rdc.defences.purifiers import LikelihoodPurifier, Purifier
from rdc.errors import ConfigError
from rdc.execution.frozen import at_rest
from rdc.images.pixels import checked_pixels

__all__ = ["PurifiedClassifier"]


class PurifiedClassifier(BaseDefence):
    """classifier(purifier(x)): LM in front of a ResNet, DiffPure, ...

    Args:
        purifier: of this package.
        classifier: pixels -> logits [N, K]; lent, as the model of ``PlainClassifier`` is.
        num_classes, class_names, settings: as of :class:`rdc.contracts.BaseDefence`.
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
        with at_rest(self.classifier):
            logits = self.classifier(moved)
        return checked_logits(logits, pixels, self.num_classes, self.head)

    def _purified(self, pixels: Tensor, draw: int) -> Tensor:
        return self._through(lambda x: self.purifier(x, draw), pixels)

    def _draw_number(self, call: int) -> int:
        """Which draw of the purifier: far apart for different seeds, so that redraws of two seeds do not meet."""
        return call + self.noise_seed * 2**20

    @property
    def has_penalty(self) -> bool:
        return isinstance(self.purifier, LikelihoodPurifier)

    def penalty(self, pixels: Tensor) -> Tensor:
        value = self.purifier.penalty(checked_pixels(pixels, self.image_shape), self._draw_number(self._draw))
        return super().penalty(pixels) if value is None else value

    def surrogates(self) -> dict[str, Defence]:
        """Stand-ins for a transfer attack: "plain" (the classifier alone), "fresh" (other noise), "one-step" (LM with N = 1)."""
        found: dict[str, Defence] = {
            "plain": self._plain(),
            "fresh": self.with_(noise=NoisePolicy.FRESH, noise_seed=self.noise_seed + 1),
        }
        if isinstance(self.purifier, LikelihoodPurifier):
            one = dataclasses.replace(self.purifier.lm, steps=1, name="one step")
            made = self.with_()
            made.purifier = LikelihoodPurifier(self.purifier.denoiser, one, self.purifier.memory_budget_mb)
            found["one-step"] = made
        return found

    def _plain(self) -> Defence:
        if isinstance(self.classifier, BaseDefence):
            return self.classifier.with_()
        return PlainClassifier(
            self.classifier,
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            class_names=self.class_names,
            name=self.head,
            device=self.device,
        )
