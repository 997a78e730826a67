"""The classifier that stops when a decision is settled; finished images leave the batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from rdc.arguments.seeds import checked_seed
from rdc.contracts import BaseDefence, Defence, NoisePolicy
from rdc.decisions.anytime.calibration import (
    AnytimeCalibration,
    _check_settings,
    calibrate_anytime,
    fingerprint,
    prior_scores,
)
from rdc.errors import ConfigError
from rdc.execution.surroundings import undisturbed
from rdc.method.classifier import DiffusionClassifier
from rdc.method.draw import Draw

__all__ = ["AnytimeClassifier", "AnytimeResult"]


@dataclasses.dataclass(frozen=True, eq=False)
class AnytimeResult:
    """Decisions and what they cost.

    Args:
        log_probabilities: [N, K], by the levels that were looked at; a class that was dropped keeps its distance to the leader.
        levels: [N] int64, levels looked at.
        passes: [N] int64, network passes, likelihood maximisation not counted.
    """

    log_probabilities: Tensor
    levels: Tensor
    passes: Tensor


class AnytimeClassifier(BaseDefence):
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

    stochastic = False  # the rule is calibrated for one draw

    def __init__(
        self,
        classifier: DiffusionClassifier,
        error_rate: float = 0.01,
        calibration: AnytimeCalibration | None = None,
    ) -> None:
        _check_settings(classifier, error_rate, 0.95)
        named = classifier.image_shape, classifier.num_classes, classifier.class_names
        super().__init__(*named, gradient=classifier.gradient, noise_seed=classifier.noise_seed)
        self.classifier, self.error_rate = classifier, error_rate
        self.calibration: AnytimeCalibration | None = None
        self.head = f"{classifier.denoiser.head}, anytime"
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
        cost: list[Tensor] = []

        def decided(pixels: Tensor) -> Tensor:
            log_probabilities, *cost[:] = self._decided(pixels)
            return log_probabilities

        return AnytimeResult(undisturbed(decided, pixels, self.classifier.denoiser), *cost)

    def _decided(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0 = self.classifier.encoded(2 * self.purify(pixels) - 1)
        eliminate = self.classifier.denoiser.passes_per_level > 1
        scores, levels, passes = self._eliminating(x0) if eliminate else self._stopping(x0)
        self.network_evaluations += int(passes.sum())
        return torch.log_softmax(-self.classifier.scale * scores, 1), levels, passes

    def _setting(self, like: Tensor) -> tuple[Draw, Tensor]:
        """The draw, in the order of looking, and the prior's scores [K]."""
        assert self.calibration is not None
        draw = self.classifier.drawn(0, like)[list(self.calibration.order)]
        return draw, torch.from_numpy(prior_scores(self.classifier)).to(like.device, like.dtype)

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
        count, classes = len(x0), self.num_classes
        scores = prior.expand(count, -1).clone()
        behind_when_dropped = torch.zeros_like(scores)
        alive = torch.ones(count, classes, dtype=torch.bool, device=x0.device)
        levels = torch.zeros(count, dtype=torch.int64, device=x0.device)
        passes = torch.zeros(count, dtype=torch.int64, device=x0.device)
        for part, limit in self._parts():
            active = alive.sum(1) > 1
            if not active.any():
                break
            images, labels = (alive & active[:, None]).nonzero(as_tuple=True)
            added = self._pair_losses(x0, images, labels, draw[part])
            scores = scores.index_put((images, labels), added, accumulate=True)
            levels[active] = part.stop
            passes += torch.where(active, alive.sum(1) * (part.stop - part.start), 0)
            if part.stop == len(draw):
                break
            behind = scores - scores.masked_fill(~alive, torch.inf).amin(1, keepdim=True)
            drop = alive & active[:, None] & (behind.detach() >= limit) & (behind.detach() > 0)
            behind_when_dropped = torch.where(drop, behind, behind_when_dropped)
            alive = alive & ~drop
        lowest = scores.masked_fill(~alive, torch.inf).amin(1, keepdim=True)
        return torch.where(alive, scores, lowest + behind_when_dropped), levels, passes

    def _pair_losses(self, x0: Tensor, images: Tensor, labels: Tensor, draw: Draw) -> Tensor:
        """Weighted losses [P] of pairs (image, class) over some levels."""
        denoiser = self.classifier.denoiser
        size = max(1, self.classifier.pairs_that_fit(x0) * denoiser.passes_per_level // len(draw))
        parts = zip(images.split(size), labels.split(size), strict=True)
        return torch.cat([denoiser.losses_of_labels(x0[rows], draw, classes) for rows, classes in parts])

    # --- what an evaluation asks for ------------------------------------------------------------------------------
    _no_other_setting = "Change the classifier first, then calibrate it again"

    def _changed(self, settings: dict[str, Any]) -> AnytimeClassifier:
        """``gradient`` changed; ``noise`` and ``noise_seed`` are accepted and change nothing: the rule is calibrated for one draw."""
        NoisePolicy.of(settings["noise"], "noise")
        checked_seed(settings["noise_seed"], "noise_seed")
        return super()._changed({**self.settings(), "gradient": settings["gradient"]})

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values, with ``anytime``: rate, confidence, mean levels."""
        anytime = {"error_rate": self.error_rate} if self.calibration is None else self.calibration.describe()
        return {**self.classifier.describe(), "head": self.head, "anytime": anytime}

    def purify(self, pixels: Tensor) -> Tensor:
        """Likelihood maximisation alone."""
        with self.counting():
            return self.classifier.purify(pixels)

    def penalty(self, pixels: Tensor) -> Tensor:
        """Likelihood maximisation's objective."""
        with self.counting():
            return self.classifier.penalty(pixels)

    @property
    def has_penalty(self) -> bool:
        """Whether :meth:`penalty` can be asked for."""
        return self.classifier.has_penalty

    def surrogates(self) -> dict[str, Defence]:
        """The classifier's own, and "full": the full decision."""
        return {"full": self.classifier.with_(), **self.classifier.surrogates()}


def _scattered(left: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Rows put back in the order of the batch."""
    places = torch.cat([place for place, _ in left])
    back = torch.empty_like(places)
    back[places] = torch.arange(count, device=places.device)
    return torch.cat([rows for _, rows in left])[back]
