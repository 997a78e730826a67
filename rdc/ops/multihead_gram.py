r"""The multi-head loss without predictions: its cost hardly grows with the number of classes.

With x(p) the 3x3 patch of h at pixel p (and a 1 for the bias), mean head Vbar_j over classes, differences D_o = V_o - Vbar_j and the
mean prediction's error e_j = Vbar_j x - F*_j, the loss of :mod:`rdc.ops.multihead_loss` is

.. math::
    L_{nk} = \sum_{t,j,p} w_t e_j^2 + \sum_j \bigl(2 D_{kj} \cdot R_{nj} + D_{kj} G_n D_{kj}^T\bigr) \qquad
    G_n = \sum_{t,p} w_t\, x x^T \qquad R_{nj} = \sum_{t,p} w_t\, e_j x

G, the Gram matrix of the patches, is the same for all classes and summed over levels, so that a class costs one quadratic form of 9c + 1
numbers an image where a prediction costs as much for every pixel and level. Taking differences from the mean head keeps the sums at the
size of the differences between classes: nothing cancels that decides (the plain form, tr(V G V^T) - 2 tr(V R) + |F*|^2, rounds nine
times as coarsely; benchmarks/studies/gram_precision.py, docs/kernels.md).

G has 81 blocks [c, c], but h_i(p + u) h_j(p + v), summed over p, depends on v - u alone except for the edges: thirteen products of h with
itself, shifted, and products of its first and last rows, columns and corners give them all. In the same way the gradient of h is one 5x5
convolution with weights of each image (sum_k g_k V_k^T D_k, composed), corrected along the edges.

Source: this project's issue "Speed", part 5; algebra above. Pure torch, any device; never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.errors import InputError
from rdc.execution.opaque import new_names, opaque, refuse_batches, transformed
from rdc.ops.multihead_reference import multihead_loss_reference

__all__ = ["costs_less", "multihead_loss_gram"]

_TAPS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]  # u, in the order of a 3x3 kernel's weights
_VALUES = 2**22  # of an intermediate result [classes * channels, 9c + 1], at most


def costs_less(h: Tensor, weight: Tensor, level_weight: Tensor) -> bool:
    """Whether this form is expected to win over predicting, by the shape of one image (a batch changes nothing)."""
    (_, c, height, width), outputs, levels = h.shape, weight.shape[0], level_weight.shape[0]
    gram = 13 * c * c * (height + 2) * (width + 2) * levels + outputs * (9 * c + 1) ** 2
    predicted = outputs * 9 * c * height * width * levels / 2.25  # minimal filtering
    return _MARGIN * gram < predicted


#: how many times fewer multiplications it takes to win against the native kernels, whose are faster (docs/kernels.md)
_MARGIN = 3


def multihead_loss_gram(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
    """Loss [N, K]; arguments and result as of ``rdc.ops.multihead_loss``, computed in float32 (float64 for float64).

    Differentiable in everything but ``level_weight``, the second time through the definition.

    Raises:
        InputError: a gradient in ``level_weight`` can be asked for.
    """
    if torch.is_grad_enabled() and level_weight.requires_grad:
        raise InputError(
            "multihead_loss: backend 'gram' has no gradient in level_weight; use backend='auto' or level_weight.detach()."
        )
    if transformed():
        return opaque(multihead_loss_gram, h, weight, bias, target, level_weight)
    loss: Tensor = _Gram.apply(h, weight, bias, target, level_weight)  # type: ignore[no-untyped-call]
    return loss


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
        parts = _Parts(*_widened(h, weight, bias, target, level_weight))
        return torch.stack([parts.losses(n) for n in range(parts.images)]) if parts.images else h.new_zeros(0, parts.k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batches(upstream)
        needs = ctx.needs_input_grad
        if not transformed():
            return _gradients(needs, upstream, *ctx.saved_tensors)
        found = opaque(
            lambda *plain: [g for g in _gradients(needs, *plain) if g is not None], upstream, *ctx.saved_tensors
        )
        some = iter(found)
        return tuple(next(some) if need else None for need in needs)


def _gradients(needs: Sequence[bool], upstream: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
    """Of the five inputs, where needed; by the definition, which knows second derivatives, where this one is differentiated."""
    if torch.is_grad_enabled():
        return _by_the_definition(inputs, needs, upstream)
    found = _Parts(*_widened(*inputs)).gradients(upstream, needs)
    return (*(g if g is None else g.to(t.dtype) for g, t in zip(found, inputs, strict=True)),)


def _by_the_definition(inputs: Sequence[Tensor], needs: Sequence[bool], upstream: Tensor) -> tuple[Tensor | None, ...]:
    named = [
        t if t.requires_grad or not need else t.detach().requires_grad_()
        for t, need in zip(new_names(inputs), needs, strict=True)
    ]
    asked = [t for t, need in zip(named, needs, strict=True) if need]
    loss = multihead_loss_reference(*named)
    found = iter(torch.autograd.grad(loss, asked, upstream.to(loss.dtype), create_graph=True))
    return tuple(next(found) if need else None for need in needs)


def _widened(*tensors: Tensor) -> list[Tensor]:
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return [t.detach().to(wide) for t in tensors]


class _Parts:
    """The sums of the module's docstring; everything of one image at a time."""

    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> None:
        self.h, self.weight, self.bias, self.level_weight = h, weight, bias, level_weight
        self.levels, self.channels = len(level_weight), target.shape[1]
        self.k, self.images = len(weight) // self.channels, len(h) // self.levels
        self.mean_weight = weight.unflatten(0, (self.k, self.channels)).mean(0)
        self.mean_bias = bias.unflatten(0, (self.k, self.channels)).mean(0)
        difference = weight - self.mean_weight.repeat(self.k, 1, 1, 1)
        offset = bias - self.mean_bias.repeat(self.k)
        self.difference = torch.cat([_flat(difference), offset[:, None]], 1)  # [K*C, 9c + 1]
        self.error = F.conv2d(h, self.mean_weight, self.mean_bias, padding=1) - target  # e, [N*T, C, H, W]

    def rows(self, n: int) -> slice:
        return slice(n * self.levels, (n + 1) * self.levels)

    def moments(self, n: int) -> tuple[Tensor, Tensor]:
        """G [9c + 1, 9c + 1] and R [C, 9c + 1] of one image, bias included."""
        h, e = self.h[self.rows(n)], self.error[self.rows(n)]
        return patch_gram(h, self.level_weight), _patch_products(h, e, self.level_weight)

    def losses(self, n: int) -> Tensor:
        """[K] of one image."""
        gram, products = self.moments(n)
        e = self.error[self.rows(n)]
        common = (e.square().flatten(1).sum(1) * self.level_weight).sum()  # torch sums in pairs
        found = []
        for part in self.difference.split(self._at_once(len(gram))):
            reach = part @ gram + 2 * products.repeat(len(part) // self.channels, 1)
            found.append((reach * part).sum(1))
        rest: Tensor = torch.cat(found).unflatten(0, (self.k, self.channels)).sum(1)
        return common + rest

    def _at_once(self, size: int) -> int:
        return max(1, _VALUES // size // self.channels) * self.channels

    def gradients(self, upstream: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
        """Of h, weight, bias and target (None for the level weights: they would need G of every level)."""
        slopes = upstream.to(self.h.dtype).repeat_interleave(self.channels, 1)  # [N, K*C]
        h_grad = torch.zeros_like(self.h) if needs[0] else None
        target_grad = torch.zeros_like(self.error) if needs[3] else None
        total = torch.zeros_like(self.difference) if needs[1] or needs[2] else None
        for n in range(self.images):
            rows, slope = self.rows(n), slopes[n, :, None]
            carries = slope[:, 0] != 0
            if not carries.any():
                continue
            some = slice(None) if carries.all() else carries
            difference, slope = self.difference[some], slope[some]
            channel = torch.arange(len(slopes[n]), device=slope.device)[some] % self.channels
            twice = 2 * self.level_weight[:, None, None, None]
            if h_grad is not None:
                h_grad[rows] = twice * self._of_features(n, self.weight[some], difference, slope, channel)
            if target_grad is not None:
                target_grad[rows] = -twice * self._of_target(n, difference, slope, channel)
            if total is not None:
                gram, products = self.moments(n)
                total[some] += 2 * slope * (difference @ gram + products[channel])
        c = self.h.shape[1]
        weight_grad = _unflat(total[:, :-1], c) if total is not None and needs[1] else None
        bias_grad = total[:, -1].clone() if total is not None and needs[2] else None
        return [h_grad, weight_grad, bias_grad, target_grad, None]

    def _of_features(self, n: int, weight: Tensor, difference: Tensor, slope: Tensor, channel: Tensor) -> Tensor:
        """sum_o g_o V_o^T (e_j + D_o x), scattered back: [T, c, H, W]."""
        c, h, e = self.h.shape[1], self.h[self.rows(n)], self.error[self.rows(n)]
        if (
            18 * len(weight) < 25 * c
        ):  # few classes carry gradient: their residuals are cheaper than the 5x5 convolution
            residual = F.conv2d(h, _unflat(difference[:, :-1], c), difference[:, -1], padding=1) + e[:, channel]
            return F.conv_transpose2d(residual, slope[:, :, None, None] * weight, padding=1)
        scaled = slope * _flat(weight)  # g_o V_o
        reach = scaled.T @ difference  # Q [9c, 9c + 1]
        by_channel = scaled.new_zeros(self.channels, scaled.shape[1]).index_add_(0, channel, scaled)
        one = torch.cat([e, torch.ones_like(e[:, :1])], 1)  # what multiplies U_j and the last column of Q
        kernels = _unflat(torch.cat([by_channel, reach[:, -1:].T]), c)  # [C + 1, c, 3, 3]
        return F.conv_transpose2d(one, kernels, padding=1) + _gather_and_scatter(h, reach[:, :-1])

    def _of_target(self, n: int, difference: Tensor, slope: Tensor, channel: Tensor) -> Tensor:
        """sum_k g_k (e_j + D_kj x): [T, C, H, W]."""
        h, e = self.h[self.rows(n)], self.error[self.rows(n)]
        share = slope.new_zeros(self.channels, 1).index_add_(0, channel, slope)
        kernel = difference.new_zeros(self.channels, difference.shape[1]).index_add_(0, channel, slope * difference)
        return share[:, 0, None, None] * e + F.conv2d(h, _unflat(kernel[:, :-1], h.shape[1]), kernel[:, -1], padding=1)


def _flat(weight: Tensor) -> Tensor:
    """[O, c, 3, 3] -> [O, 9c], tap by tap."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _unflat(flat: Tensor, c: int) -> Tensor:
    return flat.reshape(-1, 3, 3, c).permute(0, 3, 1, 2).contiguous()


def _padded(x: Tensor) -> Tensor:
    """[T, c, H, W] -> [T, H + 2, W + 2, c], zeros after the last row and column: a shift is a shift in memory."""
    levels, c, height, width = x.shape
    padded = x.new_zeros(levels, height + 2, width + 2, c)
    padded[:, :height, :width] = x.permute(0, 2, 3, 1)
    return padded


def _shifted_product(a: Tensor, b: Tensor, shift: int) -> Tensor:
    """sum_f a_f b_{f + shift}^T over places f: a [F, i], b [F, j] -> [i, j]."""
    count = len(a) - abs(shift)
    if count <= 0:
        return a.new_zeros(a.shape[1], b.shape[1])
    return a[max(0, -shift) :][:count].T @ b[max(0, shift) :][:count]


def patch_gram(h: Tensor, level_weight: Tensor) -> Tensor:
    """sum_{t,p} w_t x x^T [9c + 1, 9c + 1] of the patches x (and a last 1) of h [T, c, H, W]; zero padding.

    Args:
        h: features of one image.
        level_weight: [T].
    """
    _, c, height, width = h.shape
    plain = _padded(h)
    scaled = plain * level_weight[:, None, None, None]
    line = width + 2
    inside = {d: _shifted_product(scaled.flatten(0, 2), plain.flatten(0, 2), d[0] * line + d[1]) for d in _HALF}
    first_last = {1: 0, -1: height - 1}  # the row that a patch's tap u_y leaves out; columns alike
    rows = {
        (u, d): _shifted_product(scaled[:, r].flatten(0, 1), plain[:, r].flatten(0, 1), d)
        for u, r in first_last.items()
        for d in (0, 1, 2)
    }
    first_last = {1: 0, -1: width - 1}
    columns = {
        (u, d): _shifted_product(scaled[:, :, s].flatten(0, 1), plain[:, :, s].flatten(0, 1), d)
        for u, s in first_last.items()
        for d in (0, 1, 2)
    }
    gram = h.new_empty(9 * c + 1, 9 * c + 1)
    for i, (uy, ux) in enumerate(_TAPS):
        for j, (vy, vx) in enumerate(_TAPS[i:], i):
            d = (vy - uy, vx - ux)
            block = inside[d] if d in inside else inside[(-d[0], -d[1])].T
            if d[0] == 0 and uy:
                block = block - (rows[uy, d[1]] if d[1] >= 0 else rows[uy, -d[1]].T)
            if d[1] == 0 and ux:
                block = block - columns[ux, d[0]]  # d_y >= 0 here
            if d == (0, 0) and uy and ux:
                y, x = (0 if uy > 0 else height - 1), (0 if ux > 0 else width - 1)
                block = block + scaled[:, y, x].T @ plain[:, y, x]
            gram[i * c : (i + 1) * c, j * c : (j + 1) * c] = block
            gram[j * c : (j + 1) * c, i * c : (i + 1) * c] = block.T
    sums = _patch_products(h, torch.ones_like(h[:, :1]), level_weight)
    gram[-1], gram[:, -1] = sums[0], sums[0]
    return gram


#: half of the differences of two taps: the others are transposes
_HALF = [(y, x) for y in (0, 1, 2) for x in (-2, -1, 0, 1, 2) if y or x >= 0]


def _patch_products(h: Tensor, e: Tensor, level_weight: Tensor) -> Tensor:
    """sum_{t,p} w_t e_j x [C, 9c + 1] of patches x of h [T, c, H, W] and a last 1, with e [T, C, H, W]."""
    weighted = e * level_weight[:, None, None, None]
    line, flat_h, flat_e = h.shape[3] + 2, _padded(h).flatten(0, 2), _padded(weighted).flatten(0, 2)
    found = [_shifted_product(flat_e, flat_h, y * line + x) for y, x in _TAPS]
    return torch.cat([*found, weighted.sum((0, 2, 3))[:, None]], 1)


def _gather_and_scatter(h: Tensor, reach: Tensor) -> Tensor:
    """sum_u (Q x)_u scattered back to p + u: h [T, c, H, W], Q [9c, 9c] -> [T, c, H, W].

    A 5x5 convolution but for the edges: a place in the first row is no patch's lower neighbour, and so on.
    """
    c = h.shape[1]
    blocks = reach.reshape(3, 3, c, 3, 3, c)  # u_y, u_x, to, v_y, v_x, from
    kernel = h.new_zeros(c, c, 5, 5)
    for uy in range(3):
        for ux in range(3):
            part = blocks[uy, ux].permute(0, 3, 1, 2)  # to, from, v_y, v_x
            kernel[:, :, 2 - uy : 5 - uy, 2 - ux : 5 - ux] += part
    out = F.conv2d(h, kernel, padding=2)
    height, width = h.shape[2:]
    for tap, row in ((2, 0), (0, height - 1)):
        out[:, :, row] -= F.conv1d(h[:, :, row], _line_kernel(blocks[tap, :, :, tap]), padding=2)
    for tap, column in ((2, 0), (0, width - 1)):
        out[:, :, :, column] -= F.conv1d(h[:, :, :, column], _line_kernel(blocks[:, tap, :, :, tap]), padding=2)
    for tap_y, y in ((2, 0), (0, height - 1)):
        for tap_x, x in ((2, 0), (0, width - 1)):
            out[:, :, y, x] += h[:, :, y, x] @ blocks[tap_y, tap_x, :, tap_y, tap_x].T
    return out


def _line_kernel(blocks: Tensor) -> Tensor:
    """Q of one line, [3, to, 3, from] by taps along the line -> [to, from, 5]."""
    c = blocks.shape[1]
    kernel = blocks.new_zeros(c, c, 5)
    for u in range(3):
        kernel[:, :, 2 - u : 5 - u] += blocks[u].permute(0, 2, 1)
    return kernel
