"""A network and what a defence uses it for: what reports name with a digest."""

from __future__ import annotations

import dataclasses

from torch import nn

__all__ = ["NetworkUse"]


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkUse:
    """One network of a defence.

    Args:
        role: what for: "classification", "likelihood maximisation", ...
        module: it, with its weights.
        label_free: whether it is asked for predictions without a label.
    """

    role: str
    module: nn.Module
    label_free: bool = False
