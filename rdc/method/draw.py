"""What one call of the classifier, or one step of likelihood maximisation, looks at: levels, their weights, their noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from rdc.errors import ConfigError

__all__ = ["Draw"]


@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """Noise levels with the noise of each; all images and all classes share them.

    ``draw[a:b]`` (views) and ``draw[[2, 0, 1]]`` are draws of those levels, ``len(draw)`` is T.

    Args:
        sigma: noise levels [T], in EDM units.
        weight: of each level in the loss, [T].
        noise: standard normal [T, C, H, W].

    Raises:
        ConfigError: shapes that do not belong together.
    """

    sigma: Tensor
    weight: Tensor
    noise: Tensor

    def __post_init__(self) -> None:
        levels = self.sigma.shape
        if len(levels) != 1 or self.weight.shape != levels or self.noise.dim() != 4 or self.noise.shape[:1] != levels:
            got = ", ".join(str(list(tensor.shape)) for tensor in self.tensors)
            raise ConfigError(f"draw: expected sigma [T], weight [T] and noise [T, C, H, W]; got {got}")

    def __len__(self) -> int:
        return len(self.sigma)

    def __getitem__(self, levels: slice | Sequence[int]) -> Draw:
        """The draw of some of the levels."""
        return Draw(*(tensor[levels] for tensor in self.tensors))

    def pieces(self, size: int | None) -> list[Draw]:
        """Draws of at most ``size`` levels each, in order; None: all in one, this draw itself."""
        if size is None or size >= len(self):
            return [self]
        return [self[begin : begin + size] for begin in range(0, len(self), max(1, size))]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """(sigma, weight, noise): ``Draw(*draw.tensors)`` is the same draw."""
        return self.sigma, self.weight, self.noise

    def to(self, like: Tensor) -> Draw:
        """The same numbers in the type and on the device of ``like``."""
        return Draw(*(tensor.to(like.device, like.dtype) for tensor in self.tensors))

    def rows(self, images: int) -> Tensor:
        """The level of every row [N*T] when N images are noised at all levels, image-major (row n*T + t)."""
        return self.sigma.repeat(images)
