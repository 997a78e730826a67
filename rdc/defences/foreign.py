"""Anybody's object with ``purify`` and ``classify`` as a defence: exact gradients through both, the purification rebuilt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rdc.contracts import BaseDefence
from rdc.defences.plain import call_model, checked_logits
from rdc.errors import InputError
from rdc.execution.frozen import at_rest
from rdc.images.pixels import checked_pixels

__all__ = ["ForeignDefence"]


class ForeignDefence(BaseDefence):
    """Anybody's defence with ``purify(pixels) -> pixels`` and ``classify(pixels) -> logits``.

    The exact gradient goes through both, ``purify`` rebuilt in the backward pass (with the same random numbers); "bpda"
    takes the Jacobian of ``purify`` as the identity. Its own randomness is its own affair: evaluate it with fresh noise.

    Args:
        defence: the object; an ``nn.Module`` is lent, as the model of ``PlainClassifier`` is.
        image_shape, num_classes, class_names, settings: as of :class:`rdc.contracts.BaseDefence`.
        name: for reports.

    Raises:
        InputError: in a call, if ``purify`` changes the shape, breaks the gradient or raises.
    """

    purifies = True

    def __init__(
        self, defence: Any, *, image_shape: Any, num_classes: int, name: str = "defence", **settings: Any
    ) -> None:
        super().__init__(image_shape, num_classes, **settings)
        self.defence, self.head = defence, name

    def purify(self, pixels: Tensor) -> Tensor:
        """The purified image, [N, C, H, W]."""
        return self._through(self._call_purify, checked_pixels(pixels, self.image_shape))

    def forward(self, pixels: Tensor) -> Tensor:
        self.network_evaluations += len(pixels)
        moved = self.purify(pixels)
        with at_rest(self.defence):
            logits = call_model(self.defence.classify, moved, f"{self.head}.classify")
        return checked_logits(logits, pixels, self.num_classes, f"{self.head}.classify")

    def _call_purify(self, pixels: Tensor) -> Tensor:
        rebuild = pixels.requires_grad and torch.is_grad_enabled()
        # checkpoint ends a rebuild by an exception of its own, so what catches exceptions stays outside of it
        moved = call_model(self._rebuilt if rebuild else self._purify_at_rest, pixels, f"{self.head}.purify")
        if not isinstance(moved, Tensor) or moved.shape != pixels.shape:
            got = list(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__
            raise InputError(f"{self.head}.purify: expected pixels {list(pixels.shape)}, got {got}")
        return moved

    def _rebuilt(self, pixels: Tensor) -> Tensor:
        moved: Tensor = checkpoint(self._purify_at_rest, pixels, use_reentrant=False)
        return moved

    def _purify_at_rest(self, pixels: Tensor) -> Tensor:
        with at_rest(self.defence):  # here, since the backward pass comes back to this function alone
            moved: Tensor = self.defence.purify(pixels)
            return moved
