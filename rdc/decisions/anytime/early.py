"""What decisions that need not look at everything have in common: the full classifier inside, what is asked of it, and what it costs."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

from rdc.arguments.seeds import checked_seed
from rdc.contracts import BaseDefence, Defence, NoisePolicy
from rdc.decisions.anytime.calibration import prior_scores
from rdc.execution.surroundings import undisturbed
from rdc.method.classifier import DiffusionClassifier

__all__ = ["AnytimeResult", "EarlyClassifier"]

Self = TypeVar("Self", bound="EarlyClassifier")


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


class EarlyClassifier(BaseDefence):
    """Base of classifiers that decide by part of the levels or for part of the classes; a kind writes :meth:`_scored`.

    Args:
        classifier: whose full decision is approached; noise "fixed".
        head: word for reports.
    """

    stochastic = False  # one draw, so that there is one full decision
    _no_other_setting = "Change the classifier inside first"

    def __init__(self, classifier: DiffusionClassifier, head: str) -> None:
        named = classifier.image_shape, classifier.num_classes, classifier.class_names
        super().__init__(*named, gradient=classifier.gradient, noise_seed=classifier.noise_seed)
        self.classifier = classifier
        self.head = f"{classifier.denoiser.head}, {head}"

    def decide(self, pixels: Tensor) -> AnytimeResult:
        """Decisions of pixels [N, C, H, W] in [0, 1], with what they cost."""
        cost: list[Tensor] = []

        def decided(pixels: Tensor) -> Tensor:
            log_probabilities, *cost[:] = self._decided(pixels)
            return log_probabilities

        return AnytimeResult(undisturbed(decided, pixels, self.classifier.denoiser), *cost)

    def _decided(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0 = self.classifier.encoded(2 * self.purify(pixels) - 1)
        scores, levels, passes = self._scored(x0)
        self.network_evaluations += int(passes.sum())
        return torch.log_softmax(-self.classifier.scale * scores, 1), levels, passes

    def _scored(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [N, K], levels looked at [N] and passes [N], of what the denoiser noises."""
        raise NotImplementedError

    def _prior(self, like: Tensor) -> Tensor:
        """What the class prior adds to the scores [K]."""
        return torch.from_numpy(prior_scores(self.classifier)).to(like.device, like.dtype)

    # --- what an evaluation asks for ------------------------------------------------------------------------------
    def _changed(self: Self, settings: dict[str, Any]) -> Self:
        """``gradient`` changed; ``noise`` and ``noise_seed`` are accepted and change nothing: there is one draw."""
        NoisePolicy.of(settings["noise"], "noise")
        checked_seed(settings["noise_seed"], "noise_seed")
        return super()._changed({**self.settings(), "gradient": settings["gradient"]})

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
