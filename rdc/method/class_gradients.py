"""Class losses in pieces that fit a memory budget, and their gradient over the classes that carry any.

:func:`streamed` cuts a batch into pieces of images and levels that ``torch.utils.checkpoint`` rebuilds in the backward pass;
it can be differentiated any number of times, but keeps the nodes of every piece's graph (some 400 KB a piece).
:func:`rebuilt` keeps nothing but the images: the losses are computed without a graph, and the backward pass makes and
differentiates one piece after the other. Where every class is a network pass of its own (the conditional network), only the
passes of classes that carry gradient are made again. An attack on a margin needs two classes of K, so that a gradient costs
little more than the prediction; and with a saturated posterior, where the others' share would be lost in rounding, so does the
cross-entropy.
For a loss to which all classes contribute, which whoever asks says beforehand (:func:`rdc.execution.upstream.all_classes_carry`),
:func:`taken_along` takes the gradient of every class in the forward pass, K images for each image, and makes nothing again: two thirds of
the time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rdc.execution.opaque import checkpointed, kept_for_later, opaque, opaque_with, refuse_batches, transformed, wanted
from rdc.execution.upstream import do_all_classes_carry
from rdc.method.denoiser import Denoiser
from rdc.method.draw import Draw

__all__ = ["MANY_CLASSES", "in_pieces", "joined", "pairs_for_caches", "rebuilt", "streamed", "taken_along"]

#: From so many passes on those of the gradient are made again even where all would fit: most classes carry none.
MANY_CLASSES = 100
#: Passes of the network that a CPU makes at once: fewer read the weights too often, more lose the images from the caches.
ROWS_FOR_CACHES = 64
#: Of the tensors that a budget allows, the gradients of all classes of a call may take this share.
SLOPES_SHARE = 1 / 8


def pairs_for_caches(pairs: int, device: torch.device, levels: int, passes: int) -> int:
    """How many pairs of image and level a piece should have where memory holds ``pairs``: on a CPU a few, an image's together."""
    return min(pairs, max(levels, ROWS_FOR_CACHES // passes)) if device.type == "cpu" else pairs


def in_pieces(denoiser: Denoiser, x0: Tensor, draw: Draw, pairs: int, rows: int, room: float) -> Tensor:
    """Class losses [N, K] within a memory budget, by one of the functions of this module.

    Args:
        denoiser, x0, draw: as of :func:`streamed`.
        pairs: pairs of image and level, with all their classes, whose gradient the budget holds; at least 1.
        rows: passes of the network whose gradient it holds, at least 1.
        room: bytes of tensors that it allows.
    """
    gradient, passes = x0.requires_grad and torch.is_grad_enabled(), denoiser.passes_per_level
    cached = pairs_for_caches(pairs, x0.device, len(draw), passes)
    if len(x0) * len(draw) * passes <= rows and not (gradient and passes >= MANY_CLASSES):
        losses = streamed(denoiser, x0, draw, cached, rebuild=False)
        if passes > 1 and losses.requires_grad and not transformed():
            losses.register_hook(_what_carries)
        return losses
    if not gradient:
        return streamed(denoiser, x0, draw, cached, rows=rows)
    few = min(rows, ROWS_FOR_CACHES) if x0.device.type == "cpu" else rows
    if passes == 1 or not do_all_classes_carry():
        return rebuilt(denoiser, x0, draw, cached, few)
    beside = max(1, min(few, int(rows * (1 - SLOPES_SHARE))))
    return taken_along(denoiser, x0, draw, cached, beside, room * SLOPES_SHARE)


def streamed(
    denoiser: Denoiser, x0: Tensor, draw: Draw, pairs: int, rebuild: bool = True, rows: int | None = None
) -> Tensor:
    """Weighted class losses [N, K], at most ``pairs`` pairs of image and level at a time.

    Args:
        denoiser: of either kind.
        x0: [N, C, H, W] in [-1, 1].
        draw: levels, their weights and their noise.
        pairs: how many pairs of image and level, with all their classes, one piece may hold; at least 1.
        rebuild: forget what the pieces computed on the way and compute it again in the backward pass.
        rows: with a pass for every class: how many passes a piece may hold, where that is fewer than those of one pair. Classes are
            then cut, too, so that memory does not grow with their number.
    """
    if rebuild and transformed():
        return opaque_with(
            denoiser, lambda x0, *plain: streamed(denoiser, x0, Draw(*plain), pairs, rows=rows), x0, *draw.tensors
        )
    levels, classes = len(draw), denoiser.num_classes
    per_piece = min(levels, pairs)
    cut = pairs == 1 and rows is not None and rows < denoiser.passes_per_level
    per_cut = rows if cut and rows is not None else classes
    rebuild = rebuild and wanted(x0, *draw.tensors, module=denoiser)

    def piece(part: Tensor, begin: int, first: int) -> Tensor:
        if not cut:
            return denoiser.class_losses(part, draw[begin : begin + per_piece])
        labels = torch.arange(first, min(first + per_cut, classes), device=part.device)
        whole = part.expand(len(labels), *part.shape[1:])  # one image at one level
        return denoiser.losses_of_labels(whole, draw[begin : begin + per_piece], labels)[None]

    again = kept_for_later(denoiser, piece) if rebuild else piece

    def losses() -> Iterator[Tensor]:
        for part in x0.split(max(1, pairs // per_piece)):
            total: Tensor | None = None
            for begin in range(0, levels, per_piece):
                some = [
                    checkpointed(again, part, begin, first) if rebuild else piece(part, begin, first)
                    for first in range(0, classes, per_cut)
                ]
                loss = some[0] if len(some) == 1 else torch.cat(some, 1)
                total = loss if total is None else total + loss
            assert total is not None
            yield total

    return joined(losses(), len(x0))


def joined(parts: Iterator[Tensor], count: int) -> Tensor:
    """``torch.cat`` of parts with ``count`` rows together; without autograd each one is written to its place as it comes.

    A small result that stays would lie in the midst of what its part used and freed, and keep that from being used again.
    """
    first = next(parts)
    if len(first) == count:
        return first
    if first.requires_grad or transformed():
        return torch.cat([first, *parts])
    whole = first.new_empty(count, *first.shape[1:])
    whole[: len(first)] = first
    done = len(first)
    del first
    for part in parts:
        whole[done : done + len(part)] = part
        done += len(part)
    return whole


def rebuilt(denoiser: Denoiser, x0: Tensor, draw: Draw, pairs: int, rows: int | None = None) -> Tensor:
    """:func:`streamed` with a backward pass that keeps nothing of the forward pass but x0.

    Where another gradient than that of x0 can be asked for (of the network's weights, say), it is :func:`streamed` itself.

    With a pass for every class, a class of an image is left out where its upstream gradient is less than 1/8 of the type's
    machine epsilon times the largest of that image: its share would be rounded away in the sum. Differentiable twice (through
    :func:`streamed`).

    Args, Returns: as of :func:`streamed`; ``rows``, with a pass for every class: how many passes one piece of the backward pass may hold,
    where it does not hold those of all classes of an image at a level.
    """
    if transformed():
        return opaque_with(
            denoiser, lambda x0, *plain: rebuilt(denoiser, x0, Draw(*plain), pairs, rows), x0, *draw.tensors
        )
    if wanted(*draw.tensors, module=denoiser):
        return streamed(denoiser, x0, draw, pairs, rows=rows)
    losses: Tensor = _Rebuilt.apply(x0, (denoiser, draw, pairs, rows))  # type: ignore[no-untyped-call]
    return losses


class _Rebuilt(torch.autograd.Function):
    @staticmethod
    def forward(x0: Tensor, run: tuple[Any, ...]) -> Tensor:
        denoiser, draw, pairs, rows = run
        return streamed(denoiser, x0.detach(), draw, pairs, rows=rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x0, run = inputs
        ctx.pull = kept_for_later(run[0], functools.partial(_pull, run))
        ctx.save_for_backward(x0)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        refuse_batches(upstream)
        (x0,) = ctx.saved_tensors
        if not transformed():
            return ctx.pull(x0, upstream), None
        return opaque(ctx.pull, x0, upstream), None


def taken_along(denoiser: Denoiser, x0: Tensor, draw: Draw, pairs: int, rows: int, room: float) -> Tensor:
    """:func:`rebuilt` for a conditional network of whose classes all carry gradient: that of every class is taken at once.

    Args, Returns: as of :func:`rebuilt`.
        room: bytes that the gradients of all classes may take; where that is too little it is :func:`rebuilt`.
    """
    each = denoiser.num_classes * x0[0].numel() * x0.element_size()
    if len(x0) * each > room or transformed() or wanted(*draw.tensors, module=denoiser):
        return rebuilt(denoiser, x0, draw, pairs, rows)
    losses, slopes = _with_slopes(denoiser, x0.detach(), draw, rows)
    found: Tensor = _TakenAlong.apply(x0, losses, slopes, (denoiser, draw, pairs, rows))  # type: ignore[no-untyped-call]
    return found


def _with_slopes(denoiser: Denoiser, x0: Tensor, draw: Draw, rows: int) -> tuple[Tensor, Tensor]:
    """Class losses L [N, K] and dL_nk / dx0_n [N, K, C, H, W], at most ``rows`` passes at a time."""
    levels, classes = len(draw), denoiser.num_classes
    per_piece = min(levels, rows)
    image = torch.arange(len(x0), device=x0.device).repeat_interleave(classes)
    label = torch.arange(classes, device=x0.device).repeat(len(x0))
    losses: list[Tensor] = []
    slopes = x0.new_zeros(len(image), *x0.shape[1:])
    for first in range(0, len(image), max(1, rows // per_piece)):
        pick = slice(first, first + max(1, rows // per_piece))
        total: Tensor | None = None
        for begin in range(0, levels, per_piece):
            with torch.enable_grad():
                x = x0[image[pick]].requires_grad_()
                loss = denoiser.losses_of_labels(x, draw[begin : begin + per_piece], label[pick])
                (grad,) = torch.autograd.grad(loss.sum(), x)
            slopes[pick] += grad
            total = loss.detach() if total is None else total + loss.detach()
            del x, loss, grad
        assert total is not None
        losses.append(total)
    return torch.cat(losses).unflatten(0, (len(x0), classes)), slopes.unflatten(0, (len(x0), classes))


class _TakenAlong(torch.autograd.Function):
    @staticmethod
    def forward(x0: Tensor, losses: Tensor, slopes: Tensor, run: tuple[Any, ...]) -> Tensor:
        return losses.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x0, _, slopes, run = inputs
        ctx.pull = kept_for_later(run[0], functools.partial(_pull, run))
        ctx.save_for_backward(x0, slopes)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_batches(upstream)
        x0, slopes = ctx.saved_tensors
        if transformed():
            return opaque(ctx.pull, x0, upstream), None, None, None
        if torch.is_grad_enabled():  # to be differentiated again
            return ctx.pull(x0, upstream), None, None, None
        none = (upstream == 0).reshape(*upstream.shape, *[1] * (slopes.ndim - 2))  # not even of what is infinite
        return torch.einsum("nk,nk...->n...", upstream.to(slopes.dtype), slopes.masked_fill(none, 0)), None, None, None


def _pull(run: tuple[Any, ...], x0: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of x0; where autograd is on, one that can be differentiated."""
    denoiser, draw, pairs, rows = run
    if torch.is_grad_enabled():
        x0 = x0 if x0.requires_grad else x0.detach().requires_grad_()
        losses = streamed(denoiser, x0, draw, pairs, rows=rows)
        return torch.autograd.grad(losses, x0, upstream, create_graph=True)[0]
    if denoiser.passes_per_level == 1:
        return _gradient_of_pieces(denoiser, x0, upstream, draw, pairs)
    return _gradient(denoiser, x0, upstream, draw, rows or pairs * denoiser.passes_per_level)


def _gradient_of_pieces(denoiser: Denoiser, x0: Tensor, upstream: Tensor, draw: Draw, pairs: int) -> Tensor:
    """sum_k upstream_nk dL_nk / dx0_n, the pieces of :func:`streamed` in the order in which autograd would take them."""
    levels = len(draw)
    per_piece = min(levels, pairs)
    images = max(1, pairs // per_piece)
    whole = torch.empty_like(x0, memory_format=torch.contiguous_format)
    for part, amount, total in zip(x0.split(images), upstream.split(images), whole.split(images), strict=True):
        for begin in reversed(range(0, levels, per_piece)):
            with torch.enable_grad():
                x = part.detach().requires_grad_()
                loss = denoiser.class_losses(x, draw[begin : begin + per_piece])
                (grad,) = torch.autograd.grad(loss, x, amount.to(loss.dtype))
            total.copy_(grad) if begin + per_piece >= levels else total.add_(grad)
            del x, loss, grad
    return whole


def _carries(upstream: Tensor) -> Tensor:
    """[N, K] bool: which gradients are not lost in rounding beside the largest of their image."""
    share = upstream.abs()
    return ~(share <= share.amax(1, keepdim=True) * (torch.finfo(upstream.dtype).eps / 8))  # NaN carries, too


def _what_carries(upstream: Tensor) -> Tensor | None:
    """The rest is zero; None, nothing is changed, where the gradient is to be differentiated again.

    A saturated posterior leaves e^-90 to a class, whose whole backward pass would have numbers so small that a CPU takes ten times as
    long for them.
    """
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return None
    return torch.where(_carries(upstream), upstream, 0)


def _gradient(denoiser: Denoiser, x0: Tensor, upstream: Tensor, draw: Draw, rows: int) -> Tensor:
    """sum_k upstream_nk dL_nk / dx0_n, over the (image, class) pairs that carry gradient."""
    images, classes = _carries(upstream).nonzero(as_tuple=True)
    levels = len(draw)
    per_piece = min(levels, rows)
    total = torch.zeros_like(x0)
    for first in range(0, len(images), max(1, rows // per_piece)):
        pick = slice(first, first + max(1, rows // per_piece))
        image, label = images[pick], classes[pick]
        amount = upstream[image, label]
        for begin in range(0, levels, per_piece):
            with torch.enable_grad():
                x = x0[image].detach().requires_grad_()
                loss = denoiser.losses_of_labels(x, draw[begin : begin + per_piece], label)
                (grad,) = torch.autograd.grad(loss, x, amount.to(loss.dtype))
            total.index_add_(0, image, grad)
            del x, loss, grad
    return total
