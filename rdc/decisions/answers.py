"""Is what a classifier says about one image an answer at all?"""

from __future__ import annotations

import numpy as np

__all__ = ["doubt"]

_CAUSES = "the weights, the noise levels or the logit scale are damaged or far out of range"


def doubt(log_probabilities: np.ndarray, *others: np.ndarray) -> str:
    """Why these numbers are no answer, as part of a line; empty if nothing is wrong with them.

    Args:
        log_probabilities: [K] of one image, or logits.
        others: further numbers that must be finite, of any shape: losses, a log-likelihood.
    """
    values = np.asarray(log_probabilities, np.float64)
    for what, numbers in (("class scores", values), *(("losses", np.asarray(other, np.float64)) for other in others)):
        wrong = int((~np.isfinite(numbers)).sum())
        if wrong:
            return f"no answer: {wrong} of the {numbers.size} {what} are NaN or infinite; {_CAUSES}"
    if values.size > 1 and (values == values.flat[0]).all():
        return (
            f"no answer: all {values.size} classes get exactly the same score; the model is not trained, or {_CAUSES}"
        )
    return ""
