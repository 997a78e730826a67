"""Whether an answer depends on more than the image: on what was asked before, on other images of the batch, on the place in it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rdc.audits.inside import seed_all
from rdc.audits.subject import Subject, apart
from rdc.statistics.proportions import binomial_tail

__all__ = ["Batches", "Memory", "Opening", "end_memory", "measure_batches", "open_memory"]

_FEW = 4
_QUERIES = 24  # near copies of one image, asked one by one, as Square and HopSkipJump ask


@dataclasses.dataclass(frozen=True)
class Memory:
    """The same images asked again, the global generators seeded alike.

    Args:
        calls, images: of the model, between the two.
        after_queries: largest difference of logits after near copies of one image were asked one by one.
        at_the_end: largest difference after everything that the audit asked.
        copy: the same of the first of the near copies, asked again after the last.
        changed: decisions changed.
        spread: of the logits.
        at_once: largest difference of two calls with nothing between them.
    """

    calls: int
    images: int
    after_queries: float
    at_the_end: float
    copy: float
    changed: int
    spread: float
    at_once: float

    @property
    def moved(self) -> float:
        """The largest difference."""
        return max(self.after_queries, self.at_the_end, self.copy)


@dataclasses.dataclass(frozen=True, eq=False)
class Opening:
    """What was answered at the beginning of an audit."""

    answers: Tensor
    at_once: float
    after_queries: float
    copy: float
    calls: int
    images: int


def open_memory(subject: Subject) -> Opening:
    """Ask about the first images; ask near copies of one of them; ask again."""
    x, seed = subject.pixels[: 2 * _FEW], subject.settings.seed
    calls, images = subject.calls
    answers = _seeded(subject, x, seed)
    at_once = apart(_seeded(subject, x, seed), answers)
    steps = subject.uniform((_QUERIES, *x.shape[1:]), 1).mul(2).round() / 255
    copies = (x[:1] + steps).clamp(0, 1)
    first = _seeded(subject, copies[:1], seed)
    for copy in copies[1:].split(1):
        subject.logits(copy)
    again = _seeded(subject, copies[:1], seed)
    return Opening(answers, at_once, apart(_seeded(subject, x, seed), answers), apart(again, first), calls, images)


def end_memory(subject: Subject, opening: Opening, spread: float) -> Memory:
    """Ask the first images once more, at the end."""
    last = _seeded(subject, subject.pixels[: 2 * _FEW], subject.settings.seed)
    return Memory(
        calls=subject.calls[0] - opening.calls,
        images=subject.calls[1] - opening.images,
        after_queries=opening.after_queries,
        at_the_end=apart(last, opening.answers),
        copy=opening.copy,
        changed=int((last.argmax(1) != opening.answers.argmax(1)).sum()),
        spread=spread,
        at_once=opening.at_once,
    )


def _seeded(subject: Subject, x: Tensor, seed: int) -> Tensor:
    seed_all(seed)
    return subject.logits(x)


@dataclasses.dataclass(frozen=True)
class Batches:
    """The same images in other company.

    Args:
        alone: largest difference of logits between an image alone and among others.
        turned: the same for all images in reversed order.
        strangers: the same among black and white images.
        changed: decisions changed by any of them.
        asked: answers compared.
        spread: of the logits.
        random: largest difference of two calls that are alike, the global generators seeded alike.
        n: images.
        right, right_turned: images right in the order of the data, and in reversed order.
        lost, gained: images right in the first alone, in the second alone.
        coarse: the model computes with 16 bits, where sums in another order differ more.
    """

    alone: float
    turned: float
    strangers: float
    changed: int
    asked: int
    spread: float
    random: float
    n: int
    right: int
    right_turned: int
    lost: int
    gained: int
    coarse: bool

    @property
    def moved(self) -> float:
        """The largest difference."""
        return max(self.alone, self.turned, self.strangers)

    @property
    def order_tells(self) -> bool:
        """More images are right in the order of the data, by a fifth of all and not by chance."""
        return self.lost - self.gained >= 0.2 * self.n and binomial_tail(self.lost, self.lost + self.gained, 0.5) < 0.01


def measure_batches(subject: Subject, logits: Tensor, spread: float, at_once: float, coarse: bool) -> Batches:
    """Ask images alone, in reversed order and among black and white ones.

    Args:
        subject: model and images.
        logits: [n, K], its answers in the order of the data.
        spread: of these.
        at_once: difference of two calls that are alike.
        coarse: whether the model computes with 16 bits.
    """
    x, seed = subject.pixels, subject.settings.seed
    first = _seeded(subject, x, seed)
    seed_all(seed)
    alone = subject.logits(x[:_FEW], together=1)
    turned = _seeded(subject, x.flip(0), seed).flip(0)
    mixed = torch.cat([torch.zeros_like(x[:_FEW]), x[:_FEW], torch.ones_like(x[:_FEW])])
    strangers = _seeded(subject, mixed, seed)[_FEW : 2 * _FEW]
    pairs = ((alone, first[:_FEW]), (turned, first), (strangers, first[:_FEW]))
    moved = [apart(a, b) for a, b in pairs]
    changed = sum(int((a.argmax(1) != b.argmax(1)).sum()) for a, b in pairs)
    labels = subject.labels.cpu()
    right, other = logits.argmax(1) == labels, turned.argmax(1) == labels
    return Batches(
        alone=moved[0],
        turned=moved[1],
        strangers=moved[2],
        changed=changed,
        asked=sum(len(a) for a, _ in pairs),
        spread=spread,
        random=at_once,
        n=len(x),
        right=int(right.sum()),
        right_turned=int(other.sum()),
        lost=int((right & ~other).sum()),
        gained=int((other & ~right).sum()),
        coarse=coarse,
    )
