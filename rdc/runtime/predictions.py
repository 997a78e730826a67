"""What a classifier says about N images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rdc.decisions.answers import doubt
from rdc.errors import InputError

__all__ = ["Predictions"]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Answers for N images.

    Args:
        log_probabilities: log p(y|x) [N, K] float32.
        class_losses: weighted denoising losses [N, K] float32.
        log_likelihood: [N] float32, up to a constant; low for images unlike the training data, but also for complex ones.
        decision: [N] int64, -1 where the confidence is below the threshold.
        class_names: K names.
        purified_pixels: [N, C, H, W] in [0, 1], what was classified after likelihood maximisation; None without it.
    """

    log_probabilities: np.ndarray
    class_losses: np.ndarray
    log_likelihood: np.ndarray
    decision: np.ndarray
    class_names: tuple[str, ...]
    purified_pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.decision)

    @property
    def probabilities(self) -> np.ndarray:
        """p(y|x) [N, K] float64, rows sum to one."""
        p = np.exp(self.log_probabilities.astype(np.float64))
        shares: np.ndarray = p / p.sum(axis=1, keepdims=True)
        return shares

    @property
    def labels(self) -> np.ndarray:
        """Most probable class [N] int64, abstained from or not."""
        labels: np.ndarray = self.log_probabilities.argmax(axis=1)
        return labels

    @property
    def names(self) -> list[str]:
        """Names of :attr:`labels`."""
        return [self.class_names[label] for label in self.labels]

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the most probable class [N]."""
        largest: np.ndarray = self.probabilities.max(axis=1)
        return largest

    @property
    def abstain(self) -> np.ndarray:
        """Where the classifier does not decide [N] bool."""
        return self.decision < 0

    def describe(self, row: int) -> dict[str, Any]:
        """One image's answer as plain JSON values; probabilities from the largest down.

        Raises:
            InputError: the numbers are not finite, or the same for all classes: no answer.
        """
        wrong = doubt(self.log_probabilities[row], self.class_losses[row], self.log_likelihood[row])
        if wrong:
            raise InputError(wrong)
        p = self.probabilities[row]
        return {
            "label": int(self.labels[row]),
            "class": self.names[row],
            "confidence": float(p.max()),
            "abstain": bool(self.abstain[row]),
            "log_likelihood": float(self.log_likelihood[row]),
            "probabilities": {self.class_names[k]: float(p[k]) for k in np.argsort(-p, kind="stable")},
        }
