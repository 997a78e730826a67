"""A labelled image set in memory, and a balanced hold-out split of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rdc.errors import DataError

__all__ = ["Dataset", "train_holdout"]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in memory, checked when made.

    Args:
        images: uint8 [N, C, H, W], pixel values 0..255.
        labels: int64 [N], each in ``0..len(class_names) - 1``.
        class_names: K names.
        name: the name it was loaded by, e.g. ``"fashion-mnist"``.
        split: ``"train"``, ``"test"`` or a derived name such as ``"train-holdout"``.
        indices: int64 [N], position of every image in the original split (``arange(N)`` when not given). Use these
            as image ids: they survive :meth:`subset`, so noise and random starts stay tied to the image.

    Raises:
        DataError: a shape, dtype or label is not as stated.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    split: str
    indices: Tensor | None = None

    def __post_init__(self) -> None:
        where = f"data set {self.name!r} ({self.split})"
        object.__setattr__(self, "class_names", tuple(str(name) for name in self.class_names))
        if self.indices is None:
            object.__setattr__(self, "indices", torch.arange(len(self.labels)))
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise DataError(
                f"{where}: images must be uint8 [N, C, H, W]; got {self.images.dtype} {list(self.images.shape)}"
            )
        for what, value in (("labels", self.labels), ("indices", self.indices)):
            if value.dtype != torch.int64 or value.shape != self.images.shape[:1]:
                raise DataError(
                    f"{where}: {what} must be int64 [{len(self.images)}], one per image; "
                    f"got {value.dtype} {list(value.shape)}"
                )
        bad = ((self.labels < 0) | (self.labels >= self.num_classes)).nonzero().flatten()
        if len(bad):
            raise DataError(
                f"{where}: labels must be in 0..{self.num_classes - 1} ({self.num_classes} classes); {len(bad)} are not, "
                f"the first is {int(self.labels[bad[0]])} at position {int(bad[0])}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """K, the number of class names."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    def pixels(self, index: int | slice | Sequence[int] | Tensor | None = None) -> Tensor:
        """Pixels in [0, 1]: float32 [n, C, H, W] for a slice, list or tensor of positions (all when None), [C, H, W] for an int."""
        chosen = self.images if index is None else self.images[_as_index(index)]
        return chosen.to(torch.float32) / 255

    def subset(self, indices: slice | Sequence[int] | Tensor, split: str | None = None) -> Dataset:
        """The images at these positions, in this order, with their labels and original indices.

        Args:
            indices: positions in this data set: a slice, a sequence of ints, or an int64 / bool tensor.
            split: name of the new split; this one's when None.
        """
        index = _as_index(indices)
        return dataclasses.replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            indices=self.indices[index],
            split=self.split if split is None else split,
        )


def _as_index(index: int | slice | Sequence[int] | Tensor) -> int | slice | Tensor:
    if isinstance(index, (int, slice, Tensor)):
        return index
    array = np.asarray(index)
    return torch.as_tensor(array if array.dtype == bool else array.astype(np.int64))


def train_holdout(dataset: Dataset, n: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split off ``n`` images, balanced by class, to choose noise levels and the like without touching the test set.

    The choice depends on the labels, ``n`` and ``seed`` only (NumPy's counter-based Philox generator), never on global
    random state. When ``n`` is not a multiple of K, the first ``n mod K`` classes give one image more.

    Args:
        dataset: the training split.
        n: size of the hold-out, at least 1; every class needs ``ceil(n / K)`` images and at least one must remain.
        seed: non-negative.

    Returns:
        ``(rest, holdout)``, both in the original order, disjoint, together the whole data set.

    Raises:
        DataError: a class has too few images, or nothing would remain.
    """
    if not 0 < n < len(dataset):
        raise DataError(f"hold-out size must be in 1..{len(dataset) - 1} for {len(dataset)} images; got {n}")
    generator = np.random.Generator(np.random.Philox(key=seed))
    labels = dataset.labels.numpy()
    held = np.zeros(len(labels), dtype=bool)
    for label in range(dataset.num_classes):
        want = n // dataset.num_classes + (label < n % dataset.num_classes)
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) < want:
            raise DataError(
                f"a balanced hold-out of {n} needs {want} images of class {label} ({dataset.class_names[label]!r}); "
                f"{dataset.name!r} ({dataset.split}) has {len(members)}. Ask for fewer"
            )
        held[members[:want]] = True
    mask = torch.from_numpy(held)
    return dataset.subset(~mask, split=f"{dataset.split}-rest"), dataset.subset(mask, split=f"{dataset.split}-holdout")
