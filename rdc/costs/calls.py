"""The calls that are measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rdc.attacks.losses import Objective
from rdc.contracts import Defence

__all__ = ["filled", "prepared"]


def prepared(model: Defence, work: str, pixels: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """A call of one kind of work on these images; its answer lies on the CPU, so that a GPU has finished.

    Args:
        model: classifier.
        work: a key of ``rdc.costs.settings.WORK``.
        pixels, labels: [N, C, H, W] float32 in [0, 1], [N] int64.
    """
    x, y = pixels.to(model.device), labels.to(model.device)
    if work == "prediction":

        def predict() -> Tensor:
            with torch.no_grad():
                return model(x).cpu()

        return predict
    objective = Objective(model, "ce")
    scale = objective.start(x, y)[2]  # of an attack's loss: how many classes carry gradient depends on it

    def step() -> Tensor:
        slope = objective.evaluate(x, y, scale, gradient=True).gradient
        assert slope is not None
        return slope.cpu()

    return step


def filled(values: Tensor, count: int) -> Tensor:
    """The first ``count`` rows; from the beginning again where there are fewer."""
    return values[torch.arange(count) % len(values)]
