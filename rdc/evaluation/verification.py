"""Stored adversarial images checked: budget to the last bit, pixel range, which image each belongs to, the model's decisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from rdc.attacks import ThreatModel, parse_eps
from rdc.contracts import Defence, NoisePolicy
from rdc.data import Dataset
from rdc.defences import as_defence
from rdc.errors import ConfigError
from rdc.evaluation.adversarial_files import AdversarialImages
from rdc.evaluation.records import COUNT
from rdc.evaluation.report import Rate, rate
from rdc.evaluation.scoring import submit
from rdc.norm_balls import BUDGETS, distance
from rdc.storage.json_records import Absent, JsonRecord, anything, entry
from rdc.storage.structure import flag, number, optional, sequence, text
from rdc.terminal.progress import bar

__all__ = ["Verification", "VerifiedImage", "verify"]

_SOUGHT = 100  # images outside of their budget whose own image is looked for among the others
_PIECE = 512  # images of the data that they are compared with at a time


@dataclasses.dataclass(frozen=True)
class VerifiedImage(JsonRecord):
    """One stored image.

    Args:
        image: position in the data set of the image it is said to belong to.
        label: true class.
        distance: to that image, float64 of the float32 images; None where a pixel is not finite.
        within: whether that is at most the radius, to the last bit.
        in_range: whether all pixels are finite and in [0, 1].
        clean: whether the model is right about the image itself.
        right: whether it is right about the stored one.
        belongs_to: position of another image of the data within whose budget it is, the nearest; absent where it was not looked for, None
            where there is none.
    """

    image: int = entry(COUNT)
    label: int = entry(COUNT)
    distance: float | None = entry(optional(number(0)))
    within: bool = entry(flag())
    in_range: bool = entry(flag())
    clean: bool = entry(flag())
    right: bool = entry(flag())
    belongs_to: int | None | Absent = entry(optional(COUNT), absent=True)

    @property
    def allowed(self) -> bool:
        """An image that the threat model allows."""
        return self.within and self.in_range

    @property
    def standing(self) -> bool:
        """Right when clean, and no allowed image shows otherwise."""
        return self.clean and (self.right or not self.allowed)


@dataclasses.dataclass(frozen=True)
class Verification(JsonRecord):
    """What was found.

    Args:
        norm, eps, radius: the budget, as text and as a number.
        n: images.
        allowed: how many keep budget and range.
        longest: largest distance; None where one is not finite.
        clean: accuracy on the images themselves.
        robust: accuracy where an image counts as wrong if it is wrong itself or an allowed stored one is: an upper bound, for other
            attacks may break more.
        images: each.
    """

    norm: str = entry(text())
    eps: str = entry(text())
    radius: float = entry(number(0))
    n: int = entry(COUNT)
    allowed: int = entry(COUNT)
    longest: float | None = entry(optional(number(0)))
    clean: Rate = entry(of=Rate)
    robust: Rate = entry(of=Rate)
    images: tuple[VerifiedImage, ...] = entry(sequence(anything, 1), of=VerifiedImage, many=True)

    @property
    def holds(self) -> bool:
        """Whether every stored image is allowed."""
        return self.allowed == self.n


def verify(
    classifier: Defence | Callable[[Tensor], Tensor],
    dataset: Dataset,
    stored: AdversarialImages,
    norm: str,
    eps: str | float,
    *,
    start: int = 0,
    batch: int = 64,
    progress: bool = False,
) -> Verification:
    """Check stored adversarial images.

    Args:
        classifier: a defence, under its known noise; or any callable pixels -> logits.
        dataset: the images they were made of.
        stored: the images.
        norm: "linf", "l2", "l1" or "l0".
        eps: radius in [0, 1] pixel units, a number or text such as "8/255".
        start: position of the first stored image's own one, where the file does not say.
        batch: images classified together.
        progress: draw a bar on stderr.

    Raises:
        ConfigError: another norm, or a radius that it has not; images of another shape, positions that the data lack, or other labels.
    """
    if norm not in BUDGETS:
        raise ConfigError(f"norm: expected one of {', '.join(BUDGETS)}, whose budgets the images show; got {norm}")
    radius = parse_eps(eps, name="eps")
    if norm == "l0":
        ThreatModel(norm, radius)  # a whole number
    classifier = as_defence(classifier, dataset.pixels(slice(0, 2)), class_names=dataset.class_names, name="model")
    model = classifier.with_(noise=NoisePolicy.FIXED)
    rows = _own_images(dataset, stored, start)
    found: list[VerifiedImage] = []
    with bar(total=len(rows), desc="verify", unit="image", enabled=progress) as shown:
        for begin in range(0, len(rows), batch):
            part = slice(begin, begin + batch)
            found += _checked(model, dataset, stored.x_adv[part], rows[part], norm, radius)
            shown.update(len(rows[part]))
    found = _sought(found, dataset, stored.x_adv, norm, radius)
    n = len(found)
    lengths = [image.distance for image in found]
    return Verification(
        norm=norm,
        eps=str(eps),
        radius=radius,
        n=n,
        allowed=sum(image.allowed for image in found),
        longest=None if None in lengths else max(length for length in lengths if length is not None),
        clean=rate(sum(image.clean for image in found), n),
        robust=rate(sum(image.standing for image in found), n),
        images=tuple(found),
    )


def _own_images(dataset: Dataset, stored: AdversarialImages, start: int) -> Tensor:
    """Rows of the data set that the stored images belong to, [N]."""
    shape, n = list(stored.x_adv.shape[1:]), len(stored.x_adv)
    if shape != list(dataset.image_shape):
        raise ConfigError(
            f"expected images {list(dataset.image_shape)} (channels, height, width), as {dataset.name} has; got {shape}"
        )
    if stored.images is None:
        if start + n > len(dataset):
            raise ConfigError(
                f"{n} stored images from image {start} on, but {dataset.name} has {len(dataset)}; the file does not say which "
                "images they belong to: name the first with --start, or other data with --data"
            )
        rows = torch.arange(start, start + n)
    else:
        place = {int(image): row for row, image in enumerate(dataset.indices.tolist())}
        lacking = [image for image in stored.images.tolist() if image not in place]
        if lacking:
            raise ConfigError(f"image {lacking[0]}, which the file names, is not in {dataset.name}; name other --data")
        rows = torch.tensor([place[image] for image in stored.images.tolist()])
    if stored.labels is not None and not torch.equal(stored.labels, dataset.labels[rows]):
        row = int((stored.labels != dataset.labels[rows]).nonzero()[0])
        raise ConfigError(
            f"the file says that image {int(dataset.indices[rows[row]])} is of class {int(stored.labels[row])}, {dataset.name} says "
            f"{int(dataset.labels[rows[row]])}; name the data that it was made of with --data"
        )
    return rows


def _checked(
    model: Defence, dataset: Dataset, x_adv: Tensor, rows: Tensor, norm: str, radius: float
) -> list[VerifiedImage]:
    pixels, labels = dataset.pixels(rows), dataset.labels[rows]
    far = distance(x_adv, pixels, norm)
    in_range = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    fed = torch.where(in_range[:, None, None, None], x_adv, pixels)  # a model need not take what is no image
    right = [
        submit(model, images.to(model.device), labels.to(model.device), 1).share.cpu() == 1 for images in (pixels, fed)
    ]
    return [
        VerifiedImage(
            image=int(dataset.indices[row]),
            label=int(labels[place]),
            distance=float(far[place]) if bool(far[place].isfinite()) else None,
            within=bool(far[place] <= radius),
            in_range=bool(in_range[place]),
            clean=bool(right[0][place]),
            right=bool(right[1][place]),
        )
        for place, row in enumerate(rows.tolist())
    ]


def _sought(
    found: list[VerifiedImage], dataset: Dataset, x_adv: Tensor, norm: str, radius: float
) -> list[VerifiedImage]:
    """For images outside of their budget: the nearest image of the data in whose budget they are, of the first of them."""
    found = list(found)
    for place in [place for place, image in enumerate(found) if image.in_range and not image.within][:_SOUGHT]:
        nearest: int | None = None
        least = radius
        for begin in range(0, len(dataset), _PIECE):
            others = dataset.pixels(slice(begin, begin + _PIECE))
            far = distance(x_adv[place].expand(len(others), -1, -1, -1), others, norm)
            if float(far.min()) <= least:
                least, nearest = float(far.min()), int(dataset.indices[begin + int(far.argmin())])
        found[place] = dataclasses.replace(found[place], belongs_to=nearest)
    return found
