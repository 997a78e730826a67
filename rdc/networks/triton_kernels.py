"""Kernels of :mod:`rdc.networks.fused`, in Triton; import it only where Triton is installed.

A program holds some whole groups of one image in registers, so that a normalisation reads its input once and writes its answer
once, forward and backward. Blocks are [positions, columns], a column being a channel and each group rounded up to a power of two
of columns; tensors lie as [B, H*W, C]. Everything that belongs to a channel is a vector: as [1, groups, channels] next to blocks of
three dimensions the compiler moved whole blocks between threads, and an H200 took six times as long. Sums are in float32 and in a
fixed order: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["norm_backward", "norm_forward", "residual_forward"]


@triton.jit
def _columns(channels, groups, GROUP: tl.constexpr, TILE: tl.constexpr, PADDED: tl.constexpr):
    """Channel [TILE * PADDED] of every column of this program's block, and whether there is one."""
    column = tl.arange(0, TILE * PADDED)
    first = tl.program_id(1) * TILE
    if GROUP == PADDED:  # columns are consecutive channels, and the compiler sees it
        channel = first * GROUP + column
        return channel, channel < channels
    member = column % PADDED
    group = first + column // PADDED
    return group * GROUP + member, (member < GROUP) & (group < groups)


@triton.jit
def _block(tensor, row, channel, inside, positions, channels, ROWS: tl.constexpr, FULL: tl.constexpr):
    """Pointers [ROWS, columns] into this program's image of a tensor, and their mask."""
    start = tensor + tl.program_id(0).to(tl.int64) * positions * channels
    mask = inside[None, :]
    if not FULL:
        mask = mask & (row < positions)[:, None]
    return start + (row[:, None] * channels + channel[None, :]), mask


@triton.jit
def _over_groups(columns, TILE: tl.constexpr, PADDED: tl.constexpr):
    """Sums over each group's columns, for every column."""
    sums = tl.sum(tl.reshape(columns, (TILE, PADDED)), 1)
    return tl.reshape(tl.broadcast_to(sums[:, None], (TILE, PADDED)), (TILE * PADDED,))


@triton.jit
def _affine(weight, bias, scale, shift, stride, channel, inside, ADAPTIVE: tl.constexpr):
    """Slope and offset [columns] of what follows the normalisation."""
    slope = tl.load(weight + channel, inside, 0).to(tl.float32)
    offset = tl.load(bias + channel, inside, 0).to(tl.float32)
    if ADAPTIVE:
        image = tl.program_id(0).to(tl.int64) * stride
        factor = 1 + tl.load(scale + image + channel, inside, 0).to(tl.float32)
        slope = slope * factor
        offset = offset * factor + tl.load(shift + image + channel, inside, 0).to(tl.float32)
    return slope, offset


@triton.jit
def norm_forward(
    x, pre, weight, bias, scale, shift, y, mean, rstd,
    positions, channels, groups, pre_stride, stride, eps,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PADDED: tl.constexpr, FULL: tl.constexpr,
    PRE: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y = act(slope * normalised(x + pre) + offset); mean and 1 / deviation are kept [B, C], the same for all of a group."""
    channel, inside = _columns(channels, groups, GROUP, TILE, PADDED)
    row = tl.arange(0, ROWS)
    at, mask = _block(x, row, channel, inside, positions, channels, ROWS, FULL)
    v = tl.load(at, mask, 0).to(tl.float32)
    image = tl.program_id(0).to(tl.int64)
    if PRE:
        v += tl.load(pre + image * pre_stride + channel, inside, 0).to(tl.float32)[None, :]
        if not FULL:
            v = tl.where(mask, v, 0.0)
    count = positions * GROUP
    centre = _over_groups(tl.sum(v, 0), TILE, PADDED) / count
    v = tl.where(mask, v - centre[None, :], 0.0)
    inverse = 1 / tl.sqrt(_over_groups(tl.sum(v * v, 0), TILE, PADDED) / count + eps)
    tl.store(mean + image * channels + channel, centre, inside)
    tl.store(rstd + image * channels + channel, inverse, inside)
    slope, offset = _affine(weight, bias, scale, shift, stride, channel, inside, ADAPTIVE)
    z = v * (inverse * slope)[None, :] + offset[None, :]
    if SILU:
        z = z / (1 + tl.exp(-z))
    to, mask = _block(y, row, channel, inside, positions, channels, ROWS, FULL)
    tl.store(to, z.to(y.dtype.element_ty), mask)


@triton.jit
def norm_backward(
    grad, x, pre, weight, bias, scale, shift, mean, rstd, grad_x, sums, normed_sums, grad_sums,
    positions, channels, groups, pre_stride, stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PADDED: tl.constexpr, FULL: tl.constexpr,
    PRE: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """grad_x, and for every image and channel the sums over positions of dz, of dz * normalised x, and (PRE) of grad_x."""
    channel, inside = _columns(channels, groups, GROUP, TILE, PADDED)
    row = tl.arange(0, ROWS)
    image = tl.program_id(0).to(tl.int64)
    place = image * channels + channel
    at, mask = _block(x, row, channel, inside, positions, channels, ROWS, FULL)
    v = tl.load(at, mask, 0).to(tl.float32)
    at, mask = _block(grad, row, channel, inside, positions, channels, ROWS, FULL)
    dz = tl.load(at, mask, 0).to(tl.float32)
    centre = tl.load(mean + place, inside, 0)
    inverse = tl.load(rstd + place, inside, 0)
    if PRE:
        centre -= tl.load(pre + image * pre_stride + channel, inside, 0).to(tl.float32)
    v = (v - centre[None, :]) * inverse[None, :]
    if not FULL:
        v = tl.where(mask, v, 0.0)
    slope, offset = _affine(weight, bias, scale, shift, stride, channel, inside, ADAPTIVE)
    if SILU:
        z = v * slope[None, :] + offset[None, :]
        gate = 1 / (1 + tl.exp(-z))
        dz = dz * gate * (1 + z * (1 - gate))
    one, two = tl.sum(dz, 0), tl.sum(dz * v, 0)
    tl.store(sums + place, one, inside)
    tl.store(normed_sums + place, two, inside)
    count = positions * GROUP
    level = _over_groups(slope * one, TILE, PADDED) / count
    tilt = _over_groups(slope * two, TILE, PADDED) / count
    dx = inverse[None, :] * (slope[None, :] * dz - level[None, :] - v * tilt[None, :])
    if PRE:
        tl.store(grad_sums + place, tl.sum(tl.where(mask, dx, 0.0), 0), inside)
    to, mask = _block(grad_x, row, channel, inside, positions, channels, ROWS, FULL)
    tl.store(to, dx.to(grad_x.dtype.element_ty), mask)


@triton.jit
def residual_forward(x, skip, bias, y, count, channels, factor, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """y = factor * (x + skip + bias of the channel), for tensors whose channels are innermost."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    v = tl.load(x + at, mask, 0).to(tl.float32) + tl.load(skip + at, mask, 0).to(tl.float32)
    if BIAS:
        v += tl.load(bias + at % channels, mask, 0).to(tl.float32)
    tl.store(y + at, (v * factor).to(y.dtype.element_ty), mask)
