"""What a smaller radius of the same norm left of some images, for an evaluation in a larger one: its ball has all of them, too."""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["Smaller"]


@dataclasses.dataclass(frozen=True, eq=False)
class Smaller:
    """n images as the attacks within a smaller radius left them.

    Args:
        eps: the radius, as text.
        source: what decides the images: a digest of the identity of the run that made them.
        x_adv: [n, C, H, W] float32, the most damaging image found for each.
        robust: [n] bool, whether it stood.
    """

    eps: str
    source: str
    x_adv: np.ndarray
    robust: np.ndarray

    @property
    def attack(self) -> str:
        """What the submission of these images is called among the attacks of the larger radius."""
        return f"radius-{self.eps}"

    @property
    def identity(self) -> str:
        """The radius, and where the images are from."""
        return f"{self.eps}, run {self.source}"

    def part(self, rows: slice) -> Smaller:
        """Those of some rows."""
        return Smaller(self.eps, self.source, self.x_adv[rows], self.robust[rows])
