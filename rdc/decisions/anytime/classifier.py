"""The classifier that stops when a decision is settled; finished images leave the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rdc.decisions.anytime.calibration import (
    AnytimeCalibration,
    _check_settings,
    calibrate_anytime,
    fingerprint,
)
from rdc.decisions.anytime.dropping import drop_classes
from rdc.decisions.anytime.early import AnytimeResult, EarlyClassifier
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.draw import Draw

__all__ = ["AnytimeClassifier", "AnytimeResult"]


class AnytimeClassifier(EarlyClassifier):
    """A diffusion classifier whose decisions stop early (clean inference only, see ``rdc.decisions.anytime``).

    Args:
        classifier: with noise "fixed". Likelihood maximisation, if any, is done in full.
        error_rate: largest rate of decisions that differ from the full one.
        calibration: of this very classifier; None: call :meth:`calibrate` before the first decision.

    Forward:
        pixels [N, C, H, W] in [0, 1] -> log p(y|x) [N, K] by the levels looked at. Differentiable through them, but not what an
        attacker should be measured against: attack ``classifier``.

    Raises:
        ConfigError: noise is fresh, or the calibration belongs to another classifier, levels, noise or rate.
    """

    _no_other_setting = "Change the classifier first, then calibrate it again"

    def __init__(
        self,
        classifier: DiffusionClassifier,
        error_rate: float = 0.01,
        calibration: AnytimeCalibration | None = None,
    ) -> None:
        _check_settings(classifier, error_rate, 0.95)
        super().__init__(classifier, "anytime")
        self.error_rate = error_rate
        self.calibration: AnytimeCalibration | None = None
        if calibration is not None:
            self.use(calibration)

    def use(self, calibration: AnytimeCalibration) -> None:
        """Take a calibration.

        Raises:
            ConfigError: it was made for another classifier or for a larger rate.
        """
        if calibration.fingerprint != fingerprint(self.classifier):
            raise ConfigError(
                "anytime calibration: made for another classifier (other weights, levels, noise seed, likelihood maximisation or "
                "prior). Calibrate this one: calibrate_anytime(classifier, held_out_pixels, error_rate)"
            )
        if len(calibration.order) != len(self.classifier.levels):
            raise ConfigError(
                f"anytime calibration: made for {len(calibration.order)} levels; this classifier has {len(self.classifier.levels)}. "
                "Calibrate this one"
            )
        if calibration.error_rate > self.error_rate:
            raise ConfigError(
                f"anytime calibration: made for a rate of {calibration.error_rate:g}, above the stated {self.error_rate:g}. "
                "Calibrate for this rate"
            )
        self.calibration = calibration

    def calibrate(self, pixels: Tensor, *, confidence: float = 0.95, progress: bool = False) -> AnytimeCalibration:
        """Calibrate on held-out images and take the result; see :func:`rdc.decisions.anytime.calibrate_anytime`."""
        made = calibrate_anytime(self.classifier, pixels, self.error_rate, confidence=confidence, progress=progress)
        self.calibration = made
        return made

    # --- decisions ------------------------------------------------------------------------------------------------
    def forward(self, pixels: Tensor) -> Tensor:
        return self.decide(pixels).log_probabilities

    def decide(self, pixels: Tensor) -> AnytimeResult:
        """Decisions of pixels [N, C, H, W] in [0, 1], with what they cost."""
        if self.calibration is None:
            raise ConfigError(
                "anytime decisions: expected a calibration; call calibrate(held_out_pixels), or give one to AnytimeClassifier"
            )
        return super().decide(pixels)

    def _scored(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._eliminating(x0) if self.classifier.denoiser.passes_per_level > 1 else self._stopping(x0)

    def _setting(self, like: Tensor) -> tuple[Draw, Tensor]:
        """The draw, in the order of looking, and the prior's scores [K]."""
        assert self.calibration is not None
        draw = self.classifier.drawn(0, like)[list(self.calibration.order)]
        return draw, self._prior(like)

    def _parts(self) -> list[tuple[slice, float]]:
        """The levels of each look, and the lead that settles a decision after them."""
        assert self.calibration is not None
        looks, limits = self.calibration.looks, (*self.calibration.boundary, 0.0)
        return [(slice(a, b), c) for a, b, c in zip((0, *looks[:-1]), looks, limits, strict=True)]

    def _stopping(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All classes at once: an image leaves when its lead reaches the boundary."""
        draw, prior = self._setting(x0)
        active = torch.arange(len(x0), device=x0.device)
        running, left = prior.expand(len(x0), -1), []
        levels = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
        for part, limit in self._parts():
            size = max(1, self.classifier.pairs_that_fit(x0) // (part.stop - part.start))
            found = [self.classifier.denoiser.class_losses(images, draw[part]) for images in x0[active].split(size)]
            running = running + torch.cat(found)
            levels[active] = part.stop
            two = running.detach().topk(2, dim=1, largest=False).values
            settled = two[:, 1] - two[:, 0] >= limit
            if part.stop == len(draw):
                settled = torch.ones_like(settled)
            if settled.any():
                left.append((active[settled], running[settled]))
                active, running = active[~settled], running[~settled]
            if not len(active):
                break
        return _scattered(left, len(x0)), levels, levels.clone()

    def _eliminating(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class by class: a class is dropped when it is too far behind; an image leaves when one class is left."""
        draw, prior = self._setting(x0)
        return drop_classes(self.classifier, x0, draw, prior, [(part, _behind(limit)) for part, limit in self._parts()])

    # --- what an evaluation asks for ------------------------------------------------------------------------------
    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values, with ``anytime``: rate, confidence, mean levels."""
        anytime = {"error_rate": self.error_rate} if self.calibration is None else self.calibration.describe()
        return {**self.classifier.describe(), "head": self.head, "anytime": anytime}


def _behind(limit: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Classes so far behind the leader are dropped."""
    return lambda behind, alive: (behind >= limit) & (behind > 0)


def _scattered(left: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Rows put back in the order of the batch."""
    places = torch.cat([place for place, _ in left])
    back = torch.empty_like(places)
    back[places] = torch.arange(count, device=places.device)
    return torch.cat([rows for _, rows in left])[back]
