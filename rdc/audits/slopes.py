"""Gradients of a few images beside what the model does: are they there, finite, and slopes of anything?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from rdc.attacks.losses import margin
from rdc.audits.subject import Subject
from rdc.gradient_analysis.slopes import Probe

__all__ = ["Slopes", "margin_gradient", "measure_slopes", "measured_slope"]

Model = Callable[[Tensor], Tensor]

_LENGTHS = (0.003, 0.03, 0.1)  # of a move along the gradient, l_2 in pixel units
_OFF = 0.5  # a slope so far from the gradient's, relative to it, is another function's


@dataclasses.dataclass(frozen=True)
class Slopes:
    """Gradients of the margin of each image's own decision.

    Args:
        n: images.
        zero: gradients that are zero everywhere.
        not_finite: gradients with an entry that is NaN or infinite.
        compared: the others, of which the slope was measured by differences.
        wrong: of these, measured slope and gradient differ by more than half of the gradient at every length.
        reversed: of these, the measured slope has the other sign at every length.
        ratio: median over images of measured slope / gradient's, that of the length where they agree best.
        silent: images with a gradient of the margin, whose cross-entropy in float32 has a gradient that is zero in most entries.
        confident: images whose softmax in float32 is exactly 1 for a class.
        gap: median difference of the two highest logits.
    """

    n: int
    zero: int
    not_finite: int
    compared: int
    wrong: int
    reversed: int
    ratio: float | None
    silent: int
    confident: int
    gap: float


def measure_slopes(subject: Subject, logits: Tensor, most: int = 8) -> Slopes:
    """Take gradients, and differences along them.

    Args:
        subject: model and images.
        logits: [n, K], its answers.
        most: images looked at.

    Raises:
        InputError: the logits do not depend differentiably on the pixels.
    """
    clean = subject.pixels[:most]
    x = 0.1 + 0.8 * clean  # room for moves in [0, 1]
    slope = margin_gradient(subject.defence, x)
    flat = slope.flatten(1)
    finite = flat.isfinite().all(1)
    zero = (flat == 0).all(1)
    usable = finite & ~zero
    ratios = _ratios(subject, x[usable], slope[usable])  # [m, lengths]
    off = (ratios - 1).abs()
    best = ratios.gather(1, off.argmin(1, keepdim=True))[:, 0] if len(ratios) else ratios.new_zeros(0)
    top = logits[:most].topk(2, dim=1).values
    entropy = _cross_entropy_gradient(subject.defence, clean)
    there = (margin_gradient(subject.defence, clean).flatten(1) != 0).double().mean(1) >= 0.5
    silent = ((entropy == 0).double().mean(1) > 0.5) & there
    subject.calls[0], subject.calls[1] = subject.calls[0] + 10, subject.calls[1] + 10 * len(x)
    return Slopes(
        n=len(x),
        zero=int(zero.sum()),
        not_finite=int((~finite).sum()),
        compared=int(usable.sum()),
        wrong=int((off > _OFF).all(1).sum()),
        reversed=int((ratios < 0).all(1).sum()),
        ratio=float(best.median()) if len(best) else None,
        silent=int(silent.sum()),
        confident=int((logits[:most].float().softmax(1).amax(1) == 1).sum()),
        gap=float((top[:, 0] - top[:, 1]).median()),
    )


def margin_gradient(model: Model, pixels: Tensor) -> Tensor:
    """Gradient [n, C, H, W] float64 of the margin of each image's own decision, its entries as they come.

    Args:
        model: pixels -> logits.
        pixels: [n, C, H, W].

    Raises:
        InputError: the logits do not depend differentiably on the pixels.
    """
    probe = Probe(model, _own(model, pixels), torch.ones(len(pixels), dtype=torch.float64, device=pixels.device))
    return probe.gradient(pixels, "margin")[1]


def measured_slope(model: Model, pixels: Tensor, direction: Tensor, step: float) -> Tensor:
    """Slope [n] float64 of the same margin by differences, (f(x + h d) - f(x - h d)) / 2 h with d of length 1 in l_2.

    Args:
        model: pixels -> logits.
        pixels: [n, C, H, W].
        direction: [n, C, H, W].
        step: h, in pixel units.
    """
    own = _own(model, pixels)
    unit = direction / direction.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)
    with torch.no_grad():
        ends = [model((pixels.double() + sign * step * unit).to(pixels.dtype)).double() for sign in (1, -1)]
    ahead, behind = (margin(end, own) for end in ends)
    return (ahead - behind) / (2 * step)


def _own(model: Model, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        decided: Tensor = model(pixels).argmax(1)
    return decided


def _ratios(subject: Subject, x: Tensor, slope: Tensor) -> Tensor:
    """Slope by differences along the gradient over the gradient's length, [m, lengths]; 1 is right."""
    if not len(x):
        return torch.zeros(0, len(_LENGTHS), dtype=torch.float64)
    length = slope.flatten(1).norm(dim=1)
    columns = [measured_slope(subject.defence, x, slope, step) / length for step in _LENGTHS]
    return torch.stack(columns, 1).nan_to_num(nan=torch.inf)


def _cross_entropy_gradient(model: Model, x: Tensor) -> Tensor:
    """Gradient [n, D] of the cross-entropy as other tools compute it, in float32."""
    own = _own(model, x)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(leaf).float(), own, reduction="sum")
        (found,) = torch.autograd.grad(loss, leaf)
    return found.flatten(1)
