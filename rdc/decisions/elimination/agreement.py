"""How often decisions that leave something out are those of the full classifier."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from rdc.decisions.anytime.early import EarlyClassifier
from rdc.errors import ConfigError
from rdc.statistics.proportions import wilson_interval

__all__ = ["Agreement", "measure_agreement"]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Counts over n images.

    Args:
        n: images.
        agreeing: of them, decisions that are the full classifier's.
        mean_passes: network passes of a decision.
        full_passes: of the full decision.
    """

    n: int
    agreeing: int
    mean_passes: float
    full_passes: int

    @property
    def rate(self) -> float:
        """Share of decisions that agree."""
        return self.agreeing / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Of the rate, Wilson, 95 %."""
        low, high = wilson_interval(self.agreeing, self.n)
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the counts, rate, interval and share of the passes."""
        shares = {
            "agreement": self.rate,
            "ci95": list(self.interval),
            "share_of_passes": self.mean_passes / self.full_passes,
        }
        return {**dataclasses.asdict(self), **shares}


@torch.no_grad()
def measure_agreement(model: EarlyClassifier, pixels: Tensor, *, batch: int = 32, progress: bool = False) -> Agreement:
    """Decide about images in both ways.

    Args:
        model: an :class:`~rdc.decisions.elimination.EliminatingClassifier` or a calibrated
            :class:`~rdc.decisions.anytime.AnytimeClassifier`.
        pixels: [n, C, H, W] in [0, 1]; no labels are needed.
        batch: images in a call.
        progress: draw a bar on stderr.

    Raises:
        ConfigError: no images.
    """
    from rdc.terminal.progress import bar

    if not len(pixels):
        raise ConfigError("agreement: expected at least one image; got none")
    agreeing = passes = 0
    for part in bar(pixels.split(batch), desc="agreement", unit="batch", enabled=progress):
        part = part.to(model.device)
        found = model.decide(part)
        full = model.classifier(part).argmax(1)
        agreeing += int((found.log_probabilities.argmax(1) == full).sum())
        passes += int(found.passes.sum())
    full_passes = len(model.classifier.levels) * model.classifier.denoiser.passes_per_level
    return Agreement(len(pixels), agreeing, passes / len(pixels), full_passes)
