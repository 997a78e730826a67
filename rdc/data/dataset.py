"""A labelled image set in memory, and class-balanced parts of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.class_names import checked_names
from rdc.arguments.scalars import as_integer, shown
from rdc.arguments.seeds import checked_seed, random
from rdc.errors import DataError

__all__ = ["DataNotice", "Dataset", "first_balanced", "train_holdout"]

Index = int | slice | Sequence[int] | np.ndarray | Tensor


class DataNotice(UserWarning):
    """What a user should know of how a data set was read; also in its ``notices``."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in memory, checked when made.

    ``data[i]`` is one image and its label, so that ``torch.utils.data.DataLoader(data)`` works; ``data[2:5]`` is the part.

    Args:
        images: uint8 [N, C, H, W], pixel values 0..255.
        labels: int64 [N], each in ``0..K-1``.
        class_names: K different names; of some there may be no image.
        name: what it was loaded as, e.g. ``"fashion-mnist"``.
        split: ``"train"``, ``"test"`` or a derived name such as ``"train-holdout"``.
        indices: int64 [N], position of every image in the original split; ``arange(N)`` when None. They are the image
            ids to hand to attacks: :meth:`subset` keeps them, so random starts stay tied to the image.
        source: where it was read from, for reports.
        notices: what a user should know of how it was read, one line each.

    Raises:
        DataError: a shape, dtype or label is not as stated.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    split: str
    indices: Tensor = dataclasses.field(default=cast(Any, None))
    source: str = ""
    notices: tuple[str, ...] = ()

    _levels = torch.uint8  # type of the images; a subclass may keep others

    if TYPE_CHECKING:  # may be made without indices, and has them then

        def __init__(
            self,
            images: Tensor,
            labels: Tensor,
            class_names: Sequence[str],
            name: str,
            split: str,
            indices: Tensor | None = None,
            source: str = "",
            notices: tuple[str, ...] = (),
        ) -> None: ...

    def __post_init__(self) -> None:
        where = f"data set {self.name!r}, {self.split} split{f' from {self.source}' if self.source else ''}"
        try:
            object.__setattr__(self, "class_names", checked_names(self.class_names, error=DataError))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        for what, value in (("images", self.images), ("labels", self.labels), ("indices", self.indices)):
            if not isinstance(value, Tensor) and (what, value) != ("indices", None):
                raise DataError(f"{where}: {what} must be a torch tensor; got a {type(value).__name__}")
        if self.indices is None:
            object.__setattr__(self, "indices", torch.arange(len(self.labels)))
        if self.images.ndim != 4 or self.images.dtype != self._levels:
            got = f"{self.images.dtype} {list(self.images.shape)}"
            raise DataError(f"{where}: images must be uint8 [N, C, H, W]; got {got}")
        for what, value in (("labels", self.labels), ("indices", self.indices)):
            if value.dtype != torch.int64 or value.shape != self.images.shape[:1]:
                raise DataError(
                    f"{where}: {what} must be int64 [{len(self.images)}], one per image; "
                    f"got {value.dtype} {list(value.shape)}"
                )
        bad = ((self.labels < 0) | (self.labels >= self.num_classes)).nonzero().flatten()
        if len(bad):
            raise DataError(
                f"{where}: labels must be in 0..{self.num_classes - 1} ({self.num_classes} classes); {len(bad)} of "
                f"{len(self)} are not, the first is {int(self.labels[bad[0]])} at position {int(bad[0])}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        """One image and its label, or a part.

        Args:
            index: a position, negative ones from the end: (pixels [C, H, W] float32 in [0, 1], label as an int). A slice: the
                Dataset of these positions, as :meth:`subset` makes it.

        Raises:
            IndexError: no such position.
            DataError: something else; several positions are for :meth:`pixels` and :meth:`subset`.
        """
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        place = as_integer(index)
        if place is None:
            raise DataError(
                f"{self!r}: expected one position or a slice in brackets; got {shown(index)}. For several use .pixels(positions), "
                ".labels[positions] or .subset(positions)"
            )
        if not -len(self) <= place < len(self):
            raise IndexError(f"{self!r}: position {place} is out of range")
        return self.images[place].to(torch.float32) / 255, int(self.labels[place])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """What a DataLoader asks for: ``[self[i] for i in indices]``."""
        pixels, labels = self.pixels(list(indices)), self.labels[torch.as_tensor(list(indices), dtype=torch.int64)]
        return list(zip(pixels, labels.tolist(), strict=True))

    def __repr__(self) -> str:
        shape = " x ".join(str(size) for size in self.images.shape)
        return f"Dataset({self.name!r}, {self.split!r}, images {shape}, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        """K, the number of class names."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def pixels(self, index: Index | None = None) -> Tensor:
        """Pixels in [0, 1] as float32, ``value / 255``.

        Args:
            index: positions as a slice, sequence, or int64 / bool tensor; all when None; or one position.

        Returns:
            [n, C, H, W], or [C, H, W] for one position.
        """
        chosen = self.images if index is None else self.images[_as_index(index)]
        return chosen.to(torch.float32) / 255

    def subset(self, indices: Index, split: str | None = None) -> Dataset:
        """The images at these positions, in this order, with their labels and original indices.

        Args:
            indices: positions in this data set: a slice, a sequence of ints, or an int64 / bool tensor.
            split: name of the new split; this one's when None.
        """
        index = _as_index(indices)
        if isinstance(index, int) or (isinstance(index, Tensor) and index.ndim == 0):
            raise DataError(f"subset takes a slice or a sequence of positions; got the single position {int(index)}")
        return dataclasses.replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            indices=self.indices[index],
            split=self.split if split is None else split,
        )


def _as_index(index: Index) -> int | slice | Tensor:
    if isinstance(index, (int, slice, Tensor)):
        return index
    array = np.asarray(index)
    if array.dtype == bool:
        return torch.from_numpy(array)
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"positions must be integers; got {array.dtype}")
    return torch.from_numpy(array.astype(np.int64))


def first_balanced(dataset: Dataset, n: int, split: str | None = None) -> Dataset:
    """The first ``n`` images that keep classes balanced: go through in order, skip those of a class that is full.

    Classes of which there is no image at all are left out. When ``n`` is not a multiple of the K others, the first ``n mod K`` of
    them get one image more.

    Raises:
        DataError: a class has too few images.
    """
    return dataset.subset(torch.from_numpy(_balanced(dataset, n, np.arange(len(dataset)))), split)


def train_holdout(dataset: Dataset, n: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split off ``n`` images, balanced by class, to choose noise levels and the like without touching the test set.

    The choice depends on the labels, ``n`` and ``seed`` only: each image gets one 64-bit word of NumPy's Philox stream
    (whose bits are fixed for all NumPy versions) and every class gives its images with the smallest words. So a
    smaller hold-out of the same seed is part of a larger one. Global random state is neither read nor written. When
    ``n`` is not a multiple of K, the first ``n mod K`` classes give one image more. Classes without images are left out.

    Args:
        dataset: the training split.
        n: size of the hold-out, 1..N-1.
        seed: an integer, 0 or more, of any size.

    Returns:
        ``(rest, holdout)``: both in the original order, disjoint, together the whole data set.

    Raises:
        DataError: a class has too few images, nothing would remain, or a bad seed.
    """
    size, seed = as_integer(n), checked_seed(seed, error=DataError)
    if size is None or not 0 < size < len(dataset):
        raise DataError(f"hold-out size must be in 1..{len(dataset) - 1} of {len(dataset)} images; got {shown(n)}")
    if seed < 0:
        raise DataError(f"seed must be 0 or more; got {shown(seed)}")
    words = random(seed).bit_generator.random_raw(len(dataset))
    held = torch.zeros(len(dataset), dtype=torch.bool)
    held[torch.from_numpy(_balanced(dataset, size, np.argsort(words, kind="stable")))] = True
    return dataset.subset(~held, f"{dataset.split}-rest"), dataset.subset(held, f"{dataset.split}-holdout")


def _balanced(dataset: Dataset, n: int, order: np.ndarray) -> np.ndarray:
    """Positions, ascending, of the first n // K or n // K + 1 images of every class that has any, in the given order."""
    count = as_integer(n)
    if count is None or count < 0:
        raise DataError(f"n: expected an integer >= 0; got {shown(n)}")
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    labels = dataset.labels.numpy()[order]
    present, chosen = np.unique(labels).tolist(), []
    if not present:
        raise DataError(f"{dataset!r}: expected at least one image; there is none")
    for place, label in enumerate(present):
        want = count // len(present) + (place < count % len(present))
        members = order[labels == label]
        if len(members) < want:
            raise DataError(
                f"{count} balanced images need {want} of class {label} ({dataset.class_names[label]!r}); "
                f"{dataset.name!r}, {dataset.split} split, has {len(members)}. Ask for fewer"
            )
        chosen.append(members[:want])
    return np.sort(np.concatenate(chosen))
