"""Anybody's object with ``purify`` and ``classify`` as a defence: exact gradients through both, the purification rebuilt."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rdc.contracts import BaseDefence, NetworkUse
from rdc.defences.described import described_parts
from rdc.defences.plain import call_model, checked_logits
from rdc.errors import InputError
from rdc.execution.frozen import at_rest
from rdc.images.pixels import checked_pixels

__all__ = ["ForeignDefence"]


class ForeignDefence(BaseDefence):
    """Anybody's defence with ``purify(pixels) -> pixels`` and ``classify(pixels) -> logits``.

    The exact gradient goes through both, ``purify`` rebuilt in the backward pass (with the same random numbers); "bpda"
    takes the Jacobian of ``purify`` as the identity. Its own randomness is its own affair: evaluate it with fresh noise. Defences and
    purifiers of rdc that it is made of are set as those of ``PlainClassifier`` are.

    Args:
        defence: the object; an ``nn.Module`` is lent, as the model of ``PlainClassifier`` is.
        image_shape, num_classes, class_names, settings: as of :class:`rdc.contracts.BaseDefence`.
        name: for reports.

    Raises:
        InputError: in a call, if ``purify`` changes the shape, breaks the gradient or raises.
    """

    purifies = True  # whatever it is made of

    def __init__(
        self, defence: Any, *, image_shape: Any, num_classes: int, name: str = "defence", **settings: Any
    ) -> None:
        super().__init__(image_shape, num_classes, **settings)
        self.defence, self.head = defence, name
        self._rule_parts()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **described_parts(self.parts())}

    def networks(self) -> tuple[NetworkUse, ...]:
        """Those of its parts; of a module without parts the module itself."""
        own = (NetworkUse("purification and classification", self.defence),)
        return super().networks() or (own if isinstance(self.defence, nn.Module) else ())

    def purify(self, pixels: Tensor) -> Tensor:
        """The purified image, [N, C, H, W]."""
        with self.counting():
            return self._purified(checked_pixels(pixels, self.image_shape), self._draw)

    def forward(self, pixels: Tensor) -> Tensor:
        draw = self._next_draw()
        with self.counting(otherwise=len(pixels)):
            moved = self._purified(checked_pixels(pixels, self.image_shape), draw)
            with at_rest(self.defence):
                logits = call_model(self.defence.classify, moved, f"{self.head}.classify")
        return checked_logits(logits, pixels, self.num_classes, f"{self.head}.classify")

    def _purified(self, pixels: Tensor, draw: int) -> Tensor:
        return self._through(lambda pixels: self._call_purify(pixels, draw), pixels)

    def _call_purify(self, pixels: Tensor, draw: int) -> Tensor:
        rebuild = pixels.requires_grad and torch.is_grad_enabled()
        # checkpoint ends a rebuild by an exception of its own, so what catches exceptions stays outside of it
        purify = functools.partial(self._rebuilt if rebuild else self._purify_at_rest, draw)
        moved = call_model(purify, pixels, f"{self.head}.purify")
        if not isinstance(moved, Tensor) or moved.shape != pixels.shape:
            got = list(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__
            raise InputError(f"{self.head}.purify: expected pixels {list(pixels.shape)}, got {got}")
        return moved

    def _rebuilt(self, draw: int, pixels: Tensor) -> Tensor:
        moved: Tensor = checkpoint(self._purify_at_rest, draw, pixels, use_reentrant=False)
        return moved

    def _purify_at_rest(self, draw: int, pixels: Tensor) -> Tensor:
        self._draw_parts(draw)  # here, since the backward pass comes back to this function alone
        with at_rest(self.defence):
            moved: Tensor = self.defence.purify(pixels)
            return moved
