"""``precision="auto"``: the faster of float32 and bfloat16, where bfloat16 decides a sample of images as float32 does."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rdc.contracts import BaseDefence
from rdc.data import load_dataset
from rdc.errors import ConfigError
from rdc.execution.timing import alternate, clock
from rdc.images.pixels import checked_pixels
from rdc.storage.json_records import JsonRecord, entry
from rdc.storage.structure import choice, integer, number, optional, text

__all__ = ["AUTO", "FASTER", "MOST_MOVED", "PrecisionChoice", "faster_precision", "sample_of", "sample_size"]

#: the word that asks for a choice
AUTO = "auto"
#: images of a sample, of a model with few passes an image
SAMPLE = 64
#: the most that bfloat16 may move any log p(y|x) of the sample
MOST_MOVED = 1e-2
#: bfloat16 is taken only where float32 takes at least so many times as long: a tie goes to float32
FASTER = 1.1
_FEWEST, _PASSES, _TIMED_PASSES, _ROUNDS = 8, 1024, 256, 3
_SHIPPED = "fashion-mnist-sample"


@dataclasses.dataclass(frozen=True)
class PrecisionChoice(JsonRecord):
    """What was measured, and what it led to.

    Args:
        precision: "float32" or "bfloat16", which was taken.
        images: of the sample.
        other_decisions: images that bfloat16 decides otherwise than float32.
        largest_movement: of any image's log p(y|x), over all classes; None: it is not finite.
        milliseconds_float32, milliseconds_bfloat16: an image, the fastest of three calls each, in turn.
        clock: what read them.
    """

    precision: str = entry(choice("float32", "bfloat16"))
    images: int = entry(integer(1))
    other_decisions: int = entry(integer(0))
    largest_movement: float | None = entry(optional(number(0)))
    milliseconds_float32: float = entry(number(0))
    milliseconds_bfloat16: float = entry(number(0))
    clock: str = entry(text())

    def words(self) -> str:
        """One line: "bfloat16, of 64 images: 0 decided otherwise, ..."."""
        moved = "no finite number" if self.largest_movement is None else f"{self.largest_movement:.2g}"
        return (
            f"{self.precision}; on {self.images} images bfloat16 decides {self.other_decisions} otherwise and moves log p(y|x) by at most "
            f"{moved} (allowed: 0 and {MOST_MOVED:g}); float32 {self.milliseconds_float32:.3g}, bfloat16 "
            f"{self.milliseconds_bfloat16:.3g} ms an image ({self.clock}; {FASTER:g} times as fast is asked for)"
        )


def sample_size(classifier: BaseDefence) -> int:
    """Images of a sample for this classifier: 64, of one with more than 16 network passes an image fewer, at least 8."""
    return max(_FEWEST, min(SAMPLE, _PASSES // classifier.evaluations_per_image))


def sample_of(classifier: BaseDefence) -> Tensor:
    """The shipped sample that belongs to a model: the one whose image shape and class names are the model's.

    Raises:
        ConfigError: none does.
    """
    data = load_dataset(_SHIPPED)
    if tuple(data.image_shape) != tuple(classifier.image_shape) or data.class_names != tuple(classifier.class_names):
        raise ConfigError(
            'precision: "auto" is measured on images, and rdc ships none that belong to this model; expected '
            f"precision_sample=pixels [N, {', '.join(map(str, classifier.image_shape))}], or float32 or bfloat16 in place of auto"
        )
    return data.pixels(range(min(sample_size(classifier), len(data))))


def faster_precision(
    made: Callable[[str], BaseDefence], pixels: Tensor | None = None, *, read: Callable[[], float] | None = None
) -> BaseDefence:
    """The model in bfloat16, where that changes no decision on the sample, moves no log p(y|x) by more than :data:`MOST_MOVED` and
    is at least :data:`FASTER` times as fast; else in float32.

    Every draw is that of fixed noise, the same for both. The fastest of three calls counts, the two in turn.

    Args:
        made: "float32" or "bfloat16" -> the model that computes in it.
        pixels: the sample, [N, C, H, W] in [0, 1]; None: :func:`sample_of`.
        read: a clock, in seconds; None: CPU seconds of the process with one thread, else the wall clock.

    Returns:
        The model; its ``precision_choice`` says what was measured.

    Raises:
        ConfigError: no sample, or the model computes in one precision only.
        InputError: pixels that are none of the model's.
    """
    plain, half = made("float32"), made("bfloat16")
    pixels = sample_of(plain) if pixels is None else checked_pixels(pixels, plain.image_shape)
    pixels = pixels.to(plain.device)
    on_cpu = plain.device.type == "cpu"
    name, own = clock(torch.get_num_threads()) if on_cpu else ("wall clock", time.perf_counter)
    tried = {"float32": _call(plain, pixels), "bfloat16": _call(half, pixels)}
    other, moved = _difference(tried["float32"](), tried["bfloat16"]())
    few = pixels[: max(1, _TIMED_PASSES // plain.evaluations_per_image)]
    timed = {key: _waited(_call(model, few)) for key, model in (("float32", plain), ("bfloat16", half))}
    seconds = {key: min(found) for key, found in alternate(timed, _ROUNDS, read or own).items()}
    same = other == 0 and moved is not None and moved <= MOST_MOVED
    fast = seconds["float32"] >= FASTER * seconds["bfloat16"]
    chosen = "bfloat16" if same and fast else "float32"
    each = {key: float(f"{1000 * value / len(few):.4g}") for key, value in seconds.items()}
    found = half if chosen == "bfloat16" else plain
    found.precision_choice = PrecisionChoice(chosen, len(pixels), other, moved, each["float32"], each["bfloat16"], name)
    return found


def _call(model: BaseDefence, pixels: Tensor) -> Callable[[], Tensor]:
    """log p(y|x) [N, K] of a copy of the model, so that its counter and its draws stay as they are."""
    own = model.with_(noise="fixed")

    @torch.no_grad()
    def call() -> Tensor:
        found: Tensor = own(pixels).float().log_softmax(1)
        return found

    return call


def _waited(call: Callable[[], Tensor]) -> Callable[[], Any]:
    """The same until the device is done."""
    return lambda: float(call().sum())


def _difference(exact: Tensor, rounded: Tensor) -> tuple[int, float | None]:
    """Images decided otherwise, and the largest difference; None where an answer is no number."""
    moved = float((exact - rounded).abs().max())
    other = int((exact.argmax(1) != rounded.argmax(1)).sum())
    return other, float(f"{moved:.4g}") if math.isfinite(moved) else None
