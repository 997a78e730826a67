"""multihead_loss on tensor cores: kernels in Triton, and cuDNN for the gradients of features and weights.

Forward: one kernel predicts a tile of pixels and outputs, subtracts the target, and writes one sum of squares for each output and
tile; torch adds these up in float64. Backward: the same kernel predicts again and writes R = 2 w g (P - F*) for a chunk of rows
(:data:`BYTES_AT_ONCE`); the transposed convolution and the correlation of R are cuDNN's. Gradients of bias, target and level weights
are summed inside the kernel, in float32 over a tile, and then by torch.

Types: float32 (TF32 where ``torch.backends.cudnn.allow_tf32`` says so, else float32 products) and bfloat16, sums in float32.
On a CPU only under Triton's interpreter (``TRITON_INTERPRET=1``), which is what the tests do.
Source: equations of :mod:`rdc.ops.multihead_loss`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any, List, NamedTuple  # noqa: UP035

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.ops._outputs import empty_gradients, empty_loss
from rdc.ops.multihead_autograd import double_backward, gradients, save_backward_inputs

__all__ = ["Tile", "backward_op", "default_tile", "forward_op", "preferred", "tile_of", "why_not"]

#: at most this much of R, and of a copy of h, exists at once (but always one row)
BYTES_AT_ONCE = 2**28


class Tile(NamedTuple):
    """What one program works on, and how.

    Args:
        pixels, outputs, channels: block of the product, powers of two from 16; channels is the step of its sum.
        warps, stages: Triton's; stages are blocks in flight.
        planes: one image channel for all outputs of a block.
        registers: at most so many for a thread, so that two programs fit one multiprocessor; None: as many as it takes.
    """

    pixels: int
    outputs: int
    channels: int
    warps: int
    stages: int
    planes: bool
    registers: int | None = None


_FORCED: list[Tile] = []


@contextlib.contextmanager
def tile_of(tile: Tile) -> Iterator[None]:
    """Use this tile instead of :func:`default_tile` (for benchmarks and tests)."""
    _FORCED.append(tile)
    try:
        yield
    finally:
        _FORCED.pop()


def default_tile(pixels: int, c: int, classes: int, channels: int, precision: str, backward: bool = False) -> Tile:
    """Tile by shape alone.

    Args:
        pixels: of one row of h.
        c: channels of h.
        classes, channels: K and C.
        precision: "bfloat16", "tf32" or "ieee" (float32 products).
        backward: for the backward pass, whose sums need registers: a narrower tile.
    """
    outputs = classes * channels
    wide = 64 if precision == "bfloat16" else 32
    step = next((s for s in (wide, wide // 2, 16) if c % s == 0), 16 if c <= 16 else 32)
    if precision == "ieee":
        return Tile(_power(pixels, 16, 64), _power(outputs, 16, 64), min(step, 16), 4, 2, False)
    across, high = _power(outputs, 16, 128), _power(pixels, 16, 128)
    columns = sum(groups * width for width, groups in _groups(outputs, across))
    planes = channels * -(-classes // across) * across <= 1.05 * columns
    if across <= 32:  # on an H200 half the time that 128 pixels take
        return Tile(min(high, 64), across, step, 4, 4, planes)
    if high * across < 128 * 128:
        return Tile(high, across, step, 8 if high * across >= 128 * 64 else 4, 3, planes)
    if backward:
        return Tile(high, 64, step, 4, 4, channels == 1)
    return Tile(high, across, step, 8, 3, planes, None if planes else 128)


def preferred(h: Tensor, weight: Tensor) -> bool:
    """Whether the kernels beat torch on an H200 for operands like these: types of the tensor cores, outputs that fill a tile, channels
    that load in whole vectors. Measured at 300 outputs and 128 channels: 3.2 to 13 times as fast as eager torch (docs/kernels.md).
    """
    fast = h.dtype == torch.bfloat16 or (h.dtype == torch.float32 and torch.backends.cudnn.allow_tf32)
    return fast and weight.shape[0] >= 128 and h.shape[1] >= 64 and h.shape[1] % 16 == 0


def _groups(outputs: int, across: int) -> list[tuple[int, int]]:
    """Width and number of groups that cover the outputs: what is left over gets a narrower one where that is half as wide or less."""
    whole, rest = divmod(outputs, across)
    if not whole or not rest or _power(rest, 16, across) == across:
        return [(across, -(-outputs // across))]
    return [(across, whole), (_power(rest, 16, across), 1)]


def _power(value: int, least: int, most: int) -> int:
    """The power of two that is at least ``value``, within bounds."""
    return min(most, max(least, 1 << (value - 1).bit_length()))


# --- What is there --------------------------------------------------------------------------------------------------------------------


def _kernels() -> ModuleType:
    return importlib.import_module("rdc.ops._triton_kernels")


def _interpreted(kernels: ModuleType) -> bool:
    return type(kernels.residuals).__name__ == "InterpretedFunction"


def why_not(device_type: str) -> str:
    """Why the Triton kernels do not run on ``device_type``; empty if they do. ``RDC_DISABLE_TRITON=1``: as if there were no Triton."""
    if os.environ.get("RDC_DISABLE_TRITON", "") not in ("", "0"):
        return f"RDC_DISABLE_TRITON={os.environ['RDC_DISABLE_TRITON']} is set"
    try:
        kernels = _kernels()
    except ImportError as error:
        return f"triton cannot be imported ({error}); CUDA builds of torch come with it"
    if _interpreted(kernels):
        return ""
    if device_type != "cuda":
        return f"the kernels are for CUDA devices; got {device_type!r} (TRITON_INTERPRET=1 runs them slowly on a CPU)"
    return _why_not_cuda()


@functools.cache
def _why_not_cuda() -> str:
    if torch.version.hip:
        return "this torch runs on ROCm; the kernels were made for CUDA"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return ""


# --- Launches -------------------------------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """Sizes of a call: tile, tiles of pixels, launches (width and number of groups of outputs), groups that a target's gradient is
    summed from, columns of R (a multiple of 8) and of each of its planes."""

    precision: str
    tile: Tile
    tiles: int
    launches: list[tuple[int, int]]
    target_groups: int
    line: int
    plane: int
    rows_at_once: int


def _plan(h: Tensor, weight: Tensor, target: Tensor, backward: bool) -> _Plan:
    channels, pixels, c = target.shape[1], h.shape[2] * h.shape[3], h.shape[1]
    classes = weight.shape[0] // channels
    precision = "ieee"
    if h.dtype == torch.bfloat16:
        precision = "bfloat16"
    elif torch.backends.cudnn.allow_tf32:
        precision = "tf32"
    tile = _FORCED[-1] if _FORCED else _fitting(default_tile(pixels, c, classes, channels, precision, backward), h)
    plane = (classes + 7) // 8 * 8
    line = channels * plane if tile.planes else (classes * channels + 7) // 8 * 8
    if tile.planes:
        target_groups = -(-classes // tile.outputs)
        launches = [(tile.outputs, target_groups * channels)]
    else:
        launches = _groups(classes * channels, tile.outputs)
        target_groups = sum(groups for _, groups in launches)
    row_bytes = pixels * h.element_size() * (max(c, line) if backward else c)
    at_once = max(1, BYTES_AT_ONCE // row_bytes)
    return _Plan(precision, tile, -(-pixels // tile.pixels), launches, target_groups, line, plane, at_once)


def _fitting(tile: Tile, h: Tensor) -> Tile:
    """Fewer stages where the device has little shared memory."""
    if h.device.type != "cuda":
        return tile
    most = getattr(torch.cuda.get_device_properties(h.device), "shared_memory_per_block_optin", 99 * 1024)
    stage = (tile.pixels + tile.outputs) * tile.channels * h.element_size()
    return tile._replace(stages=max(1, min(tile.stages, (most - 2048) // stage)))


def _copy(source: Tensor, result: Tensor) -> None:
    """result <- source, [n, c, H, W] in any layouts."""
    n, c, height, width = source.shape
    flat = all(t.stride(2) == width * t.stride(3) for t in (source, result))
    grid = (n, -(-height * width // 64), -(-c // 64))
    _kernels().transpose[grid](
        source, result, *source.stride(), *result.stride(), width, height * width, c, FLAT=flat, PIXELS=64, CHANNELS=64,
        num_warps=4,
    )  # fmt: skip


def _channels_last(h: Tensor) -> Tensor:
    """h with adjacent channels: itself where that is so, else a copy."""
    near = h.shape[2] * h.stride(2) + h.shape[3] * h.stride(3) < 2**31  # the kernel counts in 32 bits within a row
    if near and (h.stride(1) == 1 or h.shape[1] == 1):
        return h
    result = torch.empty_like(h, memory_format=torch.channels_last)
    _copy(h, result)
    return result


def _launch(plan: _Plan, h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, **out: Tensor | None) -> None:
    """Run the kernel over the rows of h; ``out`` has its results, or None, and ``coefficient`` where one of them needs it."""
    n, c, height, width = h.shape
    channels, tile = target.shape[1], plan.tile
    coefficient, results = out.pop("coefficient", None), ("squares", "sums", "towards_target", "scaled")
    steps = -(-c // tile.channels)
    kernels, first_output, first_group = _kernels(), 0, 0
    for across, groups in plan.launches:
        kernels.residuals[(n * plan.tiles * groups,)](
            h, weight, bias, target,
            bias if coefficient is None else coefficient,
            *(bias if out.get(name) is None else out[name] for name in results),
            h.stride(0), h.stride(2), h.stride(3), height, width, c, weight.shape[1] // channels, plan.line, plan.plane, channels,
            plan.tiles, groups, first_output, first_group, plan.target_groups, tile.planes,
            *(out.get(name) is not None for name in results),
            steps, steps * tile.channels == c, "tf32" if plan.precision == "tf32" else "ieee",
            plan.precision == "ieee", h.dtype == torch.bfloat16 and _interpreted(kernels),
            tile.pixels, across, tile.channels,
            num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
        )  # fmt: skip
        first_output, first_group = first_output + across * groups, first_group + groups


def _taps(weight: Tensor) -> Tensor:
    """[K*C, c, 3, 3] -> [9, K*C, c]."""
    return weight.permute(2, 3, 0, 1).reshape(9, weight.shape[0], weight.shape[1]).contiguous()


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _chunks(rows: int, at_once: int) -> list[slice]:
    return [slice(first, min(first + at_once, rows)) for first in range(0, rows, at_once)]


# --- Ops ------------------------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("rdc::multihead_loss_triton", mutates_args=(), device_types=("cpu", "cuda"))
def forward_op(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
    """Loss [N, K], float32."""
    rows, levels, channels = h.shape[0], level_weight.shape[0], target.shape[1]
    outputs = weight.shape[0]
    classes = outputs // channels
    if not rows:
        return empty_loss(h, weight, target, level_weight)
    plan, taps, bias, target = _plan(h, weight, target, False), _taps(weight), bias.contiguous(), target.contiguous()
    squares = torch.empty(rows, plan.tiles, classes, channels, dtype=torch.float32, device=h.device)
    with _on(h.device):
        for part in _chunks(rows, plan.rows_at_once):
            _launch(plan, _channels_last(h[part]), taps, bias, target[part], squares=squares[part])
    row_loss = squares.sum((1, 3), dtype=torch.float64).view(-1, levels, classes)
    return (row_loss * level_weight[:, None]).sum(1).to(torch.float32)


@forward_op.register_fake
def _(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
    return empty_loss(h, weight, target, level_weight)


@torch.library.custom_op("rdc::multihead_loss_triton_backward", mutates_args=(), device_types=("cpu", "cuda"))
def backward_op(
    grad_loss: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    level_weight: Tensor,
    wanted: List[bool],  # noqa: UP006 - torch 2.6 reads no list[...] in an op's signature
) -> List[Tensor]:  # noqa: UP006
    """Gradients of (h, weight, bias, target, level_weight); those not wanted come back with no elements and cost nothing."""
    grads = empty_gradients(h, weight, bias, target, level_weight, wanted)
    if not grad_loss.numel() or not any(wanted):
        return [g.zero_() for g in grads]
    rows, levels, channels = h.shape[0], level_weight.shape[0], target.shape[1]
    upstream = grad_loss.to(torch.float32)
    coefficient = (2 * level_weight[:, None] * upstream[:, None]).reshape(rows, -1).contiguous()
    plan, taps, bias, target = _plan(h, weight, target, True), _taps(weight), bias.contiguous(), target.contiguous()
    totals = _Totals(plan, h, weight, target, grads, wanted)
    with _on(h.device):
        for part in _chunks(rows, plan.rows_at_once):
            totals.add(part, taps, bias, coefficient[part])
    if wanted[1]:
        assert totals.weight is not None
        grads[1].copy_(_restored(totals.weight, plan, channels, weight.shape[0]))
    if totals.sums is not None:
        summed = totals.sums.sum(1, dtype=torch.float64).view(rows, -1, channels)
        grads[2].copy_((summed * coefficient[:, :, None]).sum(0).flatten())
    if totals.squares is not None:
        row_loss = totals.squares.view(rows, plan.tiles, -1, channels).sum((1, 3), dtype=torch.float64)
        grads[4].copy_((row_loss.view(-1, levels, upstream.shape[1]) * upstream[:, None]).sum((0, 2)))
    return grads


class _Totals:
    """Adds up a backward pass, one chunk of rows after the other."""

    def __init__(
        self, plan: _Plan, h: Tensor, weight: Tensor, target: Tensor, grads: list[Tensor], wanted: list[bool]
    ) -> None:
        self.plan, self.h, self.target, self.grads, self.wanted = plan, h, target, grads, wanted
        empty: dict[str, Any] = {"dtype": torch.float32, "device": h.device}
        shape = (h.shape[0], plan.tiles, weight.shape[0])
        self.sums = torch.empty(shape, **empty) if wanted[2] else None
        self.squares = torch.empty(shape, **empty) if wanted[4] else None
        self.arranged = _arranged(weight, plan, target.shape[1]) if wanted[0] or wanted[1] else None
        self.weight: Tensor | None = None

    def add(self, part: slice, taps: Tensor, bias: Tensor, coefficient: Tensor) -> None:
        """The rows of ``part``."""
        plan, target = self.plan, self.target[part]
        h = _channels_last(self.h[part])
        n, _, height, width = h.shape
        scaled = towards = None
        if self.arranged is not None:
            dtype = torch.float32 if _interpreted(_kernels()) else h.dtype  # the interpreter cuts where it should round
            scaled = torch.empty(n, height, width, plan.line, dtype=dtype, device=h.device)
        if self.wanted[3]:
            towards = torch.empty(n, plan.target_groups, *target.shape[1:], dtype=torch.float32, device=h.device)
        sums, squares = (None if v is None else v[part] for v in (self.sums, self.squares))
        _launch(
            plan, h, taps, bias, target,
            coefficient=coefficient, squares=squares, sums=sums, towards_target=towards, scaled=scaled,
        )  # fmt: skip
        if towards is not None:
            self.grads[3][part] = towards.sum(1)
        if scaled is not None:
            self._convolve(part, scaled.permute(0, 3, 1, 2).to(h.dtype), h)

    def _convolve(self, part: slice, scaled: Tensor, h: Tensor) -> None:
        one, mask = [1, 1], [self.wanted[0], self.wanted[1], False]
        features, weight, _ = torch.ops.aten.convolution_backward(
            scaled, h, self.arranged, None, one, one, one, False, [0, 0], 1, mask
        )
        if mask[0]:
            _copy(features, self.grads[0][part])
        if mask[1]:
            self.weight = weight.float() if self.weight is None else self.weight.add_(weight)


def _arranged(weight: Tensor, plan: _Plan, channels: int) -> Tensor:
    """Weights in the order of R's columns, zeros where it has more: [line, c, 3, 3]."""
    if plan.tile.planes:
        weight = weight.unflatten(0, (-1, channels)).transpose(0, 1)  # [C, K, c, 3, 3]
        weight = F.pad(weight, (0, 0) * 3 + (0, plan.plane - weight.shape[1])).flatten(0, 1)
    else:
        weight = F.pad(weight, (0, 0) * 3 + (0, plan.line - weight.shape[0]))
    return weight.contiguous(memory_format=torch.channels_last)


def _restored(weight: Tensor, plan: _Plan, channels: int, outputs: int) -> Tensor:
    """The other way round."""
    if plan.tile.planes:
        weight = weight.unflatten(0, (channels, -1))[:, : outputs // channels].transpose(0, 1).flatten(0, 1)
        return weight
    return weight[:outputs]


@backward_op.register_fake
def _(
    grad_loss: Tensor, h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor, wanted: list[bool]
) -> list[Tensor]:
    return empty_gradients(h, weight, bias, target, level_weight, wanted)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(gradients(backward_op, ctx.needs_input_grad, grad_loss, *ctx.saved_tensors))


forward_op.register_autograd(_backward, setup_context=_save_inputs)
backward_op.register_autograd(double_backward, setup_context=save_backward_inputs)
