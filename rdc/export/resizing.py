"""Resizing of images as ONNX nodes: every kind is linear in rows and in columns, so it is a matrix on either side.

The matrices are what PyTorch's own call makes of unit vectors; antialiasing and cubic filters are then no cases of their own,
and the gradient is the product with the transposed matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rdc.errors import ConfigError

if TYPE_CHECKING:
    from rdc.export.translate import Translator

__all__ = ["RESIZING"]

_KINDS = {
    "upsample_nearest2d": False,
    "_upsample_nearest_exact2d": False,
    "upsample_bilinear2d": True,
    "_upsample_bilinear2d_aa": True,
    "upsample_bicubic2d": True,
    "_upsample_bicubic2d_aa": True,
}  # name -> whether it can align corners


def _matrix(kind: str, before: int, after: int, corners: bool, scale: float | None) -> np.ndarray:
    """[after, before]: what the call does to columns of ``before`` pixels."""
    call, unit = getattr(torch.ops.aten, kind).default, torch.eye(before)[None, None]
    options = (corners, scale, None) if _KINDS[kind] else (scale, None)
    found: np.ndarray = call(unit, [after, before], *options)[0, 0].numpy()
    return found


def _resized(kind: str, backward: bool, t: Translator, node: Any) -> str:
    """rows x columns^T, or of a gradient rows^T g columns."""
    whole, result = node.args[0], node
    if backward:
        whole, result = result, whole
    before, after = t.dims(whole)[2:], t.dims(result)[2:]
    if any(moving for _, moving in (*before, *after)):
        raise ConfigError("export: resizing over images is not translated")
    options = list(node.args[3 if backward else 2 :])
    corners = bool(options.pop(0)) if _KINDS[kind] and options else False
    scales = [*options, None, None][:2]
    rows, columns = (
        _matrix(kind, size, wanted, corners, scale)
        for (size, _), (wanted, _), scale in zip(before, after, scales, strict=True)
    )
    if backward:
        rows, columns = rows.T, columns.T
    (x,) = t.args(node, 1)
    return t.graph.op("MatMul", t.graph.op("MatMul", rows, x), np.ascontiguousarray(columns.T))


def _picked(backward: bool, t: Translator, node: Any) -> str:
    """x[:, :, rows, columns], by which older PyTorch writes nearest neighbours; and its gradient, sums over equal places."""
    base, places = node.args[0], node.args[1]
    if len(places) != 4 or places[:2] != [None, None] or any(place not in t.known for place in places[2:]):
        raise ConfigError(
            "export: indexing by tensors, other than of constant rows and columns of images, is not translated"
        )
    rows, columns = (
        np.eye(size, dtype=np.float32)[t.known[place].flatten().numpy()]
        for place, (size, _) in zip(places[2:], t.dims(base)[2:], strict=True)
    )
    if tuple(t.known[places[2]].shape) != (len(rows), 1) or t.known[places[3]].ndim != 1:
        raise ConfigError("export: indexing by rows and columns that are no grid is not translated")
    if not backward:
        return t.graph.op("MatMul", t.graph.op("MatMul", rows, t.args(node, 1)[0]), np.ascontiguousarray(columns.T))
    whole, _, grad, adds = t.args(node, 4, default=False)
    if not adds:
        raise ConfigError("export: writing to rows and columns is not translated; only the gradient of reading them is")
    spread = t.graph.op("MatMul", t.graph.op("MatMul", np.ascontiguousarray(rows.T), grad), columns)
    return t.graph.op("Add", whole, spread)


#: aten overload -> function
RESIZING: dict[str, Callable[[Translator, Any], Any]] = {
    **{
        f"aten.{kind}{'_backward' * backward}.default": functools.partial(_resized, kind, backward)
        for kind in _KINDS
        for backward in (False, True)
    },
    "aten._unsafe_index.Tensor": functools.partial(_picked, False),
    "aten._unsafe_index_put.default": functools.partial(_picked, True),
}
