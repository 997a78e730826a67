"""Who is timed against whom: the paper's procedure, plain torch (eager and compiled), and rdc, each as class losses and as a gradient.

Plain torch is written as somebody who knows torch would: many rows a call, channels_last, float32, no more passes than needed.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import paper_procedure
from rdc.execution.upstream import all_classes_carry
from rdc.method.classifier import DiffusionClassifier
from rdc.method.draw import Draw

__all__ = ["Contender", "conditional", "multihead", "objective", "paper", "shipped", "without_kernels"]

Losses = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way of computing the same thing.

    Args:
        name: short.
        what: network, levels and engine in words.
        images: images a timed call classifies.
        losses: pixels [n, C, H, W] in [0, 1] -> class losses [n, K], without gradients.
        gradient: the same pixels -> gradient of :func:`objective` of the losses, [n, C, H, W]: one attack step's work.
        passes: network passes for one prediction.
    """

    name: str
    what: str
    images: int
    losses: Losses
    gradient: Losses
    passes: int


def objective(losses: Tensor, scale: float = 1.0) -> Tensor:
    """What an attack step maximises here: the summed log-probability of all classes but the first, every class carrying gradient."""
    return torch.log_softmax(-scale * losses, 1)[:, 1:].sum()


def without_kernels(call: Losses) -> Losses:
    """``call`` as PyTorch alone computes it: the networks' own kernels are off meanwhile."""

    def plain(x: Tensor) -> Tensor:
        before = os.environ.get("RDC_DISABLE_NATIVE")
        os.environ["RDC_DISABLE_NATIVE"] = "1"
        try:
            return call(x)
        finally:
            os.environ.pop("RDC_DISABLE_NATIVE")
            if before is not None:
                os.environ["RDC_DISABLE_NATIVE"] = before

    return plain


def _scaled(classifier: DiffusionClassifier) -> Callable[[Tensor], Tensor]:
    return lambda losses: objective(losses, classifier.scale)


def _draw(classifier: DiffusionClassifier) -> Draw:
    return classifier.drawn(0, torch.zeros(()))


def paper(classifier: DiffusionClassifier, images: int = 1) -> Contender:
    """The paper's procedure with this conditional classifier's weights, levels and noise."""
    network = copy.deepcopy(classifier.denoiser.network).to(memory_format=torch.contiguous_format).float()
    count, goal = classifier.num_classes, _scaled(classifier)
    setting = _draw(classifier).tensors
    return Contender(
        "paper",
        f"the paper's procedure: conditional, {len(classifier.levels)} levels, loops over images and classes",
        images,
        without_kernels(lambda x: paper_procedure.class_losses(network, x, count, *setting)),
        without_kernels(lambda x: paper_procedure.input_gradient(network, x, count, *setting, goal)[1]),
        classifier.evaluations_per_image,
    )


def _rows(classifier: DiffusionClassifier, x: Tensor, draw: Draw) -> tuple[Tensor, ...]:
    """Network input, noise label and target of all images at some levels: [n * t, ...], image-major, channels_last."""
    x_t, target = classifier.denoiser.noisy(2 * x - 1, draw)
    s = draw.rows(len(x))
    scaled = classifier.denoiser.precondition.c_in(s).reshape(-1, 1, 1, 1) * x_t
    return scaled.contiguous(memory_format=torch.channels_last), classifier.denoiser.precondition.c_noise(s), target


def conditional(
    classifier: DiffusionClassifier, name: str, *, images: int = 1, levels_at_once: int = 125, compiled: bool = False
) -> Contender:
    """Plain torch with a conditional network: all images at ``levels_at_once`` levels in a call, one class after the other.

    Class by class, because the gradient needs each class's backward pass by itself: what carries over to the losses is that
    nothing is computed twice.
    """
    network: Callable[..., Tensor] = classifier.denoiser.network
    if compiled:
        network = torch.compile(copy.deepcopy(classifier.denoiser.network), dynamic=False)
    draw, count, goal = _draw(classifier), classifier.num_classes, _scaled(classifier)
    total, eye = len(classifier.levels), torch.eye(classifier.num_classes)
    parts = [slice(begin, begin + levels_at_once) for begin in range(0, total, levels_at_once)]

    def of_class(x: Tensor, k: int, part: slice) -> Tensor:
        scaled, label, target = _rows(classifier, x, draw[part])
        f = network(scaled, label, eye[k].expand(len(scaled), -1))
        error = (f - target).square().flatten(1).sum(1).unflatten(0, (len(x), -1))
        return error @ draw.weight[part]

    def losses(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([sum(of_class(x, k, part) for part in parts) for k in range(count)], 1)

    def gradient(x: Tensor) -> Tensor:
        found, each = torch.zeros(len(x), count), torch.zeros(len(x), count, *x.shape[1:])
        for k in range(count):
            for part in parts:
                leaf = x.clone().requires_grad_()
                loss = of_class(leaf, k, part)
                each[:, k] += torch.autograd.grad(loss.sum(), leaf)[0]
                found[:, k] += loss.detach()
        found.requires_grad_()
        (outer,) = torch.autograd.grad(goal(found), found)
        return torch.einsum("nk,nkchw->nchw", outer, each)

    engine = "torch.compile" if compiled else "eager"
    what = f"plain torch {engine}, channels_last: conditional, {total} levels, {images * levels_at_once} rows a call"
    return Contender(
        name, what, images, without_kernels(losses), without_kernels(gradient), classifier.evaluations_per_image
    )


def multihead(
    classifier: DiffusionClassifier, name: str, *, images: int = 8, images_at_once: int = 4, compiled: bool = False
) -> Contender:
    """Plain torch with a multi-head network: the prediction of all classes exists, one backward pass gives the gradient."""
    network = classifier.denoiser.network
    draw, goal = _draw(classifier), _scaled(classifier)
    rows = classifier.num_classes * network.folded_channels

    def of_rows(scaled: Tensor, label: Tensor, target: Tensor) -> Tensor:
        h = network.features(scaled, label)
        f = F.conv2d(h, network.head_weight[:rows], network.head_bias[:rows], padding=1)
        f = f.unflatten(1, (-1, network.folded_channels))
        return (f - F.pixel_unshuffle(target, network.patch_size)[:, None]).square().sum((2, 3, 4))

    call: Callable[..., Tensor] = torch.compile(of_rows, dynamic=False) if compiled else of_rows

    def graph(x: Tensor) -> Tensor:
        error = call(*_rows(classifier, x, draw)).unflatten(0, (len(x), -1))
        return torch.einsum("ntk,t->nk", error, draw.weight)

    def losses(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([graph(part) for part in x.split(images_at_once)])

    def gradient(x: Tensor) -> Tensor:
        found = []
        for part in x.split(images_at_once):
            leaf = part.clone().requires_grad_()
            found.append(torch.autograd.grad(goal(graph(leaf)), leaf)[0])
        return torch.cat(found)

    engine, total = "torch.compile" if compiled else "eager", len(classifier.levels)
    what = f"plain torch {engine}, channels_last: multi-head, {total} levels, {images_at_once * total} rows a call"
    return Contender(
        name, what, images, without_kernels(losses), without_kernels(gradient), classifier.evaluations_per_image
    )


def shipped(classifier: DiffusionClassifier, name: str, *, images: int = 8) -> Contender:
    """rdc itself, as a user calls it."""
    goal = _scaled(classifier)

    def losses(x: Tensor) -> Tensor:
        with torch.no_grad():
            return classifier.class_losses(x)

    def gradient(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        with all_classes_carry():  # as attacks by the cross-entropy say
            found = classifier.class_losses(leaf)
        return torch.autograd.grad(goal(found), leaf)[0]

    what = (
        f"rdc: {classifier.denoiser.head}, {len(classifier.levels)} levels, {images} image(s) a call, "
        f"memory budget {classifier.memory_budget_mb:g} MiB"
    )
    return Contender(name, what, images, losses, gradient, classifier.evaluations_per_image)
