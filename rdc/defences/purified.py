"""A purifier of ours in front of any classifier: exact gradients through both, rebuilt step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from rdc.arguments.scalars import shown
from rdc.contracts import BaseDefence, Component, Defence, NetworkUse, NoisePolicy, PurificationPath
from rdc.contracts.path import along
from rdc.defences.described import described_parts
from rdc.defences.plain import PlainClassifier, checked_logits
from rdc.defences.purifiers import LikelihoodPurifier, Purifier
from rdc.errors import ConfigError
from rdc.execution.frozen import at_rest
from rdc.images.pixels import checked_pixels
from rdc.method.lm_move import lm_surrogates

__all__ = ["PurifiedClassifier"]


class PurifiedClassifier(BaseDefence):
    """classifier(purifier(x)): LM in front of a ResNet, DiffPure, ...

    Args:
        purifier: of this package.
        classifier: pixels -> logits [N, K]; lent, as the model of ``PlainClassifier`` is. A defence, or a model that is made of some, is
            ruled: noise, draws and gradient mode are this defence's own, and its evaluations count.
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
        self._rule_parts()

    @property
    def _defence(self) -> BaseDefence | None:
        """The classifier, if it is a defence of its own."""
        return self.classifier if isinstance(self.classifier, BaseDefence) else None

    @property
    def _behind(self) -> tuple[Component, ...]:
        """The parts behind the purifier."""
        return tuple(part for part in self.parts() if part is not self.purifier)

    def describe(self) -> dict[str, Any]:
        lifted = ("levels", "weighting", "precision") if self._defence is not None else ()
        behind = described_parts(self._behind, lifted=lifted)
        return {**super().describe(), **behind, "lm": self.purifier.describe()}

    @property
    def evaluations_per_image(self) -> int:
        """Network passes for one decision: the purifier's and the classifier's."""
        return self.purifier.evaluations + (sum(part.evaluations_per_image for part in self._behind) or 1)

    def networks(self) -> tuple[NetworkUse, ...]:
        """The purifier's, and those of the classifier as far as they are known."""
        found = super().networks()
        own = isinstance(self.classifier, nn.Module) and not self._behind
        return (*found, NetworkUse("classification", self.classifier)) if own else found

    def purify(self, pixels: Tensor) -> Tensor:
        """The image that is classified in the end, [N, C, H, W]: a classifier that purifies too has moved it once more."""
        pixels = checked_pixels(pixels, self.image_shape)
        self._draw_parts(self._draw)
        with self.counting():
            moved = self._purified(pixels, self._draw)
            return moved if self._defence is None else self._defence.purify(moved)

    def forward(self, pixels: Tensor) -> Tensor:
        return checked_logits(self._answer(pixels, self.classifier), pixels, self.num_classes, self.head)

    def _answer(self, pixels: Tensor, classifier: Callable[[Tensor], Tensor]) -> Tensor:
        """What the classifier, or a method of it, says of the purified image; takes a draw."""
        pixels = checked_pixels(pixels, self.image_shape)
        draw = self._next_draw()
        with self.counting():
            moved = self._purified(pixels, draw)
            return self._behind_purifier(moved, classifier)

    def _behind_purifier(self, moved: Tensor, classifier: Callable[[Tensor], Tensor]) -> Tensor:
        """What the classifier says, within :meth:`counting`."""
        with at_rest(self.classifier):
            answer = classifier(moved)
        self.network_evaluations += 0 if self._behind else len(moved)
        return answer

    @property
    def purification_length(self) -> int:
        """Steps of the purifier."""
        return self.purifier.steps_of_path

    def purification_path(self, pixels: Tensor) -> PurificationPath:
        """A call with the images after each step of the purifier; what a classifier purifies once more is not among them."""
        pixels = checked_pixels(pixels, self.image_shape)
        draw = self._next_draw()

        def classify(images: Tensor) -> Tensor:
            self._draw_parts(draw)
            with self.counting():
                images = images.clamp(0, 1) if self._takes_pixels_alone else images
                logits = self._behind_purifier(images, self.classifier)
            return checked_logits(logits, images, self.num_classes, self.head)

        with self.counting():
            images = along(self.gradient, lambda x: self.purifier.path(x, self._draw_number(draw)), pixels)
        return PurificationPath(images, classify(images[:, -1]), classify)

    @property
    def has_levels(self) -> bool:
        """Whether the classifier has noise levels."""
        return self._defence is not None and self._defence.has_levels

    def losses_per_level(self, pixels: Tensor) -> Tensor:
        if self._defence is None or not self.has_levels:
            return super().losses_per_level(pixels)
        return self._answer(pixels, self._defence.losses_per_level)

    def _purified(self, pixels: Tensor, draw: int) -> Tensor:
        moved = self._through(lambda x: self.purifier(x, self._draw_number(draw)), pixels)
        return moved.clamp(0, 1) if self._takes_pixels_alone else moved

    @property
    def _takes_pixels_alone(self) -> bool:
        """Whether the classifier refuses values beyond [0, 1], which DiffPure's last step may leave."""
        return self._defence is not None and not isinstance(self._defence, PlainClassifier)

    def _draw_number(self, call: int) -> int:
        """Which draw of the purifier: far apart for different seeds, so that redraws of two seeds do not meet."""
        return call + self.noise_seed * 2**20

    @property
    def has_penalty(self) -> bool:
        return isinstance(self.purifier, LikelihoodPurifier) or (
            self._defence is not None and self._defence.has_penalty
        )

    def penalty(self, pixels: Tensor) -> Tensor:
        """The purifier's own objective; of a purifier without one, that of the classifier at the purified image."""
        pixels = checked_pixels(pixels, self.image_shape)
        self._draw_parts(self._draw)
        with self.counting():
            value = self.purifier.penalty(pixels, self._draw_number(self._draw))
            if value is None and self._defence is not None and self._defence.has_penalty:
                value = self._defence.penalty(self._purified(pixels, self._draw))
        return super().penalty(pixels) if value is None else value

    def surrogates(self) -> dict[str, Defence]:
        """Stand-ins for a transfer attack: "plain" (the classifier alone), "fresh" (other noise), those of ``lm_move.lm_surrogates``."""
        found: dict[str, Defence] = {
            "plain": self._plain(),
            "fresh": self.with_(noise=NoisePolicy.FRESH, noise_seed=self.noise_seed + 1),
        }
        if isinstance(self.purifier, LikelihoodPurifier):
            for name, other in lm_surrogates(self.purifier.lm).items():
                made = self.with_()
                made.purifier = LikelihoodPurifier(self.purifier.denoiser, other, self.purifier.memory_budget_mb)
                made._found = None  # the parts are others
                found[name] = made
        return found

    def _plain(self) -> Defence:
        if self._defence is not None:
            return self._defence.surrogates().get("plain", self._defence.with_())
        return PlainClassifier(
            self.classifier,
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            class_names=self.class_names,
            name=self.head,
            device=self.device,
            **self.settings(),
        )
