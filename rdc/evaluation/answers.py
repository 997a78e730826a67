"""Whether a model's answers mean anything."""

from __future__ import annotations

import math

from torch import Tensor

from rdc.errors import InputError

__all__ = ["meaningless", "refuse_meaningless"]


def meaningless(logits: Tensor) -> str | None:
    """What is wrong with answers none of which decides anything; None if some do.

    Args:
        logits: [n, K], answers to clean images.
    """
    n, classes = logits.shape
    bad = logits.isnan().any(1) | (logits == math.inf).any(1) | logits.isneginf().all(1)
    if bool(bad.all()):
        seen = "NaN" if logits.isnan().any() else "infinity"
        return f"expected finite logits; its answers to all of the {n} images looked at hold {seen}"
    if classes > 1 and n > 1 and bool((logits == logits[:, :1]).all()):
        value = float(logits[0, 0])
        return (
            f"expected logits that tell classes apart; to each of the {n} images looked at it gives all {classes} classes the same "
            f"value ({value:.4g} to the first)"
        )
    return None


def refuse_meaningless(logits: Tensor, model: str) -> None:
    """Refuse answers none of which decides anything; some that are not finite are counted and flagged instead.

    Args:
        logits: [n, K], answers to clean images.
        model: what to call the model in the error.

    Raises:
        InputError: every image has NaN or infinity in its answer, or every answer is the same for all classes.
    """
    wrong = meaningless(logits)
    if wrong is not None:
        raise InputError(
            f"model {model}: {wrong}. Check its weights, its noise levels (--levels) and its --precision; nothing was kept of these "
            "images"
        )
