"""What is audited: a model as it was given, the same as a defence, and its images as pixels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rdc.arguments import seeds
from rdc.audits.settings import AuditSettings
from rdc.contracts import Defence, NoisePolicy
from rdc.data import Dataset, as_dataset
from rdc.defences import PlainClassifier, as_defence
from rdc.errors import ConfigError
from rdc.execution.devices import home_of
from rdc.models.choice import ModelChoice

__all__ = ["ImageScale", "Subject", "apart", "open_subject", "subject"]

_SLACK = 1e-6  # how far outside [0, 1] a pixel may lie by rounding
_BATCH = 32  # images in one call


@dataclasses.dataclass(frozen=True)
class ImageScale:
    """The scale that images came in.

    Args:
        low, high: smallest and largest value that came.
        factor: width of the scale, in which [0, 1] pixels are 1 wide; of several channels the widest.
        words: what the scale was taken for; "" where the images were pixels in [0, 1].
    """

    low: float
    high: float
    factor: float = 1.0
    words: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model and the images that it is asked about.

    Args:
        given: the model as it came.
        defence: the same as ``rdc evaluate`` takes it, with known noise.
        data: the images and labels.
        pixels, labels: [n, C, H, W] float32 in [0, 1], and [n], on the defence's device.
        scale: that the images came in.
        settings: of the audit.
        calls: [2]: calls of the model so far, and images in them.
    """

    given: Any
    defence: Defence
    data: Dataset
    pixels: Tensor
    labels: Tensor
    scale: ImageScale
    settings: AuditSettings
    calls: list[int] = dataclasses.field(default_factory=lambda: [0, 0])

    @property
    def bare(self) -> Any:
        """What somebody wrote, without what rdc puts around it."""
        model = self.defence.model if isinstance(self.defence, PlainClassifier) else self.defence
        return model.inner if isinstance(model, Rescaled) else model

    @property
    def called(self) -> Callable[[Tensor], Any]:
        """What is called with pixels, without the copy that rdc makes of them."""
        if isinstance(self.defence, PlainClassifier):
            return self.defence.model
        return self.defence

    def logits(self, pixels: Tensor, together: int = _BATCH) -> Tensor:
        """Its answers [n, K] as float64 on the CPU.

        Args:
            pixels: [n, C, H, W].
            together: images in one call.
        """
        found = []
        with torch.no_grad():
            for part in pixels.split(together):
                self.calls[0], self.calls[1] = self.calls[0] + 1, self.calls[1] + len(part)
                found.append(self.defence(part).detach().double().cpu())
        return torch.cat(found)

    def uniform(self, shape: tuple[int, ...], stream: int) -> Tensor:
        """Numbers in [-1, 1), float32, the same for one seed and stream."""
        drawn = seeds.random(self.settings.seed, stream).random(shape, dtype=np.float32)
        return torch.from_numpy(2 * drawn - 1).to(self.pixels.device)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference of two answers; infinite where one is NaN."""
    return 0.0 if torch.equal(a, b) else float((a - b).abs().nan_to_num(nan=torch.inf).max())


class Rescaled(nn.Module):
    """A model that was given with images of another scale, as a function of pixels.

    Args:
        inner: the model.
        low, width: [C, 1, 1], of that scale.
    """

    def __init__(self, inner: Any, low: Tensor, width: Tensor) -> None:
        super().__init__()
        self.inner, self._low, self._width = inner, low, width

    def forward(self, pixels: Tensor) -> Any:
        return self.inner(pixels * self._width.to(pixels.device) + self._low.to(pixels.device))


def subject(
    model: Any,
    data: Any,
    labels: Any = None,
    *,
    n: int | None = None,
    start: int = 0,
    split: str = "test",
    **chosen: str,
) -> Any:
    """Model, pixels and labels as the audit has them: what the commands that it prints begin with.

    >>> model, x, y = subject("fashion-mnist", "fashion-mnist-sample", n=32)

    Args:
        model, data, labels: as of :func:`rdc.audits.audit`.
        n: images; None: as many as an audit takes, or all there are.
        start: position of the first.
        split: of a data set given by its name.
        chosen: levels, lm, lm_model and precision of a model given by its name, as of :class:`rdc.models.choice.ModelChoice`.

    Returns:
        The defence, pixels [n, C, H, W] float32 in [0, 1], labels [n].
    """
    settings = AuditSettings(n=AuditSettings.n if n is None else n, start=start, split=split)
    if isinstance(model, (str, os.PathLike)):
        model = ModelChoice(os.fspath(model), **chosen)  # type: ignore[arg-type]
    opened = open_subject(model, data, labels, settings)
    return opened.defence, opened.pixels, opened.labels


def open_subject(model: Any, data: Any, labels: Any, settings: AuditSettings, name: str = "model") -> Subject:
    """Load, and bring to one form, whatever was given.

    Args:
        model, data, labels: as of :func:`rdc.audits.audit`.
        settings: of the audit.
        name: of the model, for errors.

    Raises:
        ConfigError, DataError: there is no such model or data; they do not go together.
        InputError: the model's answer is no logits.
    """
    data, scale, low, width = _as_pixels(data, labels)
    whole = as_dataset(data, labels, split=settings.split, exact=True, progress=False)
    if settings.start + 8 > len(whole):
        raise ConfigError(f"start: expected at least 8 images from it on; {whole.name} has {len(whole)} images")
    images = whole[settings.start : settings.start + settings.n]
    if isinstance(model, (str, os.PathLike)):
        model = ModelChoice(os.fspath(model))
    if isinstance(model, ModelChoice):
        given = defence = model.load(images)
    else:
        given = model
        taken = model
        if low is not None and width is not None and not isinstance(model, Defence):
            taken = Rescaled(model, low, width)
        example = images.pixels(slice(0, 2)).to(home_of(model))
        defence = as_defence(taken, example, class_names=images.class_names, name=name)
    if tuple(defence.image_shape) != tuple(images.image_shape):
        raise ConfigError(
            f"model {name} takes images {list(defence.image_shape)} (channels, height, width), {images.name} has "
            f"{list(images.image_shape)}; choose data that go with the model with --data"
        )
    defence = defence.with_(noise=NoisePolicy.FIXED)
    device = defence.device
    return Subject(given, defence, images, images.pixels().to(device), images.labels.to(device), scale, settings)


def _as_pixels(data: Any, labels: Any) -> tuple[Any, ImageScale, Tensor | None, Tensor | None]:
    """Images, of another scale than [0, 1] brought to it; the scale, and its lowest value and width by channel."""
    values = data if isinstance(data, (Tensor, np.ndarray)) else None
    if values is None or labels is None or values.ndim != 4 or values.shape[1] not in (1, 3):
        return data, ImageScale(0.0, 1.0), None, None
    if not torch.as_tensor(values[:1]).is_floating_point():
        return data, ImageScale(0.0, 1.0), None, None
    images = torch.as_tensor(values).detach().float().cpu()
    if not bool(images.isfinite().all()):
        return data, ImageScale(0.0, 1.0), None, None  # refused where it is read
    least, most = float(images.min()), float(images.max())
    if least >= -_SLACK and most <= 1 + _SLACK:
        return data, ImageScale(least, most), None, None
    low, high, words = _ends(images, least, most)
    width = high - low
    pixels = ((images - low) / width).clamp(0, 1)
    return pixels, ImageScale(least, most, float(width.max()), words), low, width


def _ends(images: Tensor, least: float, most: float) -> tuple[Tensor, Tensor, str]:
    """What stands for black and white, [C, 1, 1] each, and in words."""
    one = torch.ones(images.shape[1], 1, 1)
    if -1 - _SLACK <= least < 0 and most <= 1 + _SLACK:
        return -one, one, "[-1, 1]"
    if least >= 0 and most <= 255:
        return 0 * one, 255 * one, "[0, 255]"
    low, high = images.amin((0, 2, 3)).view(-1, 1, 1), images.amax((0, 2, 3)).view(-1, 1, 1)
    return (
        low,
        torch.where(high > low, high, low + 1),
        "mean and standard deviation, their smallest and largest values as black and white",
    )
