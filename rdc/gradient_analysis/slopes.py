"""How steep a model is: Jacobian norms at an image, and local Lipschitz constants in a ball around it.

The Lipschitz constant of f over a ball B is the largest |f(a) - f(b)| / ||a - b|| over a, b in B. Every quotient of two
points is a lower bound, whatever the model's gradients are worth (masked, BPDA, straight-through); random points give weak
bounds, gradient ascent gives better ones. Norms of gradients are slopes only where gradients are derivatives.

f is the margin max_{j != y} z_j - z_y, or the logits z (distances between logits: l_2 for the l_2 ball, l_inf for the
l_inf ball). Dual norms: the steepest slope of a scalar is ||grad||_1 in l_inf and ||grad||_2 in l_2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rdc.attacks.losses import log_odds, margin
from rdc.errors import InputError
from rdc.norm_balls import distance, project, random_start, steepest_direction

__all__ = ["MAX_ROWS", "Probe", "dual_norm", "jacobian_norms", "local_lipschitz"]

MAX_ROWS = 64  # classes up to which the Jacobian is made row by row, and its norm is exact
POWER_ITERATIONS, POWER_TOLERANCE = 100, 1e-4
_JACOBIAN_BYTES = 2**28
_ADJOINT_TOLERANCE = 1e-2


class Probe:
    """A model seen on n images: scaled logits, losses and gradients.

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only.
        labels: [n] int64.
        scale: [n] float64, multiplies the logits of each image.
        redraw: called before each model call.
        count: [2] list, to which images sent through without and with gradient are added.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        labels: Tensor,
        scale: Tensor,
        redraw: Callable[[], object] | None = None,
        count: list[int] | None = None,
    ) -> None:
        self.model, self.labels, self.scale, self.redraw = model, labels, scale, redraw
        self.count = [0, 0] if count is None else count

    def rows(self, rows: Any) -> Probe:
        """The same model on some of the images (a slice or [m] int64, repeats allowed)."""
        return Probe(self.model, self.labels[rows], self.scale[rows], self.redraw, self.count)

    def logits(self, x: Tensor, *, grad: bool = False) -> Tensor:
        """Scaled logits [n, K] float64."""
        if self.redraw is not None:
            self.redraw()
        self.count[grad] += len(x)
        with torch.set_grad_enabled(grad):
            return self.model(x).double() * self.scale[:, None]

    def margin(self, x: Tensor) -> Tensor:
        """Scaled margin [n] float64; > 0 is misclassified."""
        return margin(self.logits(x), self.labels)

    def gradient(self, x: Tensor, loss: str = "ce") -> tuple[Tensor, Tensor, Tensor]:
        """Loss [n], its gradient [n, C, H, W] (both float64) and scaled logits [n, K].

        Args:
            x: [n, C, H, W] float32.
            loss: ``"ce"`` (log-odds against the label) or ``"margin"``, of the scaled logits.

        Raises:
            InputError: the logits do not depend differentiably on x.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            logits = self.logits(leaf, grad=True)
            value = log_odds(logits, self.labels) if loss == "ce" else margin(logits, self.labels)
            slope = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
        if slope is None:
            raise InputError(
                "the model's logits do not depend differentiably on its input, so there is no gradient to analyse; "
                "the model must not use no_grad, detach or NumPy on the way"
            )
        return value.detach(), slope.double(), logits.detach()


def dual_norm(gradient: Tensor, norm: str) -> Tensor:
    """Steepest slope [n] of gradients [n, C, H, W]: l_1 norm for ``"linf"``, l_2 norm for ``"l2"``."""
    flat = gradient.double().flatten(1)
    return flat.abs().sum(1) if norm == "linf" else flat.square().sum(1).sqrt()


def jacobian_norms(probe: Probe, x: Tensor, classes: int, *, max_rows: int = MAX_ROWS) -> dict[str, Any]:
    """Operator norms of the input Jacobian J [K, D] of the scaled logits at each image.

    Up to ``max_rows`` classes J is made by K vector-Jacobian products; its largest singular value is the root of the
    largest eigenvalue of J J^T [K, K], exactly. Above that, power iteration on J J^T: J^T u is a vector-Jacobian product,
    J v the derivative of J^T u with respect to u in direction v (double backward). Where the model is differentiable only
    once, or <u, J v> differs from <J^T u, v>, rows are made after all.

    Args:
        probe: the model.
        x: [n, C, H, W] float32.
        classes: K, the width of the logits.
        max_rows: see above.

    Returns:
        ``l2`` [n], largest singular value (l_2 to l_2); ``linf`` [n], largest l_1 norm of a row (l_inf to l_inf; NaN by
        power iteration); ``method``: ``"rows"`` or ``"power"``.

    Source: power iteration is Golub & Van Loan, "Matrix Computations", section 8.2.
    """
    if classes > max_rows:
        found = _by_power(probe, x)
        if found is not None:
            return {"l2": found, "linf": torch.full_like(found, math.nan), "method": "power"}
    size = max(1, _JACOBIAN_BYTES // (4 * classes * x[0].numel()))
    pieces = [_by_rows(probe.rows(slice(at, at + size)), x[at : at + size], classes) for at in range(0, len(x), size)]
    return {
        "l2": torch.cat([l2 for l2, _ in pieces]),
        "linf": torch.cat([linf for _, linf in pieces]),
        "method": "rows",
    }


def _by_rows(probe: Probe, x: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(largest singular value [n], largest l_1 norm of a row [n]) from the whole Jacobian."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits = probe.logits(leaf, grad=True)
        rows = []
        for k in range(classes):
            (row,) = torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=k < classes - 1)
            rows.append(row.flatten(1))
    jacobian = torch.stack(rows, dim=1)  # [n, K, D]
    largest = torch.stack([_largest_singular_value(one.double()) for one in jacobian])
    return largest, jacobian.double().abs().sum(2).amax(1)


def _largest_singular_value(jacobian: Tensor) -> Tensor:
    gram = jacobian @ jacobian.T
    if not bool(gram.isfinite().all()):
        return gram.new_tensor(math.nan)
    largest: Tensor = torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt()
    return largest


def _by_power(probe: Probe, x: Tensor) -> Tensor | None:
    """Largest singular value [n] without the Jacobian; None where the model does not allow it."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits = probe.logits(leaf, grad=True)
        dummy = torch.ones_like(logits, requires_grad=True)
        try:
            (pulled,) = torch.autograd.grad(logits, leaf, dummy, create_graph=True)  # J^T u, linear in u
            # a fixed start with parts along every class; alternating signs, since logits often sum to a constant
            wave = torch.cos(torch.arange(logits.shape[1], dtype=logits.dtype, device=logits.device) * 2.4)
            u = _normalized(wave.expand_as(logits))
            before = None
            for step in range(POWER_ITERATIONS):
                (v,) = torch.autograd.grad(logits, leaf, u, retain_graph=True)
                (pushed,) = torch.autograd.grad(pulled, dummy, v, retain_graph=True)  # J v = J J^T u
                square = (u * pushed).sum(1)  # <u, J J^T u>, which must be |J^T u|^2
                length = v.double().flatten(1).square().sum(1)
                if step == 0 and not torch.allclose(square, length, rtol=_ADJOINT_TOLERANCE, atol=1e-30):
                    return None
                top: Tensor = pushed.norm(dim=1)
                if before is not None and bool((top - before <= POWER_TOLERANCE * top).all()):
                    break
                before, u = top, _normalized(pushed)
        except RuntimeError:  # not twice differentiable
            return None
    return top.sqrt().detach()


def _normalized(u: Tensor) -> Tensor:
    length = u.norm(dim=1, keepdim=True)
    return torch.where(length > 0, u / torch.where(length > 0, length, 1), u).detach()


def local_lipschitz(
    probe: Probe,
    x: Tensor,
    ids: Sequence[int],
    norm: str,
    eps: float,
    *,
    samples: int = 16,
    ascent_steps: int = 5,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Lower bounds of the local Lipschitz constants of the scaled margin and logits in the ball around each image.

    Sampled: quotients of random points of the ball with the image and with each other. Ascent: from the image, point a
    climbs the margin and point b descends it, by steps of eps / ascent_steps in the steepest direction; all quotients
    along and between both paths count.

    Args:
        probe: the model.
        x: [n, C, H, W] float32 in [0, 1].
        ids: n integers, which fix the random points together with ``seed``.
        norm: ``"linf"`` or ``"l2"``, of the ball and of distances.
        eps: radius in [0, 1] pixel units, > 0.
        samples: random points, >= 0.
        ascent_steps: >= 0.
        seed: 0 <= seed < 2^64.

    Returns:
        [n] float64 each, in (scaled) logit units per pixel unit, NaN where not measured: ``margin_sampled``,
        ``logits_sampled``, ``margin_ascent``, ``logits_ascent``, and ``margin_gradient``: the largest dual norm of the
        margin's gradient at the visited points.
    """
    sampled, climbed = _Quotients(probe, x, norm), _Quotients(probe, x, norm)
    if samples:
        centre = _Point(x, probe.logits(x))
        before = centre
        for number in range(samples):
            drawn = random_start(x, eps, norm, seed=seed, image_ids=ids, restart=number)
            point = _Point(drawn, probe.logits(drawn))
            sampled.add(point, centre)
            if before is not centre:
                sampled.add(point, before)
            before = point
    steepest = x.new_full((len(x),), math.nan, dtype=torch.float64)
    if ascent_steps:
        steepest = _climb(probe, x, norm, eps, ascent_steps, climbed)
    return {
        "margin_sampled": sampled.margin,
        "logits_sampled": sampled.logits,
        "margin_ascent": climbed.margin,
        "logits_ascent": climbed.logits,
        "margin_gradient": steepest,
    }


class _Point:
    """Images and their logits."""

    def __init__(self, x: Tensor, logits: Tensor) -> None:
        self.x, self.logits = x, logits


class _Quotients:
    """Largest quotients so far, [n]; NaN until two distinct points have come."""

    def __init__(self, probe: Probe, x: Tensor, norm: str) -> None:
        self.labels, self.norm = probe.labels, norm
        self.margin = torch.full((len(x),), math.nan, dtype=torch.float64, device=x.device)
        self.logits = self.margin.clone()

    def add(self, a: _Point, b: _Point) -> None:
        apart = distance(a.x, b.x, self.norm)
        change = (a.logits - b.logits).double()
        logits = change.abs().amax(1) if self.norm == "linf" else change.square().sum(1).sqrt()
        margins = (margin(a.logits, self.labels) - margin(b.logits, self.labels)).abs()
        quotient = torch.where(apart > 0, apart, math.nan)
        self.margin = torch.fmax(self.margin, margins / quotient)
        self.logits = torch.fmax(self.logits, logits / quotient)


def _climb(probe: Probe, x: Tensor, norm: str, eps: float, steps: int, quotients: _Quotients) -> Tensor:
    """Fill in quotients along an ascent and a descent of the margin; returns the largest dual norm of its gradient."""
    _, slope, logits = probe.gradient(x, "margin")
    steepest = dual_norm(slope, norm)
    centre = _Point(x, logits)
    ends = {+1: (centre, slope), -1: (centre, slope)}
    for step in range(steps):
        for sign, (point, gradient) in ends.items():
            direction = steepest_direction(torch.where(gradient.isfinite(), gradient, 0.0), norm)
            moved = project(point.x.double() + sign * eps / steps * direction, x, eps, norm)
            if step < steps - 1:
                _, following, logits = probe.gradient(moved, "margin")
                steepest = torch.fmax(steepest, dual_norm(following, norm))
            else:
                following, logits = gradient, probe.logits(moved)
            reached = _Point(moved, logits)
            quotients.add(reached, point)
            if step:
                quotients.add(reached, centre)
            ends[sign] = (reached, following)
        quotients.add(ends[+1][0], ends[-1][0])
    return steepest
