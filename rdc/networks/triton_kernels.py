"""Kernels of :mod:`rdc.networks.fused`, in Triton; import it only where Triton is installed.

A program holds some whole groups of one image in registers, so that a normalisation reads its input once and writes its answer
once, forward and backward. Blocks are [positions, groups, channels of a group], each rounded up to a power of two and masked;
tensors lie as [B, H*W, C]. Sums are in float32 and in a fixed order: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["norm_backward", "norm_forward", "residual_forward"]


@triton.jit
def _place(
    positions, channels, groups, GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PADDED: tl.constexpr
):
    """Offsets in x [ROWS, TILE, PADDED] and their mask, channels [1, TILE, PADDED] and theirs, groups [TILE] of this program."""
    image = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * TILE + tl.arange(0, TILE)
    row = tl.arange(0, ROWS)[:, None, None]
    member = tl.arange(0, PADDED)[None, None, :]
    channel = group[None, :, None] * GROUP + member
    inside = (member < GROUP) & (group < groups)[None, :, None]
    at = image * positions * channels + row * channels + channel
    return image, at, (row < positions) & inside, channel, inside, group


@triton.jit
def _affine(weight, bias, scale, shift, stride, image, channel, inside, ADAPTIVE: tl.constexpr):
    """Slope and offset [1, TILE, PADDED] of what follows the normalisation."""
    slope = tl.load(weight + channel, inside, 0).to(tl.float32)
    offset = tl.load(bias + channel, inside, 0).to(tl.float32)
    if ADAPTIVE:
        factor = 1 + tl.load(scale + image * stride + channel, inside, 0).to(tl.float32)
        slope = slope * factor
        offset = offset * factor + tl.load(shift + image * stride + channel, inside, 0).to(tl.float32)
    return slope, offset


@triton.jit
def norm_forward(
    x, pre, weight, bias, scale, shift, y, mean, rstd,
    positions, channels, groups, pre_stride, stride, eps,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PADDED: tl.constexpr,
    PRE: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y = act(slope * normalised(x + pre) + offset); mean and 1 / deviation [B, groups] are kept."""
    image, at, mask, channel, inside, group = _place(positions, channels, groups, GROUP, ROWS, TILE, PADDED)
    v = tl.load(x + at, mask, 0).to(tl.float32)
    if PRE:
        v += tl.load(pre + image * pre_stride + channel, inside, 0).to(tl.float32)
        v = tl.where(mask, v, 0.0)
    count = positions * GROUP
    centre = tl.sum(tl.sum(v, 0), 1) / count
    v = tl.where(mask, v - centre[None, :, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(tl.sum(v * v, 0), 1) / count + eps)
    kept = image * groups + group
    tl.store(mean + kept, centre, group < groups)
    tl.store(rstd + kept, inverse, group < groups)
    slope, offset = _affine(weight, bias, scale, shift, stride, image, channel, inside, ADAPTIVE)
    z = v * inverse[None, :, None] * slope + offset
    if SILU:
        z = z * tl.sigmoid(z)
    tl.store(y + at, z.to(y.dtype.element_ty), mask)


@triton.jit
def norm_backward(
    grad, x, pre, weight, bias, scale, shift, mean, rstd, grad_x, sums, normed_sums, grad_sums,
    positions, channels, groups, pre_stride, stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PADDED: tl.constexpr,
    PRE: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """grad_x, and for every image and channel the sums over positions of dz, of dz * normalised x, and (PRE) of grad_x."""
    image, at, mask, channel, inside, group = _place(positions, channels, groups, GROUP, ROWS, TILE, PADDED)
    kept = image * groups + group
    centre = tl.load(mean + kept, group < groups, 0)[None, :, None]
    inverse = tl.load(rstd + kept, group < groups, 0)[None, :, None]
    v = tl.load(x + at, mask, 0).to(tl.float32)
    if PRE:
        v += tl.load(pre + image * pre_stride + channel, inside, 0).to(tl.float32)
    v = tl.where(mask, (v - centre) * inverse, 0.0)
    dz = tl.load(grad + at, mask, 0).to(tl.float32)
    slope, offset = _affine(weight, bias, scale, shift, stride, image, channel, inside, ADAPTIVE)
    if SILU:
        z = v * slope + offset
        gate = tl.sigmoid(z)
        dz = dz * gate * (1 + z * (1 - gate))
    one = tl.sum(dz, 0)[None, :, :]
    two = tl.sum(dz * v, 0)[None, :, :]
    place = image * channels + channel
    tl.store(sums + place, one, inside)
    tl.store(normed_sums + place, two, inside)
    count = positions * GROUP
    level = (tl.sum(slope * one, 2) / count)[:, :, None]
    tilt = (tl.sum(slope * two, 2) / count)[:, :, None]
    dx = tl.where(mask, inverse * (slope * dz - level - v * tilt), 0.0)
    if PRE:
        tl.store(grad_sums + place, tl.sum(dx, 0)[None, :, :], inside)
    tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask)


@triton.jit
def residual_forward(x, skip, bias, y, count, channels, factor, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """y = factor * (x + skip + bias of the channel), for tensors whose channels are innermost."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    v = tl.load(x + at, mask, 0).to(tl.float32) + tl.load(skip + at, mask, 0).to(tl.float32)
    if BIAS:
        v += tl.load(bias + at % channels, mask, 0).to(tl.float32)
    tl.store(y + at, (v * factor).to(y.dtype.element_ty), mask)
