"""The part "op" of gpu.py: multihead_loss in Triton (several tiles) and, if asked, in CUDA, against eager and compiled torch.

Every contender's results are compared with eager torch's before it is timed; one that differs or fails is recorded and not timed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device_timing import precision, roofline
from benchmarks.gpu.run import Run
from rdc.ops import _native, multihead_triton
from rdc.ops.multihead_loss import multihead_loss
from rdc.ops.multihead_reference import multihead_loss_reference
from rdc.ops.multihead_triton import Tile

__all__ = ["CASES", "op", "tiles"]

#: K, C, c, side; 32 images at 8 levels
CASES = {
    "K10 c64": (10, 3, 64, 32),
    "K10 c128": (10, 3, 128, 32),
    "K100 c64": (100, 3, 64, 32),
    "K100 c128": (100, 3, 128, 32),
    "K1000 c128": (1000, 3, 128, 32),
}
#: largest relative difference (2-norm) from eager torch in the same precision
MOST = {"tf32": 4e-3, "bfloat16": 2e-2}

Call = Callable[[], list[Tensor]]


def op(run: Run) -> dict[str, Any]:
    """multihead_loss: forward, and forward with all gradients."""
    cases = {"K3 c8 8x8": (3, 2, 8, 8)} if run.dry else {f"{name} 32x32": CASES[name] for name in run.cases}
    rows = [
        _case(run, name, case, kind, work)
        for name, case in cases.items()
        for kind in ("tf32", "bfloat16")
        for work in ("forward", "forward + backward")
        if run.left() > 5
    ]
    found = []
    for ours in ("triton", "native"):
        best = [row["speedup"][ours] for row in rows if ours in row["speedup"]]
        if best:
            found.append(f"{ours} / best of torch: {min(best):.2f}x to {max(best):.2f}x")
    return {"line": ", ".join(found) or "neither triton nor native", "rows": rows}


def tiles(default: Tile, backward: bool) -> list[Tile]:
    """The default and what is tried beside it; in a backward pass only what has registers left for its sums."""
    step, across = default.channels, default.outputs
    if default.pixels < 128 or across < 64:
        others = [Tile(64, across, step, 4, 4, False), Tile(128, across, step, 4, 1, False)]
        forward = [Tile(256, across, step, 8, 3, False), Tile(128, across, step, 4, 5, False)]
    else:
        others = [Tile(128, 128, step, 8, 3, planes) for planes in (False, True)] + [Tile(256, 64, step, 8, 3, False)]
        forward = [Tile(128, 64, step, 4, 4, False), Tile(128, 256, step, 8, 3, True)]
    return [default, *others, *(() if backward else forward)]


def _in_type(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
    """The reference with its convolution in the type of h: what torch does fastest in bfloat16."""
    prediction = F.conv2d(h, weight, bias, padding=1).unflatten(1, (-1, target.shape[1])).float()
    row_loss = (prediction - target[:, None].float()).square().sum((2, 3, 4))
    return (row_loss.unflatten(0, (-1, len(level_weight))) * level_weight[:, None]).sum(1)


def _case(run: Run, name: str, case: tuple[int, ...], kind: str, work: str) -> dict[str, Any]:
    classes, channels, width, side = case
    images, levels = (2, 2) if run.dry else (32, 8)
    make = torch.Generator().manual_seed(0)
    shapes = ((images * levels, width, side, side), (classes * channels, width, 3, 3), (classes * channels,))
    shapes += ((images * levels, channels, side, side),)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    x = [torch.randn(s, generator=make).to(run.device, dtype).requires_grad_(work != "forward") for s in shapes]
    weight = torch.rand(levels, generator=make).to(run.device)

    def call(function: Callable[..., Tensor]) -> Call:
        def once() -> list[Tensor]:
            loss = function(*x, weight)
            return [loss] if work == "forward" else [loss, *torch.autograd.grad(loss.sum(), x)]

        return once

    contenders = {"eager": call(multihead_loss_reference)}
    if not run.dry:
        torch._dynamo.reset()  # else the ninth shape is not compiled any more, and the others for sizes that vary
        contenders["compile"] = call(torch.compile(multihead_loss_reference))
        if kind == "bfloat16":
            contenders["compile, convolution in bfloat16"] = call(torch.compile(_in_type))
    if run.native and not _native.why_not(run.device.type):
        contenders["native"] = call(lambda *v: multihead_loss(*v, backend="native"))
    flops = 2.0 * images * levels * width * 9 * classes * channels * side**2 * (1 if work == "forward" else 3)
    moved = float(x[0].nbytes + x[3].nbytes) * (1 if work == "forward" else 3)

    def timed(once: Call, truth: list[Tensor] | None) -> dict[str, Any]:
        try:
            differs = None if truth is None else _difference(once(), truth)
            if differs is not None and not differs <= MOST[kind]:
                return {"error": f"differs from eager torch by {differs:.2g}: not timed", "difference": differs}
            seconds = run.measure(once)
        except Exception as error:  # out of memory, or torch.compile lacks something: the others go on
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        top = roofline(seconds["median"], flops, moved, run.peaks(), kind)
        return {**seconds, **top, **({} if differs is None else {"difference": differs})}

    row: dict[str, Any] = {"case": name, "precision": kind, "work": work}
    with precision(kind, run.device, cast=False):
        truth = [v.detach() for v in contenders["eager"]()]
        for who, once in contenders.items():
            row[who] = timed(once, None if who == "eager" else truth)
        pixels = side * side
        default = multihead_triton.default_tile(pixels, width, classes, channels, kind, work != "forward")
        row["triton"] = _triton(run, call(lambda *v: multihead_loss(*v, backend="triton")), default, truth, timed)
    torch_best = min(
        (v["median"] for who, v in row.items() if who[:5] in ("eager", "compi") and "median" in v), default=0
    )
    row["speedup"] = {
        who: round(torch_best / row[who]["median"], 3)
        for who in ("triton", "native")
        if torch_best and "median" in row.get(who, {})
    }
    return row


def _triton(
    run: Run, once: Call, default: Tile, truth: list[Tensor], timed: Callable[[Call, list[Tensor]], dict[str, Any]]
) -> dict[str, Any]:
    """The fastest tile's row, with its name and every tile's milliseconds or error."""
    if reason := multihead_triton.why_not(run.device.type):
        return {"error": reason}
    tried, rows = {}, []
    for tile in tiles(default, len(truth) > 1):
        if tried and run.left() < 5:
            break
        with multihead_triton.tile_of(tile) if tile != default else contextlib.nullcontext():
            row = {"tile": tile._asdict(), **timed(once, truth)}
        name = f"{tile.pixels}x{tile.outputs}x{tile.channels}, {tile.warps} warps, {tile.stages} stages"
        name += (", planes" if tile.planes else "") + (f", {tile.registers} registers" if tile.registers else "")
        name += " (default)" if tile == default else ""
        tried[name] = row.get("error") or 1e3 * row["median"]
        rows.append(row)
    best = min(rows, key=lambda row: row.get("median", float("inf")))
    return {**best, "tried": tried}


def _difference(values: list[Tensor], truth: list[Tensor]) -> float:
    """Largest of the relative differences."""
    found = [
        ((v.detach().double() - t.double()).norm() / t.double().norm()) for v, t in zip(values, truth, strict=True)
    ]
    return float(f"{torch.stack(found).max().item():.3g}")
