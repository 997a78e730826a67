"""A residual block whose weights nobody trains, as one step of autograd on a CPU: the same kernels in the same order, called directly.

A small call spends more time between the kernels than in them. Where weights, noise level and class want no gradient, the block is a
function of the image alone, its backward pass is known, and one step of autograd does what six did. The gradient of the image can be
differentiated again, any number of times: what is kept between the convolutions is an output of the step, so that later derivatives see
that it depends on the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.execution.opaque import opaque, refuse_batches, transformed
from rdc.networks.norm_derivatives import input_gradient as norm_gradient
from rdc.ops import convolution, norm_act_native

if TYPE_CHECKING:
    from rdc.networks.blocks import UNetBlock

__all__ = ["frozen_block", "takes"]


class Settings(NamedTuple):
    """Of a block: groups and epsilons of its norms, whether pixels are doubled in front of the first convolution, factor of the sum."""

    groups: tuple[int, int]
    eps: tuple[float, float]
    up: bool
    factor: float


class Weights(NamedTuple):
    """Of a block, none of which wants a gradient; the skip's are None where the image itself is added."""

    norm0: Tensor
    bias0: Tensor
    conv0: Tensor
    norm1: Tensor
    bias1: Tensor
    conv1: Tensor
    bias: Tensor | None
    skip: Tensor | None
    skip_bias: Tensor | None


#: added in front of the second norm, or [C] for all images; then its scale and shift [B, C]
Conditions = tuple[Tensor | None, Tensor | None, Tensor | None]


def takes(block: UNetBlock, x: Tensor, emb: Tensor) -> Weights | None:
    """The weights, if :func:`frozen_block` does this block of x [B, C, H, W] and of an embedding; None if not."""
    first, second, skip = block.conv0, block.conv1, block.skip
    if first._forward_hooks or second._forward_hooks or (skip is not None and skip._forward_hooks):
        return None  # somebody looks on
    if first.down or (first.up and not first.doubles) or (block.training and block.dropout) or transformed():
        return None
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.get_autocast_dtype("cpu"):
        return None
    if not norm_act_native.takes(x) or not x.is_contiguous(memory_format=torch.channels_last):
        return None
    norm0, norm1, conv0, conv1 = block.norm0, block.norm1, first.weight, second.weight
    if conv0 is None or conv1 is None:
        return None
    beside = (None, None) if skip is None else (skip.weight, skip.bias)
    weights = Weights(norm0.weight, norm0.bias, conv0, norm1.weight, norm1.bias, conv1, second.bias, *beside)
    affine = block.affine
    if convolution.differentiable(emb, affine.weight, affine.bias, first.bias, *weights):
        return None
    return weights if convolution.usable(x, weights.conv0) and convolution.plain(weights.conv1) else None


def frozen_block(block: UNetBlock, weights: Weights, x: Tensor, condition: Tensor) -> Tensor:
    """The block's residual sum, without attention.

    Args:
        block: that :func:`takes` x.
        weights: as that said.
        x: [B, C, H, W].
        condition: [B, C' or 2 C'], what the embedding says.
    """
    condition, before = condition.to(torch.float32), block.conv0.bias
    if block.adaptive_scale:
        scale, shift = condition.chunk(2, dim=1)
        conditions: Conditions = (before, scale, shift)
    else:
        conditions = (condition if before is None else condition + before, None, None)
    norms = block.norm0, block.norm1
    settings = Settings(
        (norms[0].num_groups, norms[1].num_groups), (norms[0].eps, norms[1].eps), block.conv0.up, block.skip_scale
    )
    if not convolution.differentiable(x):
        return _forward(x, conditions, weights, settings)[0]
    y: Tensor = _FrozenBlock.apply(x, settings, *conditions, *weights)[0]  # type: ignore[no-untyped-call]
    return y


def _forward(x: Tensor, conditions: Conditions, of: Weights, settings: Settings) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The sum; what the first convolution gives; and mean and 1 / deviation of both norms."""
    (groups0, groups1), (eps0, eps1) = settings.groups, settings.eps
    seen, *moments0 = norm_act_native.forward(x, of.norm0, of.bias0, (None, None, None), groups0, eps0, True)
    h = convolution.launch(seen, of.conv0, None, None, 1.0, settings.up, False)
    seen, *moments1 = norm_act_native.forward(h, of.norm1, of.bias1, conditions, groups1, eps1, True)
    beside = x
    if of.skip is not None:
        beside = F.conv2d(x, of.skip.to(x.dtype), None if of.skip_bias is None else of.skip_bias.to(x.dtype))
    y = convolution.launch(seen, of.conv1, of.bias, beside, settings.factor, False, False)
    return y, h, [*moments0, *moments1]


class _FrozenBlock(torch.autograd.Function):
    """In the older form, whose call takes a sixth of the newer one's time; where ``torch.func`` is at work the block goes its other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: Settings, *tensors: Any) -> tuple[Tensor, Tensor]:
        conditions, weights = tensors[:3], Weights(*tensors[3:])
        y, h, moments = _forward(x, conditions, weights, settings)
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        ctx.save_for_backward(x, h, *moments, *tensors)
        return y, h

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_h: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_batches(grad, of_h)
        given = [grad, of_h, *ctx.saved_tensors]
        nothing = (None,) * (len(given) - 7)
        if grad is None and of_h is None:
            return (None, *nothing)
        if not transformed():
            return (_of_image(ctx.settings, *given), *nothing)
        there = [i for i, tensor in enumerate(given) if tensor is not None]

        def plain(*some: Tensor) -> Tensor:
            tensors: list[Tensor | None] = [None] * len(given)
            for i, tensor in zip(there, some, strict=True):
                tensors[i] = tensor
            return _of_image(ctx.settings, *tensors)

        return (opaque(plain, *(given[i] for i in there)), *nothing)


def _of_image(settings: Settings, grad: Tensor | None, of_h: Tensor | None, *saved: Any) -> Tensor:
    """The gradient of the image, from those of the sum and of what the first convolution gave; differentiable where autograd is on."""
    x, h, mean0, rstd0, mean1, rstd1, *tensors = saved
    conditions, of = tensors[:3], Weights(*tensors[3:])
    (groups0, groups1), (eps0, eps1) = settings.groups, settings.eps
    if grad is not None:
        of_seen = convolution.input_gradient(grad, of.conv1, settings.factor)
        of_norm = _of_norm(of_seen, h, of.norm1, of.bias1, *conditions, mean1, rstd1, groups1, eps1)
        of_h = of_norm if of_h is None else of_h + of_norm
    assert of_h is not None
    of_seen = convolution.input_gradient(of_h, of.conv0, 1.0)
    if settings.up:
        of_seen = 4 * F.avg_pool2d(of_seen, 2)
    of_x = _of_norm(of_seen, x, of.norm0, of.bias0, None, None, None, mean0, rstd0, groups0, eps0)
    return of_x if grad is None else of_x + _of_skip(grad, of.skip, settings)


def _of_norm(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *given: Any) -> Tensor:
    """The gradient of a norm's input; differentiable where autograd is on."""
    pre, scale, shift, mean, rstd, groups, eps = given
    grad = grad.to(x.dtype)
    if torch.is_grad_enabled():
        return norm_gradient(grad, x, weight, bias, *given, True)[0]
    return norm_act_native.backward(grad, x, weight, bias, (pre, scale, shift), (mean, rstd), groups, eps, True)[0]


def _of_skip(grad: Tensor, weight: Tensor | None, settings: Settings) -> Tensor:
    """What reaches the image beside the convolutions."""
    grad = 4 * settings.factor * F.avg_pool2d(grad, 2) if settings.up else grad * settings.factor
    return grad if weight is None else F.conv2d(grad, weight.to(grad.dtype).transpose(0, 1))
