"""Networks that are used and not trained: ours have no training mode, and somebody else's is lent, not taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["Frozen", "at_rest"]


class Frozen(nn.Module):
    """A module that stays in evaluation mode: ``train()`` changes neither it nor what it is made of.

    Attack libraries call ``eval()`` and then restore ``train()``; dropout would come to life.
    """

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def train(self, mode: bool = True) -> Any:
        """Without effect; returns the module."""
        return self


@contextlib.contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Somebody's model in evaluation mode and without gradients in its weights; afterwards everything is as it was.

    Args:
        model: an ``nn.Module``; anything else is left alone.
    """
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    weights = [weight for weight in model.parameters() if weight.requires_grad] if modes else []
    training = any(mode for _, mode in modes)
    try:
        if training:
            model.eval()
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
        if training:
            if modes[0][1]:
                model.train()  # some modules do more in it than to set a flag
            for part, mode in modes:
                part.training = mode
