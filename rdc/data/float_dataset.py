"""Images that are no 8-bit grey levels, as a Dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.data.dataset import Dataset

__all__ = ["FloatDataset"]


class FloatDataset(Dataset):
    """A Dataset whose pixels lie between the levels of 8-bit images: ``images`` is float32 [N, C, H, W] in [0, 1], used as it is.

    Args: as of :class:`rdc.data.Dataset`, but for ``images``; :func:`rdc.data.as_dataset` checks them.
    """

    _levels = torch.float32

    def pixels(self, index: Any = None) -> Tensor:
        """Pixels [n, C, H, W] float32 in [0, 1] of these positions; all when None."""
        if index is None:
            return self.images
        return self.images[index if isinstance(index, (int, slice, Tensor)) else torch.as_tensor(np.asarray(index))]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        return self.images[index], int(self.labels[index])
