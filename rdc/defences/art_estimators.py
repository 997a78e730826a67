"""Classifiers of the Adversarial Robustness Toolbox as functions that rdc's attacks and evaluations take.

Nothing is needed the other way: rdc's models are modules in evaluation mode, which ART, foolbox and torchattacks take as they are; a
foolbox model is a function of pixels already.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.errors import InputError

__all__ = ["ArtModel"]


class ArtModel:
    """An ART classifier as a function pixels [n, C, H, W] in [0, 1] -> logits [n, K], differentiable once.

    Its gradient asks for ``class_gradient``, K backward passes for each step, whatever the framework below is.

    Args:
        classifier: with ``predict`` and ``class_gradient``, such as ``PyTorchClassifier``; trained on pixels in [0, 1].

    Raises:
        InputError: it has no such methods, or clips pixels to another range than [0, 1].
    """

    def __init__(self, classifier: Any) -> None:
        missing = [name for name in ("predict", "class_gradient") if not callable(getattr(classifier, name, None))]
        if missing:
            raise InputError(
                f"classifier: expected one of ART with predict and class_gradient; {type(classifier).__name__} has no {missing[0]}"
            )
        bounds = getattr(classifier, "clip_values", None)
        if bounds is not None and [float(np.min(bounds[0])), float(np.max(bounds[1]))] != [0.0, 1.0]:
            raise InputError(
                f"classifier: expected clip_values (0, 1), pixels as rdc has them; got ({bounds[0]}, {bounds[1]}). Make it with a "
                "preprocessing that scales them"
            )
        self.classifier = classifier

    def __call__(self, pixels: Tensor) -> Tensor:
        return _Answer.apply(pixels, self.classifier)  # type: ignore[no-untyped-call, no-any-return]


class _Answer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, classifier: Any) -> Tensor:
        ctx.classifier = classifier
        ctx.save_for_backward(pixels)
        return torch.from_numpy(np.asarray(classifier.predict(_array(pixels)))).to(pixels)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (pixels,) = ctx.saved_tensors
        with torch.enable_grad():  # its own differentiation, inside of this one
            jacobian = np.asarray(ctx.classifier.class_gradient(_array(pixels)))  # [n, K, C, H, W]
        slopes = torch.from_numpy(jacobian).to(upstream)
        return torch.einsum("nk,nk...->n...", upstream, slopes).view_as(pixels), None


def _array(pixels: Tensor) -> np.ndarray:
    return pixels.detach().cpu().numpy().astype(np.float32)
