"""What a model answers to clean images: form, type, spread, decisions; and to the same images on other scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rdc.audits.subject import Subject
from rdc.contracts.parts import found_in
from rdc.errors import ConfigError, InputError
from rdc.evaluation.records import OutputChecks
from rdc.evaluation.sanity import check_output
from rdc.statistics.proportions import binomial_tail
from rdc.storage.json_records import given

__all__ = ["Answers", "Ranges", "measure_answers", "measure_ranges"]

HALVES = (torch.float16, torch.bfloat16)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Answers to n clean images.

    Args:
        logits: [n, K] float64.
        labels: [n].
        classes: K of the data.
        named: the data name their classes, and do not only count them.
        names_differ: model and data call the same classes by another number.
        not_finite: images (black, white and noise among them) with an answer that is NaN or infinite.
        asked: images in all, these three included.
        checks: what two calls on the first images show.
        types: of weights of 16 bits, by name.
    """

    logits: Tensor
    labels: Tensor
    classes: int
    named: bool
    names_differ: bool
    not_finite: int
    asked: int
    checks: OutputChecks
    types: tuple[str, ...]

    @property
    def n(self) -> int:
        """Images."""
        return len(self.logits)

    @property
    def right(self) -> int:
        """Images that are classified right."""
        return int((self.logits.argmax(1) == self.labels).sum())

    @property
    def by_chance(self) -> float:
        """How likely at least as many are right by guessing."""
        return binomial_tail(self.right, self.n, 1 / self.logits.shape[1])

    @property
    def tied(self) -> int:
        """Images whose two highest logits are equal."""
        top = self.logits.topk(2, dim=1).values
        return int((top[:, 0] == top[:, 1]).sum())

    @property
    def spread(self) -> float:
        """Root mean square of logits around their image's mean; what differences are compared with."""
        found = given(self.checks.logit_spread)
        return found if found else 1e-30

    @property
    def movement(self) -> float:
        """Largest difference of a logit between two images."""
        return float((self.logits.amax(0) - self.logits.amin(0)).max())


def measure_answers(subject: Subject) -> Answers:
    """Ask about the clean images, about black, white and noise, and twice about the first."""
    x = subject.pixels
    logits = subject.logits(x)
    noise = (subject.uniform(tuple(x[:1].shape), 0) + 1) / 2
    odd = subject.logits(torch.cat([torch.zeros_like(x[:1]), torch.ones_like(x[:1]), noise]))
    bad = ~torch.cat([logits, odd]).isfinite().all(1)
    names, theirs = list(subject.defence.class_names), list(subject.data.class_names)
    modules = found_in(subject.defence, nn.Module) if not isinstance(subject.bare, nn.Module) else (subject.bare,)
    types = {str(weight.dtype) for module in modules for weight in module.parameters() if weight.dtype in HALVES}
    asked = subject.defence.describe().get("precision")
    types |= {str(asked)} if asked in ("bfloat16", "float16") else set()
    return Answers(
        logits=logits,
        labels=subject.labels.cpu(),
        classes=subject.data.num_classes,
        named=any(name != str(number) for number, name in enumerate(theirs)),
        names_differ=names != theirs and sorted(names) == sorted(theirs),
        not_finite=int(bad.sum()),
        asked=len(bad),
        checks=check_output(subject.defence, x),
        types=tuple(sorted(types)),
    )


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Decisions on the images as they are, and on other scales.

    Args:
        n, right: images, and how many are right as they are.
        commonest: images of the commonest class, which a model gets right that says nothing else.
        other: scale -> (right on it, right on it alone, right as they are alone); None: the model refuses it.
    """

    n: int
    right: int
    commonest: int
    other: dict[str, tuple[int, int, int] | None]

    def better(self) -> dict[str, tuple[int, float]]:
        """Scales on which a fifth of the images more are right, not by chance, and more than are of one class: (right, p value)."""
        found = {}
        for name, counts in self.other.items():
            if counts is None:
                continue
            right, gained, lost = counts
            p = max(
                binomial_tail(gained, gained + lost, 0.5) if gained else 1.0,
                binomial_tail(right, self.n, self.commonest / self.n) if self.commonest < self.n else 1.0,
            )
            if gained - lost >= 0.2 * self.n and p < 0.01:
                found[name] = (right, p)
        return found


def measure_ranges(subject: Subject, logits: Tensor) -> Ranges:
    """Classify the images on other scales than [0, 1]; a model that refuses those is asked no further."""
    labels = subject.labels.cpu()
    right = logits.argmax(1) == labels
    found: dict[str, tuple[int, int, int] | None] = {}
    for name, scaled in _scales(subject.pixels).items():
        try:
            answers = subject.logits(scaled(subject.pixels))
        except (InputError, ConfigError):
            found[name] = None
            continue
        there = answers.argmax(1) == labels
        found[name] = (int(there.sum()), int((there & ~right).sum()), int((right & ~there).sum()))
    return Ranges(len(labels), int(right.sum()), int(labels.bincount().max()), found)


def _scales(x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "2 x - 1": lambda x: 2 * x - 1,
        "255 x": lambda x: 255 * x,
        "(x - mean) / std of these images": lambda x: (x - mean) / deviation,
        "1 - x": lambda x: 1 - x,
    }
    if x.shape[1] == 3:
        centre, width = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in _IMAGENET)
        found["(x - mean) / std of ImageNet"] = lambda x: (x - centre) / width
        found["channels in the other order"] = lambda x: x.flip(1)
    return found
