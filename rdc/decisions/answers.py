"""Is what a classifier says about one image an answer at all, and is its confidence worth anything?"""

from __future__ import annotations

import numpy as np

__all__ = ["doubt", "uncalibrated"]

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


def uncalibrated(logit_scale: object, own_settings: bool = True) -> str:
    """Why a diffusion classifier's probabilities are no better than a ranking, as part of a line; empty if nothing speaks against them.

    Args:
        logit_scale: the classifier's setting: a number was fitted, or chosen by somebody; a name ("sum", "mean") by nobody.
        own_settings: whether noise levels and likelihood maximisation are the checkpoint's own, which the number was fitted with.
    """
    if isinstance(logit_scale, str):
        return f"its logit scale is {logit_scale!r}, which no held-out image has set"
    return "" if own_settings else "its logit scale was fitted with other noise levels or likelihood maximisation"
