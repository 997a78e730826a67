"""Triton kernels of multihead_loss; imported only where triton is there (:mod:`rdc.ops.multihead_triton`).

The convolution is an implicit product of matrices: pixels of one row of h times outputs, summed over 9 taps x c channels, in float32.
The prediction stays in registers; what leaves them is sums and, in the backward pass, 2 w g (P - F*) of one chunk of rows.
Source: equations of :mod:`rdc.ops.multihead_loss`.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["residuals", "transpose"]


@triton.jit
def residuals(
    h,  # [rows, H, W, c], channels adjacent
    weight,  # [9, K*C, c]
    bias,  # [K*C]
    target,  # [rows, C, H*W]
    coefficient,  # [rows, K] float32: 2 w g
    squares,  # [rows, tiles of pixels, K*C] float32
    sums,  # as squares
    towards_target,  # [rows, groups of outputs, C, H*W] float32
    scaled,  # [rows, H*W, line]
    row_stride,
    y_stride,
    x_stride,
    height,
    width,
    c,
    classes,
    line,
    plane,
    channels: tl.constexpr,
    tiles,
    groups,
    first_output,
    first_group,
    target_groups,
    PLANES: tl.constexpr,
    SQUARES: tl.constexpr,
    SUMS: tl.constexpr,
    TOWARDS_TARGET: tl.constexpr,
    SCALED: tl.constexpr,
    STEPS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    CUT: tl.constexpr,
    WIDEN: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One tile of pixels of one row of h, one group of outputs.

    ``PLANES``: the outputs of a group have one image channel, so that a target value is read once a pixel. Otherwise they are taken
    in the order of ``weight``, from ``first_output`` on. ``STEPS``: blocks of ``CHANNELS`` that cover c; ``WHOLE``: they do so
    exactly. ``CUT``: each tap is summed by itself, for long chains of float32 lose bits. ``WIDEN``: multiply in float32 (Triton's
    interpreter takes the bits of bfloat16 for integers).
    """
    pid = tl.program_id(0)
    group = pid % groups
    tile = (pid // groups) % tiles
    row = (pid // groups // tiles).to(tl.int64)
    pixels = height * width
    outputs = classes * channels

    p = tile * PIXELS + tl.arange(0, PIXELS)
    inside = p < pixels
    y = p // width
    x = p % width
    number = tl.arange(0, OUTPUTS)
    if PLANES:
        part = group // channels  # which classes
        j = group % channels
        k = part * OUTPUTS + number
        valid = k < classes
        o = k * channels + j
        column = j * plane + k
        written = k < plane
    else:
        part = first_group + group
        o = first_output + group * OUTPUTS + number
        valid = o < outputs
        k = o // channels
        column = o
        written = o < line

    within = tl.arange(0, CHANNELS)
    h_at = h + row * row_stride + (y * y_stride + x * x_stride)[:, None] + within[None, :]
    weight_at = weight + o[None, :] * c + within[:, None]
    tap_stride = outputs * c
    total = tl.zeros((PIXELS, OUTPUTS), dtype=tl.float32)
    if CUT:
        chain = tl.zeros((PIXELS, OUTPUTS), dtype=tl.float32)
    for step in range(9 * STEPS):
        tap = step // STEPS
        first = (step % STEPS) * CHANNELS
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        seen = inside & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        if WHOLE:
            a = tl.load(h_at + (dy * y_stride + dx * x_stride + first), mask=seen[:, None], other=0.0)
            b = tl.load(weight_at + (tap * tap_stride + first), mask=valid[None, :], other=0.0)
        else:
            there = first + within < c
            a = tl.load(h_at + (dy * y_stride + dx * x_stride + first), mask=seen[:, None] & there[None, :], other=0.0)
            b = tl.load(weight_at + (tap * tap_stride + first), mask=valid[None, :] & there[:, None], other=0.0)
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        if CUT:
            chain = tl.dot(a, b, chain, input_precision=PRECISION)
            if step % STEPS == STEPS - 1:
                total += chain
                chain = tl.zeros((PIXELS, OUTPUTS), dtype=tl.float32)
        else:
            total = tl.dot(a, b, total, input_precision=PRECISION)

    total += tl.load(bias + o, mask=valid, other=0.0).to(tl.float32)[None, :]
    target_at = target + row * channels * pixels
    if PLANES:
        total -= tl.load(target_at + j * pixels + p, mask=inside, other=0.0).to(tl.float32)[:, None]
    elif channels <= 4:
        for i in tl.static_range(channels):
            value = tl.load(target_at + i * pixels + p, mask=inside, other=0.0).to(tl.float32)
            total -= tl.where((o % channels == i)[None, :], value[:, None], 0.0)
    else:
        both = inside[:, None] & valid[None, :]
        value = tl.load(target_at + ((o % channels) * pixels)[None, :] + p[:, None], mask=both, other=0.0)
        total -= value.to(tl.float32)
    total = tl.where(inside[:, None] & valid[None, :], total, 0.0)

    sums_at = (row * tiles + tile) * outputs + o
    if SQUARES:
        tl.store(squares + sums_at, tl.sum(total * total, 0), mask=valid)
    if SUMS:
        tl.store(sums + sums_at, tl.sum(total, 0), mask=valid)
    if TOWARDS_TARGET or SCALED:
        total *= tl.load(coefficient + row * classes + k, mask=valid, other=0.0)[None, :]
    if TOWARDS_TARGET:
        if PLANES:
            at = towards_target + ((row * target_groups + part) * channels + j) * pixels + p
            tl.store(at, -tl.sum(total, 1), mask=inside)
        else:
            at = towards_target + (row * target_groups + part) * channels * pixels + p
            for i in range(channels):
                chosen = tl.where((o % channels == i)[None, :], total, 0.0)
                tl.store(at + i * pixels, -tl.sum(chosen, 1), mask=inside)
    if SCALED:
        at = scaled + (row * pixels + p)[:, None] * line + column[None, :]
        tl.store(at, total.to(scaled.dtype.element_ty), mask=inside[:, None] & written[None, :])


@triton.jit
def transpose(
    source,
    result,
    source_row,
    source_channel,
    source_y,
    source_x,
    result_row,
    result_channel,
    result_y,
    result_x,
    width,
    pixels,
    c,
    FLAT: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Copy [rows, c, H, W] from one layout to another. ``FLAT``: in both, the pixels of a row have one stride."""
    row = tl.program_id(0).to(tl.int64)
    p = (tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)).to(tl.int64)
    k = (tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    mask = (p < pixels)[:, None] & (k < c)[None, :]
    if FLAT:
        read, write = p * source_x, p * result_x
    else:
        y, x = p // width, p % width
        read, write = y * source_y + x * source_x, y * result_y + x * result_x
    value = tl.load(source + row * source_row + read[:, None] + (k * source_channel)[None, :], mask=mask, other=0.0)
    tl.store(result + row * result_row + write[:, None] + (k * result_channel)[None, :], value, mask=mask)
